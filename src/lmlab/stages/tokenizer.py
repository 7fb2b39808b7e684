"""The stage `train_tokenizer`: a byte-level BPE from the training documents."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field

from lmlab.config import Config
from lmlab.data import Tokenizer, read_documents
from lmlab.progress import console
from lmlab.runs import Input, Stage, StageContext
from lmlab.terminal import markup


class TrainTokenizerConfig(Config):
    """Which documents, and how many tokens."""

    documents: Input
    vocab_size: int = Field(default=4096, ge=257)


class TrainTokenizer(Stage[TrainTokenizerConfig]):
    """Writes tokenizer.json and tokenizer_config.json."""

    version: ClassVar[int] = 2
    config_type: ClassVar[type[Config]] = TrainTokenizerConfig

    def plan(self, config: TrainTokenizerConfig) -> dict[str, str]:
        """The vocabulary."""
        return {"vocabulary": f"{config.vocab_size:,} tokens, byte-level BPE"}

    def run(self, config: TrainTokenizerConfig, context: StageContext) -> dict[str, Any]:
        """Train and save."""
        path = context.inputs["documents"]
        console.print(markup("  [dim]learning merges"))
        tokenizer = Tokenizer.train(
            (document.text for document in read_documents(path / "train.jsonl" if path.is_dir() else path)),
            config.vocab_size,
        )
        tokenizer.save(context.directory)
        return {"vocab_size": tokenizer.vocab_size, "fingerprint": tokenizer.fingerprint}

    def summary(self, results: dict[str, Any]) -> str:
        """The vocabulary."""
        return f"{results['vocab_size']:,} tokens."
