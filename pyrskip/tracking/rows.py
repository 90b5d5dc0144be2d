"""metrics.csv: one file a training, however often it is resumed, that loses no row to a full disk."""

import csv
import io
import os
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.loggers.csv_logs import ExperimentWriter
from pytorch_lightning.loggers.logger import rank_zero_experiment  # type: ignore[attr-defined]

from pyrskip.files import write_whole


class Rows(CSVLogger):
    """Lightning's, but it goes on with an earlier process's file instead of deleting it, and is written at
    every row."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory, name="csv", version="", flush_logs_every_n_steps=1)

    @property
    @rank_zero_experiment
    def experiment(self) -> ExperimentWriter:
        if self._experiment is None:
            self._experiment = _Writer(self.log_dir)
        return self._experiment  # type: ignore[return-value]


class _Writer(ExperimentWriter):
    def _check_log_dir_exists(self) -> None:
        """Lightning deletes the earlier process's file here."""
        self._continued = Path(self.metrics_file_path).exists()

    def save(self) -> None:
        """Write the new rows whole or not at all; what could not be written is tried again with the next
        row."""
        if not self.metrics:
            return
        path = Path(self.metrics_file_path)
        keys = sorted({*self.metrics_keys, *(key for row in self.metrics for key in row)})
        if self._continued or keys != self.metrics_keys:
            old = _read(path) if path.exists() else []
            if self._continued:
                # steps after the checkpoint are run again, and logged again
                old = [
                    row for row in old if row["step"].isdigit() and int(row["step"]) < self.metrics[0]["step"]
                ]
                keys = sorted({*keys, *(key for row in old[:1] for key in row)})
            write_whole(path, _lines(keys, [*old, *self.metrics], header=True))
        else:
            end = path.stat().st_size
            try:
                with path.open("a", newline="") as file:
                    file.write(_lines(keys, self.metrics))
            except OSError:
                os.truncate(path, end)
                raise
        self.metrics_keys, self.metrics, self._continued = keys, [], False


def _read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return [
            {key: value or "" for key, value in row.items() if key is not None}
            for row in csv.DictReader(file)
        ]


def _lines(keys: list[str], rows: list[Any], header: bool = False) -> str:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, fieldnames=keys)
    if header:
        writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
