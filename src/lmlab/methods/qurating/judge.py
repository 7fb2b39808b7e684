"""Judging: groups of excerpts to soft labels, by an endpoint's votes or log-probabilities, a local model, or a rule."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from lmlab.endpoints import Backend, Endpoint, Reply, answer
from lmlab.errors import UserError
from lmlab.evals import Window
from lmlab.files import sha256_json
from lmlab.methods.qurating.judgments import Judgment, Matrix
from lmlab.methods.qurating.offline import prefers_second
from lmlab.methods.qurating.prompts import Criterion
from lmlab.methods.qurating.rating.excerpting import Excerpt
from lmlab.methods.qurating.votes import MISSING, label_masses, parse_vote, soft_labels

Mode = Literal["votes", "logprobs"]
_TOP = 20
_VOTE_TOKENS = 16


@dataclass(frozen=True)
class Question:
    """Which of two texts is better by a criterion, in the order in which they are shown."""

    criterion: Criterion
    text_a: str
    text_b: str


@dataclass(frozen=True)
class Verdict:
    """Votes for both texts (or probabilities, of one generation); `status` says why there are none."""

    votes_a: float
    votes_b: float
    status: str = "ok"


class Judge(Protocol):
    """Who answers questions.

    Attributes:
        generations: how many votes a question gets.
        name: for the report.
    """

    generations: int
    name: str

    def ask(self, questions: Sequence[Question], take: Callable[[int, Verdict], None]) -> None:
        """Answer the questions; `take` gets the number of each and its verdict, as they come."""


class EndpointJudge:
    """A model behind an endpoint.

    Arguments:
        endpoint: where it is.
        mode: `votes` samples `generations` answers; `logprobs` reads the probabilities of both labels off one.
        cache: file of the replies: nothing is paid for twice.
        backend: who answers, in place of the one that the endpoint names.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        mode: Mode = "logprobs",
        generations: int = 20,
        cache: Path | None = None,
        backend: Backend | None = None,
    ) -> None:
        self.endpoint, self.mode, self.cache, self.backend = endpoint, mode, cache, backend
        self.generations = generations if mode == "votes" else 1
        self.name = f"{endpoint.backend}:{endpoint.model}, {mode}"

    def ask(self, questions: Sequence[Question], take: Callable[[int, Verdict], None]) -> None:
        """Ask; answers that an endpoint without `n` leaves out are asked for one by one."""
        tallies = [_Tally() for _ in questions]
        first = {"n": self.generations, "temperature": 1.0, "max_tokens": _VOTE_TOKENS}
        if self.mode == "logprobs":
            first = {"n": 1, "temperature": 1.0, "max_tokens": 1, "top_logprobs": _TOP}
        requests = (each.criterion.pair_request(each.text_a, each.text_b, **first) for each in questions)
        self._run(
            requests,
            lambda number, reply: tallies[number].add(reply, self.mode, questions[number].criterion.wording.labels),
        )
        missing = [
            (number, sample)
            for number, tally in enumerate(tallies)
            if tally.status == "ok"
            for sample in range(tally.answers, self.generations)
        ]
        if missing and self.mode == "votes":
            single = {"n": 1, "temperature": 1.0, "max_tokens": _VOTE_TOKENS}
            again = (
                questions[n].criterion.pair_request(questions[n].text_a, questions[n].text_b, sample=s, **single)
                for n, s in missing
            )
            self._run(
                again,
                lambda place, reply: tallies[missing[place][0]].add(
                    reply, "votes", questions[missing[place][0]].criterion.wording.labels
                ),
            )
        for number, tally in enumerate(tallies):
            take(number, tally.verdict())

    def _run(self, requests: Any, take: Callable[[int, Reply], None]) -> None:
        answer(self.endpoint, requests, take, self.cache, self.backend)


