"""Tools of a chat: how a model is told of them, and how its call is read."""

from __future__ import annotations

import json
import math
import re
import uuid
from collections.abc import Sequence
from typing import Any

_TAG = re.compile(r"\s*(?:</?tool_call>\s*)*")  # as models of the Hermes family put it around each call
MOST_CALLS = 16  # of one answer: more than people ask for, and an end for a model that repeats itself


def _no_number(spelled: str) -> Any:
    raise ValueError(f"{spelled} is no JSON")


def _finite(spelled: str) -> float:
    value = float(spelled)
    return value if math.isfinite(value) else _no_number(spelled)


_DECODER = json.JSONDecoder(parse_constant=_no_number, parse_float=_finite)


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


def told(
    messages: Sequence[dict[str, Any]], tools: Sequence[dict[str, Any]], several: bool = False
) -> list[dict[str, Any]]:
    """A conversation for a chat template that knows no tools: what they are stands in the system message, calls and
    results in plain turns.

    Arguments:
        several: whether an answer may call more than one.
    """
    lines = [json.dumps(tool["function"], ensure_ascii=False) for tool in tools]
    told = (
        "You can call these functions, each given with a JSON schema of its arguments:\n"
        + "\n".join(lines)
        + '\nTo call one, answer with nothing but {"name": ..., "arguments": {...}}.'
        + (" To call several, write one such object in each line." if several else "")
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
    spelled = "\n".join(f'{{"name": {json.dumps(each["name"])}, "arguments": {each["arguments"]}}}' for each in calls)
    return {"role": message["role"], "content": message["content"] + spelled}


def read_calls(text: str, names: Sequence[str], most: int = MOST_CALLS) -> list[dict[str, Any]]:
    """The calls that an answer is made of, in the form of the protocol; none where it is anything else than calls of
    functions of these names, one after the other or as one list.

    Arguments:
        most: the first so many are taken: a model that answers in tags, or by a list, is held to no number.
    """
    found = list[Any]()
    place = _after_tags(text, 0)
    try:
        while place < len(text):
            value, place = _DECODER.raw_decode(text, place)
            found += value if isinstance(value, list) else [value]
            place = _after_tags(text, place)
    except (ValueError, RecursionError):
        return []
    calls = [_call(each, names) for each in found]
    return [] if None in calls else [call for call in calls if call is not None][:most]


def _after_tags(text: str, place: int) -> int:
    found = _TAG.match(text, place)
    return place if found is None else found.end()


def _call(value: Any, names: Sequence[str]) -> dict[str, Any] | None:
    if not isinstance(value, dict) or value.get("name") not in names:
        return None
    arguments = value.get("arguments", value.get("parameters", {}))
    if not isinstance(arguments, dict):
        return None
    spelled = json.dumps(arguments, ensure_ascii=False)
    if not spelled.isascii() and spelled != spelled.encode("utf-8", "replace").decode():
        spelled = json.dumps(arguments)  # half a character can only be sent escaped
    function = {"name": value["name"], "arguments": spelled}
    return {"id": f"call_{uuid.uuid4().hex[:24]}", "type": "function", "function": function}
