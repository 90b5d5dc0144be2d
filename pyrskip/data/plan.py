"""What a conversion has found and what it has yet to write, in a database beside the shards: memory stays
flat however much there is, and a conversion that was killed goes on with the file and the shard that it was
at."""

import hashlib
import json
import sqlite3
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

from pyrskip.data.convert.rows import Found, Row, Skipped
from pyrskip.data.faults import Fault
from pyrskip.data.shards import SPLITS, DataConfig, Shard
from pyrskip.sample import Question

TABLES = """
CREATE TABLE IF NOT EXISTS files (path TEXT, part TEXT, rows INTEGER, PRIMARY KEY (path, part));
CREATE TABLE IF NOT EXISTS images (
    number INTEGER PRIMARY KEY, key TEXT UNIQUE, part TEXT, place TEXT, split TEXT, shard INTEGER);
CREATE TABLE IF NOT EXISTS questions (image INTEGER, part TEXT, content TEXT);
CREATE TABLE IF NOT EXISTS skipped (reason TEXT PRIMARY KEY, rows INTEGER);
CREATE TABLE IF NOT EXISTS faults (shard TEXT, key TEXT, reason TEXT, lost INTEGER, asked INTEGER);
CREATE TABLE IF NOT EXISTS shards (split TEXT, number INTEGER, content TEXT, PRIMARY KEY (split, number));
CREATE INDEX IF NOT EXISTS questions_of ON questions (image);
CREATE INDEX IF NOT EXISTS images_of ON images (split, shard);
"""

_to_json = json.JSONEncoder(ensure_ascii=False).encode


class Planned(NamedTuple):
    """An image that is to be written. place: what its format finds it by."""

    key: str
    place: str
    questions: tuple[Question, ...]


