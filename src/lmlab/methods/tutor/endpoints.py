"""Endpoints as the options of commands name them, and what must not be sent to them."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from lmlab.endpoints import ChatRequest, Endpoint, Price, load_price
from lmlab.errors import UserError
from lmlab.methods.tutor.config import EndpointConfig

UNANSWERED = ("failed", "rejected")
"""Statuses of replies that an endpoint owes: what ended with one is asked for again by the same command."""
_BACKENDS = ("openai", "replay", "mock")
_SECRETS = re.compile(r"[?&](?:api[_-]?key|key|token|access_token)=", re.IGNORECASE)


def is_endpoint(model: str) -> bool:
    """Whether a text names a model behind an endpoint, and not a place on this machine."""
    return model.partition(":")[0] in _BACKENDS


def price_of(prices: Path | None, model: str) -> Price | None:
    """The price of a model such as `openai:NAME` in a file; None for an unknown one.

    Raises:
        BadPriceTable: the file is none, before anything is asked.
    """
    return None if prices is None else load_price(prices, model.partition(":")[2] or model)


def endpoint_of(model: str, config: EndpointConfig) -> Endpoint:
    """The endpoint that a text such as `openai:MODEL` or `local:DIRECTORY` names.

    Raises:
        UserError: there is none of that name, or its address holds a secret.
        BadPriceTable: the table of prices is wrong.
    """
    refuse_secrets(config.base_url)
    options = config.endpoint_options()
    if (price := price_of(config.prices, model)) is not None:
        options["price"] = price
    return Endpoint.named(model, **options)


def refuse_secrets(base_url: str) -> None:
    """Keys come from the environment, where no log and no result sees them.

    Raises:
        UserError: an address holds one.
    """
    if "@" in base_url.split("//")[-1].split("/")[0] or _SECRETS.search(base_url):
        raise UserError(
            "The address of the endpoint holds a secret.", "Put the key into the environment: --key-env NAME."
        )


def without_private(request: ChatRequest, patterns: tuple[str, ...]) -> ChatRequest:
    """A request in none of whose messages stands what must not leave this machine.

    Raises:
        UserError: a pattern is no regular expression.
    """
    if not patterns:
        return request
    messages = tuple({**each, "content": redacted(str(each["content"]), patterns)} for each in request.messages)
    return replace(request, messages=messages)


def redacted(text: str, patterns: tuple[str, ...]) -> str:
    """A text without what must not leave this machine.

    Raises:
        UserError: a pattern is no regular expression.
    """
    for pattern in patterns:
        try:
            text = re.sub(pattern, "[redacted]", text)
        except re.error as error:
            raise UserError(f"--redact '{pattern}' is no regular expression ({error}).") from None
    return text
