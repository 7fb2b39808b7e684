"""A model behind an endpoint, by votes, by log-probabilities of labels, or by grades."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from lmlab.endpoints import Backend, ChatRequest, Endpoint, Estimate, Reply, answer, estimate
from lmlab.errors import UserError
from lmlab.judging.config import Mode
from lmlab.judging.judge import Marks, Question, Rubric, Verdict
from lmlab.judging.judges.find import JudgeOptions
from lmlab.judging.votes import MISSING, label_masses, parse_reasons, parse_vote
from lmlab.judging.wording import Criterion

Item = TypeVar("Item")
_TOP = 20  # the most that endpoints report
_REASONS_TOKENS = 1024  # some paragraphs; models that think first need more than their reasons take
_VOTE_TOKENS = 16  # a label with what models like to put around it: "The answer is **B**."


class EndpointJudge:
    """A model behind an endpoint.

    Arguments:
        endpoint: where it is.
        mode: `votes` samples `generations` answers; `logprobs` reads the probabilities of both labels off one;
            `reasons` reads one that says why.
        generations: answers to a question in the mode `votes`, and readings of an item that is graded.
        cache: file of the replies: nothing is paid for twice.
        backend: who answers, in place of the one that the endpoint names.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        mode: Mode = "logprobs",
        generations: int = 20,
        cache: str | Path | None = None,
        backend: Backend | None = None,
    ) -> None:
        self.endpoint, self.mode, self.cache, self.backend = endpoint, mode, cache, backend
        self.generations = generations if mode == "votes" else 1
        self.name = f"{endpoint.backend}:{endpoint.model}, {mode}"

    def compare(self, questions: Sequence[Question], take: Callable[[int, Verdict], None]) -> None:
        """Ask; answers that an endpoint without `n` leaves out are asked for one by one."""
        tallies = [_Tally() for _ in questions]
        self._run(
            self._first(questions),
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

    def prompt_hash(self, criterion: Criterion) -> str:
        """SHA-256 of what is asked apart from the texts."""
        return criterion.reasons_hash if self.mode == "reasons" else criterion.prompt_hash

    def estimate(self, questions: Sequence[Question]) -> Estimate:
        """What comparing will cost, without asking."""
        identity = None if self.backend is None else self.backend.identity
        return estimate(self.endpoint, self._first(questions), self.cache, identity)

    def _first(self, questions: Sequence[Question]) -> Iterable[ChatRequest]:
        """The first request of each question."""
        if self.mode == "reasons":
            plain = {"temperature": 0.0, "max_tokens": _REASONS_TOKENS}
            return (each.criterion.reasons_request(each.text_a, each.text_b, **plain) for each in questions)
        options: dict[str, Any] = {"n": self.generations, "temperature": 1.0, "max_tokens": _VOTE_TOKENS}
        if self.mode == "logprobs":
            options = {"n": 1, "temperature": 1.0, "max_tokens": 1, "top_logprobs": _TOP}
        return (each.criterion.pair_request(each.text_a, each.text_b, **options) for each in questions)

    def grade(
        self, rubric: Rubric[Item], items: Sequence[Item], take: Callable[[int, tuple[Marks, ...]], None]
    ) -> None:
        """Ask for grades."""

        def read(number: int, reply: Reply) -> None:
            if reply.status != "ok":
                take(number, (Marks((None,) * len(rubric.criteria), reply.status),))
            else:
                take(number, tuple(rubric.read(choice.text) for choice in reply.choices))

        self._run((rubric.request(item, self.generations) for item in items), read)

    def _run(self, requests: Iterable[ChatRequest], take: Callable[[int, Reply], None]) -> None:
        answer(self.endpoint, requests, take, self.cache, self.backend)


@dataclass
class _Tally:
    votes: list[float] = field(default_factory=lambda: [0.0, 0.0])
    answers: int = 0
    status: str = "ok"
    error: str | None = None
    reasons: str | None = None

    def add(self, reply: Reply, mode: Mode, labels: Sequence[str]) -> None:
        if reply.status != "ok":
            self.status, self.error = reply.status, reply.error
            return
        for choice in reply.choices:
            self.answers += 1
            if mode == "votes":
                vote = parse_vote(choice.text, labels)
                if vote is not None:
                    self.votes[vote] += 1
            elif mode == "reasons":
                vote, self.reasons = parse_reasons(choice.text, labels)
                if vote is not None:
                    self.votes[vote] += 1
            elif choice.log_probs is None:
                self.status = "without log-probabilities"
                self.error = "the endpoint sends no log-probabilities: ask by votes (mode: votes)"
            elif (masses := label_masses(choice, labels)) is not None:
                self.votes = list(masses)
            else:
                self.status = "no label among the likeliest tokens"

    def verdict(self) -> Verdict:
        if self.status != "ok" and sum(self.votes) == 0:
            return Verdict(MISSING, MISSING, self.status, self.error)
        status = "ok" if sum(self.votes) else "only void votes"
        return Verdict(self.votes[0], self.votes[1], status, reasons=self.reasons)


def make(text: str, options: JudgeOptions) -> EndpointJudge:
    """`openai:MODEL` and the other back ends of endpoints."""
    if not text.partition(":")[2]:
        raise UserError(f"The judge '{text}' names no model.", f"Write {text.partition(':')[0]}:MODEL.")
    return EndpointJudge(Endpoint.named(text, **options.endpoint), options.mode, options.generations, options.cache)
