"""Several judges as one: the median of their grades, and a flag where they are of different opinions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lmlab.endpoints import Estimate
from lmlab.errors import UserError
from lmlab.files import sha256_json
from lmlab.judging.answers.grades import AnswerGrades, AnswerJudge, Take
from lmlab.judging.answers.item import AnswerItem
from lmlab.judging.rubrics.numbers import Scale

DISAGREEMENT = "disagreement"


class PanelJudge:
    """A panel.

    Arguments:
        judges: of one scale, with a headline in common.
        disagreement: the distance of the highest and the lowest grade of a criterion from which an answer is flagged.

    Raises:
        UserError: the judges have another scale, or no headline in common.
    """

    def __init__(self, judges: Sequence[AnswerJudge], disagreement: float = 1.0) -> None:
        self.judges, self.disagreement = list(judges), disagreement
        first = self.judges[0]
        for other in self.judges[1:]:
            if other.scale != first.scale or other.headline != first.headline:
                raise UserError(
                    f"'{first.name}' and '{other.name}' grade by different scales or headlines.",
                    "A panel needs judges by the same rubric.",
                )
        self.name = f"panel of {' | '.join(each.name for each in self.judges)}"

    @property
    def criteria(self) -> tuple[str, ...]:
        """Those that some judge has."""
        return tuple(dict.fromkeys(name for each in self.judges for name in each.criteria))

    @property
    def headline(self) -> str:
        """That of all."""
        return self.judges[0].headline

    @property
    def scale(self) -> Scale:
        """That of all."""
        return self.judges[0].scale

    @property
    def prompt_hash(self) -> str:
        """Of all judges."""
        return sha256_json([[each.name, each.prompt_hash] for each in self.judges])

    def judge(self, items: Sequence[AnswerItem], take: Take) -> None:
        """Ask all judges, one after the other."""
        found: list[list[AnswerGrades | None]] = [[None] * len(items) for _ in self.judges]
        for judge, said in zip(self.judges, found, strict=True):
            judge.judge(items, said.__setitem__)
        for number in range(len(items)):
            take(number, self._joined([each[number] for each in found]))

    def estimate(self, items: Sequence[AnswerItem]) -> Estimate | None:
        """The sum over the judges that ask somebody; a cost that is not known for one is not known for all."""
        parts = [each for judge in self.judges if (each := judge.estimate(items)) is not None]
        return sum(parts[1:], parts[0]) if parts else None

    def _joined(self, said: Sequence[AnswerGrades | None]) -> AnswerGrades:
        grades: dict[str, float | None] = {}
        spread: dict[str, float | None] = {}
        heard = [each for each in said if each is not None]
        flags = {flag for each in heard for flag in each.flags}
        for name in self.criteria:
            asked = sum(name in judge.criteria for judge in self.judges)
            values = np.array([value for each in heard if (value := each.grades.get(name)) is not None], float)
            known = 2 * len(values) > asked
            grades[name] = float(np.median(values)) if known else None
            spread[name] = float(values.std(ddof=1)) if known and len(values) > 1 else None
            if len(values) > 1 and np.ptp(values) >= self.disagreement:
                flags.add(DISAGREEMENT)
        status = "ok"
        if any(value is None for value in grades.values()):
            bad = [each.status for each in heard if each.status != "ok"]
            status = max(sorted(set(bad)), key=bad.count) if bad else "missing"
        details = tuple(
            {"judge": judge.name, "status": each.status, "grades": dict(each.grades)}
            for judge, each in zip(self.judges, said, strict=True)
            if each is not None
        )
        costs = [each.cost_usd for each in heard if each.requests or each.cost_usd is not None]
        return AnswerGrades(
            grades,
            status,
            tuple(sorted(flags)),
            spread,
            details=details,
            raw=tuple(text for each in heard for text in each.raw),
            cost_usd=None if not costs or any(cost is None for cost in costs) else sum(cost or 0.0 for cost in costs),
            requests=sum(each.requests for each in heard),
            seconds=sum(each.seconds for each in heard),
            attempts=max((each.attempts for each in heard), default=0),
        )
