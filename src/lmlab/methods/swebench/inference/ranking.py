"""Which files of a repository an issue is about: by words (BM25), by vectors, or by both."""

from __future__ import annotations

import ast
import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from lmlab.methods.swebench.harness.repairing import reader_of
from lmlab.methods.swebench.harness.workspaces.trees import tree_files
from lmlab.methods.swebench.inference.settings import By
from lmlab.methods.swebench.instances.instance import Instance
from lmlab.methods.swebench.patches.diff import read_diff

if TYPE_CHECKING:
    from lmlab.retrieval.encoders.encoder import Vectors
    from lmlab.retrieval.encoders.load import AnyEncoder

K1, B = 0.9, 0.4  # of Pyserini, with which the original ranks
HITS = 20  # as the original retrieves; more than fit a prompt
_TEST_WORDS = {"test", "tests", "testing"}
_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|_")
_MOST_VECTORS = 50_000  # that a ranker keeps, 75 MB of MiniLM's; a large repository has about as many parts
_LONGEST_CHUNK = 60  # lines; an encoder reads a few hundred tokens


def documents(tree: Path) -> dict[str, str]:
    """Python files that are no tests, by the words of their path in the repository; path to content."""
    read = reader_of(tree)
    return {path: text for path in tree_files(tree) if _is_ranked(path) and (text := read(path)) is not None}


def _is_ranked(path: str) -> bool:
    return path.endswith(".py") and not _TEST_WORDS & set(re.split(r"[ _/.]", path.lower()))


def with_parts(text: str) -> str:
    """A text in which names are followed by their parts: `readLine` and `read_line` also as "read line"."""
    names = set(re.findall(r"\w+", text))
    return text + "\n" + " ".join(" ".join(_CAMEL.split(name)) for name in sorted(names) if _CAMEL.search(name))


@dataclass(frozen=True)
class Chunk:
    """A part of a file.

    Attributes:
        first, last: lines, 1-based.
    """

    path: str
    first: int
    last: int
    text: str


def chunks_of(path: str, text: str) -> list[Chunk]:
    """A file as functions, methods, and what stands between them; where it cannot be parsed, as runs of lines. All
    lines are in exactly one chunk.
    """
    lines = text.split("\n")
    try:
        starts = _starts(ast.parse(text).body)
    except (SyntaxError, ValueError, RecursionError):
        starts = set()
    borders = sorted({1, *(each for each in starts if each <= len(lines))})
    found = []
    for begin, end in zip(borders, [*borders[1:], len(lines) + 1], strict=True):
        for first in range(begin, end, _LONGEST_CHUNK):
            last = min(first + _LONGEST_CHUNK, end) - 1
            found.append(Chunk(path, first, last, "\n".join(lines[first - 1 : last])))
    return found


def _starts(body: Sequence[ast.stmt]) -> set[int]:
    """Lines where a function, class or method begins, or where one has ended."""
    found: set[int] = set()
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found |= {min([node.lineno, *(each.lineno for each in node.decorator_list)]), (node.end_lineno or 0) + 1}
            if isinstance(node, ast.ClassDef):
                found |= _starts(node.body)
    return found


def rank_bm25(
    files: Mapping[str, str], query: str, k: int = HITS, split_names: bool = True, k1: float = K1, b: float = B
) -> list[tuple[str, float]]:
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
        [expand(f"{path.partition(_WITHIN)[0]}\n{text}") for path, text in files.items()],
        k1=k1,
        b=b,
        stop_words=ENGLISH_STOP_WORDS,
    )
    found = index.run(["issue"], [expand(query)], k)["issue"]
    return sorted(found.items(), key=lambda each: -each[1])


_Scored = list[tuple[str, float]]
_WITHIN = "\0"  # between a path and the number of a chunk, where chunks are ranked


