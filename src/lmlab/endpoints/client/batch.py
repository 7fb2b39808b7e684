"""Requests by file: the batch interfaces of providers, and recordings.

Both only fill the cache; the usual run then finds its replies there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from lmlab.endpoints.client.cache import ReplyCache
from lmlab.endpoints.client.costs import Price
from lmlab.endpoints.protocol import FINAL, ChatRequest, Reply
from lmlab.endpoints.reading import Malformed, error_message, parse_reply, refusal
from lmlab.errors import UserError
from lmlab.files import read_jsonl, write_jsonl

_URL = "/v1/chat/completions"


def write_batch(path: str | Path, model: str, requests: Iterable[ChatRequest], cache: str | Path | None = None) -> int:
    """Write the file of a batch: one JSON line for each request that the cache has no reply to; equal requests once.

    Returns:
        the number of lines.
    """
    path = Path(path)
    cache = None if cache is None else Path(cache)
    kept, written = ReplyCache(cache), set[str]()

    def rows() -> Iterator[dict[str, Any]]:
        for request in requests:
            key = request.key(model)
            if key not in written and kept.get(key) is None:
                written.add(key)
                yield {"custom_id": key, "method": "POST", "url": _URL, "body": request.body(model)}

    try:
        return write_jsonl(path, rows())
    finally:
        kept.close()


def read_batch(
    path: str | Path, model: str, requests: Iterable[ChatRequest], cache: str | Path, price: Price | None = None
) -> Counter[str]:
    """Put the replies of a batch's output (or error) file into the cache.

    Arguments:
        requests: those that the batch was written from.
        price: of the model, for batches.

    Returns:
        replies by status; `unknown` counts lines of other requests. Statuses other than those the cache keeps are only
        counted.

    Raises:
        UserError: a line is not one of such a file.
    """
    return collect_batch(path, model, {request.key(model): request for request in requests}, cache, price)


def collect_batch(
    path: str | Path, model: str, asked: Mapping[str, ChatRequest], cache: str | Path, price: Price | None = None
) -> Counter[str]:
    """As `read_batch`, with the requests by their keys."""
    path, cache = Path(path), Path(cache)
    counts: Counter[str] = Counter()
    kept = ReplyCache(cache)
    try:
        for number, row in enumerate(read_jsonl(path), 1):
            key = row.get("custom_id")
            if not isinstance(key, str):
                raise UserError(f"'{path}', line {number} has no custom_id.", "Name the output file of the batch.")
            if key not in asked:
                counts["unknown"] += 1
                continue
            reply = _reply(row, asked[key])
            reply = replace(reply, cost_usd=None if price is None else price.of(reply.usage))
            counts[reply.status] += 1
            if reply.status in FINAL:
                kept.put(key, model, reply)
    finally:
        kept.close()
    return counts


def export_replies(path: str | Path, cache: str | Path, model: str | None = None) -> int:
    """Write the replies of a cache as JSON lines (`key`, `model`, `reply`), which the back end `replay` repeats.

    Arguments:
        model: only those of this one.

    Returns:
        how many.

    Raises:
        UserError: there is no such cache.
    """
    path = Path(path)
    cache = Path(cache)
    if not cache.exists():
        raise UserError(f"There is no cache '{cache}'.")
    kept = ReplyCache(cache)
    try:
        return write_jsonl(
            path,
            (
                {"key": key, "model": name, "reply": reply.to_dict()}
                for key, name, reply in kept
                if model in (None, name)
            ),
        )
    finally:
        kept.close()


def _reply(row: dict[str, Any], request: ChatRequest) -> Reply:
    response = row.get("response") or {}
    body = response.get("body")
    if response.get("status_code") == 200:
        try:
            return parse_reply(body, request)
        except Malformed as error:
            return Reply("failed", error=str(error))
    said = row.get("error") or (body.get("error") if isinstance(body, dict) else None) or body
    return refusal(said) or Reply("rejected", error=error_message(said))
