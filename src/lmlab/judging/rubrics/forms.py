"""The forms in which a judge may reply, the words that ask for them, and the reminders when it did not keep to one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from lmlab.judging.rubrics.numbers import Scale

Reading = Literal["text", "json", "labels"]
Asked = Literal["grades", "points"]
VERDICTS = ("met", "not met", "contradicted")


@dataclass(frozen=True)
class Form:
    """One form: `words(criteria, scale, asked)` is the last section of the prompt."""

    words: Callable[[Sequence[str], Scale, Asked], str]


def _number(value: float) -> str:
    return f"{value:g}"


def _scale_words(scale: Scale) -> str:
    lowest, highest, step = (_number(each) for each in (scale.minimum, scale.maximum, scale.step))
    steps = "half points are allowed" if scale.step == 0.5 else f"in steps of {step}"
    return f"a number from {lowest} to {highest}; {steps}"


def _text(criteria: Sequence[str], scale: Scale, asked: Asked) -> str:
    highest = _number(scale.maximum)
    if asked == "points":
        return (
            "First explain your decision in one or two sentences. Then end with a line of exactly this form, with one"
            f" of the words {', '.join(VERDICTS)}:\nVERDICT: ..."
        )
    parts = "\n".join(f"{name.replace('_', ' ').upper()}:\n(your explanation)\nGRADE: x/{highest}" for name in criteria)
    return (
        f"For each criterion write an explanation first and the grade after it: {_scale_words(scale)}. Keep to this"
        f" form, with a number in the place of x:\n\n{parts}"
    )


def _json(criteria: Sequence[str], scale: Scale, asked: Asked) -> str:
    if asked == "points":
        return f'Reply with one JSON object: {{"explanation": "...", "verdict": one of {", ".join(VERDICTS)}}}.'
    fields = ", ".join(f'"{name}": {{"explanation": "...", "grade": x}}' for name in criteria)
    return f"Reply with one JSON object of this form, in which each x is {_scale_words(scale)}:\n{{{fields}}}"


def _labels(criteria: Sequence[str], scale: Scale, asked: Asked) -> str:
    if asked == "points":
        return (
            "Reply with one digit and nothing else: 2 if the answer makes the point, 1 if it leaves it out, 0 if it"
            " contradicts it."
        )
    return (
        "Reply with one digit and nothing else: the number of steps above the lowest grade, from 0 for the worst to"
        f" {scale.count - 1} for the best."
    )


FORMS: dict[Reading, Form] = {"text": Form(_text), "json": Form(_json), "labels": Form(_labels)}


def reminder(asked: Asked) -> str:
    """What a judge is told when its reply could not be read."""
    what = "the line VERDICT: with one of the words" if asked == "points" else "a line GRADE: x/D for each criterion"
    return f"Your reply did not have the form that was asked for. Please reply again in exactly that form, with {what}."


def schema(criteria: Sequence[str], scale: Scale, asked: Asked) -> dict[str, Any]:
    """The `response_format` by which an endpoint is held to the form `json`."""
    if asked == "points":
        fields: dict[str, Any] = {"explanation": {"type": "string"}, "verdict": {"type": "string", "enum": [*VERDICTS]}}
    else:
        grade = {"type": "number", "enum": list(scale.labels())}
        fields = {name: _object({"explanation": {"type": "string"}, "grade": grade}) for name in criteria}
    return {"type": "json_schema", "json_schema": {"name": "assessment", "strict": True, "schema": _object(fields)}}


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }
