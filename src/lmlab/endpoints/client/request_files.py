"""Files of requests and of replies, as JSON lines."""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, Self

from pydantic import Field, JsonValue, NonNegativeFloat, PositiveInt, model_validator

from lmlab.config import Config, validate
from lmlab.endpoints.protocol import ChatRequest, Reply
from lmlab.files import json_value, read_jsonl


class Message(Config):
    """One turn of a conversation; the content is a text or a list of the protocol's parts."""

    role: str
    content: str | list[dict[str, JsonValue]] | None = None
    name: str | None = None
    tool_calls: list[dict[str, JsonValue]] | None = None
    tool_call_id: str | None = None

    @model_validator(mode="after")
    def _says_something(self) -> Message:
        if self.content is None and not self.tool_calls:
            raise ValueError("a message needs 'content'")
        return self


class RequestRow(Config):
    """A line of a file of requests: `messages`, or `prompt` for a single one of the user. The other fields are those of
    `ChatRequest`.

    Attributes:
        id: comes back with the reply; by default the number of the line, from 1.
        max_tokens: most tokens of an answer.
        temperature: 0 takes the likeliest token.
    """

    id: JsonValue = None
    prompt: str | None = None
    messages: tuple[Message, ...] = ()
    max_tokens: PositiveInt = 256
    temperature: NonNegativeFloat = 0.0
    top_p: float = Field(default=1.0, gt=0, le=1)
    n: PositiveInt = 1
    stop: tuple[str, ...] = ()
    seed: int | None = None
    top_logprobs: int | None = Field(default=None, ge=0)
    logit_bias: dict[str, float] | None = None
    response_format: dict[str, Any] | None = None
    sample: int = 0
    extra: dict[str, JsonValue] | None = None

    @model_validator(mode="after")
    def _one_of_both(self) -> RequestRow:
        if (self.prompt is None) == (not self.messages):
            raise ValueError("a request has either 'prompt' or 'messages'")
        return self

    def request(self) -> ChatRequest:
        """What is asked."""
        messages = self.messages or (Message(role="user", content=self.prompt or ""),)
        settings = {
            name: getattr(self, name) for name in RequestRow.model_fields if name not in ("id", "prompt", "messages")
        }
        return ChatRequest(tuple(message.model_dump(exclude_none=True) for message in messages), **settings)


def read_requests(path: Path, defaults: Mapping[str, Any] | None = None) -> Iterator[tuple[Any, ChatRequest]]:
    """The id and the request of every line.

    Arguments:
        defaults: fields for lines that lack them.

    Raises:
        UserError: a line is no request; with its number.
    """
    for number, row in enumerate(read_jsonl(path), 1):
        line = validate(RequestRow, {**(defaults or {}), **row}, f"'{path}', line {number}")
        yield number if line.id is None else line.id, line.request()


def reply_row(id: Any, reply: Reply) -> dict[str, Any]:
    """The line that a reply makes."""
    row: dict[str, Any] = {"id": id, "status": reply.status, "texts": [choice.text for choice in reply.choices]}
    row |= {
        "finish_reasons": [choice.finish_reason for choice in reply.choices],
        "usage": asdict(reply.usage),
        "cost_usd": reply.cost_usd,
    }
    if any(choice.log_probs is not None for choice in reply.choices):
        row["log_probs"] = [
            None if choice.log_probs is None else [asdict(token) for token in choice.log_probs]
            for choice in reply.choices
        ]
    if any(choice.reasoning for choice in reply.choices):
        row["reasoning"] = [choice.reasoning for choice in reply.choices]
    if any(choice.tool_calls for choice in reply.choices):
        row["tool_calls"] = [list(choice.tool_calls) for choice in reply.choices]
    return row if reply.error is None else row | {"error": reply.error}


class ReplyRows:
    """The lines of replies that come in any order, on the disk until all are there: in memory are eight bytes each.

    Arguments:
        folder: where the file is that holds them; it has no name, so that nothing is left behind.
        count: of the requests.
    """

    def __init__(self, folder: Path, count: int) -> None:
        self._file = TemporaryFile(dir=folder)  # noqa: SIM115
        self._places, self._end = array("q", [-1]) * count, 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, number: int) -> bool:
        return self._places[number] >= 0

    def put(self, number: int, row: Mapping[str, Any]) -> None:
        """Keep the line of a request."""
        line = json.dumps(row, ensure_ascii=False).encode() + b"\n"
        self._file.seek(self._end)
        self._file.write(line)
        self._places[number], self._end = self._end, self._end + len(line)

    def get(self, number: int) -> dict[str, Any] | None:
        """The line of a request; None where it has none yet."""
        if self._places[number] < 0:
            return None
        self._file.seek(self._places[number])
        row: dict[str, Any] = json_value(self._file.readline(), allow_nan=True)
        return row

    @property
    def missing(self) -> int:
        """How many requests have no line."""
        return sum(place < 0 for place in self._places)
