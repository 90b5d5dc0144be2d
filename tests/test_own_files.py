"""Claims about files of one's own: what they may look like, and what becomes of it.

Right values follow the definitions that the files were published with: LLaVA's train.py and its
Finetune_Custom_Data.md; `messages` and `images` of ms-swift's MessagesPreprocessor and LLaMA-Factory's
SharegptDatasetConverter; VLMEvalKit's image_base.py, image_mcq.py, toliststr and vqa_eval.process_line;
lmms-eval's tables of AI2D, ScienceQA, MMMU, MMBench and SEED-Bench.
"""

import base64
import codecs
import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from pyrskip.config import Config, to_plain
from pyrskip.config import read as read_config
from pyrskip.data import content
from pyrskip.data.conversion import convert
from pyrskip.data.convert import FORMATS, FilesConfig, Found, Row, Skipped, ordered
from pyrskip.data.convert.answers import listed
from pyrskip.data.faults import Fault
from pyrskip.errors import UserError
from pyrskip.stages import run_stages
from tests.conversions import config, report, together
from tests.own_data import embedded, encoded, picture, turns, write_llava, write_parquet, write_tsv

NAN = float("nan")
PICTURE = encoded(picture(1) + bytes(80))


def read(source: str, path: Path, **files: Any) -> list[Row]:
    images = "images" if source == "llava" else ""
    return list(FORMATS[source](FilesConfig(path=str(path), images=images, **files)).rows(str(path)))


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
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
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


# what is read of a conversation

SAID = [{"role": "user", "content": "<image>what?"}, {"role": "assistant", "content": "a"}]
SHOWN = {"type": "image", "image": "a.png"}
ASKED = [("what?", ("a",))]


