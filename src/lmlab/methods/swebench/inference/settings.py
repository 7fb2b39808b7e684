"""Settings of asking models, apart from the code so that help is instant."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PositiveInt

from lmlab.config import Config


class InferConfig(Config):
    """What a model is shown and how it answers.

    Attributes:
        context: bm25, oracle (the files that the solution edits), oracle-collapsed (of those the edited regions), none.
        budget: tokens of readmes and files.
        style: of the prompt: style-2, style-3 or full_file_gen.
        answers: form of the answers: diff, search_replace, full_file or json_edits.
        max_tokens: of an answer.
        temperature: 0 takes the likeliest token.
        top_p: share of the likeliest tokens that is drawn from.
        samples: answers to each issue.
    """

    context: Literal["bm25", "oracle", "oracle-collapsed", "none"] = "bm25"
    budget: PositiveInt = 13_000
    style: Literal["style-2", "style-3", "full_file_gen"] = "style-2"
    answers: Literal["diff", "search_replace", "full_file", "json_edits"] = "diff"
    max_tokens: PositiveInt = 1024
    temperature: float = Field(default=0.0, ge=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    samples: PositiveInt = 1
