"""KVzip (Kim et al. 2025): a key is worth the most attention that it gets while the model repeats the text.

Shapes: L layers, K key-value heads, G query heads of each, T tokens, S slots.
"""

from __future__ import annotations

import torch
from pydantic import PositiveInt
from torch import Tensor

from lmlab.errors import UserError
from lmlab.methods.autocompressor.kinds.base import register
from lmlab.methods.autocompressor.kinds.config import KindConfig
from lmlab.methods.autocompressor.kinds.prune import Budget, Pruning, attention_of
from lmlab.models import KVRows


class KVzipConfig(KindConfig):
    """How much is kept, and how the text is repeated.

    Attributes:
        chunk: tokens that are repeated at once.
        prompt: what asks for it, where there is a tokenizer.
        share: who shares the budget: the heads of a `layer`, or all of the `model`; with `head` nobody.
    """

    chunk: PositiveInt = 2048
    prompt: str = "\n\nRepeat the previous context:\n"
    share: Budget = "layer"


@register("prune:kvzip")
class KVzip(Pruning):
    """The most attention of any token of the repeated text, by any query head of the group. It costs a second pass over
    the text, and knows no query.
    """

    Config = KVzipConfig

    def scores(self, rows: KVRows, ids_1T: Tensor, query_1Q: Tensor | None) -> Tensor:
        assert isinstance(self.config, KVzipConfig)
        length, found = ids_1T.shape[1], None
        ask = [] if self.tokenizer is None else self.tokenizer.encode(self.config.prompt, "as_text")
        limit = self.model.config.max_seq_len
        longest = len(ask) + min(self.config.chunk, length)
        if self.model.config.positions == "learned" and length + longest > limit:
            raise UserError(
                f"prune:kvzip repeats {length} tokens behind themselves; the model's table has {limit} positions.",
                f"Lower chunk to {max(0, limit - length - len(ask))}, or compress shorter texts.",
            )
        prompt = torch.tensor([ask], dtype=ids_1T.dtype, device=ids_1T.device)
        for start in range(0, length, self.config.chunk):
            again = torch.cat((prompt, ids_1T[:, start : start + self.config.chunk]), 1)
            most = attention_of(self.model, rows, again, lambda pattern_KGTS: pattern_KGTS.amax((1, 2)))[..., :length]
            found = most if found is None else torch.maximum(found, most)
        assert found is not None
        return found

    def _budget(self) -> Budget:
        assert isinstance(self.config, KVzipConfig)
        return self.config.share
