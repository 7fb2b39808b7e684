"""Long documents: questions and summaries of research papers, definitions in a package, and text that continues."""

from __future__ import annotations

import re
from collections import Counter
from functools import lru_cache

from lmlab.evals.long.draft import Draft, Draw, Plan, spread_over
from lmlab.evals.long.texts import Paper, count_words, cut_words, packages, papers, topics

_DEFINITION = re.compile(r"^[ \t]*(?:async )?def (\w+)\(([^()\n]{3,80})\)(?: *->[^\n:]*)?:", re.MULTILINE)
_NAME = re.compile(r"\bdef +(\w+)")  # of any definition, whatever its parameters look like
_STARTS = 12  # files at which a context may begin
_FACT = re.compile(r"\b(?:[A-Z][A-Za-z]*[A-Z0-9][A-Za-z0-9]*|\d+(?:\.\d+)?)\b")


def longqa(draw: Draw) -> Plan:
    """Yes-or-no questions about a paper of Qasper, whose body is cut at its end to fit; `evidence_in_context` says
    whether what they rest on is left.
    """
    paper = _long_papers(draw.length)[_turn(draw)]

    def make(count: int) -> list[Draft]:
        context = cut_words(paper.body, count)
        flat = " ".join(context.split())
        drafts = []
        for question, answer, evidence in paper.questions[: draw.questions]:
            places = [flat.find(" ".join(each.split())) for each in evidence if each.strip()]
            meta = {
                "chance": 0.5,
                "evidence_in_context": bool(places) and min(places) >= 0,
                "whole": count >= count_words(paper.body),
            }
            depth = round(max(places) / max(1, len(flat)), 4) if meta["evidence_in_context"] else None
            text = f"Question: {question}"
            drafts.append(Draft(context, text, (answer,), "Answer:", depth=depth, options=("yes", "no"), meta=meta))
        return drafts

    instruction = "Read the following paper and answer the question about it with yes or no."
    return Plan(make, 1, count_words(paper.body), instruction, 8)


def summ(draw: Draw) -> Plan:
    """The abstract of a paper of Qasper from its body."""
    paper = _long_papers(draw.length)[_turn(draw)]

    def make(count: int) -> list[Draft]:
        context = cut_words(paper.body, count)
        shown = set(_FACT.findall(context))  # as words: the 3 of 2013 is not the 3 of the abstract
        facts = [fact for fact in dict.fromkeys(_FACT.findall(paper.abstract)) if fact in shown]
        meta = {"facts": facts, "title": paper.title}
        question = f"Write the abstract of the paper '{paper.title}'."
        return [Draft(context, question, (paper.abstract,), "Abstract:", meta=meta)]

    instruction = "Read the following paper and summarize it."
    # an abstract has about 200 words; where that would take most of the length, less is asked for
    budget = min(256, draw.length // 4)
    return Plan(make, 1, count_words(paper.body), instruction, budget, partial=True)


def repo_def(draw: Draw) -> Plan:
    """The parameters of functions that a package defines once, in the kept part of its files, one after the other in
    the order of their paths.
    """
    chance = draw.random
    choices = packages()
    name, text = choices[(draw.seed + draw.context_index) % len(choices)]
    # contexts of one package begin at files of their own, where there is something to ask
    starts = [match.start() for match in re.finditer(rf"^# {name}/\S+\.py$", text, re.MULTILINE)]
    # characters: more than so many tokens of code have
    parts = [text[start : start + 12 * draw.length] for start in chance.sample(starts, min(_STARTS, len(starts)))]
    text = max(parts, key=lambda part: sum(_asks(*found) for found in _DEFINITION.findall(part[: 3 * draw.length])))

    def make(count: int) -> list[Draft]:
        context = cut_words(text, count)
        defined = Counter(_NAME.findall(context))
        found = [(match[1], match.start(), match[2]) for match in _DEFINITION.finditer(context)]
        unique = [each for each in found if defined[each[0]] == 1 and _asks(each[0], each[2])]
        picked = [unique[place] for place in spread_over(min(draw.questions, len(unique)), len(unique))]
        return [
            Draft(
                context,
                f"The parameters of the function '{function}' as it is defined above:",
                (parameters,),
                f"def {function}(",
                depth=round(place / max(1, len(context)), 4),
                meta={"chance": 0.0},
            )
            for function, place, parameters in picked
        ]

    return Plan(make, 1, count_words(text), f"The source code of the Python package '{name}':", 32, ("\n", "):"))


def _asks(function: str, parameters: str) -> bool:
    """Whether the parameters of a function must be read to be known: every method has `self`."""
    return not function.startswith("__") and parameters.strip() not in ("self", "cls")


def ppl_gain(draw: Draw) -> Plan:
    """How much better the last quarter of a length is predicted from all before it than from a quarter before it: a
    control, since it says little of what a model can do with its context.
    """
    document = _documents(draw.length)[_turn(draw)]

    def make(count: int) -> list[Draft]:
        context = cut_words(document, count)
        return [Draft(context, "", (context.split()[-1],), meta={"chance": 0.0})] if count else []

    return Plan(make, 8, count_words(document), "", 1, partial=True)  # nothing is answered


@lru_cache
def _long_papers(length: int) -> tuple[Paper, ...]:
    """Those that are long enough to be cut, else all, the longest first."""
    chosen = [paper for paper in papers() if count_words(paper.body) >= length]
    return tuple(chosen or sorted(papers(), key=lambda paper: -count_words(paper.body)))


@lru_cache
def _documents(length: int) -> tuple[str, ...]:
    texts = [*topics(), *(paper.body for paper in papers())]
    chosen = [text for text in texts if count_words(text) >= length]
    return tuple(chosen or sorted(texts, key=count_words, reverse=True))


def _turn(draw: Draw) -> int:
    """Another document for each context, the same ones for a seed."""
    total = len(_long_papers(draw.length)) if draw.task != "ppl_gain" else len(_documents(draw.length))
    # contexts of one seed have different documents as long as there are enough
    start = Draw(draw.task, draw.variant, draw.length, 0, draw.seed, 0, 0).random.randrange(total)
    return (start + draw.context_index) % total
