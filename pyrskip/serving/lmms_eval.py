"""A gate in front of a model of lmms-eval (0.7), an evaluation harness: `lmms-eval eval --model pyrskip`.

The harness finds it through the entry point `lmms_eval.models`. The model that answers is one of its own chat
models, which is asked about what the gate keeps of each picture, and whose counts of tokens go into the
samples: `pyrskip harness` reads them.
"""

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from threading import Lock
from typing import Any

from lmms_eval.api.instance import GenerationResult, Instance, TokenCounts, unwrap_generation_output
from lmms_eval.api.model import lmms
from lmms_eval.models.registry_v2 import ModelManifest

from pyrskip.errors import UserError
from pyrskip.inference import GateAlone, load

LOG = logging.getLogger("pyrskip.lmms_eval")


def manifest() -> ModelManifest:
    """What the entry point gives."""
    return ModelManifest(model_id="pyrskip", chat_class_path=f"{__name__}.Gated")


class Gated(lmms):  # type: ignore[misc]  # lmms-eval has an environment of its own
    """bundle: of a gate alone; inner: the name of the model that answers, which is given everything that is
    not named here; price, max_tokens, retention: see pyrskip.inference.Request.

    Raises UserError for a bundle, a dial or a model that cannot be had.
    """

    is_simple = False

    def __init__(
        self,
        bundle: str,
        inner: str = "openai",
        price: float | None = None,
        max_tokens: int | None = None,
        retention: float | None = None,
        backend: str = "onnx",
        threads: int | None = None,
        **given: Any,
    ) -> None:
        from lmms_eval.models import get_model

        super().__init__()
        gate = load(bundle, backend, threads=threads)
        if not isinstance(gate, GateAlone):
            raise UserError(f"bundle={bundle} holds a model; allowed: a gate alone")
        gate.decider.check_dial(price, max_tokens, retention)
        kind = get_model(inner)
        if kind.is_simple:
            raise UserError(
                f"inner={inner} is one of lmms-eval's simple models, which are not given pictures with the "
                "text of their turn; allowed: a chat model, such as openai"
            )
        self.gate = gate
        self.dial: dict[str, Any] = {"price": price, "max_tokens": max_tokens, "retention": retention}
        self.one_at_a_time = Lock()
        self.pictures: Counter[str] = Counter()
        self.inner = kind(**given)
        self.inner.task_dict = self.task_dict

    def __getattr__(self, name: str) -> Any:
        """What the harness asks of a model beside its methods, such as its accelerator."""
        if name == "inner":  # not there yet
            raise AttributeError(name)
        return getattr(self.inner, name)

    @property
    def rank(self) -> int:
        return int(self.inner.rank)

    @property
    def world_size(self) -> int:
        return int(self.inner.world_size)

    def clean(self) -> None:
        self.inner.clean()

    def generate_until(self, requests: Sequence[Instance]) -> list[Any]:
        answers: list[Any] = self.inner.generate_until([self._gated(request) for request in requests])
        LOG.warning("pictures: %s", ", ".join(f"{n} {became}" for became, n in self.pictures.items()))
        return answers

    def generate_until_multi_round(self, requests: Sequence[Instance]) -> list[GenerationResult]:
        """All requests a round at a time, until their task says that they are done. The tokens of a request
        are those of all its rounds; None where one was not counted."""
        texts: list[list[str]] = [[] for _ in requests]
        counts: list[list[TokenCounts | None]] = [[] for _ in requests]
        info: list[Any] = [None for _ in requests]
        left = list(range(len(requests)))
        while left:
            due: dict[int, Instance] = {}
            for row in left:
                context, to_messages, options, number, task, split = requests[row].args
                messages, info[row] = _round(
                    to_messages, self.task_dict[task][split][number], texts[row], info[row]
                )
                if messages is not None:
                    arguments = (context, lambda _, said=messages: said, options, number, task, split)
                    due[row] = replace(
                        requests[row], request_type="generate_until", arguments=arguments, resps=[]
                    )
            for row, answer in zip(due, self.generate_until(list(due.values())), strict=True):
                text, count = unwrap_generation_output(answer)
                texts[row].append(text)
                counts[row].append(count)
            left = list(due)
        return [GenerationResult(text, _summed(count)) for text, count in zip(texts, counts, strict=True)]

    def loglikelihood(self, requests: Sequence[Instance]) -> list[Any]:
        task = requests[0].task_name if requests else "a task"
        raise UserError(
            f"{task} asks for log-likelihoods, for which lmms-eval gives no chat messages, so that there "
            "is no question to decide by; allowed: tasks whose output_type is generate_until or "
            "generate_until_multi_round"
        )

    def _gated(self, request: Instance) -> Instance:
        context, to_messages, *rest = request.args

        def replaced(doc: Any) -> list[dict[str, Any]]:
            return [self._replaced(message) for message in to_messages(doc)]

        return replace(request, arguments=(context, replaced, *rest))

    def _replaced(self, message: dict[str, Any]) -> dict[str, Any]:
        """A turn with what is kept of its pictures, each decided from itself and the turn's text."""
        parts = message["content"]
        if message["role"] != "user" or not isinstance(parts, list):
            return message
        question = "\n".join(part["text"] for part in parts if part["type"] == "text")
        shown = [
            [{**part, "url": picture} for picture in self._kept(part["url"], question)]
            if part["type"] == "image"
            else [part]
            for part in parts
        ]
        return {**message, "content": [part for some in shown for part in some]}

    def _kept(self, picture: Any, question: str) -> Sequence[Any]:
        """The pictures in one's place; itself, and counted, where it cannot be decided on."""
        try:
            with self.one_at_a_time:
                kept = self.gate.decide(picture, question, **self.dial).pictures
        except UserError as error:
            self.pictures[f"unchanged ({error})"] += 1
            return [picture]
        self.pictures["replaced"] += 1
        return kept


def _round(
    to_messages: Callable[..., Any], doc: Any, said: Sequence[str], info: Any
) -> tuple[list[dict[str, Any]] | None, Any]:
    """The messages of the round after these answers, None where there is none; and what the task wants to be
    told at the next."""
    if not said:
        return to_messages(doc), None
    made = to_messages(doc, round_idx=len(said), previous_output=list(said), previous_round_info=info)
    if not isinstance(made, tuple):  # a task of one round
        return None, None
    messages, ended, _, info = made
    return (None if ended else messages), info


def _summed(counts: Sequence[TokenCounts | None]) -> TokenCounts | None:
    known = [count for count in counts if count is not None and count.input_tokens]
    if len(known) < len(counts):
        return None
    names = ("input_tokens", "output_tokens", "reasoning_tokens")
    return TokenCounts(**{name: sum(getattr(count, name) or 0 for count in known) for name in names})
