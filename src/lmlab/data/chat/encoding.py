"""Conversations to token ids, and which of them are learned: what the assistant writes, and the tokens that end its
turns.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import PositiveInt

from lmlab.config import Config
from lmlab.data.chat.template import TULU_TEMPLATE, ChatTemplate, Message, Span
from lmlab.data.tokenizer import Tokenizer
from lmlab.errors import UserError


class ChatConfig(Config):
    """How conversations become tokens.

    Attributes:
        max_len: longest example in tokens; a longer conversation loses its last turns, each as a whole.
        learn: every turn of the assistant, or the last one only.
        special_tokens: what special tokens that are spelled in a message become: `as_text` keeps them text, so that no
            content can end a turn; `as_tokens` makes them special tokens, as `transformers` does.
        template: `tulu`, or the path of a Jinja file, in place of the tokenizer's own chat template.
        text: how a prompt and a completion that are plain text are read: `chat` as a turn of the user and one of the
            assistant, `plain` as one text; `auto` is `chat` where the tokenizer has a chat template.
    """

    max_len: PositiveInt | None = None
    learn: Literal["all", "last"] = "all"
    special_tokens: Literal["as_text", "as_tokens"] = "as_text"
    template: str | None = None
    text: Literal["auto", "chat", "plain"] = "auto"


def chat_template(config: ChatConfig) -> str | None:
    """The source of the template that is asked for; None for the tokenizer's own.

    Raises:
        UserError: there is no such file.
    """
    if config.template is None or config.template == "tulu":
        return config.template and TULU_TEMPLATE
    try:
        return Path(config.template).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"chat.template '{config.template}' cannot be read ({error}).", "Name a Jinja file, or take 'tulu'."
        ) from None


def chat_tokenizer(tokenizer: Tokenizer, config: ChatConfig) -> Tokenizer:
    """The tokenizer with the template that is asked for.

    Raises:
        UserError: the template cannot be read, or is broken.
    """
    source = chat_template(config)
    return tokenizer if source is None else tokenizer.with_chat_template(source)


class BadRecord(Exception):
    """A record that cannot be learned from, and why."""


@dataclass(frozen=True, slots=True)
class EncodedText:
    """Token ids with 1 at those that are learned.

    Attributes:
        ids, mask: of equal length.
        learned: the text of the learned tokens.
    """

    ids: list[int]
    mask: list[int]
    learned: str


def encode_for_answer(tokenizer: Tokenizer, messages: Sequence[Message]) -> list[int]:
    """Ids of a conversation that the assistant is to go on with; special tokens spelled in a message stay text.

    Raises:
        UserError: the tokenizer has no chat template, or it refuses the messages.
    """
    if tokenizer.chat_template is None:
        raise UserError(
            "The tokenizer has no chat template.",
            "Use a model that was tuned to chat, or put a chat_template.jinja beside it.",
        )
    config = ChatConfig()
    cut, messages = _guard(tokenizer, config, [*tokenizer.chat_template.sources.values()], list(messages))
    return _encode(tokenizer, config, tokenizer.chat_template.render(messages), cut)[0]


def encode_conversation(
    tokenizer: Tokenizer, config: ChatConfig, messages: Sequence[Message], first: int = 0, whole: bool = False
) -> EncodedText:
    """Encode a conversation by the tokenizer's chat template.

    A turn of the assistant is what `{% generation %}` blocks enclose; in a template without them it is the text between
    the rendering of all messages before it, with generation prompt, and that of all messages up to it. A token that
    lies partly in a turn belongs to it.

    Arguments:
        messages: checked messages (`role` and `content` are text).
        first: only turns from this message on are learned.
        whole: refuse a conversation that is too long in place of shortening it.

    Raises:
        BadRecord: nothing can be learned, the template does not keep what was said before, or the conversation is too
            long.
        UserError: the template refuses the messages.
    """
    if tokenizer.chat_template is None:
        raise BadRecord("messages, but the tokenizer has no chat template (chat.template gives it one)")
    if not any(message["role"] == "assistant" for message in messages[first:]):
        raise BadRecord("no turn of the assistant")
    cut, messages = _guard(tokenizer, config, [*tokenizer.chat_template.sources.values()], list(messages))
    ends = [len(messages)]
    if not whole:
        ends += [
            number + 1
            for number in reversed(range(first, len(messages) - 1))
            if messages[number]["role"] == "assistant"
        ]
    for end in ends:
        ids, offsets = _encode(
            tokenizer, config, tokenizer.chat_template.render(messages[:end], add_generation_prompt=False), cut
        )
        if config.max_len is None or len(ids) <= config.max_len:
            break
    else:
        what = "as a whole" if whole else "up to the end of the first answer"
        raise BadRecord(f"too long: {len(ids)} tokens {what}, more than max_len {config.max_len}")
    text, spans = _spans(tokenizer.chat_template, messages[:end], first, config.learn)
    mask = [int(any(begin < max(stop, start + 1) and start < end for begin, end in spans)) for start, stop in offsets]
    if 1 not in mask[1:]:
        raise BadRecord("the template shows nothing of the assistant's turns")
    return EncodedText(ids, mask, _without("".join(text[begin:end] for begin, end in spans), cut))


def encode_completion(tokenizer: Tokenizer, config: ChatConfig, prompt: str, completion: str) -> EncodedText:
    """Encode [begin] prompt completion [end]; the completion and the end token are learned.

    Raises:
        BadRecord: too long.
    """
    cut, (prompt, completion) = _guard(tokenizer, config, [], [prompt, completion])
    begin = tokenizer.begin_ids + _encode(tokenizer, config, prompt, cut)[0] or [tokenizer.bos_id]
    answer = [*_encode(tokenizer, config, completion, cut)[0], tokenizer.eos_id]
    if config.max_len is not None and len(begin) + len(answer) > config.max_len:
        raise BadRecord(f"too long: {len(begin) + len(answer)} tokens, more than max_len {config.max_len}")
    return EncodedText(begin + answer, [0] * len(begin) + [1] * len(answer), _without(completion, cut))


def _spans(template: ChatTemplate, messages: Sequence[Message], first: int, learn: str) -> tuple[str, list[Span]]:
    """The rendered conversation and where its learned turns are."""
    turns = [number for number in range(len(messages)) if messages[number]["role"] == "assistant"]
    learned = [number for number in turns if number >= first][-1 if learn == "last" else 0 :]
    if template.has_generation_blocks():
        text, spans = template.render_with_spans(messages)
        if len(learned) == len(turns):
            return text, spans
        if len(spans) != len(turns):
            raise BadRecord(
                f"the template's generation blocks ({len(spans)}) are not the assistant's turns ({len(turns)})"
            )
        return text, [span for number, span in zip(turns, spans, strict=True) if number in learned]
    text, spans = template.render(messages, add_generation_prompt=False), []
    for number in learned:
        before = template.render(messages[:number], add_generation_prompt=True)
        upto = template.render(messages[: number + 1], add_generation_prompt=False)
        if not (upto.startswith(before) and text.startswith(upto)):
            raise BadRecord(
                f"the template is not prefix-preserving: what comes before message {number + 1}, or itself, changes"
                " with what follows"
            )
        spans.append((len(before), len(upto)))
    return text, spans


def _guard(tokenizer: Tokenizer, config: ChatConfig, sources: Sequence[str], value: Any) -> tuple[str | None, Any]:
    """Put a character that occurs nowhere else into each special token that is spelled in a value; give it and
    the value.
    """
    texts = strings(value)
    if config.special_tokens == "as_tokens" or not any(
        token in text for text in texts for token in tokenizer.special_tokens
    ):
        return None, value
    used = [*sources, *texts]
    cut = next(mark for mark in map(chr, range(0xE000, 0xF8FF)) if not any(mark in text for text in used))
    # looked ahead, so that names that overlap are all cut
    spelled = "|".join(
        f"{re.escape(token[0])}(?={re.escape(token[1:])})" for token in tokenizer.special_tokens if len(token) > 1
    )
    return cut, _substitute(re.compile(spelled), cut, value)


def strings(value: Any) -> list[str]:
    """All texts in a JSON value."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, list):
        return []
    return [text for each in value for text in strings(each)]