@dataclass
class _Tally:
    votes: list[float] = field(default_factory=lambda: [0.0, 0.0])
    answers: int = 0
    status: str = "ok"

    def add(self, reply: Reply, mode: Mode, labels: Sequence[str]) -> None:
        if reply.status != "ok":
            self.status = reply.status
            return
        for choice in reply.choices:
            self.answers += 1
            if mode == "votes":
                vote = parse_vote(choice.text, labels)
                if vote is not None:
                    self.votes[vote] += 1
            elif (masses := label_masses(choice, labels)) is not None:
                self.votes = list(masses)
            else:
                self.status = "no label among the likeliest tokens"

    def verdict(self) -> Verdict:
        if self.status != "ok" and sum(self.votes) == 0:
            return Verdict(MISSING, MISSING, self.status)
        return Verdict(self.votes[0], self.votes[1], "ok" if sum(self.votes) else "only void votes")


class LocalJudge:
    """A model of lmlab in this process, by the exact log-probabilities of both labels.

    Arguments:
        directory: of a model with a chat template.
    """

    generations = 1

    def __init__(self, directory: Path, precision: str = "auto") -> None:
        from lmlab.data import Tokenizer
        from lmlab.evals import ModelScorer
        from lmlab.models import from_pretrained

        self.tokenizer = Tokenizer.load(directory)
        self.scorer = ModelScorer(from_pretrained(directory), precision)
        self.name = f"{directory.name}, exact log-probabilities"

    def ask(self, questions: Sequence[Question], take: Callable[[int, Verdict], None]) -> None:
        """Score both labels after each question."""
        windows, places = [], []
        for number, question in enumerate(questions):
            messages = list(question.criterion.pair_request(question.text_a, question.text_b).messages)
            prompt = self.tokenizer.encode_chat(messages)
            for side, label in enumerate(question.criterion.wording.labels):
                ids = self.tokenizer.encode(label)
                if len(prompt) + len(ids) - 1 > self.scorer.max_seq_len:
                    take(number, Verdict(MISSING, MISSING, "context_length_exceeded"))
                    break
                windows.append(Window([*prompt, *ids], len(ids)))
                places.append((number, side))
        masses: dict[int, list[float | None]] = {number: [None, None] for number, _ in places}
        for window, score in self.scorer.score(windows):
            number, side = places[window]
            masses[number][side] = score.log_prob
            a, b = masses[number]
            if a is not None and b is not None:
                top = max(a, b)
                take(number, Verdict(float(np.exp(a - top)), float(np.exp(b - top))))


class OfflineJudge:
    """The rule of `lmlab.methods.qurating.offline`: no model, no opinions of worth."""

    generations = 1
    name = "offline: a rule over words and signs"

    def ask(self, questions: Sequence[Question], take: Callable[[int, Verdict], None]) -> None:
        """Apply the rule."""
        for number, question in enumerate(questions):
            p = prefers_second(question.text_a, question.text_b, question.criterion.name)
            take(number, Verdict(1 - p, p))


@dataclass
class Judged:
    """What judging gave.

    Attributes:
        judgments: one for each group.
        missing: questions without a verdict by (criterion, domain, reason).
        asked: questions by (criterion, domain).
        identical: groups with two equal texts, which count as equally good.
        skipped: groups of fewer than two texts.
    """

    judgments: list[Judgment] = field(default_factory=list)
    missing: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    asked: Counter[tuple[str, str]] = field(default_factory=Counter)
    identical: int = 0
    skipped: int = 0


