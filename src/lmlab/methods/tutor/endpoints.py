"""Endpoints as the options of commands name them."""

from __future__ import annotations

from pathlib import Path

from lmlab.endpoints import Endpoint, load_price
from lmlab.errors import UserError
from lmlab.methods.tutor.config import EndpointConfig

_BACKENDS = ("openai", "replay", "mock")


def is_endpoint(model: str) -> bool:
    """Whether a text names a model behind an endpoint, and not a place on this machine."""
    return model.partition(":")[0] in _BACKENDS


def endpoint_of(model: str, config: EndpointConfig, replies: Path | None = None) -> Endpoint:
    """The endpoint that a text such as `openai:MODEL` or `local:DIRECTORY` names.

    Raises:
        UserError: there is none of that name, it holds a secret, or a table of prices is wrong.
    """
    if config.base_url and "@" in config.base_url.split("//")[-1].split("/")[0]:
        raise UserError(
            "The address of the endpoint holds a name and a secret.",
            "Put the key into the environment: --key-env NAME.",
        )
    name = model.partition(":")[2]
    price = None if config.prices is None else load_price(config.prices, name)
    options = {
        "base_url": config.base_url,
        "key_env": config.key_env,
        "requests_per_minute": config.rpm,
        "tokens_per_minute": config.tpm,
        "max_cost_usd": config.max_cost_usd,
        "price": price,
        "replies": replies,
    }
    given = {name: value for name, value in options.items() if value is not None}
    return Endpoint.named(model, concurrency=config.concurrency, **given)
