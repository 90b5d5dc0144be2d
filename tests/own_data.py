"""Small sets in the formats that users bring, for tests of converters and of the docs."""

import base64
import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image


def picture(number: int, kind: str = "PNG") -> bytes:
    """An image file whose bytes differ for every number."""
    content = io.BytesIO()
    Image.new("RGB", (16 + number % 50, 16 + number // 50), (number % 256, 100, 7)).save(content, kind)
    return content.getvalue()


def turns(*pairs: tuple[str, str]) -> list[dict[str, str]]:
    spoken = []
    for number, (question, answer) in enumerate(pairs):
        spoken.append({"from": "human", "value": f"<image>\n{question}" if number == 0 else question})
        spoken.append({"from": "gpt", "value": answer})
    return spoken


def llava_row(number: int) -> dict[str, Any]:
    name = f"coco/train2017/{number:012d}.jpg" if number % 2 else f"vg/VG_100K/{number}.png"
    asked = [
        (f"what is number {number}?", "a square"),
        ("which colour is it?\nAnswer with a single word.", f"red {number % 3}"),
    ]
    return {"id": f"{number:012d}", "image": name, "conversations": turns(*asked[: 1 + number % 2])}


def write_llava(directory: Path, images: int = 24, rows: Sequence[Any] | None = None) -> Path:
    """`directory`/my_data.json and the images that it names, below `directory`/images."""
    rows = [llava_row(i) for i in range(images)] if rows is None else rows
    for number, row in enumerate(rows):
        name = row.get("image") if isinstance(row, dict) else None
        if isinstance(name, str):
            path = directory / "images" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(picture(number, "JPEG" if name.endswith("jpg") else "PNG"))
    (directory / "images").mkdir(parents=True, exist_ok=True)
    text_only = {"id": "text", "conversations": turns(("hello?", "hello!"))}
    (directory / "my_data.json").write_text(json.dumps([*rows, text_only]))
    return directory / "my_data.json"


def write_parquet(path: Path, rows: Sequence[dict[str, Any]], group: int = 3) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist(list(rows)), path, row_group_size=group)
    return path


def embedded(content: bytes) -> dict[str, Any]:
    """An image as the datasets library stores it."""
    return {"bytes": content, "path": None}


def write_tsv(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    names = list(dict.fromkeys(name for row in rows for name in row))
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, names, delimiter="\t", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return path


def encoded(content: bytes) -> str:
    return base64.b64encode(content).decode()