class JudgePairs:
    """Compares all texts of groups by criteria.

    Arguments:
        judge: who answers.
        criteria: one or several.
        both_orders: show each pair in both orders; else one order counts for both, and a preference for a place does
            not cancel.
    """

    def __init__(self, judge: Judge, criteria: Criterion | Sequence[Criterion], both_orders: bool = True) -> None:
        self.judge, self.both_orders = judge, both_orders
        self.criteria = [criteria] if isinstance(criteria, Criterion) else list(criteria)

    def run(self, groups: Sequence[Sequence[Excerpt | str]], advance: Callable[[int], None] | None = None) -> Judged:
        """Judge groups of excerpts (or of plain texts); a group of fewer than two texts is skipped and counted."""
        found = Judged()
        whole = [[_as_excerpt(text) for text in group] for group in groups]
        found.skipped = sum(len(group) < 2 for group in whole)
        kept = [group for group in whole if len(group) >= 2]
        votes = {
            (g, c.name): np.full((2, len(group), len(group)), MISSING)
            for g, group in enumerate(kept)
            for c in self.criteria
        }
        places, questions = [], []
        for g, group in enumerate(kept):
            texts = [each.text for each in group]
            found.identical += len(set(texts)) < len(texts)
            for i, j in self._orders(len(group)):
                for each in self.criteria:
                    found.asked[each.name, group[i].domain] += 1
                    if texts[i] == texts[j]:
                        votes[g, each.name][:, i, j] = self.judge.generations / 2
                    else:
                        places.append((g, each.name, i, j))
                        questions.append(Question(each, texts[i], texts[j]))

        def take(number: int, verdict: Verdict) -> None:
            g, name, i, j = places[number]
            votes[g, name][:, i, j] = verdict.votes_a, verdict.votes_b
            if verdict.status != "ok":
                found.missing[name, kept[g][i].domain, verdict.status] += 1
            if advance:
                advance(1)

        self.judge.ask(questions, take)
        found.judgments = [
            self._judgment(group, {each.name: votes[g, each.name] for each in self.criteria})
            for g, group in enumerate(kept)
        ]
        return found

    def _orders(self, k: int) -> Iterator[tuple[int, int]]:
        for i in range(k):
            for j in range(k):
                if i != j and (self.both_orders or i < j):
                    yield i, j

    def _judgment(self, group: Sequence[Excerpt], votes: dict[str, Matrix]) -> Judgment:
        average, kept = {}, {}
        for name, (a, b) in votes.items():
            if not self.both_orders:
                lower = np.tril_indices(len(group), -1)
                a[lower], b[lower] = b.T[lower], a.T[lower]
            average[name], kept[name] = soft_labels(a, b, self.judge.generations), (a, b)
        prompts = {each.name: each.prompt_hash for each in self.criteria}
        ids, domains = tuple(each.document for each in group), tuple(each.domain for each in group)
        return Judgment(tuple(each.text for each in group), average, kept, ids, domains, prompts)


def _as_excerpt(text: Excerpt | str) -> Excerpt:
    return Excerpt(sha256_json(text)[:16], text, "", 0, len(text)) if isinstance(text, str) else text


@dataclass(frozen=True)
class Graded:
    """Grades of one text from 1 to 10; `average` is -100 where there are none."""

    index: str
    text: str
    scores: tuple[float, ...]

    @property
    def average(self) -> float:
        """Their mean."""
        return float(np.mean(self.scores)) if self.scores else MISSING

    def row(self) -> dict[str, Any]:
        """The layout of single grades."""
        return {"index": self.index, "text": self.text, "scores": list(self.scores), "average": self.average}


def grade(
    endpoint: Endpoint,
    criterion: Criterion,
    texts: Sequence[Excerpt],
    generations: int = 1,
    cache: Path | None = None,
    backend: Backend | None = None,
) -> list[Graded]:
    """Let a judge grade texts one by one, for comparison with pairs."""
    scores: list[list[float]] = [[] for _ in texts]

    def take(number: int, reply: Reply) -> None:
        for choice in reply.choices if reply.status == "ok" else ():
            found = re.fullmatch(r"\W*(10|[1-9])\W*(?:/\s*10)?\W*", choice.text)
            if found:
                scores[number].append(float(found[1]))

    requests = [
        criterion.single_request(each.text, n=generations, temperature=1.0, max_tokens=_VOTE_TOKENS) for each in texts
    ]
    answer(endpoint, requests, take, cache, backend)
    return [Graded(each.document, each.text, tuple(values)) for each, values in zip(texts, scores, strict=True)]


def make_judge(
    text: str, mode: Mode = "logprobs", generations: int = 20, cache: Path | None = None, **options: Any
) -> Judge:
    """The judge that a text names: `offline`, `exact:DIRECTORY` (a local model's exact label log-probabilities), or an
    endpoint such as `openai:MODEL`, `local:DIRECTORY`, `mock:NAME`.

    Raises:
        UserError: no such judge, or a wrong option.
    """
    kind, _, rest = text.partition(":")
    if text == "offline":
        return OfflineJudge()
    if kind == "exact" and rest:
        return LocalJudge(Path(rest))
    if not rest:
        raise UserError(
            f"There is no judge '{text}'.", "Use offline, exact:DIRECTORY, openai:MODEL or local:DIRECTORY."
        )
    return EndpointJudge(Endpoint.named(text, **options), mode, generations, cache)
