"""A model with all that is needed to answer requests: network, tokenizer, end tokens, and the engine that runs it."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lmlab.data import Tokenizer, encode_for_answer
from lmlab.endpoints.engine.engine import Engine
from lmlab.endpoints.engine.guides import Guides
from lmlab.endpoints.engine.tools import told
from lmlab.errors import UserError
from lmlab.hardware import select_device
from lmlab.models import DecodingConfig, SoftPrompt, Transformer
from lmlab.runs import Model

_SEED_BITS = 62  # a drawn seed is below what a signed 64-bit number holds


class ServedModel:
    """A model that answers.

    Arguments:
        name: by which requests ask for it.
        end_token_ids: further tokens that end an answer, beside the tokenizer's.
        defaults: settings of sampling that hold where a request names none (`generation_defaults`).
        max_rows, max_waiting: as of `Engine`.
        contexts: vectors by the names under which requests ask for them, to be read before their prompts.

    Raises:
        UserError: the model is one that writes no text.
    """

    def __init__(
        self,
        name: str,
        network: Transformer,
        tokenizer: Tokenizer,
        end_token_ids: Sequence[int] = (),
        defaults: Mapping[str, Any] | None = None,
        max_rows: int | None = None,
        max_waiting: int = 128,
        contexts: Mapping[str, SoftPrompt] | None = None,
    ) -> None:
        if network.config.num_labels is not None:
            raise UserError(f"'{name}' is a model that gives scalars and writes no text.")
        if network.config.moe is not None and network.config.moe.router == "expert_choice":
            raise UserError(
                f"'{name}' is a model with router expert_choice, which cannot generate: its experts choose"
                " among later tokens too."
            )
        self.name, self.network, self.tokenizer = name, network, tokenizer
        self.contexts = dict(contexts or {})
        self.eos_ids = tuple(sorted({*end_token_ids, tokenizer.eos_id}))
        defaults = dict(defaults or {})
        self.max_new_tokens: int | None = defaults.pop("max_new_tokens", None)
        self._sampling: dict[str, Any] = {"temperature": 1.0} | defaults
        self.engine = Engine(network, tokenizer.decode, max_rows, max_waiting)
        self.guides = Guides(tokenizer, network.config.vocab_size, self.eos_ids)

    @classmethod
    def load(cls, place: str | Path, precision: str = "fp32") -> ServedModel:
        """Read a model and its tokenizer from wherever `Model.find` finds one.

        Raises:
            UserError: there is none, or it cannot be read.
        """
        device, found = select_device(), Model.find(place)
        network = found.load_in(precision, device)
        return cls(str(place), network, found.tokenizer(), found.end_token_ids(), found.generation_defaults())

    def positions_before(self, context: str | None) -> int:
        """How many positions of the window a context takes."""
        found = None if context is None else self.contexts[context]
        return 0 if found is None else found.positions_taken

    @property
    def max_seq_len(self) -> int:
        """The longest prompt and answer together."""
        return self.network.config.max_seq_len

    def most_new_tokens(self, prompt_length: int, num_samples: int) -> int:
        """The longest continuation that the context, the memory and `generation_config.json` have room for, but at
        least one token.
        """
        room = max(1, min(self.max_seq_len, self.engine.max_slots // num_samples) - prompt_length)
        return room if self.max_new_tokens is None else min(room, self.max_new_tokens)

    def chat_ids(
        self, messages: Sequence[dict[str, Any]], tools: Sequence[dict[str, Any]] = (), several: bool = False
    ) -> list[int]:
        """A conversation as a prompt. What is spelled like a special token in a message stays text.

        Arguments:
            tools: that the model may call, in the protocol's form; a chat template that knows none is told of them in
                the system message.
            several: whether an answer may call more than one.

        Raises:
            UserError: the tokenizer has no chat template, or it refuses the messages.
        """
        template = self.tokenizer.chat_template
        involved = bool(tools) or any(message.get("tool_calls") or message["role"] == "tool" for message in messages)
        if involved and (template is None or not any("tools" in source for source in template.sources.values())):
            return encode_for_answer(self.tokenizer, told(messages, tools, several))
        return encode_for_answer(self.tokenizer, messages, list(tools) or None)

    def config(
        self, *, seed: int | None, top_p: float | None, logit_bias: dict[str, float] | None, **settings: Any
    ) -> DecodingConfig:
        """Settings of a request; what it leaves open (None) is as `generation_config.json` says. Without a seed its
        draws are its own.
        """
        asked = {key: value for key, value in settings.items() if value is not None}
        sampling = self._sampling | ({} if top_p is None else {"top_p": None if top_p >= 1 else top_p}) | asked
        return DecodingConfig(
            seed=secrets.randbits(_SEED_BITS) if seed is None else seed,
            logit_bias=tuple((int(token), bias) for token, bias in (logit_bias or {}).items()),
            eos_ids=self.eos_ids,
            **sampling,
        )

    def close(self) -> None:
        """End the engine."""
        self.engine.close()
