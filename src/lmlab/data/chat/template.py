"""Chat templates: messages to the text that a model was tuned on, by the tokenizer's own Jinja template, in a
sandbox. What is rendered is what `transformers` renders.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import Template

from lmlab.data.chat.sandbox import MARK, OutOfBounds, TemplateEnvironment
from lmlab.errors import UserError, did_you_mean

Message = Mapping[str, Any]
Span = tuple[int, int]

TULU_TEMPLATE = """\
{% for message in messages %}
{% if message['role'] not in ['system', 'user', 'assistant'] %}\
{{ raise_exception('unknown role ' ~ message['role']) }}{% endif %}
{{- '<|' + message['role'] + '|>\\n' -}}
{% if message['role'] == 'assistant' %}
{% generation %}{{ message['content'] + eos_token }}{% endgeneration %}
{{- '' if loop.last else '\\n' -}}
{% else %}
{{- message['content'] + '\\n' -}}
{% endif %}
{% endfor %}
{{- '<|assistant|>\\n' if add_generation_prompt else '' -}}"""
"""The format of Tülu and OLMo (Muennighoff et al. 2024): plain text but for the end token, so that any
tokenizer can serve.
"""

_DEFAULT, _WITH_TOOLS = "default", "tool_use"
# the names that a message's reasoning goes by; templates read the first, some the second
_REASONING = ("reasoning_content", "thinking", "reasoning")


class ChatTemplate:
    """A template of the kind that `transformers` stores with a tokenizer, or several by name.

    Of several `default` is meant, or `tool_use` where there are tools.

    Arguments:
        sources: Jinja source, or several by name.
        special_tokens: variables such as `bos_token` and `eos_token`; what is not given is undefined.

    Raises:
        UserError: a source is not a template, or of several none is the default.
    """

    def __init__(self, sources: str | Mapping[str, str], special_tokens: Mapping[str, str]) -> None:
        self.sources = {_DEFAULT: sources} if isinstance(sources, str) else dict(sources)
        if _DEFAULT not in self.sources:
            raise UserError(
                f"The tokenizer has several chat templates, and none is the default: {', '.join(self.sources)}.",
                "Put the one that is meant beside it as chat_template.jinja.",
            )
        self._environment = TemplateEnvironment()
        self._templates = {name: self._compiled(source) for name, source in self.sources.items()}
        self._special_tokens = dict(special_tokens)

    @property
    def source(self) -> str:
        """The source of the default."""
        return self.sources[_DEFAULT]

    def named(self, name: str) -> ChatTemplate:
        """One of several as the only one.

        Raises:
            UserError: there is none of that name.
        """
        if name not in self.sources:
            raise UserError(f"The tokenizer has no chat template '{name}'. {did_you_mean(name, self.sources)}")
        return ChatTemplate(self.sources[name], self._special_tokens)

    def render(
        self,
        messages: Sequence[Message],
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        **variables: Any,
    ) -> str:
        """The text of a conversation.

        Arguments:
            messages: each with `role`, and with `content` unless it has `tool_calls`. Content is put in as it is: if it
                spells a special token, it becomes one.
            add_generation_prompt: end with what opens the assistant's answer.
            tools: JSON schemas of functions that the assistant may call.
            documents: with `title` and `text`, for templates of retrieval.
            variables: further ones that the template reads, such as `enable_thinking`.

        Raises:
            UserError: the template refuses the messages, or does not come to an end.
        """
        for number, message in enumerate(messages):
            if (
                not isinstance(message, Mapping)
                or not isinstance(message.get("role"), str)
                or ("content" not in message and not message.get("tool_calls"))
            ):
                raise UserError(f"Message {number + 1} needs the keys 'role' (text) and 'content'.")
        try:
            with self._environment.bounded():
                return self._template(tools).render(
                    {
                        **self._special_tokens,
                        **_plain(variables),
                        "messages": [_with_reasoning(_plain(message)) for message in messages],
                        "tools": _plain(tools),
                        "documents": _plain(documents),
                        "add_generation_prompt": add_generation_prompt,
                    }
                )
        except OutOfBounds as error:
            raise UserError(f"The tokenizer's chat template does not come to an end: {error}.") from None
        except Exception as error:  # a template is a program from outside: it can fail in any way
            reason = str(error) or type(error).__name__
            raise UserError(f"The tokenizer's chat template refuses these messages: {reason.rstrip('.')}.") from None

    def has_generation_blocks(self, tools: Any = None) -> bool:
        """Whether the template says itself, by `{% generation %}` blocks, what the assistant writes."""
        source = self.sources[self._name(tools)]
        return re.search(r"\{%[-+]?\s*generation\b", source) is not None

    def render_with_spans(
        self, messages: Sequence[Message], add_generation_prompt: bool = False, **variables: Any
    ) -> tuple[str, list[Span]]:
        """The text of a conversation, and the characters [start, end) of each `{% generation %}` block in it, in order.

        Raises:
            UserError: the template refuses the messages.
        """
        mark = f"\x00{secrets.token_hex(8)}\x00"
        opened = self.render(messages, add_generation_prompt, **(variables | {MARK: mark}))
        text, spans = "", []
        for number, piece in enumerate(opened.split(mark)):
            if number % 2:
                spans.append((len(text), len(text) + len(piece)))
            text += piece
        return text, [span for span in spans if span[0] < span[1]]

    def _compiled(self, source: str) -> Template:
        try:
            with self._environment.bounded():
                return self._environment.from_string(source)
        except Exception as error:  # as above
            raise UserError(f"The tokenizer's chat template is broken: {error}.") from None

    def _name(self, tools: Any) -> str:
        return _WITH_TOOLS if tools is not None and _WITH_TOOLS in self.sources else _DEFAULT

    def _template(self, tools: Any) -> Template:
        return self._templates[self._name(tools)]


def _plain(value: Any) -> Any:
    """A copy of JSON values in which nothing has methods that do anything."""
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, Mapping):
        return {_plain(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return f"<{type(value).__name__}>"


def _with_reasoning(message: dict[str, Any]) -> dict[str, Any]:
    """Without keys of no value, and with the reasoning by all names that templates read."""
    message = {key: value for key, value in message.items() if value is not None}
    reasoning = next((message[name] for name in _REASONING if name in message), None)
    return message if reasoning is None else {"thinking": reasoning, **message, "reasoning_content": reasoning}
