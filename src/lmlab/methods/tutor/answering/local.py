"""A model of lmlab answers: questions about one chapter together, so that it is read once."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from lmlab.errors import UserError
from lmlab.evals import Evaluator
from lmlab.methods.tutor.answering.prompts import STOPS, Asking
from lmlab.methods.tutor.answering.window import Prompt
from lmlab.methods.tutor.config import AnswerConfig
from lmlab.models import Transformer, WindowConfig, common_beginning, continue_shared, generate, with_window
from lmlab.models.generation.config import DecodingConfig
from lmlab.runs import Model

_FEW_SHARED = 64  # tokens in common that are not worth a pass of their own
_ROWS = 16  # of one batch


@dataclass(frozen=True)
class Answer:
    """What a tutor wrote.

    Attributes:
        finish_reason: `stop`, `length` or `repetition`; of an endpoint what it says.
        seconds: its share of its batch's time.
    """

    output: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    seconds: float


class LocalTutor:
    """A transformer of lmlab as a tutor.

    Arguments:
        evaluator: the loaded model.
        place: where it came from, for messages.

    Raises:
        UserError: the architecture is not one of lmlab's, or there is no chat template where one is asked for.
    """

    def __init__(self, evaluator: Evaluator, config: AnswerConfig, place: str) -> None:
        if evaluator.model is None:
            raise UserError(f"'{place}' is not an architecture of lmlab, and cannot write here.")
        self.config, self.place = config, place
        self.model: Transformer = evaluator.model
        window = _window_of(config, self.model.config.max_seq_len)
        if window is not None:  # positions are computed from the configuration at each pass
            self.model.config = with_window(self.model.config, window)
        self.asking = Asking(evaluator.tokenizer, config.format)
        self.ends = evaluator.end_ids
        self.limit = min(config.window or self.model.config.max_seq_len, self.model.config.max_seq_len)

    @classmethod
    def load(cls, place: str, config: AnswerConfig) -> LocalTutor:
        """From wherever `Model.find` finds one.

        Raises:
            UserError: as the class, or there is no model.
        """
        return cls(Evaluator.load(Model.find(place), config.device, config.precision), config, place)

    def answer(self, prompts: Sequence[Prompt]) -> Iterator[tuple[Prompt, Answer]]:
        """Greedy answers, batch by batch; a batch has the questions of one chapter, or several chapters of one or few
        questions, padded on the left.
        """
        for batch, shared in self._batches([each for each in prompts if each.ids]):
            started = time.perf_counter()
            found = self._write([each.ids for each in batch], shared)
            seconds = (time.perf_counter() - started) / len(batch)
            for prompt, (text, reason, count) in zip(batch, found, strict=True):
                yield prompt, Answer(text, reason, len(prompt.ids), count, seconds)

    def write(self, ids: Sequence[int], max_new_tokens: int | None = None) -> Answer:
        """The answer to a single prompt."""
        started = time.perf_counter()
        ((text, reason, count),) = self._write([ids], False, max_new_tokens)
        return Answer(text, reason, len(ids), count, time.perf_counter() - started)

    def _batches(self, prompts: Sequence[Prompt]) -> Iterator[tuple[list[Prompt], bool]]:
        scaling = self.model.config.rope_scaling
        shares = self.config.share and not (scaling is not None and scaling.depends_on_length)
        alone: list[Prompt] = []
        for _, group in groupby(prompts, key=lambda each: each.item.cluster if shares else each.item.id):
            of_chapter = list(group)
            for start in range(0, len(of_chapter), _ROWS):
                part = of_chapter[start : start + _ROWS]
                if len(part) > 1 and common_beginning([each.ids for each in part]) >= _FEW_SHARED:
                    yield part, True
                else:
                    alone += part
        alone.sort(key=lambda each: -len(each.ids))  # rows of a batch are about as long: little padding
        while alone:
            rows = max(1, min(_ROWS, self.config.batch_tokens // len(alone[0].ids)))
            yield alone[:rows], False
            alone = alone[rows:]

    def _write(
        self, prompts: Sequence[Sequence[int]], shared: bool, max_new_tokens: int | None = None
    ) -> list[tuple[str, str, int]]:
        decode = self.asking.tokenizer.decode
        config = DecodingConfig(
            max_new_tokens=max_new_tokens or self.config.max_new_tokens, temperature=0, stop=STOPS, eos_ids=self.ends
        )
        if shared:
            rows = continue_shared(self.model, [(prompt, config) for prompt in prompts], decode)
            return [(_until_stop(decode(row.ids)), str(row.finish_reason), len(row.ids)) for row in rows]
        done = [each[0] for each in generate(self.model, prompts, config, decode=decode)]
        return [(each.text or "", each.finish_reason, len(each.ids)) for each in done]


def _until_stop(text: str) -> str:
    return text[: min((place for stop in STOPS if (place := text.find(stop)) >= 0), default=len(text))]


def _window_of(config: AnswerConfig, has: int) -> WindowConfig | None:
    """The longer window that is asked for, with the base of its frequencies."""
    if config.window is None and config.rope_theta is None:
        return None
    if config.rope_theta is None:
        if config.window is not None and config.window > has:
            raise UserError(
                f"--window {config.window} is more than the model's {has} tokens.",
                "Say how its positions stretch: --rope-theta auto, keep (they do already), or a number.",
            )
        return None
    return WindowConfig.model_validate({"max_seq_len": max(config.window or has, has), "rope_theta": config.rope_theta})
