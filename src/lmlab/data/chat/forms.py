"""The forms in which records hold conversations, found by the names of their fields.

| form | fields |
|---|---|
| conversation | `messages`, `conversations` or `conversation`: a list of messages (OpenAI's or ShareGPT's) |
| prompt | `prompt` and `completion` or `response` |
| instruction | `instruction`, `input` or `context`, and `output` or `response`; `history` (Alpaca, Dolly) |
| question | `question` and `answer`; `query` and `response` or `answer`; `input` and `output` |

The first form of which a record has all that is needed counts. `system`, text, goes before each of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lmlab.data.chat.messages import BadRecord, parsed
from lmlab.data.sources.reading.records import field

_CONVERSATIONS = ("messages", "conversations", "conversation")
_PAIRS = (
    ("prompt", "completion"),
    ("prompt", "response"),
    ("instruction", "output"),
    ("instruction", "response"),
    ("question", "answer"),
    ("question", "response"),
    ("query", "response"),
    ("query", "answer"),
    ("input", "output"),
)
_PROMPTS = ("prompt", "instruction", "question", "query")
FIELDS = (
    "messages",
    "role",
    "content",
    "prompt",
    "completion",
    "system",
    "tools",
    "documents",
    "chosen",
    "rejected",
    "label",
    "domain",
)
"""What `chat.fields` may give other names."""


def renamed(record: dict[str, Any], fields: Mapping[str, str]) -> dict[str, Any]:
    """A record whose fields have the names that are known here.

    Arguments:
        fields: known name -> dotted path in the record.

    Raises:
        BadRecord: it has not one of them.
    """
    paths = {name: path for name, path in fields.items() if name not in ("role", "content")}
    found = {name: field(record, path) for name, path in paths.items()}
    for name, path in paths.items():
        if found[name] is None and name not in ("system", "tools", "documents", "domain"):
            raise BadRecord(f"no field '{path}', which chat.fields names for '{name}'")
    given = {path.split(".")[0] for path in paths.values()}
    # a field that is read under another name is not read under its own, too
    return {**{name: value for name, value in record.items() if name not in given}, **found}


def messages_of(record: Mapping[str, Any]) -> Any:
    """The messages of a record in the form of a conversation; None for another form."""
    found = next((record[name] for name in _CONVERSATIONS if record.get(name) is not None), None)
    if isinstance(found, str) and _system(record):
        found = parsed(found)
    return found if found is None or not isinstance(found, list) else _system(record) + found


def pair_of(record: Mapping[str, Any]) -> tuple[Any, Any]:
    """Prompt and answer of a record in one of the other forms: each text or a list of messages.

    Raises:
        BadRecord: in none of them.
    """
    names = next((pair for pair in _PAIRS if all(record.get(name) is not None for name in pair)), None)
    if names is None:
        have = ", ".join(sorted(map(str, record))[:12]) or "none"
        raise BadRecord(
            f"neither 'messages' nor 'prompt' and 'completion', or another known form (its fields: {have});"
            " chat.fields names those that are meant"
        )
    return prompt_of(record, names[0]), record[names[1]]


def prompt_of(record: Mapping[str, Any], name: str | None = None) -> Any:
    """The prompt of a record: text or a list of messages; None for none."""
    name = name or next((each for each in _PROMPTS if record.get(each) is not None), None)
    prompt = None if name is None else record[name]
    if name == "instruction" and isinstance(prompt, str):
        further = [record.get(each) for each in ("input", "context")]
        prompt = "\n\n".join([prompt, *(text for text in further if isinstance(text, str) and text.strip())])
    before = [*_system(record), *_history(record)]
    if not before or prompt is None:
        return prompt
    return before + ([{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt)


def _system(record: Mapping[str, Any]) -> list[Any]:
    system = record.get("system")
    if system is None or system == "":
        return []
    if not isinstance(system, str):
        raise BadRecord("'system' is not text")
    return [{"role": "system", "content": system}]


def _history(record: Mapping[str, Any]) -> list[Any]:
    """Earlier questions and answers, as Alpaca's records hold them."""
    history = record.get("history") or []
    if not isinstance(history, list) or not all(isinstance(turn, list) and len(turn) == 2 for turn in history):
        raise BadRecord("'history' is not a list of pairs of question and answer")
    return [
        {"role": role, "content": text}
        for turn in history
        for role, text in zip(("user", "assistant"), turn, strict=True)
    ]
