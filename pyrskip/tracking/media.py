"""Pictures, tables, histograms and charts, and how each tracker takes them. CSV takes none: the report shows
them.

What is sent is bounded, whatever is asked: PICTURES images, ROWS lines of a table. Everything is sent from
the first rank.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image
from plotly.graph_objects import Figure

from pyrskip.tracking.guard import Guard

PICTURES, ROWS = 12, 128


@dataclass(frozen=True)
class Pictures:
    """images with as many captions."""

    images: Sequence[Image.Image]
    captions: Sequence[str]


@dataclass(frozen=True)
class Table:
    """rows of cells: text, numbers, or images."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]


@dataclass(frozen=True)
class Histogram:
    values: Sequence[float]


@dataclass(frozen=True)
class Chart:
    """An interactive plot."""

    figure: Figure


Media = Pictures | Table | Histogram | Chart


def send(loggers: Sequence[Guard], media: Mapping[str, Media], step: int) -> None:
    """Send media by name (`media/...`) to every logger that can show them."""
    bounded = {name: _bounded(content) for name, content in media.items()}
    for guard in loggers:
        sender = SENDERS.get(type(guard.inner).__name__)
        if sender is not None:
            guard.attempt(sender, guard.inner, bounded, step)


def _bounded(content: Media) -> Media:
    if isinstance(content, Pictures):
        return Pictures(content.images[:PICTURES], content.captions[:PICTURES])
    return Table(content.columns, content.rows[:ROWS]) if isinstance(content, Table) else content


def _to_wandb(logger: Any, media: Mapping[str, Media], step: int) -> None:
    import wandb

    def converted(content: Media) -> Any:
        if isinstance(content, Pictures):
            return [wandb.Image(i, caption=c) for i, c in zip(content.images, content.captions, strict=True)]
        if isinstance(content, Table):
            rows = [
                [wandb.Image(cell) if isinstance(cell, Image.Image) else cell for cell in row]
                for row in content.rows
            ]
            return wandb.Table(columns=list(content.columns), data=rows)
        return (
            wandb.Histogram(content.values)
            if isinstance(content, Histogram)
            else wandb.Plotly(content.figure)
        )

    logger.experiment.log(
        {name: converted(content) for name, content in media.items()} | {"trainer/global_step": step}
    )


def _to_tensorboard(logger: Any, media: Mapping[str, Media], step: int) -> None:
    """TensorBoard has no interactive plots; those are left out."""
    for name, content in media.items():
        if isinstance(content, Pictures):
            for number, (image, caption) in enumerate(zip(content.images, content.captions, strict=True)):
                logger.experiment.add_image(
                    f"{name}/{number}", np.asarray(image.convert("RGB")), step, dataformats="HWC"
                )
                logger.experiment.add_text(f"{name}/{number}", caption, step)
        elif isinstance(content, Table):
            logger.experiment.add_text(name, _markdown(content), step)
        elif isinstance(content, Histogram):
            logger.experiment.add_histogram(name, np.asarray(content.values), step)


def _to_mlflow(logger: Any, media: Mapping[str, Media], step: int) -> None:
    """Artifacts of the run; a later step's replace an earlier one's."""
    client, run = logger.experiment, logger.run_id
    for name, content in media.items():
        if isinstance(content, Pictures):
            for number, image in enumerate(content.images):
                client.log_image(run, image, artifact_file=f"{name}/{number}.png")
            client.log_dict(run, dict(enumerate(content.captions)), f"{name}/captions.json")
        elif isinstance(content, Table):
            keep = [
                i
                for i in range(len(content.columns))
                if not any(isinstance(row[i], Image.Image) for row in content.rows)
            ]
            rows = [[row[i] for i in keep] for row in content.rows]
            client.log_dict(
                run, {"columns": [content.columns[i] for i in keep], "data": rows}, f"{name}.json"
            )
        elif isinstance(content, Histogram):
            counts, edges = np.histogram(content.values)
            client.log_dict(
                run, {"step": step, "counts": counts.tolist(), "edges": edges.tolist()}, f"{name}.json"
            )
        else:
            client.log_text(run, content.figure.to_html(include_plotlyjs=True), f"{name}.html")


def _markdown(table: Table) -> str:
    keep = [
        i for i in range(len(table.columns)) if not any(isinstance(row[i], Image.Image) for row in table.rows)
    ]
    lines = [" | ".join(table.columns[i] for i in keep), " | ".join("---" for _ in keep)]
    return "\n".join(
        [*lines, *(" | ".join(str(row[i]).replace("|", "\\|") for i in keep) for row in table.rows)]
    )


SENDERS = {"WandbLogger": _to_wandb, "TensorBoardLogger": _to_tensorboard, "MLFlowLogger": _to_mlflow}
