"""Claims about files of one's own: what they may look like, and what becomes of it.

Right values follow the definitions that the files were published with: LLaVA's train.py and its
Finetune_Custom_Data.md; `messages` and `images` of ms-swift's MessagesPreprocessor and LLaMA-Factory's
SharegptDatasetConverter; VLMEvalKit's image_base.py, image_mcq.py, toliststr and vqa_eval.process_line;
lmms-eval's tables of AI2D, ScienceQA, MMMU, MMBench and SEED-Bench.
"""

import base64
import codecs
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pyrskip.data.conversion import convert
from pyrskip.data.convert import FORMATS, FilesConfig, Found, Row, Skipped, ordered
from pyrskip.data.convert.answers import listed
from pyrskip.data.faults import Fault
from pyrskip.errors import UserError
from tests.conversions import config, report, together
from tests.own_data import embedded, encoded, picture, turns, write_llava, write_parquet, write_tsv

NAN = float("nan")
PICTURE = encoded(picture(1) + bytes(80))


def read(source: str, path: Path, **files: Any) -> list[Row]:
    return list(FORMATS[source](FilesConfig(path=str(path), images="images", **files)).rows(str(path)))


def questions(rows: Sequence[Row]) -> list[tuple[str, tuple[str, ...]]]:
    return [(q.text, q.answers) for row in rows if isinstance(row, Found) for q in row.questions]


def faults(rows: Sequence[Row]) -> list[Fault]:
    within = [fault for row in rows if isinstance(row, Found) for fault in row.faults]
    return [row for row in rows if isinstance(row, Fault)] + within


def rows_of_json(path: Path, *rows: Any) -> list[Row]:
    path.write_text(json.dumps(rows))
    return read("llava", path)


def row_of(number: int) -> dict[str, Any]:
    return {
        "id": f"g{number}",
        "image": f"{number}.png",
        "conversations": turns((f"what is {number}?", f"n{number}")),
    }


# any bytes in one row change the fate of that row alone

JSON_ROWS = [json.dumps(row_of(i)) for i in range(6)]
TSV_HEAD = "index\tquestion\tA\tB\tanswer\timage"
TSV_ROWS = [
    *(f"{i}\twhat is {i}?\tcat\tdog\tA\t{encoded(picture(i) + bytes(80))}" for i in range(4)),
    f'4\t"say ""what is 4?""\nNow"\tcat\tdog\tA\t{encoded(picture(4) + bytes(80))}',
    f'5\twhat is 5? 5"\tcat\t"dog"\tA\t"{encoded(picture(5) + bytes(80))}"',
]
SHAPES: dict[str, tuple[str, list[str], str, str, str]] = {
    "array": ("llava", JSON_ROWS, "[", ", ", "]"),
    "pretty array": ("llava", [json.dumps(row_of(i), indent=1) for i in range(6)], "[\n", ",\n", "\n]\n"),
    "array in an object": ("llava", JSON_ROWS, '{"version": 1, "data": [', ",", "]}"),
    "lines": ("llava", JSON_ROWS, "", "\n", "\n"),
    "tsv": ("tsv", TSV_ROWS, f"{TSV_HEAD}\n", "\n", "\n"),
}
ODD = st.sampled_from(
    [
        b'"',
        b'""',
        b"\\",
        b"{",
        b"}",
        b"[",
        b"]",
        b"]}",
        b"}]}",
        b"\n",
        b"\t",
        b'\t"',
        b"\xff",
        b"\0",
        b",",
        b":",
        b'"\n',
    ]
)


@pytest.mark.parametrize("shape", SHAPES)
@settings(max_examples=2500, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    number=st.integers(0, 5),
    start=st.floats(0, 1),
    length=st.integers(0, 30) | st.integers(0, 400),
    junk=st.lists(ODD | st.binary(max_size=6), max_size=4).map(b"".join),
)
def test_any_bytes_in_one_row_change_the_fate_of_that_row_alone(
    shape: str, number: int, start: float, length: int, junk: bytes, tmp_path: Path
) -> None:
    source, rows, before, between, after = SHAPES[shape]
    contents = [row.encode() for row in rows]
    at = int(start * len(contents[number]))
    contents[number] = contents[number][:at] + junk + contents[number][at + length :]
    path = tmp_path / "file"
    path.write_bytes(before.encode() + between.encode().join(contents) + after.encode())
    found = Counter(text.split("\nA.")[0] for text, _ in questions(read(source, path)))
    whole = ['say "what is 4?"\nNow' if "say" in row else f"what is {i}?" for i, row in enumerate(rows)]
    whole[5] += ' 5"' if source == "tsv" else ""
    assert [found[text] for i, text in enumerate(whole) if i != number] == [1] * 5
