"""Settings of the long-context suite; they load nothing."""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import Field, PositiveInt, field_validator

from lmlab.config import Config, Flag
from lmlab.errors import did_you_mean

Preset = Literal["tiny", "cpu", "full"]
Mode = Literal["generate", "forced"]
PRESETS: dict[str, dict[str, Any]] = {
    "tiny": {"lengths": (512, 1024), "contexts": 2},
    "cpu": {"lengths": (1024, 2048, 4096), "contexts": 5},
    "full": {"lengths": (1024, 2048, 4096, 8192), "contexts": 25},
}
"""Lengths, and contexts of each task at each of them."""

TASKS: dict[str, tuple[str | None, tuple[str, ...]]] = {
    "json_kv": ("Recall", ("int", "word", "uuid", "absent")),
    "niah": (None, ("default", "lit", "nolit")),
    "niah_multikey": ("Recall", ("default", "all")),
    "niah_multivalue": ("Recall", ("default",)),
    "repo_def": ("Recall", ("default",)),
    "rag": ("RAG", ("default",)),
    "rerank": ("Re-rank", ("default",)),
    "icl": ("ICL", ("mmlu_subject", "mmlu_subject_16", "mmlu_subject_57", "sst2", "natural_label", "permuted")),
    "longqa": ("QA", ("default",)),
    "summ": ("Summ.", ("default",)),
    "proc": ("Proc", ("table", "path")),
    "ppl_gain": (None, ("default",)),
}
"""Category and variants of each task; without a category it is a control, outside the averages."""

IN_AVERAGES = frozenset(
    {
        "json_kv.int",
        "niah_multikey",
        "niah_multivalue",
        "repo_def",
        "rag",
        "rerank",
        "icl.mmlu_subject",
        "icl.sst2",
        "longqa",
        "summ",
        "proc.table",
        "proc.path",
    }
)
"""The task of each category that its score is the mean of; other variants are reported beside it."""

DEFAULT_TASKS = ("json_kv", "niah", "niah_multikey", "niah_multivalue", "repo_def", "rag", "rerank", "icl", "longqa")


class LongSettings(Config):
    """Which instances are built.

    Attributes:
        preset: lengths and number of contexts: tiny (512 and 1024 tokens, 2 contexts), cpu (1024 to 4096, 5), full
            (1024 to 8192, 25); what is given besides replaces its own.
        lengths: in tokens of the model that is measured, prompt and answer together.
        tasks: by name; with a variant as in json_kv.uuid, without one the default variant. `all` is every task in its
            default variant.
        contexts: contexts of each task and length.
        questions: questions about each context, where a task has as many.
        demos: solved examples in each prompt, where a task has some.
        seed: other instances of the same kind.
    """

    preset: Preset = "tiny"
    lengths: Annotated[list[PositiveInt] | None, Flag(("--length",))] = None
    tasks: Annotated[list[str], Flag(("--task",))] = list(DEFAULT_TASKS)
    contexts: PositiveInt | None = None
    questions: int = Field(default=8, ge=1, le=128)
    demos: int = Field(default=0, ge=0, le=64)
    seed: int = 0

    @field_validator("tasks")
    @classmethod
    def _known(cls, value: list[str]) -> list[str]:
        return known_tasks(value)

    def chosen(self) -> list[tuple[str, str]]:
        """Tasks with their variants, each once."""
        names = [task for name in self.tasks for task in (TASKS if name == "all" else (name,))]
        return list(dict.fromkeys(split_name(name) for name in names))

    def chosen_lengths(self) -> list[int]:
        """Rising."""
        return sorted(set(self.lengths or PRESETS[self.preset]["lengths"]))

    def chosen_contexts(self) -> int:
        """Of each task and length."""
        return self.contexts or int(PRESETS[self.preset]["contexts"])


class LongPPLConfig(Config):
    """Which tokens count in LongPPL.

    Attributes:
        context: tokens of the short context.
        slide: tokens that one window of it tells.
        least_gain: a key token's logarithm gains more than this by what stands farther back.
        least_log_prob: a key token's logarithm is above this with all of the text.
    """

    context: PositiveInt = 4096
    slide: PositiveInt = 1024
    least_gain: float = 2.0
    least_log_prob: float = -2.0


def split_name(name: str) -> tuple[str, str]:
    """Task and variant of a name.

    Raises:
        ValueError: there is no such task or variant.
    """
    task, _, variant = name.partition(".")
    if task not in TASKS:
        raise ValueError(f"there is no long-context task '{task}'. {did_you_mean(task, TASKS)}")
    variants = TASKS[task][1]
    if variant and variant not in variants:
        raise ValueError(f"the task '{task}' has no variant '{variant}'. {did_you_mean(variant, variants)}")
    return task, variant or variants[0]


def known_tasks(names: list[str]) -> list[str]:
    """Names of tasks, `all` among them, as they are.

    Raises:
        ValueError: there is no such task or variant.
    """
    for name in names:
        if name != "all":
            split_name(name)
    return names


def category_of(task: str) -> str | None:
    """The category of a task; None for controls, and for those of other suites."""
    return TASKS[task][0] if task in TASKS else None


assert set(get_args(Preset)) == set(PRESETS)
