"""Claims about formats: every question of every image that can be read is found, once, on the image's own
bytes."""

import json
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pyrskip.data.conversion import convert
from pyrskip.data.convert import ordered
from pyrskip.data.convert.rows import Found, image_extension, image_key
from pyrskip.data.reader import ShardDataset
from pyrskip.errors import UserError
from pyrskip.picture import FORMATS, SIGNATURES
from pyrskip.sample import Question
from tests.conversions import Asked, config, report, together
from tests.own_data import embedded, encoded, picture, turns, write_llava, write_parquet, write_tsv

# each example writes to a folder of its own below the test's
FOLDERS = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]

# what is found


@settings(max_examples=6, suppress_health_check=FOLDERS)
@given(
    rows=st.lists(st.tuples(st.integers(0, 12), st.integers(0, 3)), min_size=8, max_size=30),
    seed=st.integers(0, 3),
)
def test_llava_every_answered_turn_is_a_question_on_its_image(
    rows: list[tuple[int, int]], seed: int, tmp_path: Path
) -> None:
    shutil.rmtree(tmp_path)
    rows += [(20 + i, 1) for i in range(8)]
    expected: dict[bytes, Counter[Asked]] = {}
    written: list[dict[str, Any]] = []
    for number, (image, count) in enumerate(rows):
        asked = [(f"row {number} turn {turn}?", f"answer {turn}") for turn in range(count)]
        written.append({"id": number, "image": f"coco/{image}.png", "conversations": turns(*asked)})
        if count:
            expected.setdefault(picture(image), Counter()).update((q, (a,), "coco") for q, a in asked)
    path = write_llava(tmp_path, rows=written)
    for image, _ in rows:
        (tmp_path / "images/coco" / f"{image}.png").write_bytes(picture(image))
    wanted = replace(config("llava", path, images=str(tmp_path / "images")), seed=seed)
    convert(wanted, tmp_path / "out")
    assert together(tmp_path / "out") == expected
    told = report(tmp_path / "out")
    assert told["rows"] == len(rows) + 1
    assert told["skipped"] == {"text only": 1}
    assert len(told["broken"]) == sum(count == 0 for _, count in rows)


def test_a_table_that_was_written_anew_gives_its_own_images(tmp_path: Path) -> None:
    for first in (0, 20):
        rows = [
            {"question": "q?", "answers": ["a"], "image": embedded(picture(image))}
            for image in range(first, first + 8)
        ]
        path = write_parquet(tmp_path / "pope.parquet", rows, 8)
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        convert(config("parquet", path), tmp_path / "out")
        assert together(tmp_path / "out").keys() == {picture(image) for image in range(first, first + 8)}


@settings(max_examples=4, suppress_health_check=FOLDERS)
@given(images=st.lists(st.integers(0, 8), min_size=8, max_size=24), group=st.integers(1, 9))
def test_parquet_rows_of_one_image_are_questions_on_it(images: list[int], group: int, tmp_path: Path) -> None:
    images = [*images, *range(10, 18)]
    rows = [
        {
            "question_id": str(i),
            "question": f"q{i}?",
            "answers": ["b", "a", "a"],
            "image": embedded(picture(image, "JPEG")),
        }
        for i, image in enumerate(images)
    ]
    path = write_parquet(tmp_path / "text-vqa.parquet", rows, group)
    shutil.rmtree(tmp_path / "out", ignore_errors=True)
    convert(config("parquet", path, metric="vqa"), tmp_path / "out")
    expected: dict[bytes, Counter[Asked]] = {}
    for i, image in enumerate(images):
        expected.setdefault(picture(image, "JPEG"), Counter())[(f"q{i}?", ("a", "a", "b"), "all")] += 1
    assert together(tmp_path / "out") == expected
    questions = next(ShardDataset(tmp_path / "out", "train", 64).questions())
    assert questions is not None and questions[0].metric == "vqa"


@settings(max_examples=4, suppress_health_check=FOLDERS)
@given(owners=st.lists(st.integers(0, 30), min_size=12, max_size=30))
def test_tsv_rows_refer_to_the_image_of_an_earlier_row(owners: list[int], tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = []
    expected: dict[bytes, Counter[Asked]] = {}
    for i, owner in enumerate([*range(6), *owners]):
        of = owner if owner < i and i >= 6 and rows[owner]["own"] else i
        own = of == i
        image = picture(i) if own else picture(of)
        rows.append(
            {"index": i, "image": encoded(image) if own else of, "question": f'say "{i}"?\nNow.', "own": own}
        )
        rows[-1] |= {
            "A": "red",
            "B": "blue",
            "C": "",
            "answer": "B",
            "category": "colour",
            "hint": "Look." if i % 2 else "",
        }
        text = ("Look.\n" if i % 2 else "") + f'say "{i}"?\nNow.\nA. red\nB. blue'
        expected.setdefault(image, Counter())[(text, ("B",), "colour")] += 1
    path = write_tsv(tmp_path / "bench.tsv", rows)
    shutil.rmtree(tmp_path / "out", ignore_errors=True)
    convert(config("tsv", path, metric="choice"), tmp_path / "out")
    assert together(tmp_path / "out") == expected


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        pytest.param(
            # DocVQA: several accepted answers, several types
            {
                "questionId": "1",
                "question": "who?",
                "question_types": ["layout", "form"],
                "docId": 5,
                "answers": ["Ann", "ann"],
            },
            ("who?", ("Ann", "ann"), "layout"),
            id="DocVQA",
        ),
        pytest.param(
            {
                "id": "0",
                "question_id": "1",
                "question": "Is there a cat?",
                "answer": "yes",
                "category": "random",
            },
            ("Is there a cat?", ("yes",), "random"),
            id="POPE",
        ),
        pytest.param(
            {
                "question_id": "code/1.png",
                "question": "Is it Python? Please answer yes or no.",
                "answer": "No",
                "category": "code",
            },
            ("Is it Python? Please answer yes or no.", ("No",), "code"),
            id="MME",
        ),
        pytest.param(
            {"question": "how much?", "answer": "12.5", "type": "human_test"},
            ("how much?", ("12.5",), "human_test"),
            id="ChartQA",
        ),
        pytest.param(
            {
                "question": "what?",
                "answers": [{"answer": "net", "answer_id": 1}, {"answer": "net", "answer_id": 2}],
            },
            ("what?", ("net", "net"), "all"),
            id="VQAv2",
        ),
    ],
)
def test_published_tables_are_read_without_naming_columns(
    rows: dict[str, Any], expected: Asked, tmp_path: Path
) -> None:
    path = write_parquet(tmp_path / "t.parquet", [rows | {"image": embedded(picture(i))} for i in range(12)])
    convert(config("parquet", path), tmp_path / "out")
    assert together(tmp_path / "out") == {picture(i): Counter([expected]) for i in range(12)}


def test_gqa_joins_questions_and_images_by_id(tmp_path: Path) -> None:
    asked = [
        {
            "id": str(i),
            "imageId": str(i % 10),
            "question": f"q{i}?",
            "answer": "yes",
            "types": {"structural": "verify", "x": "y"},
        }
        for i in range(30)
    ]
    write_parquet(tmp_path / "instructions.parquet", asked)
    write_parquet(
        tmp_path / "images-0.parquet", [{"id": str(i), "image": embedded(picture(i))} for i in range(5)]
    )
    write_parquet(
        tmp_path / "images-1.parquet", [{"id": str(i), "image": embedded(picture(i))} for i in range(5, 12)]
    )
    convert(
        config("parquet", tmp_path / "instructions.parquet", images=str(tmp_path / "images-*.parquet")),
        tmp_path / "out",
    )
    assert together(tmp_path / "out") == {
        picture(i): Counter((f"q{j}?", ("yes",), "verify") for j in range(i, 30, 10)) for i in range(10)
    }
    assert report(tmp_path / "out")["skipped"] == {"images without a question": 2}


def test_columns_can_be_named(tmp_path: Path) -> None:
    rows = [{"prompt": "q?", "gold": {"text": "a"}, "picture": embedded(picture(i))} for i in range(12)]
    path = write_parquet(tmp_path / "t.parquet", rows)
    with pytest.raises(
        UserError, match=r"no column for data.files.columns.question .*it has prompt, gold, picture"
    ):
        convert(config("parquet", path), tmp_path / "out")
    named = {"question": "prompt", "answers": "gold.text", "image": "picture"}
    convert(config("parquet", path, columns=named), tmp_path / "other")
    assert together(tmp_path / "other") == {picture(i): Counter([("q?", ("a",), "all")]) for i in range(12)}


def test_json_lines_are_read_as_an_array_is(tmp_path: Path) -> None:
    array = write_llava(tmp_path)
    lines = tmp_path / "my_data.jsonl"
    lines.write_text("\n".join(json.dumps(row) for row in json.loads(array.read_text())) + "\n{cut")
    for path in (array, lines):
        convert(config("llava", path, images=str(tmp_path / "images")), tmp_path / path.suffix[1:])
    assert together(tmp_path / "json") == together(tmp_path / "jsonl")
    assert [broken["key"] for broken in report(tmp_path / "jsonl")["broken"]] == ["line 26"]


# what formats share


@given(names=st.lists(st.text(min_size=1), min_size=2, max_size=5, unique=True))
def test_keys_of_images_are_names_of_members_and_differ(names: Sequence[str]) -> None:
    import re

    keys = [image_key(name) for name in names]
    assert len(set(keys)) == len(keys)
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{1,90}", key) for key in keys)


def test_text_that_no_file_can_hold_is_refused() -> None:
    with pytest.raises(ValueError, match="surrogates"):
        Found("image", "image.jpg", (Question("\ud800?", ("a",)),))


def test_the_kind_of_an_image_is_told_from_its_bytes() -> None:
    assert [image_extension(picture(1, kind)) for kind in FORMATS] == list(SIGNATURES)


def test_the_most_frequent_answer_comes_first_and_repeats_are_kept() -> None:
    assert ordered(["b", "a", " a ", 3, ""]) == ("a", "a", "b", "3")
