"""The stage `tokenize`: documents to memory-mapped shards."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, PositiveInt

from lmlab.config import NO_INFLUENCE, Config
from lmlab.data import SpecialTokens, tokenize_documents
from lmlab.distributed import Backend
from lmlab.errors import UserError
from lmlab.progress import short
from lmlab.reports import Section, Table
from lmlab.runs import (
    Artifact,
    Documents,
    DocumentsInput,
    Results,
    Stage,
    StageContext,
    Tokens,
    Vocabulary,
    VocabularyInput,
)


class TokenizeConfig(Config):
    """Which documents, with which tokenizer.

    Attributes:
        special_tokens: what special tokens become that documents spell, such as `<|endoftext|>`: text like any other,
            or the special tokens, as `transformers` makes them.
        shard_tokens: tokens of a shard, about.
        workers: processes, by default one for every four cores.
        backend: `ray` spreads the shards over a cluster that sees the same files.
    """

    documents: DocumentsInput
    tokenizer: VocabularyInput
    split: Literal["train", "heldout"] = "train"
    special_tokens: SpecialTokens = "as_text"
    shard_tokens: int = Field(default=2**26, gt=0)
    workers: Annotated[PositiveInt | None, NO_INFLUENCE] = None
    backend: Annotated[Backend, NO_INFLUENCE] = "processes"


class TokenizeResults(Results):
    """Documents, tokens and bytes of each domain."""

    counts: dict[str, dict[str, int]]
    shards: int


class Tokenize(Stage[TokenizeConfig, TokenizeResults]):
    """Writes shards and their manifest."""

    version: ClassVar[int] = 3
    gives: ClassVar[tuple[type[Artifact], ...]] = (
        Tokens,
        Vocabulary,
    )

    def run(self, config: TokenizeConfig, context: StageContext) -> TokenizeResults:
        """Tokenize."""
        path = context.find(Documents, "documents").split(config.split)
        tokenizer = context.find(Vocabulary, "tokenizer").load()
        manifest = tokenize_documents(
            path,
            tokenizer,
            context.directory,
            config.shard_tokens,
            config.workers,
            config.backend,
            config.special_tokens,
        )
        if config.split == "train" and not manifest["shards"]:
            raise UserError(f"'{path}' holds no document to tokenize.", "Collect more text.")
        return TokenizeResults(counts=manifest["counts"], shards=len(manifest["shards"]))

    def summary(self, results: TokenizeResults) -> str:
        """Tokens and compression."""
        if not results.counts:
            return "no document."
        tokens, size = (sum(counts[key] for counts in results.counts.values()) for key in ("tokens", "bytes"))
        return f"{short(tokens)} tokens, {size / tokens:.2f} bytes a token."

    def report(self, config: TokenizeConfig, results: TokenizeResults, directory: Any) -> list[Section]:
        """Tokens by domain."""
        rows: list[list[Any]] = [
            [domain, c["documents"], c["tokens"], c["bytes"], round(c["bytes"] / c["tokens"], 3)]
            for domain, c in results.counts.items()
        ]
        title = "Training tokens" if config.split == "train" else "Held-out tokens"
        return [Section(title, [Table(["domain", "documents", "tokens", "bytes", "bytes a token"], rows)])]
