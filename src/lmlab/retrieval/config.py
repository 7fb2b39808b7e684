"""Settings of retrieval that commands, stages and methods share; no torch here, so that help is instant."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import PositiveInt, field_validator

from lmlab.config import NO_INFLUENCE, Config, Flag
from lmlab.hardware.settings import OnDevice

IndexKind = Literal["exact", "hnsw", "faiss-hnsw", "faiss-ivf", "int8", "binary", "truncated"]
Precision = Literal["fp32", "bf16"]


class CollectionConfig(Config):
    """A collection and its judgments.

    Attributes:
        data: a BEIR folder: corpus.jsonl, queries.jsonl, qrels/.
        split: which judgments.
        ignore_missing: leave out judgments of unknown ids.
        redteam: documents that are marked as crafted by an attack (`"redteam": true`): drop, or keep.
    """

    data: Annotated[str, Flag(("--data", "-d"))]
    split: str = "test"
    ignore_missing: bool = False
    redteam: Literal["drop", "keep"] = "drop"


class Encoding(OnDevice):
    """Where an encoder runs, and in which precision.

    Attributes:
        precision: of the network: fp32 or bf16.
    """

    precision: Precision = "fp32"


class EncoderConfig(Encoding):
    """Which encoder makes vectors, and how.

    Attributes:
        encoder: directory of an encoder (sentence-transformers, two towers, or any model), or minilm where its package
            is installed.
        query_encoder: another encoder for queries.
        cache: folder for vectors and what follows from them, made once.
        pooling: of a plain model: mean, cls, lasttoken, ...
        prompt: what stands before each query or document: query=TEXT or document=TEXT; may be repeated.
        max_length: longest text in tokens.
        dims: keep so many first dimensions.
    """

    encoder: Annotated[str, Flag(("--encoder", "-e"))] = "minilm"
    query_encoder: str | None = None
    cache: Annotated[Path, Flag(("--cache", "-c")), NO_INFLUENCE] = Path("vectors")
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

    @field_validator("pooling")
    @classmethod
    def _is_known(cls, found: str | None) -> str | None:
        if found is not None:
            from lmlab.models.pooling import POOLING_MODES

            if found not in POOLING_MODES:
                raise ValueError(f"'{found}': known are {', '.join(POOLING_MODES)}")
        return found

    def arguments(self) -> dict[str, Any]:
        """What `load_encoder` takes beside the place; what is not said is left to the encoder's own files."""
        found = {
            "device": self.device,
            "query_encoder": self.query_encoder,
            "pooling": self.pooling,
            "prompts": {kind: text for kind, _, text in (each.partition("=") for each in self.prompt)} or None,
            "max_length": self.max_length,
            "truncate_dim": self.dims,
        }
        return {name: value for name, value in found.items() if value is not None}


class SearchConfig(Config):
    """How a collection is searched.

    Attributes:
        by: vectors (dense), words (bm25), both, fused by reciprocal ranks (hybrid), or a vector for each token (late),
            with an encoder of late interaction.
        index: of vectors: exact, hnsw, faiss-hnsw, faiss-ivf, int8, binary or truncated.
    """

    by: Literal["dense", "bm25", "hybrid", "late"] = "dense"
    index: IndexKind = "exact"