class Plan:
    """A part is 'train' or 'test', as the user's files have it; a split one of SPLITS."""

    def __init__(self, path: Path) -> None:
        self._base = sqlite3.connect(path)
        # what a killed process has committed is kept; what a power cut spoils is converted again
        self._base.executescript("PRAGMA synchronous = OFF; PRAGMA locking_mode = EXCLUSIVE;" + TABLES)

    def close(self) -> None:
        self._base.close()

    def listed(self, path: str, part: str) -> bool:
        """Whether a file has been listed to its end."""
        return bool(
            self._base.execute("SELECT 1 FROM files WHERE path = ? AND part = ?", (path, part)).fetchone()
        )

    def note(self, path: str, part: str, rows: Iterable[Row]) -> None:
        """Note all rows of a file, or on any error none."""
        with self._base as base:
            count = 0
            for row in rows:
                count += row.lost if isinstance(row, Fault) else 1
                if isinstance(row, Found):
                    self._found(row, part)
                elif isinstance(row, Skipped):
                    self._skip(row.reason)
                else:
                    self.fault(row)
            base.execute("INSERT INTO files VALUES (?, ?, ?)", (path, part, count))

    def fault(self, fault: Fault, asked: bool = False) -> None:
        """asked: what it costs is among `questions`."""
        self._base.execute(
            "INSERT INTO faults VALUES (:shard, :key, :reason, :lost, :asked)",
            asdict(fault) | {"asked": asked},
        )

    def undivided(self) -> bool:
        return self._free() > 0

    def divide(self, config: DataConfig) -> None:
        """Give every image a split and a shard: a function of the set of keys and of the seed, as for any
        other source.

        An image that a test file has as well is left out of training. Without test files, a share of the
        images is test.
        """
        files = config.files
        self._base.create_function("shuffled", 1, lambda key: _digest(config.seed, key), deterministic=True)
        self._base.create_function(
            "shuffled_test", 1, lambda key: _digest(config.seed, f"test/{key}"), deterministic=True
        )
        with self._base as base:
            base.execute("UPDATE images SET split = NULL, shard = NULL")
            self._leave_out()
            if not files.test:
                self._assign("test", "shuffled_test(key)", round(files.test_fraction * self._free()))
            else:
                base.execute("UPDATE images SET split = 'test' WHERE part = 'test' AND split IS NULL")
            count = self._free()
            for split, share in (("gate", config.gate_fraction), ("val", config.val_fraction)):
                self._assign(split, "shuffled(key)", round(share * count))
            base.execute("UPDATE images SET split = 'train' WHERE split IS NULL")
            if config.limit is not None:
                base.execute(
                    "UPDATE images SET split = '' WHERE number IN (SELECT number FROM (SELECT number, "
                    "row_number() OVER "
                    "(PARTITION BY split ORDER BY shuffled(key)) AS place FROM images) WHERE place > ?)",
                    (config.limit,),
                )
            base.execute(
                "UPDATE images SET shard = found.shard FROM (SELECT number, (row_number() OVER "
                "(PARTITION BY split ORDER BY number) - 1) / ? AS shard FROM images) AS found "
                "WHERE found.number = images.number",
                (config.samples_per_shard,),
            )

    def shards(self) -> list[tuple[str, int]]:
        """Split and number of each shard that is to be written."""
        rows = self._base.execute(
            "SELECT DISTINCT split, shard FROM images WHERE split != '' ORDER BY split, shard"
        ).fetchall()
        written = set(self._base.execute("SELECT split, number FROM shards").fetchall())
        return [row for row in rows if row not in written]

    def samples(self, split: str, number: int) -> Iterator[Planned]:
        """Of a shard."""
        images = self._base.execute(
            "SELECT number, part, key, place FROM images WHERE split = ? AND shard = ? ORDER BY number",
            (split, number),
        )
        for image, part, key, place in images.fetchall():
            found = self._base.execute(
                "SELECT content FROM questions WHERE image = ? AND part = ? ORDER BY rowid", (image, part)
            )
            yield Planned(key, place, tuple(_question(content) for (content,) in found))

    def wrote(self, split: str, number: int, shard: Shard | None, faults: Iterable[Fault]) -> None:
        """shard: None where no image of it could be read."""
        with self._base as base:
            for fault in faults:
                self.fault(fault, asked=True)
            content = None if shard is None else json.dumps(asdict(shard))
            base.execute("INSERT INTO shards VALUES (?, ?, ?)", (split, number, content))

    def written(self) -> dict[str, list[Shard]]:
        rows = self._base.execute(
            "SELECT split, content FROM shards WHERE content NOT NULL ORDER BY split, number"
        ).fetchall()
        return {
            split: [Shard(**json.loads(content)) for of, content in rows if of == split] for split in SPLITS
        }

    def rows(self) -> int:
        return int(self._base.execute("SELECT coalesce(sum(rows), 0) FROM files").fetchone()[0])

    def questions(self) -> int:
        """All that the files ask, what cannot be read included: a row of that counts as one."""
        unread = "SELECT coalesce(sum(lost), 0) FROM faults WHERE NOT asked"
        return int(self._base.execute(f"SELECT (SELECT count(*) FROM questions) + ({unread})").fetchone()[0])

    def skipped(self) -> dict[str, int]:
        return dict(self._base.execute("SELECT reason, rows FROM skipped ORDER BY reason").fetchall())

    def faults(self) -> list[Fault]:
        return [
            Fault(*row)
            for row in self._base.execute("SELECT shard, key, reason, lost FROM faults ORDER BY rowid")
        ]

    def _found(self, row: Found, part: str) -> None:
        ((number,),) = self._base.execute(
            # test before train: an image of both is a test image
            "INSERT INTO images (key, part, place) VALUES (?1, ?2, ?3) ON CONFLICT (key) DO UPDATE "
            "SET place = coalesce(place, ?3), part = min(part, ?2) RETURNING number",
            (row.image, part, row.place),
        ).fetchall()
        contents = [(number, part, _to_json(vars(question))) for question in row.questions]
        self._base.executemany("INSERT INTO questions VALUES (?, ?, ?)", contents)
        for fault in row.faults:
            self.fault(fault)

    def _skip(self, reason: str, rows: int = 1) -> None:
        self._base.execute(
            "INSERT INTO skipped VALUES (?1, ?2) ON CONFLICT (reason) DO UPDATE SET rows = rows + ?2",
            (reason, rows),
        )

    def _leave_out(self) -> None:
        """What no split can hold, counted."""
        without = (
            "NOT EXISTS (SELECT 1 FROM questions AS q WHERE q.image = images.number AND q.part = images.part)"
        )
        unasked = self._base.execute(f"UPDATE images SET split = '' WHERE {without}").rowcount
        missing = self._base.execute(
            "SELECT key, count(*) FROM images AS i JOIN questions AS q "
            "ON q.image = i.number AND q.part = i.part WHERE place IS NULL AND split IS NULL "
            "GROUP BY i.number ORDER BY i.number"
        ).fetchall()
        self._base.execute("UPDATE images SET split = '' WHERE place IS NULL")
        both = (
            "SELECT count(*) FROM questions AS q JOIN images ON images.number = q.image WHERE q.part != "
            "images.part"
        )
        seen = self._base.execute(both).fetchone()[0]
        for key, count in missing:
            self.fault(Fault("images", key, "is in none of the tables of images", count), asked=True)
        for reason, rows in (
            ("images without a question", unasked),
            ("training questions on test images", seen),
        ):
            if rows:
                self._skip(reason, rows)

    def _free(self) -> int:
        """Images that have no split yet."""
        return int(self._base.execute("SELECT count(*) FROM images WHERE split IS NULL").fetchone()[0])

    def _assign(self, split: str, order: str, count: int) -> None:
        self._base.execute(
            f"UPDATE images SET split = ? WHERE number IN "
            f"(SELECT number FROM images WHERE split IS NULL ORDER BY {order} LIMIT ?)",
            (split, count),
        )


def _digest(seed: int, key: str) -> bytes:
    return hashlib.sha256(f"{seed}/{key}".encode()).digest()


def _question(content: str) -> Question:
    plain = json.loads(content)
    plain["answers"], plain["boxes"] = tuple(plain["answers"]), tuple(map(tuple, plain["boxes"]))
    return Question(**plain)
