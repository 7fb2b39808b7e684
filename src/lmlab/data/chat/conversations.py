"""Records of conversations and preferences to examples for learning. What cannot be learned from is a `Reject`, never
an exception.

| record | fields |
|---|---|
| conversation | `messages`; or `prompt` and `completion` |
| preference | `prompt`, `chosen`, `rejected`; or two conversations `chosen` and `rejected` that begin alike |
| desirable or not | `prompt`, `completion`, `label` |

`messages` is a list of objects with `role` and `content`; the other fields are such lists or text. `domain` is
optional.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from lmlab.data.chat.encoding import (
    BadRecord,
    ChatConfig,
    EncodedText,
    check_messages,
    encode_completion,
    encode_conversation,
    strings,
)
from lmlab.data.documents import Reject
from lmlab.data.sources import RecordSource, record_source
from lmlab.data.tokenizer import Tokenizer
from lmlab.errors import UserError

T = TypeVar("T")
Messages = list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Example:
    """Token ids and which are learned.

    Attributes:
        ids, mask: of equal length; the mask is 1 at tokens that are learned.
        domain: the kind of text.
        size: of the text that is learned, in UTF-8 bytes.
    """

    ids: list[int]
    mask: list[int]
    domain: str = "chat"
    size: int = 0


@dataclass(frozen=True, slots=True)
class PreferencePair:
    """Two answers to one prompt; the first is preferred."""

    chosen: Example
    rejected: Example


@dataclass(frozen=True, slots=True)
class KTOExample:
    """An answer that is wanted or not.

    Attributes:
        example: prompt and answer.
        prompt_length: tokens before the first that is learned.
        desirable: wanted.
    """

    example: Example
    prompt_length: int
    desirable: bool


class ChatEncoder:
    """Makes examples of records.

    Arguments:
        tokenizer: its chat template is used for messages.
        config: see there.
    """

    def __init__(self, tokenizer: Tokenizer, config: ChatConfig | None = None) -> None:
        self.tokenizer, self.config = tokenizer, config or ChatConfig()

    def example(self, record: Any, where: str) -> Example | Reject:
        """An example of a conversation; `where` names the record in a `Reject`."""
        return _attempt(self._example, record, where)

    def preference(self, record: Any, where: str) -> PreferencePair | Reject:
        """A pair of a preference; `where` names the record in a `Reject`."""
        return _attempt(self._preference, record, where)

    def kto(self, record: Any, where: str) -> KTOExample | Reject:
        """An example of an answer with a label; `where` names the record in a `Reject`."""
        return _attempt(self._kto, record, where)

    def _example(self, record: dict[str, Any]) -> Example:
        if "messages" in record:
            messages = check_messages(record["messages"])
            if not messages:
                raise BadRecord("the messages are empty")
            return _finish(encode_conversation(self.tokenizer, self.config, messages), record)
        if "prompt" not in record or "completion" not in record:
            raise BadRecord("neither 'messages' nor 'prompt' and 'completion'")
        return self._answer(record, record["prompt"], record["completion"], whole=False)

    def _preference(self, record: dict[str, Any]) -> PreferencePair:
        _require(record, "chosen", "rejected")
        prompt, chosen, rejected = record.get("prompt"), record["chosen"], record["rejected"]
        if chosen == rejected:
            raise BadRecord("chosen and rejected are equal")
        if prompt is None:
            prompt, chosen, rejected = _part(chosen, rejected)
        pair = PreferencePair(
            self._answer(record, prompt, chosen, whole=True), self._answer(record, prompt, rejected, whole=True)
        )
        if pair.chosen.ids == pair.rejected.ids:
            raise BadRecord("chosen and rejected are equal in tokens")
        return pair

    def _kto(self, record: dict[str, Any]) -> KTOExample:
        _require(record, "prompt", "completion", "label")
        if not isinstance(record["label"], bool):
            raise BadRecord("the label is neither true nor false")
        example = self._answer(record, record["prompt"], record["completion"], whole=True)
        return KTOExample(example, example.mask.index(1), record["label"])

    def _answer(self, record: dict[str, Any], prompt: Any, completion: Any, whole: bool) -> Example:
        if isinstance(prompt, str) and isinstance(completion, str):
            if not completion.strip():
                raise BadRecord("the answer is empty")
            if self.config.text == "plain" or (self.config.text == "auto" and self.tokenizer.chat_template is None):
                return _finish(encode_completion(self.tokenizer, self.config, prompt, completion), record)
        before, after = (
            check_messages(_as_messages(prompt, "user")),
            check_messages(_as_messages(completion, "assistant")),
        )
        if not after:
            raise BadRecord("the answer is empty")
        return _finish(encode_conversation(self.tokenizer, self.config, before + after, len(before), whole), record)


def read_records(source: Path | RecordSource) -> Iterator[tuple[str, Any] | Reject]:
    """Yield (where, record) for each record of a source, or of the files at a path; a broken one is a `Reject`.

    Raises:
        UserError: nothing is there, or it holds no records.
    """
    for where, record in (source if isinstance(source, RecordSource) else record_source(str(source))).records():
        yield record if isinstance(record, Reject) else (where, record)


def encode_records(
    records: Iterable[tuple[str, Any] | Reject], encode: Callable[[Any, str], T | Reject]
) -> tuple[list[T], list[Reject]]:
    """All records as examples, and those that cannot be.

    Arguments:
        records: from `read_records`.
        encode: a method of `ChatEncoder`.
    """
    examples: list[T] = []
    rejects: list[Reject] = []
    for item in records:
        found = item if isinstance(item, Reject) else encode(item[1], item[0])
        if isinstance(found, Reject):
            rejects.append(found)
        else:
            examples.append(found)
    return examples, rejects


def _attempt(encode: Callable[[dict[str, Any]], T], record: Any, where: str) -> T | Reject:
    if not isinstance(record, dict):
        return Reject(where, "not an object")
    try:
        for text in strings(record):
            text.encode()
        return encode(record)
    except BadRecord as error:
        return Reject(where, str(error))
    except UserError as error:
        return Reject(where, error.message)
    except UnicodeEncodeError:
        return Reject(where, "text that is not Unicode (half of a surrogate pair)")
    except RecursionError:
        return Reject(where, "nested too deeply")


def _finish(encoded: EncodedText, record: dict[str, Any]) -> Example:
    domain = record.get("domain", "chat")
    if not isinstance(domain, str):
        raise BadRecord("the domain is not text")
    return Example(encoded.ids, encoded.mask, domain, len(encoded.learned.encode()))


def _require(record: dict[str, Any], *names: str) -> None:
    for name in names:
        if name not in record:
            raise BadRecord(f"no '{name}'")


def _as_messages(value: Any, role: str) -> Any:
    return [{"role": role, "content": value}] if isinstance(value, str) else value


def _part(chosen: Any, rejected: Any) -> tuple[Messages, Messages, Messages]:
    """Two conversations as what they share and what follows in each."""
    if isinstance(chosen, str) or isinstance(rejected, str):
        raise BadRecord("no 'prompt', which answers that are text need")
    chosen, rejected = check_messages(chosen), check_messages(rejected)
    shared = 0
    while shared < min(len(chosen), len(rejected)) and chosen[shared] == rejected[shared]:
        shared += 1
    if shared == 0:
        raise BadRecord("the conversations chosen and rejected share no beginning")
    return chosen[:shared], chosen[shared:], rejected[shared:]
