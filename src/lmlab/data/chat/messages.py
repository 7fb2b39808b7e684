"""Conversations as records give them, checked: messages with roles and text, tool calls, what is learned of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lmlab.files import ParseError, json_value

Messages = list[dict[str, Any]]

# what speakers are called where messages have `from` and `value` (ShareGPT)
_SPEAKERS = {
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "function_call": "assistant",
    "observation": "tool",
    "function_response": "tool",
    "function": "tool",
}
_ROLES = {"system", "user", "assistant", "tool"}
_THOUGHTS = ("reasoning_content", "reasoning", "thinking")


class BadRecord(Exception):
    """A record that cannot be learned from, and why."""


class TooLong(BadRecord):
    """A conversation that does not fit."""


@dataclass(frozen=True, slots=True)
class Conversation:
    """Checked messages, and what templates may read beside them.

    Attributes:
        messages: with `role`, and `content`, which is text.
        weights: of each message: whether it is learned if it is the assistant's.
        tools, documents: for the template; None for none.
    """

    messages: Messages
    weights: list[bool]
    tools: list[dict[str, Any]] | None = None
    documents: list[dict[str, Any]] | None = None

    def upto(self, end: int) -> Conversation:
        """The first messages."""
        return replace(self, messages=self.messages[:end], weights=self.weights[:end])

    def learned_turns(self, first: int = 0) -> list[int]:
        """The numbers of the assistant's messages that are learned, from `first` on."""
        return [
            number
            for number in range(first, len(self.messages))
            if self.messages[number]["role"] == "assistant" and self.weights[number]
        ]


def conversation(messages: Any, record: Mapping[str, Any], names: Mapping[str, str] | None = None) -> Conversation:
    """A conversation of messages in any of the usual forms.

    Arguments:
        messages: objects with `role` and `content`, or `from` and `value`. Content is text, or a list of parts of
            text; a turn of the assistant may have `tool_calls` in its place. `weight: 0` keeps one from being learned.
            All of it may be JSON text.
        record: where `tools` and `documents` may be.
        names: other names for `role` and `content`.

    Raises:
        BadRecord: not a list of messages with text, or the assistant says nothing.
    """
    if isinstance(messages, str):  # as tables have them, whose values are text
        messages = parsed(messages)
    if not isinstance(messages, list):
        raise BadRecord("the messages are not a list")
    checked = [_message(message, number, names or {}) for number, message in enumerate(messages, 1)]
    weights = [_weight(message.pop("weight", None), number) for number, message in enumerate(checked, 1)]
    return Conversation(checked, weights, _objects(record, "tools"), _objects(record, "documents"))


def parsed(text: str) -> Any:
    """The value of a JSON text; None where it is none."""
    try:
        return json_value(text)
    except ParseError:
        return None


def joined(before: Conversation, after: Conversation) -> Conversation:
    """One conversation after another, with the tools of the first."""
    return replace(before, messages=before.messages + after.messages, weights=before.weights + after.weights)


def strings(value: Any) -> list[str]:
    """All texts in a JSON value."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, list):
        return []
    return [text for each in value for text in strings(each)]


def with_parsed_arguments(messages: Sequence[Mapping[str, Any]]) -> Messages:
    """The messages with the arguments of tool calls as objects, where they are JSON text as in OpenAI's records."""
    return [
        {**message, "tool_calls": [_parsed_call(call) for call in message["tool_calls"]]}
        if isinstance(message.get("tool_calls"), list)
        else dict(message)
        for message in messages
    ]


def argument_texts(messages: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """The arguments of tool calls that are text."""
    for message in messages:
        for call in message.get("tool_calls") or []:
            arguments = _function(call).get("arguments")
            if isinstance(arguments, str):
                yield arguments


def _message(message: Any, number: int, names: Mapping[str, str]) -> dict[str, Any]:
    if not isinstance(message, dict):
        raise BadRecord(f"message {number} is not an object")
    role_name = names.get("role") or ("from" if "from" in message and "role" not in message else "role")
    content_name = names.get("content") or ("value" if "value" in message and "content" not in message else "content")
    speaker, content = message.get(role_name), _content(message.get(content_name), number)
    if not isinstance(speaker, str):
        raise BadRecord(f"the {role_name if role_name != 'role' else 'role'} of message {number} is not text")
    known = _SPEAKERS if role_name != "role" else {}  # a role may be the template's own
    role = known.get(speaker.lower(), speaker.lower() if speaker.lower() in _ROLES else speaker)
    found = {key: value for key, value in message.items() if key not in (role_name, content_name) and value is not None}
    found = {"role": role, **found}
    if speaker == "function_call":
        found["tool_calls"], content = [_call(content, number)], ""
    if "tool_calls" in found and not isinstance(found["tool_calls"], list):
        raise BadRecord(f"the tool calls of message {number} are not a list")
    says = bool(found.get("tool_calls")) or any(found.get(name) for name in _THOUGHTS)
    if content is None and not says:
        raise BadRecord(f"the content of message {number} is not text")
    if role == "assistant" and not says and not (content or "").strip():
        raise BadRecord(f"message {number}, a turn of the assistant, is empty")
    return {**found, "content": content or ""}


def _content(value: Any, number: int) -> str | None:
    """Text, or the text of parts; None for nothing."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, list) and value and all(isinstance(part, dict | str) for part in value):
        parts = [part if isinstance(part, str) else part.get("text") for part in value]
        for part, text in zip(value, parts, strict=True):
            if not isinstance(text, str):
                kind = part.get("type") if isinstance(part, dict) else None
                raise BadRecord(f"the content of message {number} holds a part that is no text, of type {kind!r}")
        return "".join(parts)
    raise BadRecord(f"the content of message {number} is not text")


def _weight(value: Any, number: int) -> bool:
    if value is None:
        return True
    if value not in (0, 1):
        raise BadRecord(f"the weight of message {number} is {value!r}; it can be 0, not learned, or 1")
    return bool(value)


def _call(text: str | None, number: int) -> dict[str, Any]:
    """The tool call that is written as JSON in a turn."""
    try:
        call = json_value(text or "")
        return {"type": "function", "function": {"name": call["name"], "arguments": call["arguments"]}}
    except (ValueError, TypeError, KeyError):
        raise BadRecord(f"message {number} is no tool call: JSON with 'name' and 'arguments'") from None


def _objects(record: Mapping[str, Any], name: str) -> list[dict[str, Any]] | None:
    """A list of objects of a record, which may be written as JSON text; None for none."""
    value = record.get(name)
    if isinstance(value, str):
        try:
            value = json_value(value) if value.strip() else None
        except ValueError:
            raise BadRecord(f"'{name}' is text that is not JSON") from None
    if not value:
        return None
    if not isinstance(value, list) or not all(isinstance(each, dict) for each in value):
        raise BadRecord(f"'{name}' is not a list of objects")
    return value


def _function(call: Any) -> Mapping[str, Any]:
    found = call.get("function", call) if isinstance(call, Mapping) else {}
    return found if isinstance(found, Mapping) else {}


def _parsed_call(call: Any) -> Any:
    function = _function(call)
    if not isinstance(function.get("arguments"), str):
        return call
    try:
        function = {**function, "arguments": json_value(function["arguments"] or "{}")}
    except ValueError:
        return call
    return {**call, "function": function} if "function" in call else function
