"""Small shards, whole and broken, for tests of what writes and reads them."""

import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from pyrskip.data.shards import SPLITS
from pyrskip.data.sources import Record
from pyrskip.sample import Question
from pyrskip.scenes.config import SceneConfig

QUESTIONS = json.dumps({"questions": [{"text": "is it red?", "answers": ["yes"], "type": "color"}]}).encode()
SMALL_SCENES = SceneConfig(size=256, train=12, test=4)


def png(shade: int = 0, side: int = 8) -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (side, side), (shade, 0, 0)).save(content, "PNG")
    return content.getvalue()


def question_of(key: str) -> Question:
    return Question(f"is it {key.split('-')[1]}?", ("yes", "oui"), "number")


def made_up(split: str) -> Iterator[Record]:
    for i in range({"train": 40, "test": 10}[split]):
        key = f"{split}-{i}"
        yield Record(key, png(i), "png", (question_of(key),))


def write_data(directory: Path, *tars: bytes) -> Path:
    """A data directory whose train split is made of these tars."""
    directory.mkdir(parents=True, exist_ok=True)
    entries = []
    for number, content in enumerate(tars):
        name = f"train-{number:06d}.tar"
        (directory / name).write_bytes(content)
        entries.append({"shard": name, "samples": 1, "questions": 1, "bytes": len(content), "sha256": ""})
    splits = {split: entries if split == "train" else [] for split in SPLITS}
    (directory / "index.json").write_text(json.dumps({"format": 1, "source": "made_up", "splits": splits}))
    return directory


def tar(*members: tuple[str, bytes] | tarfile.TarInfo) -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as file:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                file.addfile(member)
            else:
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
                file.addfile(info, io.BytesIO(member[1]))
    return content.getvalue()


def whole(key: str) -> list[tuple[str, bytes]]:
    return [(f"{key}.json", QUESTIONS), (f"{key}.png", png())]
