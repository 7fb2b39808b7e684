"""Two networks, one for queries and one for documents (DPR): gradients go through the documents' alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from lmlab.errors import UserError
from lmlab.retrieval.config import Precision
from lmlab.retrieval.encoders.encoder import Kind, Similarity, TextEncoder, Vectors
from lmlab.retrieval.encoders.words import EncoderTokenizer


@dataclass
class TwoTowerEncoder:
    """A retriever with an encoder for each side.

    Raises:
        UserError: their vectors differ in width, or are compared in different ways.
    """

    queries: TextEncoder
    documents: TextEncoder

    def __post_init__(self) -> None:
        if self.queries.dim != self.documents.dim:
            raise UserError(
                f"The encoder of queries gives {self.queries.dim} dimensions, that of documents {self.documents.dim}."
            )
        if self.queries.similarity != self.documents.similarity:
            raise UserError("The encoder of queries and that of documents compare vectors in different ways.")

    @property
    def dim(self) -> int:
        """Width of vectors."""
        return self.documents.dim

    @property
    def similarity(self) -> Similarity:
        """How vectors are compared."""
        return self.documents.similarity

    @property
    def max_length(self) -> int:
        """Of documents."""
        return self.documents.max_length

    @property
    def tokenizer(self) -> EncoderTokenizer:
        """Of documents."""
        return self.documents.tokenizer

    @property
    def device(self) -> str:
        """Where both are."""
        return self.documents.device

    @property
    def name(self) -> str:
        """For messages."""
        return f"{self.queries.name} + {self.documents.name}"

    @property
    def fingerprint(self) -> dict[str, Any]:
        """That of documents, and of queries where the two differ."""
        queries = {f"query {name}": value for name, value in self.queries.fingerprint.items()}
        return {**self.documents.fingerprint, **queries}

    @property
    def embedding_matrix_VD(self) -> Tensor:
        """The table of words of documents."""
        return self.documents.embedding_matrix_VD

    def prompt(self, kind: str) -> str:
        """What stands before a text of its kind."""
        return (self.queries if kind == "query" else self.documents).prompt(kind)

    def encode_text(self, texts: Sequence[str], kind: Kind = "document", precision: Precision = "fp32") -> Vectors:
        """Vectors of texts by the encoder of their kind."""
        return (self.queries if kind == "query" else self.documents).encode_text(texts, kind, precision)

    def raw(self, texts: Sequence[str], kind: Kind = "document", precision: Precision = "fp32") -> Vectors:
        """Vectors before they get length 1."""
        return (self.queries if kind == "query" else self.documents).raw(texts, kind, precision)

    def encode_ids(self, ids_BT: Tensor, mask_BT: Tensor | None = None) -> Tensor:
        """Vectors of documents' ids."""
        return self.documents.encode_ids(ids_BT, mask_BT)

    def encode_embeds(self, embeddings_BTD: Tensor, mask_BT: Tensor | None = None) -> Tensor:
        """Vectors of documents' rows of the table of words."""
        return self.documents.encode_embeds(embeddings_BTD, mask_BT)

    def wrap(self, ids: Sequence[int]) -> list[int]:
        """Ids of a document with all around them."""
        return self.documents.wrap(ids)

    def tokenize(self, texts: Sequence[str], kind: Kind = "document") -> list[list[int]]:
        """The ids that texts are encoded from."""
        return (self.queries if kind == "query" else self.documents).tokenize(texts, kind)

    def pad(self, ids: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Ids of documents as rows."""
        return self.documents.pad(ids)
