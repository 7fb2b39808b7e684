"""Chat templates: messages to the text that a model was tuned on, by the tokenizer's own Jinja template, in a sandbox."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from jinja2 import TemplateError, TemplateSyntaxError
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from lmlab.errors import UserError

Message = Mapping[str, Any]


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
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
        environment.globals |= {"raise_exception": _refuse, "strftime_now": lambda format: datetime.now().strftime(format)}
        environment.filters["tojson"] = _to_json
        try:
            self._template = environment.from_string(source)
        except TemplateSyntaxError as error:
            raise UserError(f"The tokenizer's chat template is broken: {error}.") from None
        self._special_tokens = dict(special_tokens)

    def render(self, messages: Sequence[Message], add_generation_prompt: bool = True, **variables: Any) -> str:
        """The text of a conversation.

        Arguments:
            messages: each with `role` and `content`. Content is put in as it is: if it spells a special token, it becomes one.
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
                messages=[dict(message) for message in messages], add_generation_prompt=add_generation_prompt, **self._special_tokens, **variables
            )
        except (TemplateError, TypeError, KeyError, AttributeError) as error:
            raise UserError(f"The tokenizer's chat template refuses these messages: {error}.") from None


def _refuse(message: str) -> None:
    raise TemplateError(message)


def _to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None, sort_keys: bool = False, **options: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, sort_keys=sort_keys, **options)
