"""Counted nouns: "1 step", "2 steps"."""

from __future__ import annotations

_VERBS = {
    "are": "is",
    "were": "was",
    "have": "has",
    "do": "does",
    "lack": "lacks",
    "say": "says",
    "hold": "holds",
    "stand": "stands",
}
_IRREGULAR = {
    "analyses": "analysis",
    "axes": "axis",
    "caches": "cache",
    "children": "child",
    "criteria": "criterion",
    "hypotheses": "hypothesis",
    "indices": "index",
    "matrices": "matrix",
    "people": "person",
    "series": "series",
    "vertices": "vertex",
}
_WITH_ES = ("ches", "shes", "sses", "xes")


def counted(count: int, plural: str) -> str:
    """A number with what it counts, in the singular where it is one.

    `counted(1, "training documents")` is "1 training document", `counted(1200, "steps")` "1,200 steps". A verb behind
    the noun agrees with it: `counted(1, "questions have")` is "1 question has".
    """
    return f"{count:,} {plural if count != 1 else singular(plural)}"


def singular(plural: str) -> str:
    """The words for one of what a plural names; the last noun changes, and a verb behind it."""
    *before, last = plural.split(" ")
    if last in _VERBS:
        return " ".join((singular(" ".join(before)), _VERBS[last]))
    return " ".join((*before, _one(last)))


def _one(noun: str) -> str:
    if noun in _IRREGULAR:
        return _IRREGULAR[noun]
    if noun.endswith("ies"):
        return f"{noun[:-3]}y"
    if noun.endswith(_WITH_ES):
        return noun[:-2]
    return noun.removesuffix("s")
