"""Prompts run through a third-party model, some at a time.

Axes: B rows, N tokens of the longest prompt, A tokens of the longest answer.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from pyrskip.errors import UserError
from pyrskip.models.vlm.measured import last_logits
from pyrskip.models.vlm.prompts import Prompts
from pyrskip.models.vlm.pruned import Pruned, Shown
from pyrskip.models.vlm.salience import Salience
from pyrskip.models.vlm.towers import encode, encodes_once, given
from pyrskip.pruners import Pruner

SAME = 1e-4
"""How far log-likelihoods of the same question may be apart in float32; in 16 bits, ROUNDED of its steps."""
ROUNDED = 16


class Row(NamedTuple):
    """A question with its pictures. image: a digest of the image that they are of; tiles: their numbers."""

    image: bytes
    tiles: tuple[int, ...]
    pictures: tuple[Image.Image, ...]
    text: str


class Passes:
    """Rows of pictures and a question, answered and scored by a model a few at a time.

    at_once: rows of a pass; longest: tokens of an answer, its end included; side: of a picture that is tried
    out. encoded: how many pictures have gone through the tower; once: whether the model takes what its tower
    made of a picture, so that each goes through it once. pruner: what leaves visual tokens out, if any does.
    Raises UserError where nothing ends an answer.
    """

    def __init__(self, model: Any, prompts: Prompts, at_once: int, longest: int, side: int) -> None:
        self.model, self.prompts = model, prompts
        self.at_once, self.longest, self.side = at_once, longest, side
        self.ends = _ends(model, prompts.tokenizer)
        self.once = encodes_once(model) and prompts.family.additive
        self.encoded = 0
        # what the tower made of a picture, and its salience
        self.made: dict[tuple[bytes, int], tuple[Any, Tensor | None]] = {}
        self.pruner: Pruner | None = None
        self.salience: Salience | None = None

    @property
    def device(self) -> torch.device:
        device: torch.device = self.model.get_input_embeddings().weight.device
        return device

    def prune_by(self, pruner: Pruner | None) -> None:
        """Leave visual tokens out from here on, or none. Raises UserError where the tower does not show what
        the pruner reads."""
        self.salience, self.made = None, {}
        if pruner is not None and "salience" in pruner.needs:
            model = self.model.config.model_type
            if not self.once:
                raise UserError(
                    f"pruner.name={pruner.config.name} reads salience, and model family {model!r} looks at a "
                    "picture anew in every prompt, where its tower is not watched; allowed: a pruner that "
                    "reads none (docs/peers.md)"
                )
            self.salience = Salience(self.model, pruner.config.name)
            blank = Image.new("RGB", (self.side, self.side))
            self.salience.prepare(*self._alone(blank))
        self.pruner = pruner

    def _alone(self, picture: Image.Image) -> tuple[Any, dict[str, Any]]:
        """The size of a picture, and the inputs that it is looked at by."""
        return (picture.height, picture.width), self.on_device(self.prompts.inputs([([picture], "")]))

    def of(self, rows: Sequence[Row]) -> Iterator[tuple[list[int], dict[str, Any]]]:
        """Numbers of the rows of each pass through the model, and its inputs; until the next are asked for,
        the model runs behind the pruner.

        What the tower made of an image is kept until a pass with none of its questions, unless the image
        comes again in the same call.
        """
        groups: dict[object, list[int]] = {}
        for number, row in enumerate(rows):
            groups.setdefault(self._company(row, number), []).append(number)
        parts = [
            numbers[start : start + self.at_once]
            for numbers in groups.values()
            for start in range(0, len(numbers), self.at_once)
        ]
        for place, part in enumerate(parts):
            needed = {rows[number].image for later in parts[place:] for number in later}
            self.made = {key: made for key, made in self.made.items() if key[0] in needed}
            some = [rows[number] for number in part]
            inputs = self._inputs(some)
            with self._pruned(some, inputs):
                yield part, inputs

    def write(self, inputs: dict[str, Any]) -> list[str]:
        """Greedy answers to these prompts."""
        written = self.model.generate(
            **inputs,
            max_new_tokens=self.longest,
            do_sample=False,
            num_beams=1,
            eos_token_id=self.ends,
            pad_token_id=self.prompts.tokenizer.pad_token_id,
        )[:, inputs["input_ids"].shape[1] :]
        return [
            text.strip() for text in self.prompts.tokenizer.batch_decode(written, skip_special_tokens=True)
        ]

    def score(self, inputs: dict[str, Any], answers: Sequence[str]) -> Tensor:
        """Log-likelihood of the answers behind these prompts, [B]: answers are appended on the right, and
        whatever has one value a token grows with them."""
        ids = [torch.tensor(self.answer_ids(answer), device=self.device) for answer in answers]
        tail = pad_sequence(ids, batch_first=True, padding_value=self.prompts.tokenizer.pad_token_id)
        real = pad_sequence([torch.ones_like(one) for one in ids], batch_first=True)
        shape, width = inputs["input_ids"].shape, tail.shape[1]
        grown = dict(inputs)
        for name, value in inputs.items():
            if not isinstance(value, Tensor) or value.shape[:2] != shape or name.startswith("pixel_"):
                continue
            if name == "cross_attention_mask":  # as the prompt's last token
                more = value[:, -1:].expand(-1, width, *value.shape[2:])
            else:
                types = torch.full_like(tail, self.prompts.family.written)
                more = {"input_ids": tail, "attention_mask": real}.get(name, types)
            grown[name] = torch.cat([value, more.to(value)], dim=1)
        logits = last_logits(self.model, grown, width + 1)().logits
        logits = logits[:, -width - 1 : -1]
        chosen: Tensor = logits.float().log_softmax(-1).gather(-1, tail[..., None])[..., 0]
        return (chosen * real).sum(-1)

    def answer_ids(self, answer: str) -> list[int]:
        """Tokens of an answer, cut to what may be written, and its end."""
        ids: list[int] = self.prompts.tokenizer(answer, add_special_tokens=False)["input_ids"]
        return [*ids[: self.longest - 1], self.ends[0]]

    def on_device(self, inputs: dict[str, Any]) -> dict[str, Any]:
        def place(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            return value.to(self.device, self.model.dtype if value.is_floating_point() else None)

        return {name: place(value) for name, value in inputs.items()}

    @cached_property
    def mixing(self) -> str:
        """Which rows share a pass, so that none depends on the others: 'any', those that are 'alike' in their
        pictures' sizes and their length, or each 'alone'. Found by a trial: a batch answers as single rows
        do."""
        side, seen = self.side, torch.Generator().manual_seed(0)
        noise = [
            Image.fromarray(torch.randint(256, (side, side, 3), generator=seen, dtype=torch.uint8).numpy())
            for _ in range(2)
        ]
        one, other = (Row(bytes([i]), (i,), (noise[i],), "What?") for i in (0, 1))
        both = Row(b"2", (0, 1), tuple(noise), "What is it, and what is it for?")
        trials = (("any", [one, both]), ("alike", [one, other]))
        encoded = self.encoded
        found = next((how for how, rows in trials if self._holds(rows)), "alone")
        self.encoded, self.made = encoded, {}
        return found

    def _inputs(self, rows: Sequence[Row]) -> dict[str, Any]:
        """The model's inputs for these rows; pictures that it has not seen go through its tower first."""
        inputs = self.on_device(self.prompts.inputs([(row.pictures, row.text) for row in rows]))
        if not self.once:
            self.encoded += sum(len(row.pictures) for row in rows)
            return inputs
        made = []
        for row in rows:
            for tile, picture in zip(row.tiles, row.pictures, strict=True):
                key = row.image, tile
                if key not in self.made:
                    size, one = self._alone(picture)
                    self.made[key] = (
                        (encode(self.model, one), None)
                        if self.salience is None
                        else self.salience.encode(size, one)
                    )
                    self.encoded += 1
                made.append(self.made[key][0])
        return given(inputs, made)

    def _pruned(self, rows: Sequence[Row], inputs: dict[str, Any]) -> AbstractContextManager[None]:
        if self.pruner is None or not rows[0].pictures:
            return nullcontext()
        prompts, shown = self.prompts, []
        words = prompts.asked(torch.tensor([prompts.words(row.text) for row in rows])).tolist()
        for row, asked in zip(rows, words, strict=True):
            lone = len(row.pictures) == 1
            looks = [prompts.look((p.height, p.width), lone) for p in row.pictures]
            tile = torch.tensor(row.tiles).repeat_interleave(torch.tensor([look.tokens for look in looks]))
            received = [self.made[row.image, of][1] for of in row.tiles] if self.salience is not None else []
            salience = torch.cat([of for of in received if of is not None]) if received else None
            shown.append(Shown(tile, asked, salience))
        prompt = inputs["input_ids"].shape[1]
        return Pruned(self.model, self.pruner, shown, prompts.image_id, prompt, prompts.around[1]).on()

    def _company(self, row: Row, number: int) -> object:
        """Equal for rows that may share a pass."""
        if self.mixing == "alone":
            return number
        if self.mixing == "alike":
            return tuple(picture.size for picture in row.pictures), self.prompts.words(row.text)
        return bool(row.pictures)

    @torch.no_grad()
    def _holds(self, rows: Sequence[Row]) -> bool:
        """Whether two rows together score as each alone. Raises UserError where the model cannot take what
        its processor gives."""
        answers = ("yes", "no, it is not")
        try:
            together = self.score(self._inputs(rows), answers)
            each = [self.score(self._inputs([r]), [a]) for r, a in zip(rows, answers, strict=True)]
        except (RuntimeError, ValueError) as error:
            if self._fails_alone(rows[0]):
                raise UserError(f"the model cannot take what its processor gives: {error}") from error
            return False
        step = torch.finfo(self.model.dtype).eps
        return bool(((together - torch.cat(each)).abs() <= max(SAME, ROUNDED * step)).all())

    def _fails_alone(self, row: Row) -> bool:
        try:
            self.score(self._inputs([row]), ["yes"])
        except (RuntimeError, ValueError):
            return True
        return False


def _ends(model: Any, tokenizer: Any) -> list[int]:
    """Tokens that end an answer, the one to learn or score first."""
    own = model.generation_config.eos_token_id
    ends = [own] if isinstance(own, int) else list(own or [])
    preferred = tokenizer.eos_token_id
    if preferred is not None and (preferred in ends or not ends):
        ends = [preferred, *(e for e in ends if e != preferred)]
    if not ends:
        raise UserError(
            "neither the model's generation config nor its tokenizer names a token that ends an answer"
        )
    return ends
