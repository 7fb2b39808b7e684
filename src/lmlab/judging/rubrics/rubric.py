"""A rubric is a file of data: criteria with their definitions, a scale, and the words of the prompt.

Its hash covers all of it, so that grades are only compared with grades that were asked for in the same words.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Literal

from pydantic import Field, PositiveFloat, model_validator

from lmlab.config import Config, validate
from lmlab.errors import UserError, did_you_mean
from lmlab.files import read_yaml, sha256_json
from lmlab.judging.answers.item import AnswerItem
from lmlab.judging.judge import Marks
from lmlab.judging.rubrics.forms import FORMS, Reading, reminder
from lmlab.judging.rubrics.hidden import fenced, visible
from lmlab.judging.rubrics.numbers import Scale
from lmlab.judging.rubrics.parser import parse_grades
from lmlab.judging.wording import fill

_BOOKS = ("open", "closed")


class ScaleConfig(Config):
    """The grades that there are, from the lowest to the highest."""

    minimum: float = 0.0
    maximum: float = 3.0
    step: PositiveFloat = 0.5

    @model_validator(mode="after")
    def _whole_steps(self) -> ScaleConfig:
        steps = (self.maximum - self.minimum) / self.step
        # nobody grades finer; a step that is too small is a slip
        if self.maximum <= self.minimum or abs(steps - round(steps)) > 1e-9 or steps > 1000:
            raise ValueError("maximum must lie a whole number of steps (at most 1,000) above minimum")
        return self


class GradingRubric(Config):
    """What a judge is told about an answer, and how its reply is read.

    Attributes:
        name: of the file that says all this; a change of the words is another name or version.
        form: `grades` asks for an explanation and a grade a criterion, `points` for a verdict on one key point a call.
        headline: the criterion that tables show first.
        criteria: definitions by name, in the order in which they are graded.
        clauses: what is added to the last definition, by book: `open` (the chapter is shown) or `closed`.
        system: the system message; empty for none.
        open, closed: the prompt with the chapter and without it; with {definitions}, {chapter}, {question},
            {key_points}, {answer} and {form}. One of them may be missing.
    """

    name: str = Field(min_length=1)
    version: int = 1
    form: Literal["grades", "points"] = "grades"
    headline: str
    scale: ScaleConfig = ScaleConfig()
    criteria: dict[str, str] = Field(min_length=1)
    clauses: dict[Literal["open", "closed"], str] = {}
    system: str = ""
    open: str | None = None
    closed: str | None = None

    @model_validator(mode="after")
    def _complete(self) -> GradingRubric:
        if self.headline not in self.criteria:
            raise ValueError(f"headline '{self.headline}' is none of the criteria: {', '.join(self.criteria)}")
        if self.form == "points" and len(self.criteria) != 1:
            raise ValueError("the form 'points' has one criterion")
        folded = [name.casefold() for name in self.criteria]
        if len(set(folded)) < len(folded) or not all(name.replace("_", "").isalnum() for name in folded):
            raise ValueError("criteria are different words of letters, digits and underscores")
        for book in _BOOKS:
            template = getattr(self, book)
            if template is not None and ("{answer}" not in template or "{form}" not in template):
                raise ValueError(f"the prompt '{book}' lacks {{answer}} or {{form}}")
        if self.open is None and self.closed is None:
            raise ValueError("there is neither a prompt 'open' nor a prompt 'closed'")
        return self

    @classmethod
    def load(cls, name: str | Path) -> GradingRubric:
        """The rubric of a name that comes with lmlab, or of a YAML file.

        Raises:
            UserError: there is none, or it is not one.
        """
        text = str(name)
        if text.endswith((".yaml", ".yml")) or "/" in text:
            return validate(cls, read_yaml(Path(text)), f"'{text}'")
        return _shipped(text)

    @property
    def names(self) -> tuple[str, ...]:
        """Of the criteria."""
        return tuple(self.criteria)

    @property
    def grades(self) -> Scale:
        """The scale, as the parser takes it."""
        return Scale(self.scale.minimum, self.scale.maximum, self.scale.step)

    @property
    def prompt_hash(self) -> str:
        """SHA-256 of everything that a judge is told apart from the item, the reminders of re-asks included."""
        forms = {each: form.words(self.names, self.grades, self.form) for each, form in FORMS.items()}
        return sha256_json({"rubric": self.model_dump(mode="json"), "forms": forms, "reminder": reminder(self.form)})

    def book(self, item: AnswerItem) -> Literal["open", "closed"]:
        """Whether an item is judged with its chapter.

        Raises:
            UserError: the rubric needs a chapter and the item has none.
        """
        if item.chapter is not None and self.open is not None:
            return "open"
        if self.closed is None:
            raise UserError(
                f"The rubric '{self.name}' needs the chapter, and item '{item.id}' has none.",
                "Give the items a chapter, or use another rubric.",
            )
        return "closed"

    def messages(
        self, item: AnswerItem, reading: Reading = "text", point: int | None = None
    ) -> tuple[dict[str, str], ...]:
        """The conversation that asks about an item.

        Every quoted part stands in a fence that it cannot end; what is hidden in it from people is left out.

        Arguments:
            reading: how the reply is to be read, which decides the form that is asked for.
            point: the number of the only key point that is asked about, with the form `points`.
        """
        book = self.book(item)
        definitions = {name: text for name, text in self.criteria.items()}
        last = self.names[-1]
        definitions[last] += self.clauses.get(book, "")
        points = item.key_points if point is None else (item.key_points[point],)
        listed = "\n".join(f"- {visible(each)}" for each in points)
        template = self.open if book == "open" else self.closed
        assert template is not None
        content = fill(
            template,
            definitions="\n\n".join(f"{name.replace('_', ' ').upper()}: {text}" for name, text in definitions.items()),
            chapter=fenced(visible(item.chapter or "")),
            question=fenced(visible(item.question)),
            key_points=fenced(listed) if points else "(No key points were given for this question.)",
            answer=fenced(visible(item.answer)),
            form=FORMS[reading].words(self.names, self.grades, self.form),
        )
        system = ({"role": "system", "content": self.system},) if self.system else ()
        return (*system, {"role": "user", "content": content})

    def parse(self, reply: str | None, cut: bool = False) -> Marks:
        """The grades of a reply, by criterion in their order; of one that was cut as `parse_grades`."""
        return parse_grades(reply, self.names, self.grades, cut)


def known_rubrics() -> list[str]:
    """The names of the rubrics that come with lmlab."""
    return sorted(each.name.removesuffix(".yaml") for each in _folder().iterdir() if each.name.endswith(".yaml"))


def _folder() -> resources.abc.Traversable:
    return resources.files("lmlab.judging.rubrics") / "files"


@lru_cache
def _shipped(name: str) -> GradingRubric:
    names = known_rubrics()
    if name not in names:
        raise UserError(f"There is no rubric '{name}'.", f"{did_you_mean(name, names)} Or name a YAML file.")
    with resources.as_file(_folder() / f"{name}.yaml") as path:
        return validate(GradingRubric, read_yaml(path), f"the rubric '{name}'")


def weighted_total(grades: Mapping[str, float | None], weights: Mapping[str, float]) -> float | None:
    """The mean of criteria by weight; None where one that has a weight has no grade."""
    values = [(grades.get(name), weight) for name, weight in weights.items() if weight]
    if not values or any(value is None for value, _ in values):
        return None
    return sum(float(value or 0) * weight for value, weight in values) / sum(weight for _, weight in values)
