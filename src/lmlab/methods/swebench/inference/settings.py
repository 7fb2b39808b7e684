"""Settings of asking models, apart from the code so that help is instant."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveInt

from lmlab.config import Flag
from lmlab.hardware.settings import OnDevice

By = Literal["bm25", "dense", "hybrid"]


class RankConfig(OnDevice):
    """How files of a repository are ranked for an issue.

    Attributes:
        encoder: of dense and hybrid contexts: a directory of an encoder, or minilm where its package is installed.
        split_names: know names by their parts too.
    """

    encoder: str = "minilm"
    split_names: Annotated[bool, Flag(("--split-names/--whole-names",))] = True


class InferConfig(RankConfig):
    """What a model is shown and how it answers.

    Attributes:
        context: bm25, dense or hybrid (files found by words, by vectors, or by both), oracle (the files that the
            solution edits), oracle-collapsed (of those the edited regions), distractor (others), none.
        granularity: of files that are found: file, or symbol for functions and methods.
        as_reference: collapse regions as the original program does, with no lines after them.
        budget: tokens of readmes and files.
        style: of the prompt: style-2, style-3 or full_file_gen.
        answers: form of the answers: diff, search_replace, full_file or json_edits.
        max_tokens: of an answer.
        temperature: 0 takes the likeliest token.
        top_p: share of the likeliest tokens that is drawn from.
        samples: answers to each issue.
    """

    context: Literal["bm25", "dense", "hybrid", "oracle", "oracle-collapsed", "distractor", "none"] = "bm25"
    granularity: Literal["file", "symbol"] = "file"
    as_reference: Annotated[bool, Flag(("--as-reference",))] = False
    budget: PositiveInt = 13_000
    style: Literal["style-2", "style-3", "full_file_gen"] = "style-2"
    answers: Literal["diff", "search_replace", "full_file", "json_edits"] = "diff"
    max_tokens: PositiveInt = 1024
    temperature: float = Field(default=0.0, ge=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    samples: PositiveInt = 1
