"""What a run will ask for and cost, before anything is sent."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from lmlab.endpoints.backends import identity_of
from lmlab.endpoints.client.cache import ReplyCache
from lmlab.endpoints.endpoint import Endpoint
from lmlab.endpoints.protocol import ChatRequest, Usage
from lmlab.words import counted


@dataclass(frozen=True)
class Estimate:
    """What a run will ask for.

    Attributes:
        requests: all different ones.
        cached: those of them that are answered already.
        prompt_tokens: of the others, at four bytes a token.
        completion_tokens: of the others, at most.
        likely_usd: for these tokens; None where the price is not known.
        most_usd: no run costs more: every byte of a prompt a token. None likewise.
        spent_usd: what the cache has paid for before.
    """

    requests: int = 0
    cached: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    likely_usd: float | None = None
    most_usd: float | None = None
    spent_usd: float = 0.0

    def __add__(self, other: Estimate) -> Estimate:
        """Of both runs; a cost that is not known for one is not known for both."""

        def both(a: float | None, b: float | None) -> float | None:
            return None if a is None or b is None else a + b

        return Estimate(
            self.requests + other.requests,
            self.cached + other.cached,
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
            both(self.likely_usd, other.likely_usd),
            both(self.most_usd, other.most_usd),
            self.spent_usd + other.spent_usd,
        )

    def __str__(self) -> str:
        """One line for a person."""
        tokens = f"about {self.prompt_tokens:,} tokens of prompts, up to {self.completion_tokens:,} of answers"
        cost = (
            "cost unknown (no price)"
            if self.likely_usd is None
            else f"about ${self.likely_usd:,.2f}, at most ${self.most_usd:,.2f}"
        )
        return f"{counted(self.requests, 'requests')}, {self.cached:,} of them answered already; {tokens}; {cost}."


def estimate(
    endpoint: Endpoint, requests: Iterable[ChatRequest], cache: str | Path | None = None, identity: str | None = None
) -> Estimate:
    """Estimate a run of a client without sending anything. Equal requests count once.

    Arguments:
        cache: of the run; it need not exist.
        identity: of a back end that is not the one that the endpoint names (`Backend.identity`).
    """
    cache = None if cache is None else Path(cache)
    identity, price = (
        identity or (identity_of(endpoint) if cache is not None and cache.exists() else endpoint.model),
        endpoint.price,
    )
    kept = ReplyCache(cache if cache is not None and cache.exists() else None)
    seen: set[str] = set()
    cached = prompt = completion = 0
    most = 0.0
    try:
        for request in map(endpoint.shaped, requests):
            if (key := request.key(identity)) in seen:
                continue
            seen.add(key)
            if kept.get(key) is not None:
                cached += 1
                continue
            prompt += request.likely_prompt_tokens()
            completion += request.most_new_tokens() or request.max_tokens
            most += 0.0 if price is None else price.worst(request)
        spent = kept.spent(identity)
    finally:
        kept.close()
    if price is None:
        return Estimate(len(seen), cached, prompt, completion, spent_usd=spent)
    return Estimate(len(seen), cached, prompt, completion, price.of(Usage(prompt, completion)), most, spent)
