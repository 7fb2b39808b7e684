"""The stage `pack`: tokenized documents to sequences of one length, on the disk."""

from __future__ import annotations

from typing import Any, ClassVar

from lmlab.config import part_of
from lmlab.data import NOTES, PackConfig, write_packs
from lmlab.data.packs.config import PackFiles
from lmlab.progress import short
from lmlab.reports import Facts, Section, Table
from lmlab.runs import Artifact, Results, Stage, StageContext, Tokens, TokensInput, Vocabulary


class PackStageConfig(PackConfig, PackFiles):
    """Which documents, and how.

    Attributes:
        tokens: tokenized text, or sequences that were packed in another way.
    """

    tokens: TokensInput


class PackResults(Results):
    """The account of what was kept, cut and dropped."""

    account: dict[str, Any]


class Pack(Stage[PackStageConfig, PackResults]):
    """Writes MDS shards and packs.json."""

    gives: ClassVar[tuple[type[Artifact], ...]] = (Tokens, Vocabulary)

    def run(self, config: PackStageConfig, context: StageContext) -> PackResults:
        """Pack."""
        settings = part_of(PackConfig, config)
        for left in [*context.directory.rglob("index.json"), context.directory / NOTES]:  # by an attempt cut off
            left.unlink(missing_ok=True)
        path = context.find(Tokens, "tokens").path
        found = write_packs([str(path)], settings, context.directory, config.compression)
        return PackResults(account=found["account"])

    def summary(self, results: PackResults) -> str:
        """Sequences and what was lost."""
        found = results.account
        return (
            f"{found['sequences']:,} sequences of {short(found['packed'])} tokens, {found['kept_fraction']:.1%} of the"
            f" tokens kept, {found['cut_fraction']:.1%} of the documents cut."
        )

    def report(self, config: PackStageConfig, results: PackResults, directory: Any) -> list[Section]:
        """What was kept, and how far back tokens can look."""
        found = results.account
        facts = {
            "Documents": f"{found['documents']:,}",
            "Tokens": f"{found['tokens']:,}",
            "Sequences": f"{found['sequences']:,}",
            "Kept": f"{found['kept_fraction']:.2%}",
            "Documents cut": f"{found['cut_fraction']:.2%}",
            "Tokens of a document in a sequence": f"{found['mean_piece']:,.0f} on average",
        }
        rows: list[list[Any]] = [
            [int(distance), count, f"{count / found['packed']:.1%}"]
            for distance, count in found["tokens_with_context_beyond"].items()
        ]
        table = Table(["more than so many tokens before it", "tokens", "share"], rows, "How far back tokens can look")
        return [Section("Packing", [Facts(facts), table])]
