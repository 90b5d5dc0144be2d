"""Claims about pictures: they are what a person sees, whatever their file stores, in training and in service
alike."""

import base64
import io
import json
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image, ImageOps

import pyrskip
from pyrskip.data.reader import ShardDataset
from pyrskip.errors import UserError
from pyrskip.gates.gate import Gate
from pyrskip.inference.engine import Engine
from pyrskip.inference.images import open_image
from pyrskip.inference.processor import plan, thumbnail, views
from pyrskip.models.native import NativeModel
from pyrskip.picture import FORMATS, seen
from pyrskip.serving.serve import create_app
from tests.models import TEXTS
from tests.shards import QUESTIONS, tar, write_data

BARS = (8, 10, 40, 14)
PAGE = Image.new("RGB", (48, 40), "white")
PAGE.paste("black", BARS)
RAMP = np.tile(np.linspace(0, 255, 48).astype(np.uint8), (40, 1))
MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB", "HSV", "I", "F")


def stored(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    content = io.BytesIO()
    image.save(content, kind, **options)
    return content.getvalue()


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    return exif


def shown(image: Image.Image) -> np.ndarray:
    """What Pillow's own parts show: upright, over white."""
    upright = ImageOps.exif_transpose(image)
    if upright.has_transparency_data:
        white = Image.new("RGBA", upright.size, "white")
        upright = Image.alpha_composite(white, upright.convert("RGBA"))
    return np.asarray(upright.convert("RGB"))


def same(image: Image.Image, wanted: "Image.Image | np.ndarray", within: int = 0) -> bool:
    got, pixels = np.asarray(seen(image)), np.asarray(wanted)
    return got.shape == pixels.shape and bool((np.abs(got.astype(int) - pixels) <= within).all())


@settings(max_examples=60)
@given(
    pixels=st.binary(min_size=6 * 5 * 4, max_size=6 * 5 * 4),
    mode=st.sampled_from(MODES),
    orientation=st.integers(0, 9),
)
def test_a_picture_of_any_mode_is_what_exif_transpose_shows_over_white(
    pixels: bytes, mode: str, orientation: int
) -> None:
    image = Image.frombytes("RGBA", (6, 5), pixels)
    if "A" not in mode.upper() or mode == "LAB":
        image = image.convert("RGB")
    image = (image.convert("LA") if mode == "PA" else image).convert(mode)
    image.info["exif"] = turned(orientation).tobytes()
    before = image.tobytes()
    once = seen(image)
    # no more than 1 is white in floating point, whose fractions Pillow cuts off
    assume(mode != "F" or image.getextrema()[1] > 1)
    assert same(image, shown(image), within=mode == "F")
    assert once.mode == "RGB" and same(once, once)
    assert image.tobytes() == before and image.mode == mode


@pytest.mark.parametrize("kind", [kind for kind in FORMATS if kind not in ("GIF", "BMP")])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turned_picture_is_upright_in_every_format(kind: str, orientation: int) -> None:
    rows = np.arange(6 * 5 * 3, dtype=np.uint8).reshape(6, 5, 3)
    options = {"lossless": True} if kind == "WEBP" else {}
    content = stored(Image.fromarray(rows), kind, exif=turned(orientation), **options)
    opened = Image.open(io.BytesIO(content))
    assert same(opened, ImageOps.exif_transpose(Image.open(io.BytesIO(content))))
    if kind != "JPEG":
        undo = {6: 1, 8: 3, 3: 2}.get(orientation)
        assert undo is None or same(Image.open(io.BytesIO(content)), np.rot90(rows, -undo))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize("exif", [b"Exif\0\0MM\0*", b"Exif\0\0II*\0\x08\0\0\0\xff\xff", b"junk", bytes(300)])
def test_broken_exif_loses_no_picture(exif: bytes) -> None:
    assert same(Image.open(io.BytesIO(stored(PAGE, exif=exif))), PAGE)


def clear() -> Image.Image:
    image = Image.new("RGBA", PAGE.size, (0, 0, 0, 0))
    image.paste((0, 0, 0, 255), BARS)
    return image


def palette(**options: object) -> bytes:
    image = Image.new("P", PAGE.size, 0)
    image.putpalette([0, 0, 0, 0, 0, 0])
    image.paste(1, BARS)
    return stored(image, **options)


def keyed(bits: int, colour: int, key: int, ink: int) -> bytes:
    """A PNG of `bits` a channel, grey (colour=0) or RGB (2), whose ground is the transparent `key`."""
    page = np.where(np.asarray(PAGE.convert("L")) == 0, ink, key).astype(np.uint16)
    channels = np.repeat(page[:, :, None], 3 if colour else 1, 2).reshape(len(page), -1)
    if bits == 16:
        rows = [row.astype(">u2").tobytes() for row in channels]
    else:
        spread = (channels[:, :, None] >> np.arange(bits - 1, -1, -1)) & 1
        rows = [np.packbits(row.reshape(-1).astype(np.uint8)).tobytes() for row in spread]

    def chunk(kind: bytes, content: bytes) -> bytes:
        check = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", check)

    header = struct.pack(">IIBBBBB", *PAGE.size, bits, colour, 0, 0, 0)
    body = zlib.compress(b"".join(b"\0" + row for row in rows))
    chunks = (
        chunk(b"IHDR", header),
        chunk(b"tRNS", struct.pack(">H", key) * (3 if colour else 1)),
        chunk(b"IDAT", body),
        chunk(b"IEND", b""),
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


CLEAR: dict[str, Callable[[], bytes]] = {
    "RGBA": lambda: stored(clear()),
    "RGBA WebP": lambda: stored(clear(), "WEBP", lossless=True, exact=True),
    "RGBA TIFF": lambda: stored(clear(), "TIFF"),
    "LA": lambda: stored(clear().convert("LA")),
    "palette by index": lambda: palette(transparency=0),
    "palette by bytes": lambda: palette(transparency=b"\0\xff"),
    "GIF": lambda: stored(clear(), "GIF"),
    "1 bit": lambda: keyed(1, 0, 1, 0),
    "2 bits": lambda: keyed(2, 0, 2, 0),
    "4 bits": lambda: keyed(4, 0, 9, 0),
    "8 bits": lambda: keyed(8, 0, 9, 0),
    "16 bits": lambda: keyed(16, 0, 300, 0),
    "8 bits of RGB": lambda: keyed(8, 2, 1, 0),
    "16 bits of RGB": lambda: keyed(16, 2, 0x1234, 0),
}


@pytest.mark.parametrize("kind", CLEAR)
def test_what_is_transparent_is_white(kind: str) -> None:
    assert same(Image.open(io.BytesIO(CLEAR[kind]())), PAGE)


@pytest.mark.parametrize(
    ("mode", "pixels"),
    [
        ("I;16", RAMP.astype(np.uint16) * 257),
        ("I;16B", (RAMP.astype(np.uint16) * 257).astype(">u2")),
        ("I", RAMP.astype(np.int32)),
        ("I", RAMP.astype(np.int32) * 257),
        ("I", RAMP.astype(np.int32) * (1 << 23)),
        ("I", RAMP.astype(np.int32) * 16 - 1000),
        ("F", RAMP.astype(np.float32)),
        ("F", RAMP.astype(np.float32) / 255),
        ("F", RAMP.astype(np.float32) * 257),
        ("F", RAMP.astype(np.float32) * 1e6 - 9e6),
    ],
    ids=lambda value: value if isinstance(value, str) else str(value.max()),
)
def test_depth_is_scaled_to_eight_bits(mode: str, pixels: np.ndarray) -> None:
    wanted = np.repeat(RAMP[:, :, None], 3, 2)
    image = Image.frombytes(mode, (48, 40), pixels.tobytes())
    assert same(image, wanted)
    assert same(Image.open(io.BytesIO(stored(image, "TIFF"))), wanted)


def test_sixteen_bits_are_rounded_as_the_png_specification_says() -> None:
    deep = np.arange(1 << 16, dtype=np.uint16).reshape(256, 256)
    wanted = np.floor(deep.astype(np.float64) * 255 / 65535 + 0.5)
    assert same(Image.open(io.BytesIO(stored(Image.fromarray(deep)))), np.repeat(wanted[:, :, None], 3, 2))


def test_dark_pictures_of_sixteen_bits_stay_dark_and_no_number_is_black() -> None:
    assert not np.asarray(seen(Image.fromarray(np.full((4, 4), 100, np.uint16)))).any()
    odd = np.array([[np.nan, 1.0], [np.inf, 0.5]], np.float32)
    assert np.asarray(seen(Image.fromarray(odd)))[..., 0].tolist() == [[0, 255], [0, 128]]
    for flat in (np.zeros((2, 2), np.float32), np.zeros((2, 2), np.int32)):
        assert not np.asarray(seen(Image.fromarray(flat))).any()


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "PNG", "WEBP"])
def test_a_film_is_its_first_frame(kind: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    options = {"lossless": True} if kind == "WEBP" else {}
    content = stored(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert same(Image.open(io.BytesIO(content)), frames[0])


def kinds() -> dict[str, bytes]:
    """Files that all show PAGE."""
    deep = np.asarray(PAGE.convert("L")).astype(np.uint16) * 257
    back = PAGE.transpose(Image.Transpose.ROTATE_90)
    return {
        "turned.png": stored(back, exif=turned(6)),
        "clear.webp": stored(clear(), "WEBP", lossless=True),
        "deep.png": stored(Image.fromarray(deep)),
        "ink.tif": stored(PAGE.convert("CMYK"), "TIFF"),
        "film.gif": stored(PAGE, "GIF", save_all=True, append_images=[Image.new("RGB", PAGE.size, "red")]),
        "plain.bmp": stored(PAGE, "BMP"),
    }


def test_training_reads_what_is_seen(tmp_path: Path) -> None:
    members = [
        member
        for name, content in kinds().items()
        for member in ((name, content), (f"{name.split('.')[0]}.json", QUESTIONS))
    ]
    data = ShardDataset(write_data(tmp_path, tar(*members)), "train", 64)
    assert len(data) == len(kinds())
    for sample in data:
        assert sample is not None
        assert (sample.image.permute(1, 2, 0).numpy() == np.asarray(PAGE)).all(), sample.key


@pytest.fixture(scope="module")
def engine(exported: tuple[Path, NativeModel, Gate]) -> Engine:
    return pyrskip.load(exported[0], "onnx")


def test_the_service_sees_what_is_seen(engine: Engine, tmp_path: Path) -> None:
    wanted = engine.answer(stored(PAGE), TEXTS[0])
    with TestClient(create_app(engine)) as client:
        for name, content in kinds().items():
            (tmp_path / name).write_bytes(content)
            for source in (content, tmp_path / name, Image.open(tmp_path / name)):
                assert engine.answer(source, TEXTS[0]) == wanted, name
            body = {"image": base64.b64encode(content).decode(), "question": TEXTS[0]}
            told = client.post("/answer", json=body).json()
            assert json.loads(json.dumps(vars(wanted.selection))).items() <= told.items(), name


def test_what_another_server_is_sent_is_upright(engine: Engine) -> None:
    sideways = Image.open(io.BytesIO(kinds()["turned.png"]))
    picture = seen(sideways)
    made = plan(engine, thumbnail(engine, sideways), picture.size, TEXTS[0])
    cut = views(engine, sideways, made)
    assert [v.tobytes() for v in cut] == [v.tobytes() for v in views(engine, PAGE, made)]
    with pytest.raises(UserError, match=r"that of pyrskip.picture.seen"):
        plan(engine, thumbnail(engine, sideways), sideways.size, TEXTS[0])


def test_a_picture_in_memory_that_breaks_off_is_one_sentence() -> None:
    cut = Image.open(io.BytesIO(stored(Image.effect_noise((64, 64), 50), "JPEG")[:-500]))
    with pytest.raises(UserError, match="the image cannot be read as PNG, JPEG"):
        open_image(cut)
