"""Judges by name. Any installed package adds one, by an entry point in the group `lmlab.judges`:

    [project.entry-points."lmlab.judges"]
    mine = "mypackage.judge:make"

`make(text, options)` gets the whole text that names the judge, such as `mine:ARGUMENT`, and returns a `Judge`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from lmlab import plugins
from lmlab.judging.config import Mode
from lmlab.judging.judge import Judge


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


def check_judge(text: str) -> None:
    """Refuse the name of a judge that does not exist, before anything is read.

    Raises:
        UserError: no such judge.
    """
    plugins.find("judges", text.partition(":")[0], "judge", f"'{text}'")


def make_judge(
    text: str, mode: Mode = "logprobs", generations: int = 20, cache: str | Path | None = None, **endpoint: Any
) -> Judge:
    """The judge that a text names, such as `exact:DIRECTORY` or `openai:MODEL`.

    Raises:
        UserError: no such judge, or a wrong option.
    """
    cache = None if cache is None else Path(cache)
    kind = text.partition(":")[0]
    options, has = JudgeOptions(mode, generations, cache, endpoint), ("name", "generations", "compare")
    made: Judge = plugins.make("judges", kind, "judge", f"'{text}'", "lmlab.judging.Judge", has, text, options)
    return made
