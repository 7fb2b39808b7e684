"""How an endpoint is reached: what commands and recipes may say of it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, JsonValue, NonNegativeFloat, PositiveFloat, PositiveInt

from lmlab.config import NO_INFLUENCE, Config, Flag
from lmlab.endpoints.client.costs import Price


class EndpointSettings(Config):
    """How an endpoint is reached, and how much may be asked of it.

    Attributes:
        base_url: address of an endpoint, up to and with /v1.
        key_env: environment variable that holds its key.
        replies: for replay the recorded replies, for mock the script; files of JSON lines.
        concurrency: most requests under way; fewer after "too many requests".
        requests_per_minute: limit of the account.
        tokens_per_minute: limit of the account.
        max_cost_usd: ceiling of the cost in US dollars, which needs the price, and counts what the cache has paid for.
        price: of an endpoint's tokens, in US dollars per million, as 0.15,0.60; without it costs are unknown.
        omit: fields of requests that an endpoint does not get, such as temperature and n, for models that refuse them.
        extra_body: further fields of the body of an endpoint's requests, such as reasoning_effort.
        headers: further headers of an endpoint's requests; $NAME in a value is an environment variable.
        query: further parameters of an endpoint's address, such as api-version; likewise.
    """

    base_url: str = "http://127.0.0.1:8000/v1"
    key_env: str | None = None
    replies: Path | None = None
    concurrency: Annotated[PositiveInt, NO_INFLUENCE] = 16
    requests_per_minute: Annotated[PositiveFloat | None, NO_INFLUENCE, Flag(("--requests-per-minute", "--rpm"))] = None
    tokens_per_minute: Annotated[PositiveFloat | None, NO_INFLUENCE, Flag(("--tokens-per-minute", "--tpm"))] = None
    max_cost_usd: NonNegativeFloat | None = None
    price: Price | None = None
    omit: tuple[str, ...] = ()
    extra_body: Annotated[dict[str, JsonValue], Flag(("--body",))] = Field(default={})
    headers: Annotated[dict[str, str], Flag(("--header",))] = Field(default={})
    query: dict[str, str] = Field(default={})

    def endpoint_options(self) -> dict[str, Any]:
        """Those of an endpoint that are not what they are by default."""
        found = {name: (getattr(self, name), each.default) for name, each in EndpointSettings.model_fields.items()}
        return {name: value for name, (value, default) in found.items() if value != default}
