"""A judge that is asked: a model behind an endpoint, or one in this process that speaks the same protocol, by a rubric.

What it says is read strictly. A reply that cannot be read is asked for again, at most twice; then the answer stays
without a grade.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from lmlab.endpoints import Backend, ChatRequest, Endpoint, Estimate, Reply, Usage, answer, estimate
from lmlab.errors import UserError
from lmlab.files import sha256_json
from lmlab.judging.answers.config import AnswerJudgeConfig
from lmlab.judging.answers.grades import AnswerGrades, Take
from lmlab.judging.answers.item import AnswerItem
from lmlab.judging.judge import Marks
from lmlab.judging.rubrics.forms import Reading, reminder, schema
from lmlab.judging.rubrics.labels import LOW_MASS, expected_grade
from lmlab.judging.rubrics.numbers import Scale
from lmlab.judging.rubrics.points import parse_verdict, points_grade
from lmlab.judging.rubrics.rubric import GradingRubric

_TOP = 20  # the most likely tokens that endpoints report
_STATUSES = {
    "content_filter": "content_filter",
    "context_length_exceeded": "context_length",
    "refused": "refused",
    "tool_calls": "endpoint_error",
    "no_answer": "empty",
    "rejected": "endpoint_error",
    "failed": "endpoint_error",
}
_ASKED_AGAIN = ("ok", "no_answer")  # a reply without grades, or one that was nothing but thought
_VARIED = 0.7  # the temperature of several samples, which at 0 would all be the same
# A digit stands for each verdict in the mode of label probabilities.
_VERDICT_SCALE = Scale(-1.0, 1.0, 1.0)


@dataclass(frozen=True)
class Asking:
    """How a judge is asked.

    Attributes:
        reading: `text` (an explanation and a grade), `json` (the endpoint is held to a schema), or `labels` (the
            expected grade under the probabilities of the labels; one request a criterion).
        samples: replies to each question, whose grades are averaged.
        temperature: None for 0, or for 0.7 with several samples.
        max_tokens: of a reply; a reply that was cut is asked for again with twice as many.
        reasks: at most, for a reply that cannot be read.
        redact: regular expressions; what they find is not shown to the judge.
    """

    reading: Reading = "text"
    samples: int = 1
    temperature: float | None = None
    max_tokens: int = 800
    reasks: int = 2
    redact: tuple[str, ...] = ()

    @property
    def heat(self) -> float:
        """The temperature that is sent."""
        return (_VARIED if self.samples > 1 else 0.0) if self.temperature is None else self.temperature


@dataclass
class _Part:
    """One question about an item: all of it, one of its key points, or one criterion; and one of its samples."""

    item: int
    sample: int
    request: ChatRequest
    point: int | None = None
    criterion: int | None = None
    replies: list[Reply] = field(default_factory=list)
    marks: Marks | None = None
    verdict: str | None = None
    score: float | None = None
    mass: float | None = None

    @property
    def read(self) -> bool:
        """Whether nothing is to be asked again."""
        return (
            self.verdict is not None or self.score is not None or (self.marks is not None and self.marks.status == "ok")
        )


class RubricJudge:
    """A model that grades by a rubric.

    Arguments:
        rubric: what it is told.
        endpoint: where it is.
        asking: how it is asked.
        cache: file of the replies: nothing is paid for twice.
        backend: who answers, in place of the one that the endpoint names.
    """

    def __init__(
        self,
        rubric: GradingRubric,
        endpoint: Endpoint,
        asking: Asking = Asking(),
        cache: str | Path | None = None,
        backend: Backend | None = None,
    ) -> None:
        self.rubric, self.endpoint, self.asking = rubric, endpoint, asking
        self.cache = None if cache is None else Path(cache)
        self.backend = backend
        self._hidden = [_pattern(each) for each in asking.redact]
        self.name = f"{endpoint.backend}:{endpoint.model}, {rubric.name}, {asking.reading}"
        self.name += f", {asking.samples} samples" if asking.samples > 1 else ""

    @property
    def criteria(self) -> tuple[str, ...]:
        """Those of the rubric."""
        return self.rubric.names

    @property
    def headline(self) -> str:
        """That of the rubric."""
        return self.rubric.headline

    @property
    def scale(self) -> Scale:
        """That of the rubric."""
        return self.rubric.grades

    @property
    def prompt_hash(self) -> str:
        """Of the rubric and of how it is asked."""
        how = [self.asking.reading, self.asking.samples, self.asking.heat, self.asking.reasks, self.asking.redact]
        return sha256_json([self.rubric.prompt_hash, *how])

    def judge(self, items: Sequence[AnswerItem], take: Take) -> None:
        """Ask about all items, and again where a reply cannot be read."""
        parts = list(self._parts(items))
        waiting = parts
        for attempt in range(self.asking.reasks + 1):
            self._ask(waiting, items)
            waiting = [part for part in waiting if not part.read and part.replies[-1].status in _ASKED_AGAIN]
            if not waiting or self.asking.reading == "labels" or attempt == self.asking.reasks:
                break
            for part in waiting:
                part.request = self._again(part, attempt + 1)
        of_item: dict[int, list[_Part]] = defaultdict(list)
        for part in parts:
            of_item[part.item].append(part)
        for number, item in enumerate(items):
            take(number, self._grades(item, of_item[number]))

    def estimate(self, items: Sequence[AnswerItem]) -> Estimate | None:
        """The cost of the first questions, without re-asks."""
        identity = None if self.backend is None else self.backend.identity
        return estimate(self.endpoint, (part.request for part in self._parts(items)), self.cache, identity)

    def _parts(self, items: Sequence[AnswerItem]) -> Iterable[_Part]:
        labels = self.asking.reading == "labels"
        for number, item in enumerate(map(self._shown, items)):
            points: Sequence[int | None] = range(len(item.key_points)) if self.rubric.form == "points" else [None]
            criteria: Sequence[int | None] = [None]
            if labels and self.rubric.form == "grades" and len(self.criteria) > 1:
                criteria = range(len(self.criteria))
            for point in points:
                for criterion in criteria:
                    for sample in range(1 if labels else self.asking.samples):
                        yield _Part(number, sample, self._request(item, sample, point, criterion), point, criterion)

    def _shown(self, item: AnswerItem) -> AnswerItem:
        """What is shown of an item."""
        if not self._hidden:
            return item

        def redacted(text: str) -> str:
            for pattern in self._hidden:
                text = pattern.sub("[redacted]", text)
            return text

        chapter = None if item.chapter is None else redacted(item.chapter)
        points = tuple(map(redacted, item.key_points))
        question, answer = redacted(item.question), redacted(item.answer)
        return replace(item, question=question, answer=answer, key_points=points, chapter=chapter)

    def _request(self, item: AnswerItem, sample: int, point: int | None, criterion: int | None) -> ChatRequest:
        how, rubric = self.asking, self.rubric
        if criterion is not None:
            name = rubric.names[criterion]
            rubric = rubric.model_copy(update={"criteria": {name: rubric.criteria[name]}, "headline": name})
        options: dict[str, Any] = {"max_tokens": how.max_tokens, "temperature": how.heat, "sample": sample}
        if how.reading == "json":
            options["response_format"] = schema(rubric.names, self.scale, rubric.form)
        if how.reading == "labels":
            options = {"max_tokens": 1, "temperature": 0.0, "top_logprobs": _TOP}
        return ChatRequest(rubric.messages(item, how.reading, point), **options)

    def _again(self, part: _Part, attempt: int) -> ChatRequest:
        reply, request = part.replies[-1], part.request
        choice = reply.choices[0] if reply.choices else None
        if choice is not None and choice.finish_reason == "length":
            return replace(request, max_tokens=2 * request.max_tokens)
        said = choice.text if choice is not None else ""
        more = (
            {"role": "assistant", "content": said or "(nothing)"},
            {"role": "user", "content": reminder(self.rubric.form)},
        )
        return replace(request, messages=(*request.messages[: _own(request)], *more), sample=part.sample)

    def _ask(self, parts: Sequence[_Part], items: Sequence[AnswerItem]) -> None:
        def read(number: int, reply: Reply) -> None:
            part = parts[number]
            part.replies.append(reply)
            if reply.status == "ok" and reply.choices:
                self._read(part, reply)

        answer(self.endpoint, (part.request for part in parts), read, self.cache, self.backend)

    def _read(self, part: _Part, reply: Reply) -> None:
        cut = reply.choices[0].finish_reason == "length"
        if self.asking.reading == "labels":
            scale = self.scale if part.point is None else _VERDICT_SCALE
            part.score, part.mass = expected_grade(reply.choices[0], scale)
        elif part.point is not None:
            part.verdict = parse_verdict(reply.text, cut)
        else:
            found = self.rubric.parse(reply.text, cut)
            if part.marks is None or _graded(found) >= _graded(part.marks):
                part.marks = found

    def _grades(self, item: AnswerItem, parts: Sequence[_Part]) -> AnswerGrades:
        nothing: dict[str, float | None] = dict.fromkeys(self.criteria)
        if self.rubric.form == "points" and not item.key_points:
            return AnswerGrades(nothing, "no_key_points", ("no_key_points",))
        samples = self._samples(item, parts)
        flags = {flag for _, _, each in samples for flag in each}
        flags |= set() if item.key_points else {"no_key_points"}
        grades, spread = dict(nothing), dict(nothing)
        bad = Counter(status for _, status, _ in samples if status != "ok")
        for name in self.criteria:
            values = [values[name] for values, _, _ in samples if values.get(name) is not None]
            # Of several samples a grade needs more than half: the readable rest of a judge that mostly fails is no
            # fair draw of its opinions.
            if 2 * len(values) > len(samples):
                grades[name] = float(np.mean(np.array(values, float)))
                spread[name] = float(np.std(np.array(values, float), ddof=1)) if len(values) > 1 else None
        missing = sum(value is None for value in grades.values())
        status = "ok"
        if missing:
            status = bad.most_common(1)[0][0] if bad else "missing"
        elif bad:
            flags.add("samples_missing")
        return AnswerGrades(
            grades,
            status,
            tuple(sorted(flags)),
            spread,
            tuple(values for values, _, _ in samples) if len(samples) > 1 else (),
            details=tuple(_details(item, parts)),
            **_spent(parts),
        )

    def _samples(
        self, item: AnswerItem, parts: Sequence[_Part]
    ) -> list[tuple[dict[str, float | None], str, tuple[str, ...]]]:
        """Grades, status and flags of each sample."""
        found = []
        for sample in sorted({part.sample for part in parts}):
            own = [part for part in parts if part.sample == sample]
            failed = [
                status
                for part in own
                if (status := _STATUSES.get(part.replies[-1].status if part.replies else "failed"))
            ]
            flags = {"low_label_mass"} if any(part.mass is not None and part.mass < LOW_MASS for part in own) else set()
            if self.rubric.form == "points":
                grade = self._of_points(item, own)
                values: dict[str, float | None] = {self.headline: grade}
            elif self.asking.reading == "labels":
                values = {self.criteria[part.criterion or 0]: part.score for part in own}
            else:
                marks = own[0].marks or Marks((None,) * len(self.criteria), "empty")
                found.append(
                    (
                        dict(zip(self.criteria, marks.grades, strict=True)),
                        failed[0] if failed and marks.status != "ok" else marks.status,
                        marks.flags,
                    )
                )
                continue
            graded = sum(value is not None for value in values.values())
            status = (
                "ok" if graded == len(self.criteria) else failed[0] if failed else "partial" if graded else "missing"
            )
            found.append((values, status, tuple(sorted(flags))))
        return found

    def _of_points(self, item: AnswerItem, parts: Sequence[_Part]) -> float | None:
        if self.asking.reading != "labels":
            return points_grade([part.verdict for part in parts], item.weights, self.scale)
        weights = np.array(item.weights or [1.0] * len(parts), float)
        scores = [part.score for part in parts]
        whole = float(weights[weights > 0].sum())
        if any(score is None for score in scores) or not whole:
            return None
        values = np.array(scores, float)
        # A point that must not be made costs what it weighs as far as it is made, and gains nothing.
        gain = np.where(weights > 0, weights * values, weights * np.maximum(values, 0)).sum() / whole
        share = min(1.0, max(0.0, float(gain)))
        return self.scale.minimum + share * (self.scale.maximum - self.scale.minimum)


def _pattern(text: str) -> re.Pattern[str]:
    try:
        return re.compile(text)
    except re.error as error:
        raise UserError(f"redact: '{text}' is no regular expression ({error}).") from None


def _own(request: ChatRequest) -> int:
    """The number of messages of the question itself, before what the judge replied and was told."""
    return next(
        (number for number, message in enumerate(request.messages) if message["role"] == "assistant"),
        len(request.messages),
    )


def _graded(marks: Marks) -> int:
    return sum(grade is not None for grade in marks.grades)


def _details(item: AnswerItem, parts: Sequence[_Part]) -> Iterable[dict[str, Any]]:
    for part in parts:
        if part.point is not None:
            said = {"verdict": part.verdict} if part.mass is None else {"score": part.score, "label_mass": part.mass}
            yield {"key_point": item.key_points[part.point], "sample": part.sample, **said}
        elif part.mass is not None:
            yield {"label_mass": part.mass, "criterion": part.criterion or 0}


def _spent(parts: Sequence[_Part]) -> dict[str, Any]:
    replies = [reply for part in parts for reply in part.replies]
    costs = [reply.paid_usd for reply in replies]
    usage = Usage(
        sum(reply.usage.prompt for reply in replies),
        sum(reply.usage.completion for reply in replies),
        sum(reply.usage.cached for reply in replies),
        any(reply.usage.estimated for reply in replies),
    )
    return {
        "raw": tuple(choice.text for reply in replies for choice in reply.choices),
        "usage": usage,
        "cost_usd": None if not costs or any(cost is None for cost in costs) else sum(cost or 0.0 for cost in costs),
        "requests": sum(reply.sent for reply in replies),
        "seconds": sum(reply.seconds for reply in replies),
        "attempts": max((len(part.replies) for part in parts), default=0),
    }


def make(text: str, config: AnswerJudgeConfig, cache: Path | None = None) -> RubricJudge:
    """`openai:MODEL` and the other back ends of endpoints.

    Raises:
        UserError: no model, or no such rubric.
    """
    if not text.partition(":")[2]:
        raise UserError(f"The judge '{text}' names no model.", f"Write {text.partition(':')[0]}:MODEL.")
    asking = Asking(config.reading, config.samples, config.temperature, config.max_tokens, config.reasks, config.redact)
    endpoint = Endpoint.named(text, **config.endpoint_options())
    return RubricJudge(GradingRubric.load(config.rubric), endpoint, asking, cache)
