"""Who judges, and how: the settings of a recipe's section or of a command."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import PositiveInt

from lmlab.config import Config
from lmlab.endpoints.settings import EndpointSettings
from lmlab.judging.judge import Judge

Mode = Literal["logprobs", "votes", "reasons"]


class PriceTable(Config):
    """What models cost.

    Attributes:
        prices: a YAML file of models to prices, in US dollars per million tokens (prompt, completion, cached_prompt).
    """

    prices: Path | None = None


class Judging(EndpointSettings):
    """How a judge compares.

    Attributes:
        mode: `logprobs` reads both labels' probabilities off one answer, `votes` samples `generations` answers,
            `reasons` asks for one that says why before it chooses; the reasons are kept.
        generations: votes of a question, with the mode `votes`.
        orders: show each pair in both orders, or in one.
    """

    mode: Mode = "logprobs"
    generations: PositiveInt = 20
    orders: Literal["both", "one"] = "both"


class JudgeConfig(Judging):
    """Who judges, and how.

    Attributes:
        judge: the name of an entry point of the group `lmlab.judges`, and what it needs: `exact:DIRECTORY` (a local
            model's exact label probabilities), or an endpoint: `openai:MODEL`, `local:DIRECTORY`, ...
    """

    judge: str

    def make(self, cache: str | Path | None = None) -> Judge:
        """The judge.

        Arguments:
            cache: file of the replies of an endpoint: nothing is paid for twice.

        Raises:
            UserError: there is no such judge, or a wrong option.
        """
        from lmlab.judging.judges.find import make_judge

        cache = None if cache is None else Path(cache)

        return make_judge(self.judge, self.mode, self.generations, cache, **self.endpoint_options())
