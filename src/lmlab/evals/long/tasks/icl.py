"""Learning from examples in the context: labels that only they explain."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from lmlab.evals.long.draft import Draft, Draw, Plan, laid_out
from lmlab.evals.long.texts import passages, sentiment, subjects

_MOST_SHOTS = 3000  # a context has no more; drawing them takes time at any length
_LONGEST = 200  # characters of a text, so that a few more examples come close to any length
# Subjects that are told apart: all 57 of MMLU, or so few that there are more examples of each.
_CLASSES = {"mmlu_subject": 6, "natural_label": 6, "permuted": 6, "mmlu_subject_16": 16, "mmlu_subject_57": 57}


def icl(draw: Draw) -> Plan:
    """Classes of questions (their subject) or of reviews (their sentiment), called by numbers that are drawn for each
    context, so that a model must read the examples. `natural_label` calls them by their names; `permuted` gives every
    example a random label, so that nothing can be learned.

    Examples come in rounds of one a class, in random order; the questions are texts of their own, balanced over
    classes.
    """
    chance = draw.random
    classes = _classes(draw.variant, chance.sample)
    names = list(classes)
    # labels of equally many digits: else the first digit of 12 would make 1 the more probable one, always
    first = 0 if len(names) <= 10 else 10
    numbers = chance.sample(range(first, first + len(names)), len(names))
    labels = {
        name: name if draw.variant == "natural_label" else str(number)
        for name, number in zip(names, numbers, strict=True)
    }
    pools = {name: chance.sample(texts, len(texts)) for name, texts in classes.items()}
    asked: list[tuple[str, str]] = []
    for _ in range(-(-draw.questions // len(names))):
        asked += [(pools[name].pop(), labels[name]) for name in chance.sample(names, len(names))]
    asked = asked[: draw.questions]
    shots: list[str] = []
    while all(pools.values()) and len(shots) < _MOST_SHOTS:
        for name in chance.sample(names, len(names)):
            label = chance.choice(names) if draw.variant == "permuted" else name
            shots.append(_shot(pools[name].pop(), labels[label]))

    def make(count: int) -> list[Draft]:
        context = laid_out(shots[:count])
        options = tuple(labels[name] for name in names)
        return [
            Draft(context, f"text: {text}", (label,), "label:", options=options, meta={"chance": 1 / len(names)})
            for text, label in asked
        ]

    instruction = "Use the labels of the examples below to label the last text. Write the label and nothing else."
    budget = 16 if draw.variant == "natural_label" else 6
    filler = " ".join(passage.text for passage in chance.sample(passages(), 6))
    return Plan(make, len(names), len(shots), instruction, budget, filler=filler)


def _classes(variant: str, sample: object) -> dict[str, list[str]]:
    if variant == "sst2":
        found: dict[str, list[str]] = {"negative": [], "positive": []}
        for text, label in sentiment():
            found[label].append(text)
        return _each_once(found)
    assert callable(sample)
    chosen: Sequence[tuple[str, Sequence[str]]] = sample(subjects(), _CLASSES[variant])
    return _each_once({name: [_one_line(text) for text in texts] for name, texts in chosen})


def _each_once(classes: dict[str, list[str]]) -> dict[str, list[str]]:
    """Without repeats, which would be questions that stand among their own examples, and without the texts of several
    classes, such as "Which of the following is true?".
    """
    counts = Counter(text for texts in classes.values() for text in set(texts))
    return {name: [text for text in dict.fromkeys(texts) if counts[text] == 1] for name, texts in classes.items()}


def _shot(text: str, label: str) -> str:
    return f"text: {text}\nlabel: {label}"


def _one_line(text: str) -> str:
    return " ".join(text.split())[:_LONGEST]
