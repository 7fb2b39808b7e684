"""Tools of a chat: how a model is told of them, and how its call is read."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Sequence
from typing import Any

from lmlab.files import ParseError, json_value

_TAGGED = re.compile(r"^\s*<tool_call>\s*(\{.*\})\s*(?:</tool_call>)?\s*$", re.DOTALL)


def call_schema(tools: Sequence[dict[str, Any]], name: str | None = None) -> dict[str, Any]:
    """The JSON schema of a call of one of some functions.

    Arguments:
        name: of the only one that may be called.
    """
    wanted = [tool["function"] for tool in tools if name in (None, tool["function"]["name"])]
    calls = [
        {
            "type": "object",
            "properties": {
                "name": {"const": each["name"]},
                "arguments": each.get("parameters") or {"type": "object"},
            },
            "required": ["name", "arguments"],
            "additionalProperties": False,
        }
        for each in wanted
    ]
    return calls[0] if len(calls) == 1 else {"anyOf": calls}


def told(messages: Sequence[dict[str, Any]], tools: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A conversation for a chat template that knows no tools: what they are stands in the system message, calls and
    results in plain turns.
    """
    lines = [json.dumps(tool["function"], ensure_ascii=False) for tool in tools]
    told = (
        "You can call these functions, each given with a JSON schema of its arguments:\n"
        + "\n".join(lines)
        + '\nTo call one, answer with nothing but {"name": ..., "arguments": {...}}.'
    )
    turns = [_plain(message) for message in messages]
    if not tools:
        return turns
    if turns and turns[0]["role"] == "system":
        return [{"role": "system", "content": f"{turns[0]['content']}\n\n{told}"}, *turns[1:]]
    return [{"role": "system", "content": told}, *turns]


def _plain(message: dict[str, Any]) -> dict[str, Any]:
    if message["role"] == "tool":
        return {"role": "user", "content": f"Result of the function: {message['content']}"}
    calls = [call["function"] for call in message.get("tool_calls") or ()]
    spelled = "".join(f'{{"name": {json.dumps(each["name"])}, "arguments": {each["arguments"]}}}' for each in calls)
    return {"role": message["role"], "content": message["content"] + spelled}


def read_call(text: str, names: Sequence[str]) -> dict[str, Any] | None:
    """The call that an answer is, in the form of the protocol; None where it is none of a function of these names."""
    tagged = _TAGGED.match(text)
    try:
        found = json_value(tagged[1] if tagged else text.strip())
    except ParseError:
        return None
    if not isinstance(found, dict) or found.get("name") not in names:
        return None
    arguments = found.get("arguments", found.get("parameters", {}))
    if not isinstance(arguments, dict):
        return None
    function = {"name": found["name"], "arguments": json.dumps(arguments, ensure_ascii=False)}
    return {"id": f"call_{uuid.uuid4().hex[:24]}", "type": "function", "function": function}
