"""Claims about the graphs of a language model: they continue an answer as training's teacher forcing does."""

import pytest
import torch

from pyrskip.inference.bundle import STATE
from pyrskip.inference.modules import DecodePart, PrefillPart
from pyrskip.models.language import LANGUAGES, Visual
from tests.models import TEXTS, tiny_model


@pytest.mark.parametrize("name", LANGUAGES)
@torch.no_grad()
def test_prefill_and_decode_give_the_logits_of_teacher_forcing(name: str) -> None:
    language = tiny_model(language=name).language
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(3, 7, language.width, generator=generator)
    ids, mask = language.tokenize(TEXTS[:3])
    answer = torch.randint(3, 300, (3, 5), generator=generator)
    # the second set has padding, and the first and last question share theirs
    real = torch.arange(7) < torch.tensor([7, 4, 7])[:, None]
    wanted = language.logits(Visual(tokens, real, torch.tensor([0, 1, 0])), None, (ids, mask), answer)
    for rows, count in (([0, 2], 7), ([1], 4)):
        visual = tokens[rows if count == 4 else [0, 0], :count]
        logits, *state = PrefillPart(language)(visual, ids[rows], mask[rows])
        for step in range(answer.shape[1]):
            torch.testing.assert_close(logits, wanted[rows, step], rtol=0, atol=1e-5)
            inputs = dict(zip(STATE, state, strict=False))
            logits, *longer = DecodePart(language)(answer[rows, step], torch.tensor([step + 1]), **inputs)
            state[: len(longer)] = longer
