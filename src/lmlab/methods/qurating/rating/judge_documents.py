"""Excerpts of documents to judgments on the disk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from lmlab.data import Document, Tokenizer
from lmlab.files import write_json, write_jsonl
from lmlab.judging import (
    Criterion,
    JudgeConfig,
    Judged,
    JudgePairs,
    components,
    require_verdicts,
    summarize,
    write_judgments,
)
from lmlab.methods.qurating.config import PairConfig
from lmlab.methods.qurating.rating.excerpting import group_excerpts
from lmlab.methods.qurating.rating.pairs import make_groups
from lmlab.progress import progress

JUDGMENTS, REASONS = "judgments.parquet", "reasons.jsonl"


def judge_documents(
    documents: list[Document],
    tokenizer: Tokenizer,
    criteria: list[Criterion],
    judge: JudgeConfig,
    pairs: PairConfig,
    directory: Path,
    ratings: dict[str, float] | None = None,
) -> dict[str, Any]:
    """Compare excerpts of documents and write `judgments.parquet` and `judging.json` to a directory; returns the
    latter's figures.

    Raises:
        NoVerdicts: the judge gave none; the files then show why.
    """
    found, figures = compare_documents(
        documents, tokenizer, criteria, judge, pairs, directory, directory.joinpath, ratings
    )
    require_verdicts(found)
    return figures


def compare_documents(
    documents: list[Document],
    tokenizer: Tokenizer,
    criteria: list[Criterion],
    judge: JudgeConfig,
    pairs: PairConfig,
    directory: Path,
    place: Callable[[str], Path],
    ratings: dict[str, float] | None = None,
) -> tuple[Judged, dict[str, Any]]:
    """Compare excerpts, and write what came of it, whatever it is.

    Arguments:
        directory: keeps replies, which later calls do not ask for again.
        place: where a file of a name is written.
    """
    groups = make_groups(documents, pairs, ratings)
    excerpts = [group_excerpts(group, tokenizer, pairs) for group in groups]
    who = judge.make(directory / "replies.sqlite")
    judging = JudgePairs(who, criteria, judge.orders == "both")
    with progress("judge", judging.num_questions(excerpts), "questions") as advance:
        found = judging.run(excerpts, advance)
    write_judgments(found.judgments, place(JUDGMENTS))
    figures = summarize(found, who.generations) | {
        "judge": who.name,
        "connected_sets": components([each.ids for each in found.judgments]),
    }
    write_json(place("judging.json"), figures)
    if found.reasons:
        write_jsonl(place(REASONS), found.reasons)
    return found, figures
