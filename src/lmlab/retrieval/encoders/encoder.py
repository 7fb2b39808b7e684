"""An encoder: texts to vectors, ids to vectors, embeddings of tokens to vectors, by one path.

Shapes: N texts, B texts at once, T tokens, D width of a token, H width of a vector, V vocabulary.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from lmlab.errors import UserError
from lmlab.hardware.gemm import fast_inference
from lmlab.models import weights_fingerprint
from lmlab.models.pooling import PoolingMode, pool
from lmlab.retrieval.config import Precision
from lmlab.retrieval.encoders.bodies import Body, body_hash
from lmlab.retrieval.encoders.words import EncoderTokenizer
from lmlab.words import counted

Kind = Literal["query", "document"]
Similarity = Literal["dot", "cosine"]
Vectors = NDArray[np.float32]

_TOKENS_AT_ONCE = {"cpu": 2048, "cuda": 32768}  # padded tokens of a batch: on a CPU its activations stay in the cache


class Encoder(Protocol):
    """What turns texts into vectors and lets their making be differentiated."""

    @property
    def dim(self) -> int:
        """Width H of vectors."""
        ...

    @property
    def similarity(self) -> Similarity:
        """How vectors are compared. Those of `cosine` encoders have length 1, so that their dot product is it."""
        ...

    @property
    def max_length(self) -> int:
        """Longest text in tokens, with what stands around it."""
        ...

    @property
    def tokenizer(self) -> EncoderTokenizer:
        """That of documents."""
        ...

    @property
    def fingerprint(self) -> dict[str, Any]:
        """All that decides on a vector, by name, so that a stored vector of another encoder is told."""
        ...

    @property
    def embedding_matrix_VD(self) -> Tensor:
        """The table of words of the document side."""
        ...

    def encode_text(self, texts: Sequence[str], kind: Kind = "document", precision: Precision = "fp32") -> Vectors:
        """Vectors of texts, [N, H]."""
        ...

    def encode_ids(self, ids_BT: Tensor, mask_BT: Tensor | None = None) -> Tensor:
        """Vectors of documents' ids, wrapped, [B, H]."""
        ...

    def encode_embeds(self, embeddings_BTD: Tensor, mask_BT: Tensor | None = None) -> Tensor:
        """Vectors of rows of the table of words, [B, H]; differentiable."""
        ...

    def wrap(self, ids: Sequence[int]) -> list[int]:
        """Ids of a document with all that the encoder puts around it."""
        ...


