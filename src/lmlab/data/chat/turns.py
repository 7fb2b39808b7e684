"""Where the assistant's turns are in a rendered conversation.

A turn is what a `{% generation %}` block encloses. In a template without them it is the text between the rendering of
all messages before it, with generation prompt, and that of all messages up to it.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lmlab.data.chat.messages import BadRecord, Conversation, Messages
from lmlab.data.chat.template import ChatTemplate, Span

_EMPTY_THINKING = re.compile(r"\s*<(think|thinking|thought|reasoning)>\s*</\1>\s*")


@dataclass(frozen=True, slots=True)
class TurnSpans:
    """A rendered conversation, and the characters [start, end) of the turns that are learned, in order."""

    text: str
    spans: list[Span]

    def without_empty_thinking(self) -> TurnSpans:
        """The turns from behind a block of thinking in which nothing is thought.

        Templates put one before answers of which they know no thinking. Learned, it teaches a model that can think
        never to.
        """
        spans = []
        for start, end in self.spans:
            found = _EMPTY_THINKING.match(self.text, start, end)
            spans.append((found.end() if found else start, end))
        return TurnSpans(self.text, spans)

    def with_end(self, text: str) -> TurnSpans:
        """With a text at the end that belongs to the last turn."""
        end = len(self.text) + len(text)
        return TurnSpans(self.text + text, [*self.spans[:-1], (self.spans[-1][0], end)])


def find_turns(
    template: ChatTemplate, conversation: Conversation, learned: list[int], variables: Mapping[str, Any]
) -> TurnSpans:
    """Render a conversation and find turns in it.

    Arguments:
        learned: the numbers of the messages that are learned.
        variables: further ones for the template.

    Raises:
        BadRecord: they cannot be found.
        UserError: the template refuses the messages.
    """
    given = {"tools": conversation.tools, "documents": conversation.documents, **variables}
    messages = conversation.messages
    if template.has_generation_blocks(conversation.tools):
        text, spans = template.render_with_spans(messages, **given)
        turns = [number for number, message in enumerate(messages) if message["role"] == "assistant"]
        if len(learned) == len(turns):
            return TurnSpans(text, spans)
        if len(spans) != len(turns):
            raise BadRecord(
                f"the template's generation blocks ({len(spans)}) are not the assistant's turns ({len(turns)})"
            )
        return TurnSpans(text, [span for number, span in zip(turns, spans, strict=True) if number in learned])

    def render(shown: Messages, add_generation_prompt: bool) -> str:
        return template.render(shown, add_generation_prompt, **given)

    text, spans = render(messages, add_generation_prompt=False), []
    for number in learned:
        before = render(messages[:number], add_generation_prompt=True)
        upto = render(messages[: number + 1], add_generation_prompt=False)
        if not upto.startswith(before):
            raise BadRecord(
                f"the template does not go on from its generation prompt in message {number + 1}: an answer does not"
                f" begin with {_difference(upto, before)!r}; give it 'reasoning_content', or set chat.variables"
            )
        if not text.startswith(upto):
            raise BadRecord(
                f"the template is not prefix-preserving: what comes before message {number + 1}, or itself, changes"
                " with what follows. Set chat.learn to 'last', or to 'split' for every answer in an example of its own"
            )
        spans.append((len(before), len(upto)))
    return TurnSpans(text, spans)


def stop_of(
    text: str, ids: Sequence[int], offsets: Sequence[Span], inside: Sequence[int], stops: Collection[int]
) -> int | None:
    """The number of the token that ends a turn: its last, or the first after it, but for blanks; None for none.

    Arguments:
        inside: the numbers of the turn's tokens.
        stops: the tokens that end generation.
    """

    def blank(number: int) -> bool:
        return ids[number] not in stops and not text[slice(*offsets[number])].strip()

    if not inside:
        return None
    last = inside[-1]
    while last > inside[0] and blank(last):
        last -= 1
    if ids[last] in stops:
        return inside[-1]
    following = inside[-1] + 1
    while following < len(ids) and blank(following):
        following += 1
    return following if following < len(ids) and ids[following] in stops else None


def _difference(text: str, prompt: str) -> str:
    """The end of a prompt that a text does not share."""
    shared = next(
        (n for n, (a, b) in enumerate(zip(text, prompt, strict=False)) if a != b), min(len(text), len(prompt))
    )
    return prompt[shared:][:40]