@pytest.mark.parametrize(
    "row",
    [
        {"image": ["a.png"], "conversations": turns(("what?", "a"))},
        {"images": ["a.png"], "conversations": turns(("what?", "a"))},
        {"images": "a.png", "conversations": turns(("what?", "a"))},
        {"image": None, "images": [None, "a.png"], "conversations": turns(("what?", "a"))},
        {"images": [{"bytes": None, "path": "a.png"}], "messages": SAID},
        {"image": "a.png", "messages": SAID},
        {"images": ["a.png"], "messages": [{"role": "system", "content": "You see."}, *SAID]},
        {"messages": [{"role": "user", "content": [SHOWN, {"type": "text", "text": "what?"}]}, SAID[1]]},
        {
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {"type": "image_url", "image_url": {"url": "a.png"}},
                        {"type": "text", "text": "what?"},
                    ],
                },
                {"role": "assistant", "content": [{"type": "text", "text": "a"}]},
            ]
        },
        {
            "image": "a.png",
            "conversations": [{"from": "User", "value": "what?"}, {"from": "bot", "value": "a"}],
        },
        # LLaVA's preprocess skips a first turn that is not the human's
        {"image": "a.png", "conversations": [{"from": "gpt", "value": "Hello!"}, *turns(("what?", "a"))]},
    ],
)
def test_pictures_and_turns_are_found_under_all_published_names(row: dict[str, Any], tmp_path: Path) -> None:
    rows = rows_of_json(tmp_path / "rows.json", row)
    assert questions(rows) == ASKED and not faults(rows)
    assert [found.place for found in rows if isinstance(found, Found)] == ["a.png"]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({}, "text only"),
        ({"image": ""}, "an empty picture field"),
        ({"image": None}, "an empty picture field"),
        ({"images": []}, "an empty picture field"),
        ({"image": NAN}, "an empty picture field"),
        ({"images": ["a.png", "b.png"]}, "several images"),
        ({"image": "a.png", "images": ["a.png", "b.png"]}, "several images"),
        ({"image": "a.png", "videos": ["a.mp4"]}, "a video"),
    ],
)
def test_rows_without_one_picture_are_counted_as_what_they_are(
    row: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    assert rows_of_json(tmp_path / "rows.json", row | {"messages": SAID}) == [Skipped(reason)]


@pytest.mark.parametrize(
    ("spoken", "asked", "lost"),
    [
        (turns(("first?", ""), ("second?", "b")), ["second?"], ["no answer to 'first?'"]),
        (turns(("first?", "a"), ("second?", " ")), ["first?"], ["no answer to 'second?'"]),
        (turns(("first?", "a"), ("second?", "b"))[:3], ["first?"], ["no answer to 'second?'"]),
        ([*turns(("first?", "a"))[:1], *turns(("second?", "b"))], ["second?"], ["no answer to 'first?'"]),
        (turns(("first?", "a"), ("", "b")), ["first?"], ["no question to the answer 'b'"]),
        (
            [*turns(("first?", "a")), {"from": "gpt", "value": "b"}],
            ["first?"],
            ["no question to the answer 'b'"],
        ),
        (
            [{"from": "human", "value": "first?"}, {"from": "gpt", "value": None}, *turns(("second?", "b"))],
            ["second?"],
            ["no answer to 'first?'"],
        ),
        (
            [{"from": "human", "value": "first?"}, {"from": "gpt", "value": NAN}],
            [],
            ["no human turn has an answer"],
        ),
        ([{"from": "narrator", "value": "first?"}], [], ["'narrator' is nobody who speaks"]),
        (["first?", "a"], [], ["AttributeError"]),
    ],
)
def test_a_turn_without_its_other_half_is_named_and_the_others_are_kept(
    spoken: list[Any], asked: list[str], lost: list[str], tmp_path: Path
) -> None:
    rows = rows_of_json(tmp_path / "rows.json", {"id": "x", "image": "a.png", "conversations": spoken})
    assert [text for text, _ in questions(rows)] == asked
    assert len(faults(rows)) == len(lost)
    assert all(
        fault.key == "row x" and why in fault.reason for fault, why in zip(faults(rows), lost, strict=True)
    )


# how a file is written

ROWS = [row_of(i) for i in range(4)]


@pytest.mark.parametrize(
    "text",
    [
        json.dumps(ROWS),
        json.dumps(ROWS, indent=2),
        "\n".join(map(json.dumps, ROWS)),
        "\n\n".join(json.dumps(row, indent=1) for row in ROWS),
        json.dumps({"version": "1", "info": {"a": [1]}, "data": ROWS}),
        json.dumps({"train": ROWS[:2], "val": ROWS[2:]}, indent=1),
        json.dumps({row["id"]: row for row in ROWS}),
        json.dumps(ROWS[:2]) + "\n" + json.dumps(ROWS[2:]),
        " \n" * 5000 + json.dumps(ROWS),
    ],
    ids=["array", "indented", "lines", "objects", "in an object", "splits", "by id", "two arrays", "blanks"],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
def test_json_is_read_however_it_is_laid_out_and_encoded(text: str, encoding: str, tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_bytes(text.encode(encoding))
    rows = read("llava", tmp_path / "rows.json")
    assert questions(rows) == [(f"what is {i}?", (f"n{i}",)) for i in range(4)] and not faults(rows)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("before", ["", "\n\n  \n"])
def test_a_table_is_read_however_it_is_encoded(encoding: str, before: str, tmp_path: Path) -> None:
    text = "\n".join([before + TSV_HEAD, *TSV_ROWS]).replace("cat", "кот")
    (tmp_path / "rows.tsv").write_bytes(text.encode(encoding))
    rows = read("tsv", tmp_path / "rows.tsv")
    assert [answers for _, answers in questions(rows)] == [("A",)] * 6 and "A. кот" in questions(rows)[0][0]
    form = FORMATS["tsv"](FilesConfig(path=str(tmp_path / "rows.tsv")))
    places = [row.place for row in rows if isinstance(row, Found) and row.place]
    assert [form.image(place) for place in places] == [picture(i) + bytes(80) for i in range(6)]


@pytest.mark.parametrize(
    ("damage", "kept", "lost"),
    [
        (lambda text: text.replace('"g5"', "NaN"), 40, []),
        (lambda text: text.replace('"g5"', "Infinity"), 40, []),
        (lambda text: text.replace('"g5"', "nil"), 39, [1]),
        (lambda text: text.replace('"g5"', "1" * 5000), 39, [1]),
        (lambda text: text.replace('"id": "g5", ', ""), 40, []),
        (lambda text: text.replace('"n5"', '"n\udce9"'), 39, [1]),
        (lambda text: text.replace('"g5"', '"\udce9"'), 40, []),
        (lambda text: text.replace('"g5"', "[" * 100_000), 39, [1]),
        (lambda text: text.replace('"}]', '"},]'), 0, [40]),
        (lambda text: text.replace('"', "'"), 0, [40]),
        (lambda text: f'{{"set": {{"rows": {text}}}}}', 0, [1]),
        (lambda text: text.replace('"g5"', "[5").replace('"g6"', "6]").replace('"g7"', "}"), 37, [3]),
        (lambda text: text[: text.index('"g39"')], 39, [1]),
        (lambda text: text[: text.index(', {"id": "g39"')], 39, [1]),
    ],
)
def test_what_follows_a_bad_value_is_read_and_what_cannot_be_is_counted_in_rows(
    damage: Any, kept: int, lost: list[int], tmp_path: Path
) -> None:
    text = damage(json.dumps([row_of(i) for i in range(40)]))
    (tmp_path / "rows.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    rows = read("llava", tmp_path / "rows.json")
    assert len(questions(rows)) == kept and [fault.lost for fault in faults(rows)] == lost


@pytest.mark.parametrize(
    ("cell", "text"),
    [
        ('"what is 30', None),
        ('"what is\n30"', "what is\n30"),
        ('"what\tis\t30"', "what\tis\t30"),
        ('"say ""30"""', 'say "30"'),
        ('"30" is what?', '"30" is what?'),
        ('what is 30"', 'what is 30"'),
        ('"', None),
    ],
)
@pytest.mark.parametrize("other", ["what is 60", '"what is 60', 'what is 60"', '"what is 60"', 'is "60" it?'])
def test_a_quote_that_does_not_end_costs_its_own_row(
    cell: str, text: str | None, other: str, tmp_path: Path
) -> None:
    cells = {30: cell, 31: other, 60: other}
    lines = [f"{i}\t{cells.get(i, f'what is {i}')}\tcat\tdog\tA\t{PICTURE}" for i in range(80)]
    (tmp_path / "t.tsv").write_text("\n".join([TSV_HEAD, *lines]))
    rows = read("tsv", tmp_path / "t.tsv")
    found = {asked.removesuffix("\nA. cat\nB. dog") for asked, _ in questions(rows)}
    told = {fault.key for fault in faults(rows)}
    open_too = other.count('"') == 1 and other[0] == '"'
    assert told == {f"row {i}" for i, lost in ((30, text is None), (31, open_too), (60, open_too)) if lost}
    assert found >= {f"what is {i}" for i in range(80) if i not in cells} and (text is None or text in found)
    assert len(questions(rows)) + len(told) == 80


# pictures of a table


def test_an_index_refers_to_any_row(tmp_path: Path) -> None:
    own = {i: encoded(picture(i) + bytes(80)) for i in range(8)}
    row = {"question": "q?", "A": "cat", "B": "dog", "answer": "A"}
    rows = [
        row | {"index": 10, "image": "13.0"},  # a later one
        row | {"index": 11, "image": own[1]},
        row | {"index": 12, "image": own[2], "answer": ""},  # which is no question
        row | {"index": 13, "image": str([own[3]])},
        row | {"index": 14, "image": "12"},
        row | {"index": 15, "image": "14"},  # by way of another
        row | {"index": 16, "image": "16"},
        row | {"index": 17, "image": "99"},
        row | {"index": 18, "image": ""},
        row | {"index": 19, "image": str([own[4], own[5]])},
        row | {"index": 20, "image": f"data:image/png;base64,{own[6]}"},
        row | {"index": 21, "image": base64.encodebytes(picture(7) + bytes(80)).decode()},
    ]
    convert(config("tsv", write_tsv(tmp_path / "t.tsv", rows)), tmp_path / "out")
    found = {image: sum(asked.values()) for image, asked in together(tmp_path / "out").items()}
    assert found == {picture(i) + bytes(80): n for i, n in {1: 1, 2: 2, 3: 2, 6: 1, 7: 1}.items()}
    told = report(tmp_path / "out")
    assert told["skipped"] == {"text only": 1, "several images": 1}
    assert [fault["key"] for fault in told["broken"]] == ["row 2", "row 6", "row 7"]


def test_rows_of_a_parquet_table_are_counted_as_those_of_the_other_formats(tmp_path: Path) -> None:
    shown = [[embedded(picture(i))] for i in range(12)]
    shown[1], shown[2], shown[3] = (
        [],
        [embedded(picture(1)), embedded(picture(2))],
        [{"bytes": None, "path": "a"}],
    )
    path = write_parquet(
        tmp_path / "t.parquet", [{"question": "q?", "answer": "a", "image": one} for one in shown]
    )
    convert(config("parquet", path), tmp_path / "out")
    told = report(tmp_path / "out")
    assert told["skipped"] == {"text only": 1, "several images": 1}
    assert [fault["key"] for fault in told["broken"]] == ["row 3"] and len(together(tmp_path / "out")) == 9


def test_what_of_a_parquet_table_cannot_be_read_is_counted_in_rows(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    texts = [b"q?"] * 30
    texts[4] = b"caf\xe9?"
    bad = pa.StringArray.from_buffers(
        30, pa.array(texts, pa.binary()).buffers()[1], pa.array(texts, pa.binary()).buffers()[2]
    )
    shown = pa.array([embedded(picture(i)) for i in range(30)])
    table = pa.table({"question": bad, "answer": ["a"] * 30, "image": shown})
    path = tmp_path / "t.parquet"
    pq.write_table(table, path, row_group_size=10, compression="none", use_dictionary=False)
    found = faults(read("parquet", path))
    assert [fault.key for fault in found] == ["row 4"]
    chunk = pq.ParquetFile(path).metadata.row_group(1).column(0)
    content = bytearray(path.read_bytes())
    content[chunk.data_page_offset : chunk.data_page_offset + 8] = bytes(8)
    path.write_bytes(content)
    rows = read("parquet", path)
    assert [(fault.key, fault.lost) for fault in faults(rows)] == [("row 4", 1), ("rows 10 to 19", 10)]
    assert len(questions(rows)) == 19


# answers


@pytest.mark.parametrize(
    ("value", "answers"),
    [
        ("['cat', 'kitten']", ("cat", "kitten")),
        ('["cat", "kitten"]', ("cat", "kitten")),
        ("['cat' 'kitten']", ("cat", "kitten")),
        ("['cat', nan, None]", ("cat",)),
        ('["cat", null, NaN]', ("cat",)),
        ('["it\'s", \'a "b"\']', ("it's", 'a "b"')),
        ("[3.0, 4]", ("3", "4")),
        ("['a', 'b', 'a']", ("a", "a", "b")),
        ([{"answer": "net"}, {"answer": "net"}], ("net", "net")),
        ("[unclear]", None),
        ("[cat", ("[cat",)),
        ("cat, kitten", ("cat, kitten",)),
        (3.0, ("3",)),
        (2.5, ("2.5",)),
        (float(codecs.decode(b"0.1", "ascii")), ("0.1",)),
        (0.10000000149011612, ("0.1",)),
        (1e20, ("100000000000000000000",)),
        (["a", NAN, None, ""], ("a",)),
        (NAN, None),
        ("nan", None),
        (None, None),
        ("[]", None),
        ([], None),
        (float("inf"), None),
        (True, None),
        (b"cat", None),
    ],
)
def test_answers_are_what_was_meant(value: Any, answers: tuple[str, ...] | None) -> None:
    if answers is None:
        with pytest.raises(ValueError, match="is no answer|there is no answer"):
            ordered(listed(value))
    else:
        assert ordered(listed(value)) == answers


ANIMALS = ["krill", "whale", "fish"]
LINES = "\nA. krill\nB. whale\nC. fish"


@pytest.mark.parametrize(
    ("columns", "answer", "right"),
    [
        ({"A": "krill", "B": "whale", "C": "fish", "D": NAN}, "C", "C"),
        ({"A": "krill", "B": "whale", "C": "fish"}, "(c)", None),
        ({"A": "krill", "B": "whale", "C": "fish"}, "c", "C"),
        ({"A": "krill", "B": "whale", "C": "fish"}, "C. fish", "C"),
        ({"choice_a": "krill", "choice_b": "whale", "choice_c": "fish"}, "B", "B"),
        ({"options": ANIMALS}, "2", "C"),
        ({"options": ANIMALS}, "B", "B"),
        ({"options": str(ANIMALS)}, "B", "B"),
        ({"options": json.dumps(ANIMALS)}, 0, "A"),
        ({"options": "A. krill\nB. whale\nC. fish"}, "A", "A"),
        ({"choices": ANIMALS}, 1, "B"),
        ({"choices": ANIMALS}, 1.0, "B"),
        ({"choices": ANIMALS}, "whale", "whale"),
        ({"choices": ["A. krill", "B. whale", "C. fish"]}, "B. whale", "B"),
        ({"choices": {"text": ANIMALS, "label": ["A", "B", "C"]}}, "C", "C"),
        ({"choices": ANIMALS}, 3, None),
        ({"choices": ANIMALS}, "zebra", None),
    ],
)
@pytest.mark.parametrize("source", ["parquet", "tsv"])
def test_options_in_columns_of_their_own_belong_to_the_question(
    source: str, columns: dict[str, Any], answer: Any, right: str | None, tmp_path: Path
) -> None:
    row = {"question": "which?", "answer": answer, "hint": "Look.", **columns}
    if source == "tsv":
        path = write_tsv(tmp_path / "t.tsv", [{"index": 0, **row, "image": PICTURE}])
    else:
        path = write_parquet(tmp_path / "t.parquet", [row | {"image": embedded(picture(1))}])
    rows = read(source, path, metric="choice")
    assert questions(rows) == ([(f"Look.\nwhich?{LINES}", (right,))] if right else [])
    assert right or "is none of the options" in faults(rows)[0].reason


@pytest.mark.parametrize(
    ("rows", "right"),
    [
        # AI2D: numbers from 0, told by the rows whose options are words
        ([(["2", "4", "1"], "2"), (ANIMALS, "2")], ["C", "C"]),
        # texts, told by one that is the number of no option
        ([(["2", "4", "1"], "2"), (["2", "4", "9"], "9")], ["2", "9"]),
        ([(["2", "4", "1"], "2"), (["0", "1", "2"], "1")], [None, "1"]),
        ([(["B", "A"], "A"), (ANIMALS, "C")], ["A", "C"]),
        ([(["B", "A"], "A"), (["X", "Y"], "Y")], ["A", "Y"]),
    ],
)
def test_what_a_number_names_is_told_by_the_rows_in_which_it_is_clear(
    rows: list[tuple[list[str], str]], right: list[str | None], tmp_path: Path
) -> None:
    shown = [
        {"question": f"{i}?", "options": o, "answer": a, "image": embedded(picture(i))}
        for i, (o, a) in enumerate(rows)
    ]
    found = read("parquet", write_parquet(tmp_path / "t.parquet", shown), metric="choice")
    given = {text[0]: answers[0] for text, answers in questions(found)}
    assert [given.get(str(i)) for i in range(len(rows))] == right


# what is lost


def test_failed_images_are_counted_once_and_the_share_is_of_the_questions(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_llava(tmp_path, rows=[row_of(i) for i in range(100)])
    for number in range(6):
        (tmp_path / f"images/{number}.png").unlink()
    wanted = config("llava", path, images=str(tmp_path / "images"))
    convert(replace(wanted, max_bad_fraction=0.06), tmp_path / "out")
    assert "kept: 94 of 100 questions" in capsys.readouterr().err
    with pytest.raises(UserError, match=r" of 100 questions.* more than data.max_bad_fraction=0.059"):
        convert(replace(wanted, max_bad_fraction=0.059), tmp_path / "other")


def test_rows_that_cannot_be_read_are_part_of_the_whole(tmp_path: Path) -> None:
    path = write_llava(tmp_path, rows=[row_of(i) for i in range(100)])
    path.write_text(path.read_text().replace('"id": "g7"', '"id": g7').replace('"id": "g8"', '"id": g8'))
    wanted = config("llava", path, images=str(tmp_path / "images"))
    with pytest.raises(UserError, match="2 of 100 questions are broken"):
        convert(replace(wanted, max_bad_fraction=0.019), tmp_path / "out")
    told = report(tmp_path / "out")
    assert told["rows"] == 101 and sum(fault["lost"] for fault in told["broken"]) == 2


# the same command after an edit is another run


def run_of(root: Path, source: str, path: Path, *given: str) -> Path:
    keys = (
        "name=run",
        f"data.source={source}",
        f"data.files.path={path}",
        f"data.files.images={root / 'images'}",
    )
    plain = OmegaConf.create(to_plain(Config(root=str(root))))
    overrides = OmegaConf.from_dotlist([*keys[: 4 if source == "llava" else 3], "stages=[data]", *given])
    return run_stages(read_config(OmegaConf.merge(plain, overrides))[0], {})


@pytest.mark.parametrize("source", ["llava", "tsv", "parquet"])
def test_a_data_stage_is_of_what_its_files_hold(source: str, tmp_path: Path) -> None:
    path = write_llava(tmp_path)
    row = {"question": "q?", "answer": "a"}
    if source == "tsv":
        rows = [row | {"index": i, "image": encoded(picture(i) + bytes(80))} for i in range(12)]
        path = write_tsv(tmp_path / "t.tsv", rows)
    if source == "parquet":
        path = write_parquet(
            tmp_path / "t.parquet", [row | {"image": embedded(picture(i))} for i in range(12)]
        )
    run_of(tmp_path, source, path)
    whole, about = path.read_bytes(), path.stat()
    path.write_bytes(whole[:-1] + b" ")  # as long, and as old
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))
    with pytest.raises(UserError, match=r"was made with another content of data.files .*name=<other>"):
        run_of(tmp_path, source, path)


def test_files_that_are_gone_or_were_not_digested_are_what_they_were(tmp_path: Path) -> None:
    path = write_llava(tmp_path)
    run_of(tmp_path, "llava", path)
    path.rename(tmp_path / "elsewhere")
    run_of(tmp_path, "llava", path)
    state = json.loads((tmp_path / "run/data/stage.json").read_text())
    del state["fingerprint"]["the content of data.files"]
    (tmp_path / "run/data/stage.json").write_text(json.dumps(state))
    path.write_bytes(b"[]")
    run_of(tmp_path, "llava", path)


def test_a_file_is_digested_once_while_it_stays_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_llava(tmp_path)
    run_of(tmp_path, "llava", path)
    monkeypatch.setattr(content, "_KNOWN", {})
    monkeypatch.setattr(content.hashlib, "file_digest", lambda *given: pytest.fail("was read again"))
    run_of(tmp_path, "llava", path)