@dataclass
class Ranker:
    """Ranks files, or parts of them.

    Attributes:
        by: what ranks them; `hybrid` fuses words and vectors by reciprocal ranks.
        encoder: place or name of the encoder of vectors.
    """

    by: By = "bm25"
    encoder: str = "minilm"
    split_names: bool = True
    device: str = "cpu"
    _vectors: dict[str, Vectors] = field(default_factory=dict, repr=False)

    def files(self, files: Mapping[str, str], query: str, k: int = HITS) -> list[tuple[str, float]]:
        """The files found for a query, best first, with scores. By vectors, a file is as good as its best part, as an
        encoder reads no more than the beginning of a file.

        Raises:
            UserError: a package is not installed, or there is no such encoder.
        """
        return self._merged(
            lambda count: rank_bm25(files, query, count, self.split_names),
            lambda: _best_of_files(self._dense(files, query)),
            k,
        )

    def chunks(self, files: Mapping[str, str], query: str, k: int = 10 * HITS) -> list[Chunk]:
        """The parts of files found for a query, best first."""
        parts = {f"{path}{_WITHIN}{each.first}": each for path, text in files.items() for each in chunks_of(path, text)}
        found = self._merged(
            lambda count: rank_bm25({key: each.text for key, each in parts.items()}, query, count, self.split_names),
            lambda: [(f"{each.path}{_WITHIN}{each.first}", score) for each, score in self._dense(files, query)],
            k,
        )
        return [parts[key] for key, _ in found]

    def _merged(self, words: Callable[[int], _Scored], vectors: Callable[[], _Scored], k: int) -> _Scored:
        from lmlab.retrieval import fuse_rrf

        if self.by == "bm25":
            return words(k)
        near = sorted(vectors(), key=lambda each: (-each[1], each[0]))
        if self.by == "dense":
            return near[:k]
        deep = max(k, HITS)
        fused = fuse_rrf([{"issue": dict(words(deep))}, {"issue": dict(near[:deep])}])["issue"]
        return sorted(fused.items(), key=lambda each: (-each[1], each[0]))[:k]

    @cached_property
    def _loaded(self) -> AnyEncoder:
        from lmlab.retrieval import load_encoder

        return load_encoder(self.encoder, device=self.device)

    def _dense(self, files: Mapping[str, str], query: str) -> list[tuple[Chunk, float]]:
        chunks = [each for path, text in files.items() for each in chunks_of(path, text) if each.text.strip()]
        if not chunks:
            return []
        keys = {each: hashlib.sha256(f"{each.path}\n{each.text}".encode()).hexdigest() for each in chunks}
        # Trees of one repository share most of their files
        new = {keys[each]: f"{each.path}\n{each.text}" for each in chunks if keys[each] not in self._vectors}
        found = {key: self._vectors[key] for key in keys.values() if key not in new}
        if new:
            made = self._loaded.encode_text(list(new.values()), "document")
            found |= dict(zip(new, made, strict=True))
        self._keep(found)
        asked = self._loaded.encode_text([query], "query")[0]
        return [(each, float(found[keys[each]] @ asked)) for each in chunks]

    def _keep(self, found: Mapping[str, Vectors]) -> None:
        """Remember vectors, and forget those that were not asked for the longest."""
        for key in found:
            self._vectors.pop(key, None)
        self._vectors |= found
        for key in list(self._vectors)[: max(0, len(self._vectors) - _MOST_VECTORS)]:
            del self._vectors[key]


def _best_of_files(found: Sequence[tuple[Chunk, float]]) -> list[tuple[str, float]]:
    best: dict[str, float] = {}
    for chunk, score in found:
        best[chunk.path] = max(score, best.get(chunk.path, score))
    return list(best.items())


def recall(found: Sequence[str], instance: Instance) -> float | None:
    """The share of the files that the solution edits which are among those found; None where it edits no Python file
    that was there before.
    """
    gold = {file.old for file in read_diff(instance.patch) if file.old is not None and _is_ranked(file.old)}
    return len(gold & set(found)) / len(gold) if gold else None
