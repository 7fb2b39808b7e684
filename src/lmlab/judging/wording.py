"""What a judge is asked: the wording is a file of data, and its hash stands beside every judgment."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

from lmlab.config import Config, validate
from lmlab.endpoints import ChatRequest
from lmlab.errors import UserError
from lmlab.files import read_yaml, sha256_json


class Wording(Config):
    """The words of a judge's prompts.

    Attributes:
        pair, single: templates with {clause}, and {first}, {second}, {text_a}, {text_b} or {text}.
        pair_reasons: as `pair`, and asks for an object of JSON with `reasons` before `choice`, a label; None where the
            file has none.
        labels: of the first and the second text.
        criteria: the clause of each criterion that the file knows.
    """

    version: int
    system: str
    pair: str
    pair_reasons: str | None = None
    single: str
    labels: tuple[str, str]
    criteria: dict[str, str]


@lru_cache
def load_wording(path: Path) -> Wording:
    """Read a file of prompts."""
    return validate(Wording, read_yaml(path), f"'{path}'")


@dataclass(frozen=True)
class Criterion:
    """A quality that texts are compared by.

    Attributes:
        name: also of the columns of its judgments and ratings.
        clause: completes "choose the one which ...".
    """

    name: str
    clause: str
    wording: Wording

    @cached_property
    def prompt_hash(self) -> str:
        """SHA-256 of everything that the judge is told apart from the texts."""
        return self._hash({"criteria", "pair_reasons"})

    @cached_property
    def reasons_hash(self) -> str:
        """The same of a judge that says why."""
        return self._hash({"criteria", "pair"})

    def _hash(self, without: set[str]) -> str:
        return sha256_json({"wording": self.wording.model_dump(exclude=without), "clause": self.clause})

    def pair_request(self, text_a: str, text_b: str, **options: object) -> ChatRequest:
        """The question which of two texts is the better one."""
        return self._pair(self.wording.pair, text_a, text_b, options)

    def reasons_request(self, text_a: str, text_b: str, **options: object) -> ChatRequest:
        """The same question to a judge that says why before it chooses, held to that form by a schema.

        Raises:
            UserError: the wording has no words for it.
        """
        if self.wording.pair_reasons is None:
            raise UserError(
                "The judge's wording has no 'pair_reasons', which asks for reasons.",
                "Write it as 'pair', or judge with the mode votes or logprobs.",
            )
        choice = {"type": "string", "enum": list(self.wording.labels)}
        schema = {
            "type": "object",
            "properties": {"reasons": {"type": "string"}, "choice": choice},
            "required": ["reasons", "choice"],
            "additionalProperties": False,
        }
        form = {"type": "json_schema", "json_schema": {"name": "comparison", "strict": True, "schema": schema}}
        return self._pair(self.wording.pair_reasons, text_a, text_b, options | {"response_format": form})

    def _pair(self, template: str, text_a: str, text_b: str, options: dict[str, object]) -> ChatRequest:
        first, second = (f"Option {label}" for label in self.wording.labels)
        content = fill(template, clause=self.clause, first=first, second=second, text_a=text_a, text_b=text_b)
        return self._request(content, options)

    def single_request(self, text: str, **options: object) -> ChatRequest:
        """The question for a grade of one text."""
        return self._request(fill(self.wording.single, clause=self.clause, text=text), options)

    def _request(self, content: str, options: dict[str, object]) -> ChatRequest:
        messages = ({"role": "system", "content": self.wording.system}, {"role": "user", "content": content})
        return ChatRequest(messages, **options)  # type: ignore[arg-type]


def make_criterion(name: str, clause: str | None, wording: Wording) -> Criterion:
    """A criterion that the wording knows by its name, or one of your own with its clause.

    Raises:
        UserError: a name of your own without a clause, or a name that cannot be one of columns.
    """
    if not name.replace("_", "").isalnum():
        raise UserError(f"'{name}' cannot name a criterion.", "Use letters, digits and underscores.")
    if clause is None and name not in wording.criteria:
        raise UserError(f"The criterion '{name}' needs a clause.", f"Built in are: {', '.join(wording.criteria)}.")
    return Criterion(name, " ".join((clause or wording.criteria[name]).split()), wording)


def fill(template: str, **values: str) -> str:
    """Fill a template in one pass, so that braces in texts are left as they are."""
    parts = []
    rest = template
    while rest:
        before, opened, after = rest.partition("{")
        name, closed, following = after.partition("}")
        parts.append(before)
        if opened and closed and name in values:
            parts.append(values[name])
            rest = following
        else:
            parts.append(opened)
            rest = after
    return "".join(parts).strip()