def _substitute(pattern: re.Pattern[str], cut: str, value: Any) -> Any:
    if isinstance(value, str):
        return pattern.sub(lambda match: match[0] + cut, value)
    if isinstance(value, dict):
        return {key: _substitute(pattern, cut, each) for key, each in value.items()}
    return [_substitute(pattern, cut, each) for each in value] if isinstance(value, list) else value


def _without(text: str, cut: str | None) -> str:
    return text if cut is None else text.replace(cut, "")


def _encode(tokenizer: Tokenizer, config: ChatConfig, text: str, cut: str | None) -> tuple[list[int], list[Span]]:
    """Ids of a rendered conversation, and the characters that each stands for; `cut` keeps spelled tokens text."""
    if config.special_tokens == "as_tokens":
        return tokenizer.encode_with_offsets(text)
    names = re.compile("|".join(map(re.escape, sorted(tokenizer.guarded_tokens, key=len, reverse=True))))
    real = [match.span() for match in names.finditer(text)]
    if cut is None:
        return tokenizer.encode_with_offsets(text, real)
    cuts = [match.start() for match in re.finditer(cut, text)]
    meant = [(start - (gone := bisect_left(cuts, start)), end - gone) for start, end in real]
    ids, offsets = tokenizer.encode_with_offsets(text.replace(cut, ""), meant)
    places = [place - number for number, place in enumerate(cuts)]  # of the cuts in the text without them
    return ids, [(start + bisect_right(places, start), end + bisect_left(places, end)) for start, end in offsets]


def check_messages(messages: Any) -> list[dict[str, Any]]:
    """The messages, if they are such.

    Raises:
        BadRecord: not a list of messages with text, or the assistant says nothing.
    """
    if not isinstance(messages, list):
        raise BadRecord("the messages are not a list")
    for number, message in enumerate(messages, 1):
        if not isinstance(message, dict):
            raise BadRecord(f"message {number} is not an object")
        if not isinstance(message.get("role"), str):
            raise BadRecord(f"the role of message {number} is not text")
        if not isinstance(message.get("content"), str):
            raise BadRecord(f"the content of message {number} is not text")
        if message["role"] == "assistant" and not message["content"].strip():
            raise BadRecord(f"message {number}, a turn of the assistant, is empty")
    return messages
