"""Who judges, and how: the settings of a recipe's section or of a command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, JsonValue, NonNegativeFloat, PositiveFloat, PositiveInt

from lmlab.config import NO_INFLUENCE, Config, Flag
from lmlab.endpoints import Price
from lmlab.judging.judge import Judge

Mode = Literal["logprobs", "votes"]


class PriceTable(Config):
    """What models cost.

    Attributes:
        prices: a YAML file of models to prices, in US dollars per million tokens (prompt, completion, cached_prompt).
    """

    prices: Path | None = None


class EndpointSettings(Config):
    """How an endpoint is reached, for judges that ask one.

    Attributes:
        base_url: address of an endpoint, up to and with /v1; by default http://127.0.0.1:8000/v1.
        key_env: environment variable that holds its key.
        replies: for replay the recorded replies, for mock the script; files of JSON lines.
        concurrency: most requests under way, by default 16.
        requests_per_minute: limit of the account.
        tokens_per_minute: limit of the account.
        max_cost_usd: ceiling of the cost in US dollars, which needs the price.
        price: of an endpoint's tokens, in US dollars per million, as 0.15,0.60.
        omit: fields of requests that an endpoint does not get, such as temperature and n, for models that refuse them.
        extra_body: further fields of the body of an endpoint's requests.
        headers: further headers of an endpoint's requests; $NAME in a value is an environment variable.
        query: further parameters of an endpoint's address; likewise.
    """

    base_url: str | None = None
    key_env: str | None = None
    replies: Path | None = None
    concurrency: PositiveInt | None = None
    requests_per_minute: Annotated[PositiveFloat | None, NO_INFLUENCE, Flag(("--requests-per-minute", "--rpm"))] = None
    tokens_per_minute: Annotated[PositiveFloat | None, NO_INFLUENCE, Flag(("--tokens-per-minute", "--tpm"))] = None
    max_cost_usd: NonNegativeFloat | None = None
    price: Price | None = None
    omit: tuple[str, ...] = ()
    extra_body: Annotated[dict[str, JsonValue], Flag(("--body",))] = Field(default={})
    headers: Annotated[dict[str, str], Flag(("--header",))] = Field(default={})
    query: dict[str, str] = Field(default={})

    def endpoint_options(self) -> dict[str, Any]:
        """Those of an endpoint that are set."""
        names = EndpointSettings.model_fields
        return {name: getattr(self, name) for name in names if getattr(self, name) not in (None, (), {})}


class Judging(EndpointSettings):
    """How a judge compares.

    Attributes:
        mode: `logprobs` reads both labels' probabilities off one answer, `votes` samples `generations` answers.
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
