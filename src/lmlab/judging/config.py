"""Who judges, and how: the settings of a recipe's section or of a command."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, JsonValue, PositiveInt

from lmlab.config import Config
from lmlab.endpoints import Price
from lmlab.judging.judge import Judge

Mode = Literal["logprobs", "votes"]


class EndpointSettings(Config):
    """How an endpoint is reached, for judges that ask one.

    Attributes:
        base_url: address of an endpoint.
        key_env: environment variable that holds its key.
        concurrency: requests at once.
        max_cost_usd: ceiling of the cost.
        price: of an endpoint's tokens.
        omit: fields of requests that an endpoint does not get, such as temperature and n, for models that refuse them.
        extra_body: further fields of the body of an endpoint's requests.
        headers: further headers of an endpoint's requests; $NAME in a value is an environment variable.
        query: further parameters of an endpoint's address; likewise.
    """

    base_url: str | None = None
    key_env: str | None = None
    concurrency: PositiveInt | None = None
    max_cost_usd: float | None = None
    price: Price | None = None
    omit: tuple[str, ...] = ()
    extra_body: dict[str, JsonValue] = Field(default={})
    headers: dict[str, str] = Field(default={})
    query: dict[str, str] = Field(default={})

    def endpoint_options(self) -> dict[str, Any]:
        """Those of an endpoint that are set."""
        names = EndpointSettings.model_fields
        return {name: getattr(self, name) for name in names if getattr(self, name) not in (None, (), {})}


class JudgeConfig(EndpointSettings):
    """Who judges, and how.

    Attributes:
        judge: the name of an entry point of the group `lmlab.judges`, and what it needs: `exact:DIRECTORY` (a local
            model's exact label probabilities), or an endpoint: `openai:MODEL`, `local:DIRECTORY`, ...
        mode: `logprobs` reads both labels' probabilities off one answer, `votes` samples `generations` answers.
        generations: votes of a question, with the mode `votes`.
        orders: show each pair in both orders, or in one.
    """

    judge: str
    mode: Mode = "logprobs"
    generations: PositiveInt = 20
    orders: Literal["both", "one"] = "both"

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
