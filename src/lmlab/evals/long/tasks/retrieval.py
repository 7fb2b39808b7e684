"""Passages: answering from the one that holds the answer, and ordering them by how well they answer."""

from __future__ import annotations

import random

from lmlab.evals.long.draft import Draft, Draw, Plan, depth_of, end_to_end, laid_out
from lmlab.evals.long.texts import Passage, passages

_TOGETHER = 4  # passages of one title that stand in a context, if it has so many
_MOST = 400  # passages of 790 characters on average: a context can be no longer than these
_RELATED = 3  # further passages of the title that count as somewhat relevant (label 1)
_SHORT_WORDS, _SHORT_LENGTH = 80, 4096  # candidates are short passages up to this length, so that several fit
_BEST = 10  # ranks that nDCG looks at


def rag(draw: Draw) -> Plan:
    """Questions about passages of SQuAD, among distractors: half of them from the same titles, half random. All
    questions of a context are about passages in it, the first one, the last one and others between, so that each
    question's passage has distractors of its own title.
    """
    chance = draw.random
    chosen = _mixed(chance)
    chosen, further = chosen[: len(chosen) - draw.demos], chosen[len(chosen) - draw.demos :]
    order = {id(passage): chance.random() for passage in chosen}
    picks = {id(passage): chance.choice(passage.questions) for passage in chosen}
    examples = [
        f"Question: {question}\nAnswer: {answers[0]}"
        for question, answers in (chance.choice(passage.questions) for passage in reversed(further))
    ]

    def make(count: int) -> list[Draft]:
        shown = sorted(chosen[:count], key=lambda passage: order[id(passage)])
        context = laid_out([f"Document: {passage.text}" for passage in shown])
        drafts = []
        for place in end_to_end(min(draw.questions, count), count):
            question, answers = picks[id(shown[place])]
            drafts.append(
                Draft(
                    context,
                    f"Question: {question}",
                    answers,
                    "Answer:",
                    laid_out(examples),
                    depth_of(place, count),
                    meta={"chance": 0.0, "gold_context": f"Document: {shown[place].text}"},
                )
            )
        return drafts

    instruction = (
        "Use the given documents to write a concise and short answer to the question. Write your answer in the form"
        " 'Answer: [answer]'."
    )
    return Plan(make, 1, len(chosen), instruction, 20, filler=_filler(chance))


def rerank(draw: Draw) -> Plan:
    """Order passages by how well they answer a query: 2 for the passage that the question was asked about, 1 for up to
    three others of its title, 0 for the rest. Passages have random numbers, so that their order says nothing.
    """
    chance = draw.random
    chosen = _mixed(chance, _SHORT_WORDS if draw.length <= _SHORT_LENGTH else None)
    order = {id(passage): chance.random() for passage in chosen}
    numbers = chance.sample(range(1000, 10_000), len(chosen))
    name = {id(passage): str(number) for passage, number in zip(chosen, numbers, strict=True)}
    picks = {id(passage): chance.choice(passage.questions)[0] for passage in chosen}

    def make(count: int) -> list[Draft]:
        shown = sorted(chosen[:count], key=lambda passage: order[id(passage)])
        context = laid_out([f"[ID: {name[id(passage)]}] Document: {passage.text}" for passage in shown])
        drafts = []
        for place in end_to_end(min(draw.questions, count), count):
            labels = _labels(shown, place)
            best = sorted(range(count), key=lambda each: -labels[each])[:_BEST]
            ranking = " > ".join(name[id(shown[each])] for each in best)
            drafts.append(
                Draft(
                    context,
                    f"Query: {picks[id(shown[place])]}",
                    (ranking,),
                    "Ranking:",
                    depth=depth_of(place, count),
                    options=tuple(name[id(passage)] for passage in shown),
                    meta={"labels": {name[id(passage)]: label for passage, label in zip(shown, labels, strict=True)}},
                )
            )
        return drafts

    instruction = (
        "You are provided with a list of documents, each with an ID. Rank the documents by their relevance to the query"
        f" and write the IDs of the best {_BEST}, the most relevant first, as 'ID1 > ID2 > ID3'."
    )
    return Plan(make, 2, len(chosen), instruction, 72, filler=_filler(chance))


def _labels(shown: list[Passage], gold: int) -> list[int]:
    related, labels = 0, []
    for place, passage in enumerate(shown):
        if place == gold:
            labels.append(2)
        elif passage.title == shown[gold].title and related < _RELATED:
            related += 1
            labels.append(1)
        else:
            labels.append(0)
    return labels


def _mixed(chance: random.Random, most_words: int | None = None) -> list[Passage]:
    """Passages of one title after the other, with random ones between them, so that of any number from the first on
    half have a neighbor of their title.
    """
    every = [passage for passage in passages() if most_words is None or len(passage.text.split()) <= most_words]
    by_title: dict[str, list[Passage]] = {}
    for passage in every:
        by_title.setdefault(passage.title, []).append(passage)
    titles = list(by_title)
    chance.shuffle(titles)
    grouped = [
        passage for title in titles for passage in chance.sample(by_title[title], min(_TOGETHER, len(by_title[title])))
    ]
    others = chance.sample(every, len(every))
    mixed = [passage for pair in zip(grouped, others, strict=False) for passage in pair]
    return list(dict.fromkeys(mixed))[:_MOST]


def _filler(chance: random.Random) -> str:
    return " ".join(passage.text for passage in chance.sample(passages(), 6))
