"""All pairs of groups of texts, shown to a judge in both orders, as soft labels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from lmlab.errors import LmlabError
from lmlab.files import sha256_json
from lmlab.judging.judge import Judge, Question, Verdict
from lmlab.judging.judgments import Judgment, Matrix
from lmlab.judging.votes import MISSING, soft_labels
from lmlab.judging.wording import Criterion
from lmlab.words import counted


class Text(Protocol):
    """A text that is judged: an id, and a domain by which missing labels are counted."""

    @property
    def id(self) -> str: ...

    @property
    def text(self) -> str: ...

    @property
    def domain(self) -> str: ...


@dataclass(frozen=True)
class PlainText:
    """A text with nothing known about it but its id."""

    id: str
    text: str
    domain: str = ""


def as_text(text: Text | str) -> Text:
    """A plain text gets its hash for an id."""
    return PlainText(sha256_json(text)[:16], text) if isinstance(text, str) else text


@dataclass
class Judged:
    """What judging gave.

    Attributes:
        judgments: one for each group.
        missing: questions without a verdict by (criterion, domain, reason).
        asked: questions by (criterion, domain).
        errors: for each reason the first that was said of it.
        identical: groups with two equal texts, which count as equally good without being shown.
        skipped: groups of fewer than two texts.
        reasons: what the judge said of each question, where it was asked why: the criterion, the ids of the first and
            the second text, votes for them, and the words.
    """

    judgments: list[Judgment] = field(default_factory=list)
    missing: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    asked: Counter[tuple[str, str]] = field(default_factory=Counter)
    errors: dict[str, str] = field(default_factory=dict)
    identical: int = 0
    skipped: int = 0
    reasons: list[dict[str, Any]] = field(default_factory=list)


class NoVerdicts(LmlabError):
    """A judge was asked, and gave no verdict on anything."""


def require_verdicts(found: Judged) -> None:
    """Raise if all questions stayed without a verdict, so that nobody takes an empty judging for one.

    Raises:
        NoVerdicts: they did; with the reasons.
    """
    asked, missing = sum(found.asked.values()), sum(found.missing.values())
    if not asked or missing < asked:
        return
    reasons: Counter[str] = Counter()
    for (_, _, reason), count in found.missing.items():
        reasons[reason] += count
    by_reason = ", ".join(f"{count:,} {reason}" for reason, count in reasons.most_common())
    said = next((f" The first was told: {error}" for error in found.errors.values()), "")
    raise NoVerdicts(
        f"None of {counted(asked, 'questions')} got a verdict: {by_reason}.{said}",
        "See to the judge, and run the same command again: what was paid for is not asked for again.",
    )


class JudgePairs:
    """Compares all texts of groups by criteria.

    Arguments:
        judge: who answers.
        criteria: one or several.
        both_orders: show each pair in both orders; else one order counts for both, a preference for a place does not
            cancel, and nothing is known of it.
    """

    def __init__(self, judge: Judge, criteria: Criterion | Sequence[Criterion], both_orders: bool = True) -> None:
        self.judge, self.both_orders = judge, both_orders
        self.criteria = [criteria] if isinstance(criteria, Criterion) else list(criteria)

    def run(self, groups: Sequence[Sequence[Text | str]], advance: Callable[[int], None] | None = None) -> Judged:
        """Judge groups of texts; a group of fewer than two is skipped and counted."""
        found = Judged()
        whole = [[as_text(text) for text in group] for group in groups]
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
                if texts[i] == texts[j]:
                    continue
                for each in self.criteria:
                    found.asked[each.name, group[i].domain] += 1
                    places.append((g, each.name, i, j))
                    questions.append(Question(each, texts[i], texts[j]))

        said = dict[int, dict[str, Any]]()

        def take(number: int, verdict: Verdict) -> None:
            g, name, i, j = places[number]
            votes[g, name][:, i, j] = verdict.votes_a, verdict.votes_b
            if verdict.reasons:
                said[number] = {
                    "criterion": name,
                    "first": kept[g][i].id,
                    "second": kept[g][j].id,
                    "votes": [verdict.votes_a, verdict.votes_b],
                    "reasons": verdict.reasons,
                }
            if verdict.status != "ok":
                found.missing[name, kept[g][i].domain, verdict.status] += 1
                if verdict.error:
                    found.errors.setdefault(verdict.status, verdict.error)
            if advance:
                advance(1)

        self.judge.compare(questions, take)
        found.reasons = [said[number] for number in sorted(said)]  # whatever the order of the answers
        found.judgments = [
            self._judgment(group, {each.name: votes[g, each.name] for each in self.criteria})
            for g, group in enumerate(kept)
        ]
        return found

    def num_questions(self, groups: Sequence[Sequence[Text]]) -> int:
        """How many questions `run` will ask."""
        pairs = (group[i].text != group[j].text for group in groups for i, j in self._orders(len(group)))
        return sum(pairs) * len(self.criteria)

    def _orders(self, k: int) -> Iterator[tuple[int, int]]:
        for i in range(k):
            for j in range(k):
                if i != j and (self.both_orders or i < j):
                    yield i, j

    def _judgment(self, group: Sequence[Text], votes: dict[str, Matrix]) -> Judgment:
        texts = tuple(each.text for each in group)
        equal = np.array([[one == two for two in texts] for one in texts]) & ~np.eye(len(texts), dtype=bool)
        average, kept = {}, {}
        for name, (a, b) in votes.items():
            # The votes that are kept are those that were cast: an order that nobody was shown says nothing of the
            # judge's taste for places, so only the labels take it from the other one.
            shown_a, shown_b = (a, b) if self.both_orders else (_mirrored(a, b), _mirrored(b, a))
            labels = soft_labels(shown_a, shown_b, self.judge.generations)
            labels[equal] = 0.5
            average[name], kept[name] = labels, (a, b)
        prompts = {each.name: self._prompt_hash(each) for each in self.criteria}
        ids, domains = tuple(each.id for each in group), tuple(each.domain for each in group)
        return Judgment(texts, average, kept, ids, domains, prompts)

    def _prompt_hash(self, criterion: Criterion) -> str:
        own = getattr(self.judge, "prompt_hash", None)
        return criterion.prompt_hash if own is None else str(own(criterion))


def _mirrored(votes: Matrix, other: Matrix) -> Matrix:
    """The votes for one place, below the diagonal those for the other place of the opposite order."""
    return np.where(np.tri(len(votes), k=-1, dtype=bool), other.T, votes)
