"""Chat templates: messages to the text that a model was tuned on, by the tokenizer's own Jinja template, in a
sandbox.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cached_property
from typing import Any

from jinja2 import TemplateError, TemplateSyntaxError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from lmlab.errors import UserError

Message = Mapping[str, Any]
Span = tuple[int, int]

TULU_TEMPLATE = """\
{% for message in messages %}
{% if message['role'] not in ['system', 'user', 'assistant'] %}{{ raise_exception('unknown role ' ~ message['role']) }}{% endif %}
{{- '<|' + message['role'] + '|>\\n' -}}
{% if message['role'] == 'assistant' %}
{% generation %}{{ message['content'] + eos_token }}{% endgeneration %}
{{- '' if loop.last else '\\n' -}}
{% else %}
{{- message['content'] + '\\n' -}}
{% endif %}
{% endfor %}
{{- '<|assistant|>\\n' if add_generation_prompt else '' -}}"""  # noqa: E501
"""The format of Tülu and OLMo (Muennighoff et al. 2024): plain text but for the end token, so that any
tokenizer can serve.
"""

_MARK = "generation_mark"


class ChatTemplate:
    """A template of the kind that `transformers` stores with a tokenizer.

    Arguments:
        source: Jinja source.
        special_tokens: variables such as `bos_token` and `eos_token`.

    Raises:
        UserError: the source is not a template.
    """

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        self.source = source
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _GenerationBlock]
        )
        environment.globals |= {
            "raise_exception": _refuse,
            "strftime_now": lambda format: datetime.now().strftime(format),
        }
        environment.filters["tojson"] = _to_json
        try:
            self._template = environment.from_string(source)
        except TemplateSyntaxError as error:
            raise UserError(f"The tokenizer's chat template is broken: {error}.") from None
        self._special_tokens = dict(special_tokens)

    def render(self, messages: Sequence[Message], add_generation_prompt: bool = True, **variables: Any) -> str:
        """The text of a conversation.

        Arguments:
            messages: each with `role` and `content`. Content is put in as it is: if it spells a special token, it
                becomes one.
            add_generation_prompt: end with what opens the assistant's answer.
            variables: further ones that the template reads, such as `tools`.

        Raises:
            UserError: the template refuses the messages.
        """
        for number, message in enumerate(messages):
            if not isinstance(message, Mapping) or not isinstance(message.get("role"), str) or "content" not in message:
                raise UserError(f"Message {number + 1} needs the keys 'role' (text) and 'content'.")
        try:
            return self._template.render(
                messages=[dict(message) for message in messages],
                add_generation_prompt=add_generation_prompt,
                **self._special_tokens,
                **variables,
            )
        except Exception as error:  # a template is a program from outside: it can fail in any way
            raise UserError(f"The tokenizer's chat template refuses these messages: {error}.") from None

    @cached_property
    def has_generation_blocks(self) -> bool:
        """Whether the template says itself, by `{% generation %}` blocks, what the assistant writes."""
        return re.search(r"\{%[-+]?\s*generation\b", self.source) is not None

    def render_with_spans(
        self, messages: Sequence[Message], add_generation_prompt: bool = False, **variables: Any
    ) -> tuple[str, list[Span]]:
        """The text of a conversation, and the characters [start, end) of each `{% generation %}` block in it, in order.

        Raises:
            UserError: the template refuses the messages.
        """
        mark = f"\x00{secrets.token_hex(8)}\x00"
        opened = self.render(messages, add_generation_prompt, **variables, **{_MARK: mark})
        text, spans = "", []
        for number, piece in enumerate(opened.split(mark)):
            if number % 2:
                spans.append((len(text), len(text) + len(piece)))
            text += piece
        return text, [span for span in spans if span[0] < span[1]]


class _GenerationBlock(Extension):
    """`{% generation %}...{% endgeneration %}`: its text, between marks if the variable `generation_mark` is given."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        mark = nodes.Output(
            [
                nodes.CondExpr(
                    nodes.Test(nodes.Name(_MARK, "load"), "defined", [], [], None, None),
                    nodes.Name(_MARK, "load"),
                    None,
                )
            ]
        )
        return nodes.Scope([mark, *body, mark]).set_lineno(line)


def _refuse(message: str) -> None:
    raise TemplateError(message)


def _to_json(
    value: Any, ensure_ascii: bool = False, indent: int | None = None, sort_keys: bool = False, **options: Any
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, sort_keys=sort_keys, **options)
