"""Settings of retrieval that commands, stages and methods share; no torch here, so that help is instant."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import PositiveInt, field_validator

from lmlab.config import NO_INFLUENCE, Config, Flag

IndexKind = Literal["exact", "hnsw", "faiss-hnsw", "faiss-ivf", "int8", "binary", "truncated"]
Precision = Literal["fp32", "bf16"]


class CollectionConfig(Config):
    """A collection and its judgments.

    Attributes:
        data: a BEIR folder: corpus.jsonl, queries.jsonl, qrels/.
        split: which judgments.
        ignore_missing: leave out judgments of unknown ids.
    """

    data: Annotated[str, Flag(("--data", "-d"))]
    split: str = "test"
    ignore_missing: bool = False


class EncoderConfig(Config):
    """Which encoder makes vectors, and how.

    Attributes:
        encoder: directory of an encoder (sentence-transformers, two towers, or any model), or minilm where its package
            is installed.
        query_encoder: another encoder for queries.
        cache: folder for vectors and what follows from them, made once.
        device: cpu or cuda.
        precision: of the network: fp32 or bf16.
        pooling: of a plain model: mean, cls, lasttoken, ...
        prompt: what stands before each query or document: query=TEXT or document=TEXT; may be repeated.
        max_length: longest text in tokens.
        dims: keep so many first dimensions.
    """

    encoder: Annotated[str, Flag(("--encoder", "-e"))] = "minilm"
    query_encoder: str | None = None
    cache: Annotated[Path, Flag(("--cache", "-c")), NO_INFLUENCE] = Path("vectors")
    device: Annotated[str, NO_INFLUENCE] = "cpu"
    precision: Precision = "fp32"
    pooling: str | None = None
    prompt: tuple[str, ...] = ()
    max_length: PositiveInt | None = None
    dims: PositiveInt | None = None

    @field_validator("prompt")
    @classmethod
    def _names_a_kind(cls, found: tuple[str, ...]) -> tuple[str, ...]:
        for each in found:
            kind, equals, _ = each.partition("=")
            if kind not in ("query", "document") or not equals:
                raise ValueError(f"'{each}': expected query=TEXT or document=TEXT")
        return found

    @property
    def prompts(self) -> dict[str, str] | None:
        """The text before each kind of text; None leaves what the encoder's own files say."""
        return {kind: text for kind, _, text in (each.partition("=") for each in self.prompt)} or None


class SearchConfig(Config):
    """How a collection is searched.

    Attributes:
        by: dense, bm25, or hybrid (both by reciprocal ranks).
        index: exact, hnsw, faiss-hnsw, faiss-ivf, int8, binary or truncated.
    """

    by: Literal["dense", "bm25", "hybrid"] = "dense"
    index: IndexKind = "exact"
