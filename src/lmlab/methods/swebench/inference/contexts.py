"""Which files of a repository a model is shown: those that BM25 finds, or those that the solution edits."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lmlab.data import Tokenizer
from lmlab.methods.swebench.harness.repairing import reader_of
from lmlab.methods.swebench.harness.workspaces.trees import tree_files
from lmlab.methods.swebench.instances.instance import Instance
from lmlab.methods.swebench.patches.diff import read_diff

Source = Literal["bm25", "oracle", "oracle-collapsed", "none"]
K1, B = 0.9, 0.4  # of Pyserini, with which the original ranks
HITS = 20  # as the original retrieves; more than fit a prompt
_TEST_WORDS = {"test", "tests", "testing"}
_AROUND = 15  # lines that are shown before and after an edit
_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|_")

Count = Callable[[str], int]


def approximate_tokens(text: str) -> int:
    """Tokens of a text where no tokenizer is given: four bytes each."""
    return -(-len(text.encode()) // 4)


def counter_of(words: Tokenizer | None) -> Count:
    """Counts tokens by a tokenizer, or without one."""
    return approximate_tokens if words is None else lambda text: len(words.encode(text))


def documents(tree: Path) -> dict[str, str]:
    """Python files that are no tests, by the words of their path in the repository; path to content."""
    read = reader_of(tree)
    paths = [
        path
        for path in tree_files(tree)
        if path.endswith(".py") and not _TEST_WORDS & set(re.split(r"[ _/.]", path.lower()))
    ]
    return {path: text for path in paths if (text := read(path)) is not None}


def with_parts(text: str) -> str:
    """A text in which names are followed by their parts: `readLine` and `read_line` also as "read line"."""
    names = set(re.findall(r"\w+", text))
    return text + "\n" + " ".join(" ".join(_CAMEL.split(name)) for name in sorted(names) if _CAMEL.search(name))


def rank_bm25(files: Mapping[str, str], query: str, k: int = HITS, split_names: bool = True) -> list[tuple[str, float]]:
    """The files that BM25 finds for a query, best first, with scores.

    Arguments:
        split_names: names are known by their parts too.

    Raises:
        UserError: `bm25s` is not installed.
    """
    from lmlab.retrieval import BM25
    from lmlab.retrieval.search.bm25 import ENGLISH_STOP_WORDS

    if not files:
        return []
    expand = with_parts if split_names else str
    index = BM25(
        list(files),
        [expand(f"{path}\n{text}") for path, text in files.items()],
        k1=K1,
        b=B,
        stop_words=ENGLISH_STOP_WORDS,
    )
    found = index.run(["issue"], [expand(query)], k)["issue"]
    return sorted(found.items(), key=lambda each: -each[1])


def recall(found: Sequence[str], instance: Instance) -> float | None:
    """The share of the files that the solution edits which are among those found; None where it edits no Python file
    that was there before.
    """
    gold = {
        file.old
        for file in read_diff(instance.patch)
        if file.old is not None and file.old.endswith(".py") and not _TEST_WORDS & set(re.split(r"[ _/.]", file.old))
    }
    return len(gold & set(found)) / len(gold) if gold else None


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


def collapsed(text: str, regions: Sequence[tuple[int, int]]) -> str:
    """The regions of a text, each with lines around it, under their numbers; "..." stands for what is left out.

    Arguments:
        regions: first and last line, 1-based.
    """
    lines = text.split("\n")
    shown: set[int] = set()
    for first, last in regions:
        shown |= set(range(max(1, first - _AROUND), min(len(lines), last + _AROUND) + 1))
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
) -> Context:
    """Choose files until a budget is spent.

    Files are taken in the order of their rank; one that does not fit is passed over, and the next one is tried. They
    are shown in the order of their paths.

    Arguments:
        budget: tokens of readmes and files.
        readmes: show the README files of the root first.
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
    candidates = _candidates(instance, tree, source, read)
    files: dict[str, str] = {}
    for path, text in candidates:
        size = count(text)
        if size < left:
            files[path] = text
            left -= size
    return Context(shown, dict(sorted(files.items())))


def _candidates(
    instance: Instance, tree: Path, source: Source, read: Callable[[str], str | None]
) -> list[tuple[str, str]]:
    if source == "none":
        return []
    if source == "bm25":
        files = documents(tree)
        return [(path, numbered(files[path])) for path, _ in rank_bm25(files, instance.problem_statement)]
    found = []
    for file in read_diff(instance.patch):
        text = read(file.old) if file.old is not None else None
        if file.old is None or text is None:
            continue
        if source == "oracle":
            found.append((file.old, numbered(text)))
        else:
            regions = [(hunk.old_start, hunk.old_start + max(hunk.old_count, 1) - 1) for hunk in file.hunks]
            found.append((file.old, collapsed(text, regions)))
    return found
