"""Where a model is served, and how much may be asked of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, field_validator

from lmlab.config import FloatPrecision, validate
from lmlab.endpoints.protocol import ChatRequest
from lmlab.endpoints.settings import EndpointSettings
from lmlab.errors import UserError, did_you_mean

_OWN_FIELDS = ("model", "messages", "stream")
_BACKENDS = ("openai", "local", "replay", "mock")


class Endpoint(EndpointSettings):
    """Where a model is served, and how much may be asked of it, tried again and waited for.

    Attributes:
        model: its name there; for the back end `local` its directory.
        backend: `openai` is any server that speaks that protocol; `local` runs a model in this process; `replay`
            repeats recorded replies (`export_replies`); `mock` answers by a script. The last three send nothing
            anywhere.
        precision: of a local model: `fp32`, `bf16`, or `auto`.
        timeout_s: longest silence of the endpoint within one attempt.
        total_timeout_s: longest time for one attempt as a whole, which also ends an answer that trickles; None for
            none.
        longest_wait_s: a longer wait that the endpoint asks for (`Retry-After`) is not waited for; attempts then have
            the usual time between them.
        max_retries: attempts after the first.
        give_up_after: end the run when so many requests in a row have failed after all retries, or were rejected in the
            same words.
        stream: let answers come as streams, which keeps proxies from closing quiet connections.
        max_tokens_field: what the endpoint calls the length of an answer; `max_completion_tokens` is also tried where
            it refuses the other.
    """

    model: str = Field(min_length=1)
    backend: Literal["openai", "local", "replay", "mock"] = "openai"
    precision: FloatPrecision = "fp32"
    timeout_s: PositiveFloat = 120.0
    total_timeout_s: PositiveFloat | None = 900.0
    longest_wait_s: NonNegativeFloat = 60.0
    max_retries: NonNegativeInt = 6
    give_up_after: PositiveInt = 20
    stream: bool = False
    max_tokens_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"

    @field_validator("omit", "extra_body")
    @classmethod
    def _check_fields(cls, value: Any) -> Any:
        for name in _OWN_FIELDS:
            if name in value:
                raise ValueError(f"'{name}' has a setting of its own, and is always sent.")
        return value

    def shaped(self, request: ChatRequest) -> ChatRequest:
        """The request as this endpoint gets it, with the fields that are added and left out; to do it again changes
        nothing.
        """
        extra = {**dict.fromkeys(self.omit), **self.extra_body, **(request.extra or {})}
        return replace(request, extra=extra) if extra else request

    @classmethod
    def named(cls, text: str, **options: Any) -> Endpoint:
        """The endpoint that a text such as `openai:MODEL` or `local:DIRECTORY` names.

        Arguments:
            options: further attributes.

        Raises:
            UserError: no back end of this name, or a wrong option.
        """
        backend, found, model = text.partition(":")
        if not found or not model or backend not in _BACKENDS:
            raise UserError(f"'{text}' names no endpoint; write BACKEND:MODEL.", did_you_mean(backend, _BACKENDS))
        return validate(cls, {"backend": backend, "model": model, **options}, f"the endpoint '{text}'")
