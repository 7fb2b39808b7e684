"""Judges by name. Any installed package adds one, by an entry point in the group `lmlab.judges`:

    [project.entry-points."lmlab.judges"]
    mine = "mypackage.judge:make"

`make(text, options)` gets the whole text that names the judge, such as `mine:ARGUMENT`, and returns a `Judge`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Protocol

from lmlab.errors import UserError, did_you_mean
from lmlab.judging.config import Mode
from lmlab.judging.judge import Judge

ENTRY_POINTS = "lmlab.judges"


@dataclass(frozen=True)
class JudgeOptions:
    """What a judge may need besides its name.

    Attributes:
        mode, generations: as in `JudgeConfig`.
        cache: file of the replies of an endpoint; None for none.
        endpoint: further settings of an endpoint.
    """

    mode: Mode = "logprobs"
    generations: int = 20
    cache: Path | None = None
    endpoint: dict[str, Any] = field(default_factory=dict)


class JudgeMaker(Protocol):
    """What an entry point names."""

    def __call__(self, text: str, options: JudgeOptions) -> Judge:
        """The judge of this name.

        Raises:
            UserError: the text lacks something, or an option is wrong.
        """


def make_judge(
    text: str, mode: Mode = "logprobs", generations: int = 20, cache: Path | None = None, **endpoint: Any
) -> Judge:
    """The judge that a text names, such as `exact:DIRECTORY` or `openai:MODEL`.

    Raises:
        UserError: no such judge, or a wrong option.
    """
    kind = text.partition(":")[0]
    known = {point.name: point for point in entry_points(group=ENTRY_POINTS)}
    if kind not in known:
        raise UserError(f"There is no judge '{text}'.", did_you_mean(kind, known))
    make: JudgeMaker = known[kind].load()
    return make(text, JudgeOptions(mode, generations, cache, endpoint))
