"""Records of conversations and preferences to examples for learning. What cannot be learned from is a `Reject`, never
an exception.

| record | fields |
|---|---|
| conversation | `messages`; or a prompt and its answer, in one of the forms of `forms.py` |
| preference | a prompt, `chosen`, `rejected`; or two conversations `chosen` and `rejected` that begin alike |
| desirable or not | a prompt and its answer, and `label` |

Prompts and answers are text or lists of messages. `domain`, `tools` and `documents` are optional.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from lmlab.data.chat.encoding import ChatConfig, EncodedText, encode_completion, encode_conversation
from lmlab.data.chat.forms import messages_of, pair_of, prompt_of, renamed
from lmlab.data.chat.messages import BadRecord, Conversation, TooLong, conversation, joined, strings
from lmlab.data.documents import Reject
from lmlab.data.sources import RecordSource, record_source
from lmlab.data.tokenizer import Tokenizer
from lmlab.errors import UserError

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Example:
    """Token ids and which are learned.

    Attributes:
        ids, mask: of equal length; the mask is 1 at tokens that are learned.
        domain: the kind of text.
        size: of the text that is learned, in UTF-8 bytes.
        turns: of the assistant that are learned.
        stopped: of these, those that end with a token that ends generation.
        left_out: turns that are not learned because the conversation was too long.
        unlearned: turns of weight 0, and a greeting that nothing asks for.
    """

    ids: list[int]
    mask: list[int]
    domain: str = "chat"
    size: int = 0
    turns: int = field(default=1, compare=False)
    stopped: int = field(default=1, compare=False)
    left_out: int = field(default=0, compare=False)
    unlearned: int = field(default=0, compare=False)


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

    def examples(self, record: Any, where: str) -> list[Example] | Reject:
        """The examples of a conversation, one unless every turn is learned on its own (`learn: split`).

        Arguments:
            where: names the record in a `Reject`.
        """
        return _attempt(self._examples, record, where)

    def example(self, record: Any, where: str) -> Example | Reject:
        """The last example of a conversation, which holds all of it."""
        found = self.examples(record, where)
        return found if isinstance(found, Reject) else found[-1]

    def preference(self, record: Any, where: str) -> PreferencePair | Reject:
        """A pair of a preference; `where` names the record in a `Reject`."""
        return _attempt(self._preference, record, where)

    def kto(self, record: Any, where: str) -> KTOExample | Reject:
        """An example of an answer with a label; `where` names the record in a `Reject`."""
        return _attempt(self._kto, record, where)

    def _examples(self, record: dict[str, Any]) -> list[Example]:
        record = renamed(record, self.config.fields)
        messages = messages_of(record)
        if messages is None:
            return [self._answer(record, *pair_of(record), whole=False)]
        found = conversation(messages, record, self.config.fields)
        if not found.messages:
            raise BadRecord("the messages are empty")
        if self.config.learn == "split":
            return [_finish(each, record) for each in self._split(found)]
        return [_finish(encode_conversation(self.tokenizer, self.config, found), record)]

    def _split(self, found: Conversation) -> list[EncodedText]:
        """Every turn that is learned, with all that comes before it, up to the first that is too long."""
        turns, examples = found.learned_turns(), list[EncodedText]()
        for number in turns or [len(found.messages) - 1]:
            try:
                examples.append(
                    encode_conversation(self.tokenizer, self.config, found.upto(number + 1), number, whole=True)
                )
            except TooLong:
                if not examples:
                    raise
                examples[-1] = replace(examples[-1], left_out=len(turns) - len(examples))
                break
        return examples

    def _preference(self, record: dict[str, Any]) -> PreferencePair:
        record = renamed(record, self.config.fields)
        _require(record, "chosen", "rejected")
        prompt, chosen, rejected = prompt_of(record), record["chosen"], record["rejected"]
        if prompt is None:
            prompt = messages_of(record)
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
        record = renamed(record, self.config.fields)
        prompt, completion = pair_of(record)
        _require(record, "label")
        if not isinstance(record["label"], bool):
            raise BadRecord("the label is neither true nor false")
        example = self._answer(record, prompt, completion, whole=True)
        return KTOExample(example, example.mask.index(1), record["label"])

    def _answer(self, record: dict[str, Any], prompt: Any, completion: Any, whole: bool) -> Example:
        if isinstance(prompt, str) and isinstance(completion, str):
            if not completion.strip():
                raise BadRecord("the answer is empty")
            if self.config.text == "plain" or (self.config.text == "auto" and self.tokenizer.chat_template is None):
                return _finish(encode_completion(self.tokenizer, self.config, prompt, completion), record)
        before, after = (
            conversation(_as_messages(prompt, "user"), record, self.config.fields),
            conversation(_as_messages(completion, "assistant"), record, self.config.fields),
        )
        if not after.messages:
            raise BadRecord("the answer is empty")
        both, first = joined(before, after), len(before.messages)
        return _finish(encode_conversation(self.tokenizer, self.config, both, first, whole), record)


def read_records(source: Path | str | RecordSource) -> Iterator[tuple[str, Any] | Reject]:
    """Yield (where, record) for each record of a source, or of the files at a path; a broken one is a `Reject`.

    Raises:
        UserError: nothing is there, or it holds no records.
    """
    for where, record in (source if isinstance(source, RecordSource) else record_source(str(source))).records():
        yield record if isinstance(record, Reject) else (where, record)


def _attempt(encode: Callable[[dict[str, Any]], T], record: Any, where: str) -> T | Reject:
    if isinstance(record, list) and record:  # a conversation and nothing else
        record = {"messages": record}
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
    return Example(
        encoded.ids,
        encoded.mask,
        domain,
        len(encoded.learned.encode()),
        encoded.turns,
        encoded.stopped,
        encoded.left_out,
        encoded.unlearned,
    )


def _require(record: dict[str, Any], *names: str) -> None:
    for name in names:
        if name not in record:
            raise BadRecord(f"no '{name}'")


def _as_messages(value: Any, role: str) -> Any:
    if isinstance(value, dict):  # one message
        return [value]
    return [{"role": role, "content": value}] if isinstance(value, str) else value


def _part(chosen: Any, rejected: Any) -> tuple[list[Any], list[Any], list[Any]]:
    """Two conversations as what they share and what follows in each."""
    if isinstance(chosen, str) or isinstance(rejected, str):
        raise BadRecord("no 'prompt', which answers that are text need")
    if not isinstance(chosen, list) or not isinstance(rejected, list):
        raise BadRecord("the messages are not a list")
    shared = 0
    while shared < min(len(chosen), len(rejected)) and chosen[shared] == rejected[shared]:
        shared += 1
    if shared == 0:
        raise BadRecord("the conversations chosen and rejected share no beginning")
    return chosen[:shared], chosen[shared:], rejected[shared:]
