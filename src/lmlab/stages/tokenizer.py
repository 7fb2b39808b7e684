"""The stage `train_tokenizer`: a byte-level BPE from the training documents."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from lmlab.data import Tokenizer, read_documents
from lmlab.data.vocabulary_size import VocabularySize
from lmlab.progress import console
from lmlab.runs import Artifact, Documents, DocumentsInput, Results, Stage, StageContext, Vocabulary
from lmlab.terminal import markup
from lmlab.words import counted


class TrainTokenizerConfig(VocabularySize):
    """Which documents, and how many tokens."""

    documents: DocumentsInput


class TokenizerResults(Results):
    """The vocabulary."""

    vocab_size: int
    fingerprint: str


class TrainTokenizer(Stage[TrainTokenizerConfig, TokenizerResults]):
    """Writes tokenizer.json and tokenizer_config.json."""

    version: ClassVar[int] = 2
    gives: ClassVar[tuple[type[Artifact], ...]] = (Vocabulary,)

    def plan(self, config: TrainTokenizerConfig, promised: Mapping[str, Any]) -> dict[str, str]:
        """The vocabulary."""
        return {"vocabulary": f"{counted(config.vocab_size, 'tokens')}, byte-level BPE"}

    def run(self, config: TrainTokenizerConfig, context: StageContext) -> TokenizerResults:
        """Train and save."""
        path = context.find(Documents, "documents").split("train")
        console.print(markup("  [dim]learning merges"))
        tokenizer = Tokenizer.train(
            (document.text for document in read_documents(path)),
            config.vocab_size,
        )
        tokenizer.save(context.directory)
        return TokenizerResults(vocab_size=tokenizer.vocab_size, fingerprint=tokenizer.fingerprint)

    def summary(self, results: TokenizerResults) -> str:
        """The vocabulary."""
        return f"{counted(results.vocab_size, 'tokens')}."
