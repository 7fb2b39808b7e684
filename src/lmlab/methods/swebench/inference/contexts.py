"""Which files of a repository a model is shown: those found for the issue, or those that the solution edits."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lmlab.data import Tokenizer
from lmlab.methods.swebench.harness.repairing import reader_of
from lmlab.methods.swebench.inference.ranking import Chunk, Ranker, documents
from lmlab.methods.swebench.inference.settings import By
from lmlab.methods.swebench.instances.instance import Instance
from lmlab.methods.swebench.patches.diff import read_diff
from lmlab.words import counted

Source = Literal["bm25", "dense", "hybrid", "oracle", "oracle-collapsed", "distractor", "none"]
Granularity = Literal["file", "symbol"]
_AROUND = 15  # lines that are shown before and after an edit

Count = Callable[[str], int]


def approximate_tokens(text: str) -> int:
    """Tokens of a text where no tokenizer is given: four bytes each."""
    return -(-len(text.encode()) // 4)


def counter_of(words: Tokenizer | None) -> Count:
    """Counts tokens by a tokenizer, or without one."""
    return approximate_tokens if words is None else lambda text: len(words.encode(text))


@dataclass(frozen=True)
class Context:
    """What a model is shown.

    Attributes:
        readmes, files: path to text, with numbered lines.
    """

    readmes: Mapping[str, str]
    files: Mapping[str, str]


def numbered(text: str, first: int = 1) -> str:
    """A text with the number of each line before it."""
    return "\n".join(f"{number} {line}" for number, line in enumerate(text.split("\n"), first))


def collapsed(text: str, regions: Sequence[tuple[int, int]], as_reference: bool = False) -> str:
    """The regions of a text, each with lines around it, under their numbers; "..." stands for what is left out.

    Arguments:
        regions: first and last line, 1-based.
        as_reference: as the original program shows them, with nothing after a region, and with a region near the
            beginning counted from the end.
    """
    lines = text.split("\n")
    shown: set[int] = set()
    for first, last in regions:
        if as_reference:
            shown |= {number + 1 for number in range(len(lines))[first - 1 - _AROUND : last]}
        else:
            shown |= set(range(max(1, first - _AROUND), min(len(lines), last + _AROUND) + 1))
    return _regions(lines, shown)


def _regions(lines: Sequence[str], shown: Collection[int]) -> str:
    parts, before = [], 0
    for number in sorted(shown):
        if number != before + 1:
            parts.append("...")
        parts.append(f"{number} {lines[number - 1]}")
        before = number
    if before < len(lines):
        parts.append("...")
    return "\n".join(parts)


def make_context(
    instance: Instance,
    tree: Path,
    source: Source,
    budget: int,
    count: Count = approximate_tokens,
    readmes: bool = True,
    ranker: Ranker | None = None,
    granularity: Granularity = "file",
    as_reference: bool = False,
    seed: int = 0,
) -> Context:
    """Choose files until a budget is spent.

    Files are taken in the order of their rank; one that does not fit is passed over, and the next one is tried. They
    are shown in the order of their paths. Readmes come first, but not in the place of all files.

    Arguments:
        budget: tokens of readmes and files.
        readmes: show the README files of the root first.
        ranker: finds files; its `by` is the source's.
        granularity: of what is found: whole files, or functions and methods, with "..." for what lies between.
        as_reference: collapse as the original program does (`collapsed`).
        seed: of the choice of `distractor`, which shows files that the solution does not edit.
    """
    read = reader_of(tree)
    shown: dict[str, str] = {}
    left = budget
    if readmes:
        for path in sorted(path.name for path in tree.iterdir() if path.name.lower().startswith("readme")):
            text = read(path)
            if text is not None and count(text) <= left:
                shown[path] = numbered(text)
                left -= count(shown[path])
    if source in ("bm25", "dense", "hybrid") and granularity == "symbol":
        found = documents(tree)
        chunks = _ranker(source, ranker).chunks(found, instance.problem_statement)
        return Context(*_roomy(shown, budget, left, lambda room: _packed_chunks(chunks, found, room, count)))
    candidates = list(_candidates(instance, tree, source, read, ranker, as_reference, seed))

    def packed(room: int) -> dict[str, str]:
        files: dict[str, str] = {}
        for path, text in candidates:
            size = count(text)
            if size < room:
                files[path] = text
                room -= size
        return dict(sorted(files.items()))

    return Context(*_roomy(shown, budget, left, packed))


def warn_of_bare(bare: Sequence[str], total: int, budget: int) -> None:
    """Warn of questions that show no file: whatever is answered to them says nothing of a model.

    Arguments:
        bare: names of their instances.
        total: questions in all.
        budget: tokens that files could have.
    """
    if bare:
        warnings.warn(
            f"No file is shown in {counted(len(bare), 'prompts')} of {total}, as none has room in {budget:,} tokens"
            f" (the first is of {bare[0]}). Raise --budget, or show parts of files: --granularity symbol, --context"
            " oracle-collapsed.",
            stacklevel=3,
        )


def _roomy(
    readmes: dict[str, str], budget: int, left: int, packed: Callable[[int], dict[str, str]]
) -> tuple[dict[str, str], dict[str, str]]:
    """Readmes and files: where the readmes leave no room for any file, and one has room without them, they give way, as
    nobody can mend code that is not shown.
    """
    files = packed(left)
    if readmes and not files and (alone := packed(budget)):
        return {}, alone
    return readmes, files


def _ranker(source: Source, given: Ranker | None) -> Ranker:
    by: By = "dense" if source == "dense" else "hybrid" if source == "hybrid" else "bm25"
    if given is None:
        return Ranker(by)
    given.by = by
    return given


def _packed_chunks(chunks: Sequence[Chunk], files: Mapping[str, str], left: int, count: Count) -> dict[str, str]:
    """Parts of files until the budget is spent, each file with its parts in their order."""
    lines: dict[str, set[int]] = {}
    for chunk in chunks:
        size = count(numbered(chunk.text, chunk.first)) + count(f"...\n{chunk.path}\n")
        if size < left:
            lines.setdefault(chunk.path, set()).update(range(chunk.first, chunk.last + 1))
            left -= size
    return {path: _regions(files[path].split("\n"), found) for path, found in sorted(lines.items())}


def _candidates(
    instance: Instance,
    tree: Path,
    source: Source,
    read: Callable[[str], str | None],
    ranker: Ranker | None,
    as_reference: bool,
    seed: int,
) -> list[tuple[str, str]]:
    if source == "none":
        return []
    if source in ("bm25", "dense", "hybrid"):
        files = documents(tree)
        ranked = _ranker(source, ranker).files(files, instance.problem_statement)
        return [(path, numbered(files[path])) for path, _ in ranked]
    if source == "distractor":
        edited = {path for file in read_diff(instance.patch) for path in file.paths}
        others = [(path, numbered(text)) for path, text in documents(tree).items() if path not in edited]
        random.Random(f"{seed}{instance.instance_id}").shuffle(others)
        return others
    found = []
    for file in read_diff(instance.patch):
        text = read(file.old) if file.old is not None else None
        if file.old is None or text is None:
            continue
        if source == "oracle":
            found.append((file.old, numbered(text)))
        else:
            regions = [(hunk.old_start, hunk.old_start + max(hunk.old_count, 1) - 1) for hunk in file.hunks]
            found.append((file.old, collapsed(text, regions, as_reference)))
    return found
