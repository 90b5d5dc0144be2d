"""Pictures to ask about at every distance, from your own photographs, in LLaVA's format.

python benchmarks/collages.py photographs=<a folder a kind, of pictures> out=<directory>
    [images=2000] [side=768] [seed=0]

Each picture is a photograph over all of it, one to four small ones on top, and a sign with a word. Four
questions of each, whose answers show at different distances: of what kind the large photograph is, how many
small ones there are, of what kind the one in a named corner is, and what the sign says. Then, with keys of
docs/your-data.md:

python train.py experiment=your_data name=collages data.files.path=<out>/data.json data.files.images=<out>
"""

import json
import random
import sys
from pathlib import Path

from PIL import Image, ImageDraw

from pyrskip.scenes.assets import font, load_assets

WORDS = [
    "apple",
    "bread",
    "chair",
    "dance",
    "eagle",
    "flame",
    "grape",
    "house",
    "lemon",
    "music",
    "olive",
    "river",
]
CORNERS = {(0, 0): "top left", (1, 0): "top right", (0, 1): "bottom left", (1, 1): "bottom right"}
SMALL = (0.09, 0.14)
"""Sides of small photographs, as shares of the picture's."""


def cut(path: Path, size: int, rng: random.Random) -> Image.Image:
    """A square of a photograph, of at least 0.7 of its shorter side, in size x size pixels."""
    with Image.open(path) as image:
        photo = image.convert("RGB")
    side = rng.uniform(0.7, 1.0) * min(photo.size)
    left, top = rng.uniform(0, photo.width - side), rng.uniform(0, photo.height - side)
    box = (left, top, left + side, top + side)
    return photo.resize((size, size), Image.Resampling.BICUBIC, box=box)


def collage(
    kinds: dict[str, list[Path]], size: int, rng: random.Random
) -> tuple[Image.Image, list[tuple[str, str]]]:
    """A picture of size x size pixels, and its questions with their answers."""
    large = rng.choice(list(kinds))
    picture = cut(rng.choice(kinds[large]), size, rng)
    draw, half = ImageDraw.Draw(picture), size // 2
    corners = rng.sample(list(CORNERS), rng.randint(1, 4))
    seen = {}
    for x, y in corners:
        seen[x, y] = rng.choice(list(kinds))
        side = round(rng.uniform(*SMALL) * size)
        # the middle of a picture, half a sign high on either side, is the sign's
        left = x * half + rng.randint(4, half - side - 4)
        top = y * round(0.55 * size) + rng.randint(4, round(0.45 * size) - side - 4)
        picture.paste(cut(rng.choice(kinds[seen[x, y]]), side, rng), (left, top))
        draw.rectangle((left - 2, top - 2, left + side + 1, top + side + 1), outline="white", width=2)
    word, letters = rng.choice(WORDS), font(load_assets().texts[0], round(0.026 * size))
    left, top = rng.randint(8, round(0.85 * size)), rng.randint(round(0.46 * size), round(0.51 * size))
    box = draw.textbbox((left, top), word, font=letters)
    draw.rectangle((box[0] - 5, box[1] - 4, box[2] + 5, box[3] + 4), fill="white", outline="black")
    draw.text((left, top), word, fill="black", font=letters)
    corner = rng.choice(corners)
    return picture, [
        ("What does the large photograph show?", large),
        ("How many small photographs are there?", str(len(corners))),
        (f"What does the small photograph at the {CORNERS[corner]} show?", seen[corner]),
        ("What does the sign say?", word),
    ]


def main() -> None:
    given = dict(argument.partition("=")[::2] for argument in sys.argv[1:])
    if not {"photographs", "out"} <= given.keys():
        sys.exit(__doc__)
    source, out, size = Path(given["photographs"]), Path(given["out"]), int(given.get("side", 768))
    kinds = {folder.name: sorted(folder.iterdir()) for folder in sorted(source.glob("*/"))}
    if not kinds or not all(kinds.values()):
        sys.exit(f"photographs={source}: allowed: a directory with a folder of pictures for each kind")
    (out / "images").mkdir(parents=True, exist_ok=True)
    entries = []
    for i in range(int(given.get("images", 2000))):
        picture, asked = collage(kinds, size, random.Random(f"{given.get('seed', 0)}/{i}"))
        picture.save(out / f"images/{i:05d}.jpg", quality=92)
        turns = [
            {"from": who, "value": said}
            for number, (question, answer) in enumerate(asked)
            for who, said in (("human", "<image>\n" * (not number) + question), ("gpt", answer))
        ]
        entries.append({"id": str(i), "image": f"images/{i:05d}.jpg", "conversations": turns})
    (out / "data.json").write_text(json.dumps(entries))
    print(f"{len(entries)} pictures, {out / 'data.json'}")


if __name__ == "__main__":
    main()
