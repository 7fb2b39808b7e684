"""MRBench (Maurya et al. 2025): dialogues with answers of tutors, labeled by people in eight dimensions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lmlab.errors import UserError, reads
from lmlab.files import read_json

PUBLISHED = {
    "Mistake_Identification": 71.8,
    "Providing_Guidance": 58.3,
}
"""The best macro-F1 in percent of the shared task BEA 2025 (arXiv 2507.10579): its highest and its lowest dimension."""

_LENIENT = {"to some extent": "yes"}


@dataclass(frozen=True)
class LabeledResponse:
    """A tutor's answer in a dialogue.

    Attributes:
        id: of the dialogue.
        system: the tutor.
        history: the dialogue before it.
        response: what the tutor said.
        solution: of the problem.
        labels: dimension -> label, as people gave it.
    """

    id: str
    system: str
    history: str
    response: str
    solution: str
    labels: Mapping[str, str]


@reads("a file of MRBench")
def read_mrbench(path: str | Path) -> list[LabeledResponse]:
    """All answers of a file in MRBench's form: a list of dialogues with `conversation_history`, `Ground_Truth_Solution`
    and `anno_llm_responses`, or `tutor_responses`, whose entries have `response` and `annotation`.

    Raises:
        UserError: it has another form; with the number of the dialogue.
    """
    dialogues = read_json(Path(path))
    if not isinstance(dialogues, list) or not dialogues:
        raise UserError(f"'{path}' is no list of dialogues.", "Name a file in MRBench's form.")
    found = []
    for number, dialogue in enumerate(dialogues, 1):
        answers = next((dialogue[key] for key in ("anno_llm_responses", "tutor_responses") if key in dialogue), None)
        if not isinstance(answers, dict):
            raise UserError(f"'{path}', dialogue {number} has no anno_llm_responses.")
        for system, answer in answers.items():
            if not isinstance(answer, dict) or not isinstance(answer.get("response"), str):
                raise UserError(f"'{path}', dialogue {number}: '{system}' has no response.")
            labels = {str(name): str(label) for name, label in (answer.get("annotation") or {}).items()}
            found.append(
                LabeledResponse(
                    str(dialogue.get("conversation_id", number)),
                    str(system),
                    str(dialogue.get("conversation_history", "")),
                    answer["response"],
                    str(dialogue.get("Ground_Truth_Solution", "")),
                    labels,
                )
            )
    return found


def macro_f1(judge: Sequence[str | None], people: Sequence[str], lenient: bool = False) -> float | None:
    """The mean over people's labels of the harmonic mean of precision and recall, labels in any case. A label that the
    judge did not give counts as a miss. None without items.

    Arguments:
        lenient: count "to some extent" as "yes".
    """
    given = [_folded(each, lenient) for each in judge]
    true = [_folded(each, lenient) for each in people]
    if not true:
        return None
    scores = []
    for label in sorted({each for each in true if each is not None}):
        right = sum(a == b == label for a, b in zip(given, true, strict=True))
        total = given.count(label) + true.count(label)
        scores.append(2 * right / total)
    return float(np.mean(scores))


def _folded(label: str | None, lenient: bool) -> str | None:
    folded = None if label is None else " ".join(label.casefold().split())
    return _LENIENT.get(folded, folded) if lenient and folded is not None else folded


def dimension_table(
    responses: Sequence[LabeledResponse], judged: Mapping[tuple[str, str, str], str]
) -> list[dict[str, Any]]:
    """For each dimension macro-F1 of a judge, exact and lenient, with the best published one beside it.

    Arguments:
        judged: (dialogue, system, dimension) -> the judge's label.
    """
    dimensions = list(dict.fromkeys(name for each in responses for name in each.labels))
    rows = []
    for name in dimensions:
        own = [each for each in responses if name in each.labels]
        said = [judged.get((each.id, each.system, name)) for each in own]
        true = [each.labels[name] for each in own]
        rows.append(
            {
                "dimension": name,
                "n": len(own),
                "n_unjudged": sum(each is None for each in said),
                "macro_f1": macro_f1(said, true),
                "macro_f1_lenient": macro_f1(said, true, lenient=True),
                "published_best": PUBLISHED.get(name),
            }
        )
    return rows
