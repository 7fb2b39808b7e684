"""A model behind an OpenAI-compatible endpoint writes the answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lmlab.endpoints import ChatRequest, Endpoint, Reply, answer
from lmlab.errors import LmlabError, UserError
from lmlab.evals.long.instance import Instance, prompt_of
from lmlab.evals.long.measure import Written


@dataclass
class EndpointWriter:
    """Asks by a user's turn for each question; the answer's beginning stands at its end.

    Lengths are those of the tokenizer that the instances were built with; what the endpoint's own template adds is not
    counted.

    Attributes:
        cache: file of the replies: nothing is paid for twice.
    """

    endpoint: Endpoint
    cache: Path | None = None
    max_seq_len: int | None = None

    def write(self, instances: Sequence[Instance], contexts: Sequence[str | None]) -> list[Written]:
        """One request a question.

        Raises:
            UserError: the endpoint takes no prompt of this length.
            LmlabError: a request failed.
        """
        found: list[Written | None] = [None] * len(instances)

        def take(number: int, reply: Reply) -> None:
            instance = instances[number]
            if reply.status == "context_length_exceeded":
                raise UserError(
                    f"The endpoint takes no prompt as long as instance '{instance.id}' ({instance.prompt_tokens} tokens"
                    " by the tokenizer of the file).",
                    "Leave out the longer lengths (--length).",
                )
            if reply.status != "ok" and reply.status != "content_filter":
                raise LmlabError(f"Instance '{instance.id}' was not answered ({reply.status}): {reply.error}.")
            choice = reply.choices[0] if reply.choices else None
            text = "" if choice is None else choice.text
            finish = "length" if choice is not None and choice.finish_reason == "length" else "stop"
            found[number] = Written(text, finish)

        answer(self.endpoint, map(self._request, instances, contexts), take, self.cache)
        assert all(each is not None for each in found)
        return [each for each in found if each is not None]

    def _request(self, instance: Instance, context: str | None) -> ChatRequest:
        prompt = prompt_of(instance, context)
        return ChatRequest(
            messages=({"role": "user", "content": prompt},),
            max_tokens=instance.budget,
            temperature=0.0,
            stop=tuple(instance.stop),
        )
