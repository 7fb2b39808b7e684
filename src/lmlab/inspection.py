"""A look at data: documents, tokens, lengths and rejects, on the terminal and as a page."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.table import Table as RichTable
from rich.text import Text

from lmlab.config import validate
from lmlab.data import Document, Reject, SourceConfig, TokenizedCorpus, Tokenizer, read_documents, source_settings
from lmlab.errors import UserError
from lmlab.files import read_jsonl
from lmlab.progress import progress
from lmlab.reports import Block, Cell, Facts, Figure, Page, Paragraph, Section, Table, Tokens, bar_chart, format_bytes
from lmlab.terminal import Terminal, markup, printable
from lmlab.words import counted

_SHOWN_CHARACTERS = 300  # of a document: a few lines of a terminal
_SHOWN_TOKENS = 200  # enough to fill these characters, also where a token is little more than one of them
_QUANTILES = (0, 10, 50, 90, 99, 100)  # percent: the shortest, the longest, and where most documents lie
_PRINTED = (0, 1, 2, 3, 6, 7, 9)  # columns for which a terminal has room


@dataclass
class Shown:
    """A document that is shown: its place, domain, and its text as one piece or token by token."""

    id: str
    domain: str
    pieces: list[str]
    learned: list[bool] | None = None


@dataclass
class Inspection:
    """What was found.

    Attributes:
        unit: of lengths: `tokens` or `bytes`.
        lengths: of each document, by domain.
        sizes: UTF-8 bytes by domain.
        set_aside: how many records were rejected or dropped, by reason, with an example of each.
    """

    place: str
    what: str
    unit: str
    lengths: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    sizes: Counter[str] = field(default_factory=Counter)
    shown: list[Shown] = field(default_factory=list)
    set_aside: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)

    def put_aside(self, reason: str, where: str) -> None:
        """Count a record that is not used."""
        self.set_aside[reason] += 1
        self.examples.setdefault(reason, where)


def inspect_data(
    path: str, tokenizer: Tokenizer | None = None, num_shown: int = 5, fields: dict[str, str] | None = None
) -> Inspection:
    """Look at a tokenized corpus, at what `collect` wrote, or at any source of documents.

    Arguments:
        tokenizer: count tokens of text that is not tokenized yet.
        num_shown: documents to show, the first ones.
        fields: settings of the source, such as `text_field`.

    Raises:
        UserError: nothing is there.
    """
    place = Path(path)
    if (place / "manifest.json").exists() and (place / "tokenizer").is_dir():
        return _inspect_corpus(TokenizedCorpus(place), num_shown)
    found = Inspection(path, "documents", "bytes" if tokenizer is None else "tokens")
    if (place / "collect.json").exists():
        found.what = "training documents of a collection"
        documents: Iterable[Document | Reject] = read_documents(place / "train.jsonl")
        for row in read_jsonl(place / "rejects.jsonl"):
            found.put_aside(row["reason"], row["where"])
        for row in read_jsonl(place / "dropped.jsonl"):
            found.put_aside(row["reason"], row["id"])
    else:
        settings = source_settings(path, fields or {})
        found.what = f"source of kind {settings['kind']}"
        documents = validate(SourceConfig, settings, f"'{path}'").read()
    with progress("read", None, "documents") as advance:
        for batch in _batches(documents, 64):
            _count(found, [each for each in batch if isinstance(each, Document)], tokenizer, num_shown)
            for reject in (each for each in batch if isinstance(each, Reject)):
                found.put_aside(reject.reason, reject.where)
            advance(len(batch))
    if not found.lengths and not found.set_aside:
        raise UserError(f"'{path}' holds no document.")
    return found


def _count(found: Inspection, documents: list[Document], tokenizer: Tokenizer | None, num_shown: int) -> None:
    encoded = (
        [document.text.encode() for document in documents]
        if tokenizer is None
        else tokenizer.encode_batch([each.text for each in documents], "as_text")
    )
    for document, units in zip(documents, encoded, strict=True):
        found.lengths[document.domain].append(len(units))
        found.sizes[document.domain] += len(document.text.encode())
        if len(found.shown) < num_shown:
            pieces = (
                [document.text[: _SHOWN_CHARACTERS * 4]]
                if tokenizer is None
                else _pieces(tokenizer, list(units[:_SHOWN_TOKENS]))
            )
            found.shown.append(Shown(document.id, document.domain, pieces))


def _inspect_corpus(corpus: TokenizedCorpus, num_shown: int) -> Inspection:
    found = Inspection(
        str(corpus.directory), f"tokenized {corpus.kind} in {counted(len(corpus.shards), 'shards')}", "tokens"
    )
    for shard in corpus.shards:
        starts = np.concatenate([[0], shard.ends[:-1]])
        for number, domain in enumerate(corpus.domains):
            chosen = shard.domains == number
            found.lengths[domain] += (shard.ends - starts)[chosen].tolist()
            found.sizes[domain] += int(shard.sizes[chosen].sum())
        for number in range(min(len(starts), num_shown - len(found.shown))):
            span = slice(int(starts[number]), min(int(shard.ends[number]), int(starts[number]) + _SHOWN_TOKENS))
            learned = None if shard.mask is None else [bool(value) for value in shard.mask[span]]
            pieces = _pieces(corpus.tokenizer, shard.tokens[span].tolist())
            found.shown.append(Shown(f"{shard.name}:{number}", corpus.domains[shard.domains[number]], pieces, learned))
    return found


def _pieces(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    """The text of each token; characters of several tokens stand with the last of them, special tokens by their
    names.
    """
    pieces, done = [], ""
    for end in range(1, len(ids) + 1):
        text = tokenizer.backend.decode(ids[:end], skip_special_tokens=False)
        whole = text.rstrip("\ufffd")
        pieces.append(whole[len(done) :])
        done = whole
    return pieces


def _batches(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch


def print_inspection(found: Inspection, console: Terminal) -> None:
    """Print tables and the beginnings of documents."""
    console.print(markup("[bold]{}[/bold]: {}", found.place, found.what))
    columns = ["domain", *_columns(found)]
    table = RichTable(box=box.SIMPLE)
    for name in _PRINTED:
        table.add_column(columns[name], justify="right" if name else "left", no_wrap=True)
    for row in _rows(found):
        cells = [
            f"{cell:,}" if isinstance(cell, int) else f"{cell:.2f}" if isinstance(cell, float) else str(cell)
            for cell in row
        ]
        table.add_row(*(cells[name] for name in _PRINTED))
    console.print(table)
    border = markup("[dim]|[/dim]") if found.unit == "tokens" else Text()
    for each in found.shown:
        text, left = Text(), _SHOWN_CHARACTERS
        for piece in each.pieces:
            text += (border if text else Text()) + Text(printable(piece[:left]))
            left -= len(piece)
            if left <= 0:
                text += markup(" [dim]...[/dim]")
                break
        console.print(markup("[bold]{}[/bold] ({})", each.id, each.domain))
        console.print(text, end="\n\n", soft_wrap=True)
    for reason, count in found.set_aside.most_common():
        console.print(f"set aside: {count:,} x {reason}, such as {found.examples[reason]}")


def write_inspection(found: Inspection, path: Path) -> Path:
    """Write the page."""
    number = sum(map(len, found.lengths.values()))
    facts = {"Documents": f"{number:,}", found.unit.capitalize(): f"{sum(map(sum, found.lengths.values())):,}"}
    facts |= {"Text": format_bytes(sum(found.sizes.values())), "Set aside": f"{sum(found.set_aside.values()):,}"}
    table = Table(["domain", *_columns(found)], _rows(found), f"Documents by domain; lengths in {found.unit}")
    overview: list[Block] = [Facts(facts), table]
    if number:
        overview.append(_histogram(found))
    shown: list[Block] = [Tokens(each.pieces, each.learned, f"{each.id}, {each.domain}") for each in found.shown]
    sections = [
        Section("Overview", overview),
        Section("Documents", shown or [Paragraph("None.")], "The beginnings of the first documents."),
    ]
    if found.set_aside:
        rows: list[list[Cell]] = [
            [reason, count, found.examples[reason]] for reason, count in found.set_aside.most_common()
        ]
        sections.append(
            Section(
                "Set aside", [Table(["reason", "records", "for instance"], rows)], "Records that are not used, and why."
            )
        )
    return Page(f"Data in {found.place}", found.what, sections).write(path)


def _columns(found: Inspection) -> list[str]:
    return [
        "documents",
        found.unit,
        "bytes a token" if found.unit == "tokens" else "bytes a document",
        "shortest",
        "10 %",
        "median",
        "90 %",
        "99 %",
        "longest",
    ]


def _rows(found: Inspection) -> list[list[Cell]]:
    rows: list[list[Cell]] = []
    for domain, lengths in sorted(found.lengths.items()):
        quantiles = [int(value) for value in np.percentile(lengths, _QUANTILES)] if lengths else []
        total = sum(lengths) if found.unit == "tokens" else len(lengths)
        rows.append([domain, len(lengths), sum(lengths), round(found.sizes[domain] / max(1, total), 2), *quantiles])
    return rows


def _histogram(found: Inspection) -> Figure:
    """Lengths by powers of two."""
    powers = {
        domain: np.log2(np.maximum(lengths, 1)).astype(int) for domain, lengths in found.lengths.items() if lengths
    }
    first, last = min(int(each.min()) for each in powers.values()), max(int(each.max()) for each in powers.values())
    groups = {
        domain: np.bincount(each - first, minlength=last - first + 1).tolist()
        for domain, each in sorted(powers.items())
    }
    names = [f"{2**power:,}-{2 ** (power + 1) - 1:,}" for power in range(first, last + 1)]
    return Figure(
        bar_chart(names, groups, None, "documents", None),
        f"Lengths of documents in {found.unit}.",
        "Histogram of lengths",
    )
