"""A patch's reward, for training by reinforcement and for choosing among samples."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from lmlab.errors import UserError, did_you_mean
from lmlab.methods.swebench.harness.judge import Judge
from lmlab.methods.swebench.harness.result import Result
from lmlab.methods.swebench.instances.instance import Instance


@dataclass
class RewardFn:
    """1 for a patch that resolves its issue, 0 for one that does not, None where nothing can be said: a failure of the
    surroundings is no reward, neither good nor bad.

    Trees and environments are kept ready, so that a reward costs a copy and the tests.

    Attributes:
        instances: that can be asked for.
        judge: how patches are judged.
        workers: patches at once in `many`.
    """

    instances: Sequence[Instance]
    judge: Judge
    workers: int = 1

    def __post_init__(self) -> None:
        self._known = {each.instance_id: each for each in self.instances}

    def __call__(self, instance_id: str, patch: str | None) -> float | None:
        """The reward of one patch.

        Raises:
            UserError: there is no such instance.
        """
        return reward_of(self.judged(instance_id, patch))

    def judged(self, instance_id: str, patch: str | None) -> Result:
        """What the reward of one patch rests on (`reward_of`), and why there may be none.

        Raises:
            UserError: there is no such instance.
        """
        if instance_id not in self._known:
            raise UserError(f"Unknown instance '{instance_id}'. {did_you_mean(instance_id, self._known)}")
        return self.judge.judge(self._known[instance_id], patch)

    def many(self, pairs: Sequence[tuple[str, str | None]]) -> list[float | None]:
        """The rewards of (instance, patch) pairs, in their order."""
        with ThreadPoolExecutor(max(1, self.workers), "reward") as pool:
            return list(pool.map(lambda pair: self(*pair), pairs))


def reward_of(result: Result) -> float | None:
    """1 where the issue is resolved, 0 where it is not, None where nothing can be said."""
    return float(result.resolved) if result.is_verdict else None
