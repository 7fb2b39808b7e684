"""Strict scores of labeled spans in the BIO scheme, as CoNLL's and seqeval's in strict mode."""

from __future__ import annotations

from collections.abc import Sequence


def spans(tags: Sequence[str]) -> set[tuple[str, int, int]]:
    """The spans of IOB2 tags: kind, first place, and the place after the last. A span begins with `B-`; `I-` that does
    not go on with the same kind begins none.
    """
    found: set[tuple[str, int, int]] = set()
    kind, first = "", 0
    for place, tag in enumerate([*tags, "O"]):
        prefix, _, name = tag.partition("-")
        if kind and not (prefix == "I" and name == kind):
            found.add((kind, first, place))
            kind = ""
        if prefix == "B":
            kind, first = name, place
    return found


def span_scores(answers: Sequence[Sequence[str]], truth: Sequence[Sequence[str]]) -> dict[str, float]:
    """Precision, recall and F1 over all spans; 0 where there are none."""
    predicted = right = wanted = 0
    for ours, theirs in zip(answers, truth, strict=True):
        found, real = spans(ours), spans(theirs)
        predicted, wanted, right = predicted + len(found), wanted + len(real), right + len(found & real)
    precision = right / predicted if predicted else 0.0
    recall = right / wanted if wanted else 0.0
    both = precision + recall
    return {"precision": precision, "recall": recall, "f1": 2 * precision * recall / both if both else 0.0}
