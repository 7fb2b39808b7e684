"""The stage `tokenize_chat`: conversations to tokens of which only the assistant's are learned."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from lmlab.config import Config
from lmlab.data import (
    ChatConfig,
    ChatEncoder,
    Example,
    Reject,
    Rejects,
    TokenizedItem,
    Tokenizer,
    chat_tokenizer,
    rejects_summary,
    write_shards,
)
from lmlab.errors import UserError
from lmlab.progress import progress, short
from lmlab.reports import Note, Section, Table
from lmlab.runs import Artifact, ReadResults, Stage, StageContext, Tokens, Vocabulary, VocabularyInput
from lmlab.stages.parts.records import REJECTS_REMEDY, Records, is_heldout, records_fingerprint, records_of
from lmlab.words import counted

_CHECKS = {
    "turns": "turns of the assistant that are learned",
    "turns_stopped": "of these, with the token that ends generation",
    "turns_not_learned": "turns of the assistant that are not learned (weight 0, or a greeting)",
    "turns_too_long": "turns that are left out, beyond max_len",
    "shortest_prompt": "tokens before the first that is learned, at least",
}
"""What every set of conversations is checked for, by the names of the results."""


class TokenizeChatConfig(Config):
    """Which conversations, with which tokenizer.

    Attributes:
        records: conversations, or prompts with their answers, in one of the usual forms (docs/recipes.md): an earlier
            stage, a file, folder, glob or URL, or a source of records.
        tokenizer: for messages one with a chat template, or `chat.template` gives it one.
        split: the records that are held out, or the others.
        heldout_fraction: share of the records that is held out.
        max_reject_fraction: stop when a larger share of the records cannot be learned from.
    """

    records: Records
    tokenizer: VocabularyInput
    chat: ChatConfig = ChatConfig()
    split: Literal["train", "heldout"] = "train"
    heldout_fraction: float = Field(default=0.0, ge=0, lt=1)
    max_reject_fraction: float = Field(default=0.1, ge=0, le=1)
    shard_tokens: int = Field(default=2**26, gt=0)


class ChatResults(ReadResults):
    """Examples and tokens of each domain; how many records were read; what was checked (`_CHECKS`)."""

    counts: dict[str, dict[str, int]]
    read: int
    turns: int
    turns_stopped: int
    turns_not_learned: int
    turns_too_long: int
    shortest_prompt: int


class TokenizeChat(Stage[TokenizeChatConfig, ChatResults]):
    """Writes shards, their manifest, and rejects.jsonl."""

    gives: ClassVar[tuple[type[Artifact], ...]] = (
        Tokens,
        Vocabulary,
    )
    version: ClassVar[int] = 2

    def depends_on(self, config: TokenizeChatConfig, promised: Mapping[str, Any]) -> Any:
        """The files of a source, and the template."""
        return records_fingerprint(config.records, config.chat)

    def run(self, config: TokenizeChatConfig, context: StageContext) -> ChatResults:
        """Encode."""
        tokenizer = chat_tokenizer(context.find(Vocabulary, "tokenizer").load(), config.chat)
        counts = dict.fromkeys(("fit", *_CHECKS), 0)
        rejects = Rejects(context.directory / "rejects.jsonl", config.max_reject_fraction)
        items = _items(config, context, tokenizer, counts, rejects)
        manifest = write_shards(items, tokenizer, context.directory, config.shard_tokens, "examples")
        if config.split == "train" and not manifest["shards"]:
            told = f" {found}" if (found := rejects_summary(rejects.account())) else ""
            raise UserError(
                f"The records hold nothing to learn from.{told}", "Mend them, or name fields (chat.fields)."
            )
        read = counts.pop("fit") + rejects.unfit
        checked: dict[str, Any] = {**counts, **rejects.account()}
        return ChatResults(counts=manifest["counts"], read=read, **checked)

    def summary(self, results: ChatResults) -> str:
        """Examples and tokens."""
        if not results.counts:
            return f"no example. {results.set_aside()}".rstrip()
        examples, tokens, learned = (
            sum(counts[key] for counts in results.counts.values()) for key in ("documents", "tokens", "learned_tokens")
        )
        return (
            f"{counted(examples, 'examples')}, {short(tokens)} tokens, {learned / tokens:.0%} of them learned, in"
            f" {counted(results.turns, 'turns')}, of which {results.turns_stopped:,} end with a stop token;"
            f" {counted(results.turns_not_learned, 'turns')} not learned, {results.turns_too_long:,} beyond max_len."
            f" {results.set_aside()}"
        ).rstrip()

    def report(self, config: TokenizeChatConfig, results: ChatResults, directory: Path) -> list[Section]:
        """Examples by domain."""
        rows: list[list[Any]] = [
            [domain, c["documents"], c["tokens"], c["learned_tokens"]] for domain, c in results.counts.items()
        ]
        blocks: list[Any] = [Table(["domain", "examples", "tokens", "learned tokens"], rows)]
        checks = [[what, getattr(results, name)] for name, what in _CHECKS.items()]
        blocks.append(Table(["check", "number"], checks, "What is learned"))
        if results.turns_stopped < results.turns:
            blocks.append(
                Note(
                    f"{results.turns - results.turns_stopped:,} of {results.turns:,} turns do not end with a token that"
                    " ends generation, as the template puts none there.",
                    "warning",
                )
            )
        if set_aside := results.set_aside():
            blocks.append(Note(f"{counted(results.read, 'records')} read. {set_aside}", "warning"))
        return [Section("Conversations" if config.split == "train" else "Held-out conversations", blocks)]


def _check(example: Example, counts: dict[str, int]) -> None:
    """Count what holds for an example; it must hold that every learned token has something before it."""
    first = example.mask.index(1)
    assert first > 0, "an answer without its prompt"
    counts["turns"] += example.turns
    counts["turns_stopped"] += example.stopped
    counts["turns_not_learned"] += example.unlearned
    counts["turns_too_long"] += example.left_out
    counts["shortest_prompt"] = min(first, counts["shortest_prompt"] or first)


def _items(
    config: TokenizeChatConfig, context: StageContext, tokenizer: Tokenizer, counts: dict[str, int], rejects: Rejects
) -> Iterator[TokenizedItem]:
    encoder = ChatEncoder(tokenizer, config.chat)
    with progress("encode", None, "records") as advance, rejects:
        for number, item in enumerate(records_of(config.records, context)):
            advance()
            if is_heldout(number, config.heldout_fraction, context.seed) != (config.split == "heldout"):
                continue
            found = item if isinstance(item, Reject) else encoder.examples(item[1], item[0])
            if isinstance(found, Reject):
                rejects.add(found)
                if rejects.too_many(counts["fit"]):
                    break
                continue
            counts["fit"] += 1
            for example in found:
                _check(example, counts)
                yield TokenizedItem(example.ids, example.domain, example.size, example.mask)
    rejects.check(counts["fit"], REJECTS_REMEDY)  # the file is whole now; the shards are not, so that none are left
