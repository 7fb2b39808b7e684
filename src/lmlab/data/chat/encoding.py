"""Conversations to token ids, and which of them are learned: what the assistant writes, and the tokens that end its
turns.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from pydantic import PositiveInt, field_validator

from lmlab.config import Config
from lmlab.data.chat.forms import FIELDS
from lmlab.data.chat.messages import (
    BadRecord,
    Conversation,
    TooLong,
    argument_texts,
    strings,
    with_parsed_arguments,
)
from lmlab.data.chat.template import TULU_TEMPLATE, ChatTemplate, Message, Span
from lmlab.data.chat.turns import TurnSpans, find_turns, stop_of
from lmlab.data.tokenizer import Tokenizer
from lmlab.errors import UserError, did_you_mean
from lmlab.words import counted


class ChatConfig(Config):
    """How conversations become tokens.

    Attributes:
        max_len: longest example in tokens; a longer conversation loses its last turns, each as a whole.
        learn: every turn of the assistant in one example, the last one only, or `split`: every turn, each in an example
            of its own with all that comes before it.
        special_tokens: what special tokens that are spelled in a message become: `as_text` keeps them text, so that no
            content can end a turn; `as_tokens` makes them special tokens, as `transformers` does.
        template: `tulu`, the path of a Jinja file, or the name of one of the tokenizer's templates, in place of its
            default.
        variables: what the template reads beside the conversation, such as `enable_thinking`.
        empty_thinking: whether a block of thinking in which nothing is thought, which a template puts before answers,
            is learned.
        text: how a prompt and a completion that are plain text are read: `chat` as a turn of the user and one of the
            assistant, `plain` as one text; `auto` is `chat` where the tokenizer has a chat template.
        fields: other names of the records' fields, as dotted paths: `{prompt: body.question, completion: answer}`.
    """

    max_len: PositiveInt | None = None
    learn: Literal["all", "last", "split"] = "all"
    special_tokens: Literal["as_text", "as_tokens"] = "as_text"
    template: str | None = None
    variables: dict[str, Any] = {}
    empty_thinking: Literal["ignored", "learned"] = "ignored"
    text: Literal["auto", "chat", "plain"] = "auto"
    fields: dict[str, str] = {}

    @field_validator("fields")
    @classmethod
    def _known(cls, fields: dict[str, str]) -> dict[str, str]:
        for name in fields:
            if name not in FIELDS:
                raise ValueError(f"no field is called '{name}'. {did_you_mean(name, FIELDS)}")
        return fields


def chat_template(config: ChatConfig) -> str | None:
    """The source of the template that is asked for; None for one of the tokenizer's own.

    Raises:
        UserError: there is no such file.
    """
    if config.template is None or config.template == "tulu":
        return config.template and TULU_TEMPLATE
    path = Path(config.template).expanduser()
    if not path.exists() and re.fullmatch(r"\w+", config.template):
        return None
    try:
        return path.read_text(encoding="utf-8")
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
    if source is None and config.template is not None:
        if tokenizer.chat_template is None or config.template not in tokenizer.chat_template.sources:
            known = [] if tokenizer.chat_template is None else [*tokenizer.chat_template.sources]
            raise UserError(
                f"chat.template '{config.template}' is no file, and no template of the tokenizer.",
                did_you_mean(config.template, ["tulu", *known]),
            )
        source = tokenizer.chat_template.sources[config.template]
    return tokenizer if source is None else tokenizer.with_chat_template(source)


@dataclass(frozen=True, slots=True)
class EncodedText:
    """Token ids with 1 at those that are learned.

    Attributes:
        ids, mask: of equal length.
        learned: the text of the learned tokens.
        turns: of the assistant that are learned.
        stopped: of these, those that end with a token that ends generation.
        left_out: turns that are learned no more because the conversation was too long.
        unlearned: turns of weight 0, and a greeting that nothing asks for.
    """

    ids: list[int]
    mask: list[int]
    learned: str
    turns: int = 1
    stopped: int = 1
    left_out: int = 0
    unlearned: int = 0


def encode_for_answer(
    tokenizer: Tokenizer, messages: Sequence[Message], tools: Sequence[dict[str, Any]] | None = None
) -> list[int]:
    """Ids of a conversation that the assistant is to go on with; special tokens spelled in a message stay text.

    Raises:
        UserError: the tokenizer has no chat template, or it refuses the messages.
    """
    template = tokenizer.chat_template
    if template is None:
        raise UserError(
            "The tokenizer has no chat template.",
            "Use a model that was tuned to chat, or put a chat_template.jinja beside it.",
        )
    config = ChatConfig()
    cut, (guarded, tools) = _guard(tokenizer, config, [list(messages), tools])
    return _encode(tokenizer, config, template.render(guarded, tools=tools), cut)[0]


def encode_conversation(
    tokenizer: Tokenizer, config: ChatConfig, conversation: Conversation, first: int = 0, whole: bool = False
) -> EncodedText:
    """Encode a conversation by the tokenizer's chat template.

    What is learned of a turn is told in `turns.py`. A token that lies partly in a turn belongs to it. Every turn that
    is learned ends with a token that ends generation: the template's own; where it has none, the special token that
    opens what follows; and if nothing special follows the last turn either, the end token.

    Arguments:
        conversation: checked.
        first: only turns from this message on are learned.
        whole: refuse a conversation that is too long in place of shortening it.

    Raises:
        BadRecord: nothing can be learned, the template does not keep what was said before, or the conversation is too
            long.
        UserError: the template refuses the messages.
    """
    if tokenizer.chat_template is None:
        raise BadRecord("messages, but the tokenizer has no chat template (chat.template gives it one)")
    turns = conversation.learned_turns(first)
    if turns == [0]:
        raise BadRecord("the conversation begins with its only turn of the assistant: an answer without a prompt")
    turns = [number for number in turns if number > 0]  # a greeting is shown, and not learned: nothing asks for it
    if not turns:
        weighed = any(message["role"] == "assistant" for message in conversation.messages[first:])
        raise BadRecord("every turn of the assistant has weight 0" if weighed else "no turn of the assistant")
    conversation = _readable(tokenizer.chat_template, config, conversation)
    cut, guarded = _guard(tokenizer, config, [conversation.messages, conversation.tools, conversation.documents])
    conversation = Conversation(guarded[0], conversation.weights, guarded[1], guarded[2])
    ends = [len(conversation.messages)]
    if not whole:
        ends += [number + 1 for number in reversed(turns) if number + 1 < ends[0]]
    for end in ends:
        learned = [number for number in turns if number < end]
        found = _encode_turns(tokenizer, config, conversation.upto(end), learned, cut, len(turns) - len(learned))
        if config.max_len is None or len(found.ids) <= config.max_len:
            return found
    what = "as a whole" if whole else "up to the end of the first answer"
    raise TooLong(f"too long: {counted(len(found.ids), 'tokens')} {what}, more than max_len {config.max_len}")


def encode_completion(tokenizer: Tokenizer, config: ChatConfig, prompt: str, completion: str) -> EncodedText:
    """Encode [begin] prompt completion [end]; the completion and the end token are learned.

    Raises:
        TooLong: more than `max_len` tokens.
    """
    begin = tokenizer.begin_ids + tokenizer.encode(prompt, config.special_tokens) or [tokenizer.bos_id]
    answer = [*tokenizer.encode(completion, config.special_tokens), tokenizer.eos_id]
    if config.max_len is not None and len(begin) + len(answer) > config.max_len:
        raise TooLong(f"too long: {counted(len(begin) + len(answer), 'tokens')}, more than max_len {config.max_len}")
    return EncodedText(begin + answer, [0] * len(begin) + [1] * len(answer), completion)


def _encode_turns(
    tokenizer: Tokenizer,
    config: ChatConfig,
    conversation: Conversation,
    learned: list[int],
    cut: str | None,
    left_out: int,
) -> EncodedText:
    assert tokenizer.chat_template is not None
    render = partial(
        tokenizer.chat_template.render, tools=conversation.tools, documents=conversation.documents, **config.variables
    )
    if config.learn != "all":
        learned = learned[-1:]
    turns = find_turns(tokenizer.chat_template, conversation, learned, config.variables)
    if config.empty_thinking == "ignored":
        turns = turns.without_empty_thinking()
    ids, offsets = _encode(tokenizer, config, turns.text, cut)
    inside = [_inside(offsets, span) for span in turns.spans]
    stops = {*tokenizer.special_ids, tokenizer.eos_id}
    ends = [stop_of(turns.text, ids, offsets, numbers, stops) for numbers in inside]
    open_end = bool(ends) and ends[-1] is None and not turns.text[turns.spans[-1][1] :].strip()
    if open_end and (following := _what_follows(tokenizer, render, conversation, turns)):
        turns = turns.with_end(following)
        ids, offsets = _encode(tokenizer, config, turns.text, cut)
        inside = [_inside(offsets, span) for span in turns.spans]
        ends[-1] = inside[-1][-1]
    elif open_end:
        ends[-1] = len(ids)
        ids = [*ids, tokenizer.eos_id]
    mask = [0] * len(ids)
    for numbers, end in zip(inside, ends, strict=True):
        for number in numbers:
            mask[number] = 1
        if end is not None and numbers:  # what stands between a turn and the token that ends it
            mask[numbers[-1] + 1 : end + 1] = [1] * (end - numbers[-1])
    if 1 not in mask[1:]:
        raise BadRecord("the template shows nothing of the assistant's turns")
    text = "".join(turns.text[begin:end] for begin, end in turns.spans)
    return EncodedText(
        ids,
        mask,
        text if cut is None else text.replace(cut, ""),
        turns=len(turns.spans),
        stopped=sum(end is not None for end in ends),
        left_out=left_out,
        unlearned=sum(
            message["role"] == "assistant" and (not weight or number == 0)
            for number, (message, weight) in enumerate(zip(conversation.messages, conversation.weights, strict=True))
        ),
    )


def _inside(offsets: Sequence[Span], span: Span) -> list[int]:
    """The numbers of the tokens that lie in a span, at least partly."""
    begin, end = span
    return [number for number, (start, stop) in enumerate(offsets) if begin < max(stop, start + 1) and start < end]


def _what_follows(tokenizer: Tokenizer, render: Any, conversation: Conversation, turns: TurnSpans) -> str:
    """The special token with which the user's next turn would open; nothing if there is none.

    In GLM's form turns do not end: the next speaker's marker is what stops the model.
    """
    try:
        longer = render([*conversation.messages, {"role": "user", "content": "?"}], add_generation_prompt=False)
    except UserError:
        return ""
    if not longer.startswith(turns.text):
        return ""
    found = re.match(rf"\s*({_names(tokenizer).pattern})", longer[len(turns.text) :])
    return found[0] if found else ""


def _names(tokenizer: Tokenizer) -> re.Pattern[str]:
    return re.compile("|".join(map(re.escape, sorted(tokenizer.guarded_tokens, key=len, reverse=True))))


def _readable(template: ChatTemplate, config: ChatConfig, conversation: Conversation) -> Conversation:
    """With arguments of tool calls in the form that the template wants: some put JSON text as it is, some write it as a
    text within JSON, and want objects.
    """
    texts = list(argument_texts(conversation.messages))
    if not texts:
        return conversation
    parsed = Conversation(
        with_parsed_arguments(conversation.messages), conversation.weights, conversation.tools, conversation.documents
    )
    variables = {"tools": conversation.tools, "documents": conversation.documents, **config.variables}
    try:
        rendered = template.render(conversation.messages, add_generation_prompt=False, **variables)
    except UserError:
        return parsed
    twice = any(json.dumps(text, ensure_ascii=False) in rendered for text in texts)
    return parsed if twice else conversation


def _guard(tokenizer: Tokenizer, config: ChatConfig, value: Any) -> tuple[str | None, Any]:
    """Put a character that occurs nowhere else into each special token that is spelled in a value; give it and
    the value.
    """
    texts = strings(value)
    if config.special_tokens == "as_tokens" or not any(
        token in text for text in texts for token in tokenizer.guarded_tokens
    ):
        return None, value
    used = [*(tokenizer.chat_template.sources.values() if tokenizer.chat_template else ()), *texts]
    # Unicode's private use, which texts hardly have
    cut = next(mark for mark in map(chr, range(0xE000, 0xF8FF)) if not any(mark in text for text in used))
    # looked ahead, so that names that overlap are all cut
    spelled = "|".join(
        f"{re.escape(token[0])}(?={re.escape(token[1:])})" for token in tokenizer.guarded_tokens if len(token) > 1
    )
    return cut, _substitute(re.compile(spelled), cut, value)


def _substitute(pattern: re.Pattern[str], cut: str, value: Any) -> Any:
    if isinstance(value, str):
        return pattern.sub(lambda match: match[0] + cut, value)
    if isinstance(value, dict):
        return {key: _substitute(pattern, cut, each) for key, each in value.items()}
    return [_substitute(pattern, cut, each) for each in value] if isinstance(value, list) else value


def _encode(tokenizer: Tokenizer, config: ChatConfig, text: str, cut: str | None) -> tuple[list[int], list[Span]]:
    """Ids of a rendered conversation, and the characters that each stands for; `cut` keeps spelled tokens text."""
    if config.special_tokens == "as_tokens":
        return tokenizer.encode_with_offsets(text)
    real = [match.span() for match in _names(tokenizer).finditer(text)]
    if cut is None:
        return tokenizer.encode_with_offsets(text, real)
    cuts = [match.start() for match in re.finditer(cut, text)]
    meant = [(start - (gone := bisect_left(cuts, start)), end - gone) for start, end in real]
    ids, offsets = tokenizer.encode_with_offsets(text.replace(cut, ""), meant)
    places = [place - number for number, place in enumerate(cuts)]  # of the cuts in the text without them
    return ids, [(start + bisect_right(places, start), end + bisect_left(places, end)) for start, end in offsets]
