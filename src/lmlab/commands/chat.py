"""A conversation with a model that was tuned to chat."""

from __future__ import annotations

from collections.abc import Iterator

from lmlab.data import Tokenizer, encode_for_answer
from lmlab.errors import UserError
from lmlab.models import GenerationConfig, KVCache, Memory, SoftPrompt, Transformer, stream
from lmlab.stages.generate import behind


class Conversation:
    """Messages so far, and the keys and values of what the model has read of them.

    Arguments:
        system: a first message of the role `system`; without one the template may put in its own.
        before: vectors or a memory before the conversation, which stand for what was said or read before. Behind keys
            and values the whole conversation is read again for each answer.

    Raises:
        UserError: the tokenizer has no chat template.
    """

    def __init__(
        self,
        model: Transformer,
        tokenizer: Tokenizer,
        config: GenerationConfig,
        system: str | None = None,
        before: SoftPrompt | Memory | None = None,
    ) -> None:
        self._model, self._tokenizer, self._config = model, tokenizer, config
        self._before = before
        self._opening = [] if system is None else [{"role": "system", "content": system}]
        self.messages: list[dict[str, str]] = []
        self._read: list[int] = []
        self._cache: KVCache | None = None
        self.reset()
        encode_for_answer(tokenizer, [*self.messages, {"role": "user", "content": ""}])

    def reset(self) -> None:
        """Forget everything but the system message."""
        self.messages = list(self._opening)

    def reply(self, text: str) -> Iterator[str]:
        """Answer a message, piece by piece; what was yielded before an interruption is kept as the answer.

        Raises:
            UserError: the conversation no longer fits the model.
        """
        asked = [*self.messages, {"role": "user", "content": text}]
        ids = encode_for_answer(self._tokenizer, asked)  # what a user spells is no end of a turn
        limit = self._model.config.max_seq_len
        if isinstance(self._before, Memory):
            limit -= int(self._before.next_position.max())
        elif self._before is not None:
            limit -= self._before.positions_taken
        if len(ids) + self._config.max_new_tokens > limit:
            raise UserError(
                f"The conversation has {len(ids)} tokens; with an answer of up to {self._config.max_new_tokens} it"
                f" exceeds the model's {limit}.",
                "Start afresh with /reset, or lower --max-new-tokens.",
            )
        answer = ""
        try:
            memory = isinstance(self._before, Memory)
            cache, decode = None if memory else self._cache_for(ids), self._tokenizer.decode
            for piece in stream(self._model, ids, self._config, decode, cache, **behind(self._before)):
                answer += piece
                yield piece
        finally:
            self.messages = [*asked, {"role": "assistant", "content": answer}]

    def _cache_for(self, ids: list[int]) -> KVCache:
        """The cache, cropped to the vectors and to what these ids share with those read before; at least one token
        remains to be read.
        """
        weight, vectors = self._model.embedding.weight, 0
        if isinstance(self._before, SoftPrompt):
            vectors = self._before.length
        if self._cache is None:
            room = vectors + self._model.config.max_seq_len
            self._cache = KVCache(self._model.config, 1, room, weight.dtype, weight.device)
        same = next(
            (n for n, (a, b) in enumerate(zip(ids, self._read, strict=False)) if a != b), min(len(ids), len(self._read))
        )
        wanted = min(vectors + min(same, len(ids) - 1), self._cache.length)
        self._cache.crop(wanted if wanted >= vectors else 0)
        self._read = ids
        return self._cache