@dataclass
class TextEncoder:
    """One network for queries and documents: the encoders of sentence-transformers, and decoders as embedders.

    Attributes:
        body: the network.
        modes: how states are pooled; several are joined.
        heads: what follows the pooling, such as dense layers.
        normalize: vectors get length 1.
        prompts: kind -> what stands before each text.
        pool_prompt: pool the prompt's tokens too.
        truncate_dim: keep so many first dimensions (then vectors of `cosine` get length 1 again).
        name: for messages.
    """

    body: Body
    tokenizer: EncoderTokenizer
    modes: tuple[PoolingMode, ...] = ("mean",)
    normalize: bool = True
    similarity: Similarity = "cosine"
    max_length: int = 512
    prompts: Mapping[str, str] = field(default_factory=dict)
    heads: tuple[nn.Module, ...] = ()
    pool_prompt: bool = True
    truncate_dim: int | None = None
    name: str = "encoder"
    device: str = "cpu"

    @property
    def fingerprint(self) -> dict[str, Any]:
        """All that decides on a vector of a document or of a query."""
        return {
            "model": self._weights_hash,
            "tokenizer": self.tokenizer.fingerprint,
            "pooling": "+".join(self.modes) + ("" if self.pool_prompt else " without prompt"),
            "prompts": {kind: self.prompt(kind) for kind in ("query", "document")},
            "max_length": self.max_length,
            "normalized": self.normalize,
            "similarity": self.similarity,
            "dim": self.dim,
        }

    @cached_property
    def _weights_hash(self) -> str:
        if not self.heads:
            return body_hash(self.body)
        heads = [f"{head} {weights_fingerprint(head)}" for head in self.heads]
        return f"{body_hash(self.body)} {hashlib.sha256(' '.join(heads).encode()).hexdigest()[:16]}"

    @cached_property
    def dim(self) -> int:
        """Width of vectors."""
        probe = torch.tensor([self.wrap([]) or [0]], device=self.device)
        with torch.no_grad():
            return int(self.encode_ids(probe).shape[1])

    @property
    def embedding_matrix_VD(self) -> Tensor:
        """The table of words."""
        return self.body.embedding_VD

    def prompt(self, kind: str) -> str:
        """What stands before a text: the prompt of its kind, under the names that sentence-transformers looks for."""
        names = ("query",) if kind == "query" else ("document", "passage", "corpus")
        return next((self.prompts[name] for name in names if name in self.prompts), "")

    def wrap(self, ids: Sequence[int], kind: Kind = "document") -> list[int]:
        """Ids with special tokens and the prompt's ids around them."""
        before, after = self.tokenizer.around
        prompt = self.prompt(kind)
        return [*before, *(self.tokenizer.inner([prompt])[0] if prompt else []), *ids, *after]

    def tokenize(self, texts: Sequence[str], kind: Kind = "document") -> list[list[int]]:
        """The ids that texts are encoded from."""
        return self.tokenizer.encode(texts, self.max_length, self.prompt(kind))

    def encode_text(self, texts: Sequence[str], kind: Kind = "document", precision: Precision = "fp32") -> Vectors:
        """Vectors of texts, [N, H] in fp32.

        Texts of equal length are encoded together, so that little is padded. A text of which nothing remains is encoded
        as the special tokens alone; how many those are is told in a warning.

        Arguments:
            precision: of the network; pooling and lengths are fp32 always.

        Raises:
            UserError: one text is given in place of a list of texts.
        """
        if isinstance(texts, str):
            raise UserError("A list of texts is needed, not one text.", "Put it into a list.")
        ids = self.tokenize([str(text) for text in texts], kind)
        bare = len(self.wrap([], kind))
        empty = sum(len(each) <= bare for each in ids)
        if empty:
            warnings.warn(f"{empty} of {counted(len(ids), 'texts are')} empty or become no token.", stacklevel=2)
        return self.encode_rows(ids, kind, precision)

    def encode_rows(
        self, ids: Sequence[Sequence[int]], kind: Kind = "document", precision: Precision = "fp32"
    ) -> Vectors:
        """Vectors [N, H] of ids that stand as the network reads them, wrapped and cut, of any lengths."""
        skip = 0 if self.pool_prompt else self.tokenizer.prompt_length(self.prompt(kind))
        found = np.zeros((len(ids), self.dim), np.float32)
        with torch.inference_mode(), fast_inference(), autocast(self.device, precision):
            most = _TOKENS_AT_ONCE.get(torch.device(self.device).type, _TOKENS_AT_ONCE["cpu"])
            for numbers in batches_by_length([len(each) for each in ids], most):
                rows_BT, mask_BT = self.pad([ids[number] for number in numbers])
                full = len(ids[numbers[0]]) == len(ids[numbers[-1]]) > 0  # the longest and the shortest: no padding
                hidden_BTD = self.body.hidden(rows_BT, None if full else mask_BT)
                found[numbers] = self._encode(hidden_BTD, mask_BT, skip).cpu().numpy()
        return found

    def pad(self, ids: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Ids as rows [B, T] with padding on the right, and the mask of what is real."""
        longest = max(1, *map(len, ids)) if len(ids) > 1 else max(1, len(ids[0]))
        rows = np.full((len(ids), longest), self.tokenizer.pad_id, np.int64)
        mask = np.zeros((len(ids), longest), bool)
        for row, each in enumerate(ids):
            rows[row, : len(each)] = each
            mask[row, : len(each)] = True
        return torch.from_numpy(rows).to(self.device), torch.from_numpy(mask).to(self.device)

    def encode_ids(self, ids_BT: Tensor, mask_BT: Tensor | None = None) -> Tensor:
        """Vectors of documents' ids, [B, H], whatever side padding stands on."""
        real_BT = torch.ones_like(ids_BT, dtype=torch.bool) if mask_BT is None else mask_BT.bool()
        return self._encode(self.body.hidden(ids_BT, mask_BT), real_BT, self._skipped)

    def encode_embeds(self, embeddings_BTD: Tensor, mask_BT: Tensor | None = None) -> Tensor:
        """Vectors of rows of the table of words, [B, H]."""
        hidden_BTD = self.body.hidden_of_embeddings(embeddings_BTD, mask_BT)
        shape = embeddings_BTD.shape[:2]
        real_BT = torch.ones(shape, dtype=torch.bool, device=embeddings_BTD.device) if mask_BT is None else mask_BT
        return self._encode(hidden_BTD, real_BT.bool(), self._skipped)

    def raw(self, texts: Sequence[str], kind: Kind = "document", precision: Precision = "fp32") -> Vectors:
        """Vectors before they get length 1, whose norms tell something."""
        return self.variant(normalize=False).encode_text(texts, kind, precision)

    def variant(self, **changes: Any) -> TextEncoder:
        """The same network with other settings."""
        other = copy.copy(self)
        other.__dict__.pop("dim", None)
        for name, value in changes.items():
            setattr(other, name, value)
        return other

    @property
    def _skipped(self) -> int:
        return 0 if self.pool_prompt else self.tokenizer.prompt_length(self.prompt("document"))

    def _encode(self, hidden_BTD: Tensor, mask_BT: Tensor, skip: int) -> Tensor:
        with torch.autocast(hidden_BTD.device.type, enabled=False):
            vectors_BH = pool(hidden_BTD, mask_BT, self.modes, skip)
            for head in self.heads:
                vectors_BH = head(vectors_BH)
            if self.normalize:
                vectors_BH = F.normalize(vectors_BH, dim=-1)
            if self.truncate_dim is not None:
                vectors_BH = vectors_BH[:, : self.truncate_dim]
                vectors_BH = F.normalize(vectors_BH, dim=-1) if self.normalize else vectors_BH
        return vectors_BH


def autocast(device: str, precision: Precision) -> contextlib.AbstractContextManager[Any]:
    """The network in bf16, or as it is."""
    if precision == "fp32":
        return contextlib.nullcontext()
    return torch.autocast(torch.device(device).type, torch.bfloat16)


def batches_by_length(lengths: Sequence[int], most: int) -> Iterator[NDArray[np.int64]]:
    """The numbers of texts in batches of similar length, the longest first, of at most so many padded tokens."""
    order = np.argsort(-np.asarray(lengths, np.int64), kind="stable")
    start = 0
    while start < len(order):
        rows = max(1, most // max(1, lengths[order[start]]))
        yield order[start : start + rows]
        start += rows
