"""Recall: values of keys in a JSON object, and needles between passages."""

from __future__ import annotations

import random
import uuid

from lmlab.evals.long.draft import Draft, Draw, Plan, depth_of, laid_out, spread_over
from lmlab.evals.long.tasks.facts import FACTS, NAMES
from lmlab.evals.long.texts import passages, words

_MOST_PAIRS = 4000  # of UUIDs these are 330,000 characters, more than 128K tokens
_MOST_PASSAGES = 800  # of SQuAD, 630,000 characters in all: a context of text can be no longer
_NEEDLES = 8  # from the beginning to the end of a context, evenly
_VALUES = 4  # as in RULER
_DEPTHS = (0.5, 0.0, 1.0, 0.25, 0.75)  # the first contexts differ most


def json_kv(draw: Draw) -> Plan:
    """Values of keys in one JSON object (Liu et al. 2023; HELMET's JSON KV): keys are words, or UUIDs with UUIDs as
    values; values are four digits, or words. In the variant `absent` the keys that are asked for are not in the object,
    so that nothing but guessing can be right.
    """
    chance = draw.random
    kind = draw.variant
    most = min(_MOST_PAIRS, len(words()))
    if kind == "uuid":
        keys = list(dict.fromkeys(_uuid(chance) for _ in range(_MOST_PAIRS)))
        values = [_uuid(chance) for _ in keys]
    else:
        keys = chance.sample(words(), most)
        values = [str(chance.randrange(1000, 10_000)) if kind != "word" else chance.choice(words()) for _ in keys]

    def make(count: int) -> list[Draft]:
        lines = [f'"{key}": "{value}"' for key, value in zip(keys[:count], values, strict=False)]
        context = "{" + ",\n ".join(lines) + "}"
        if kind == "absent":
            missing = range(len(keys) - draw.questions, len(keys))
            meta = {"chance": 0.0}
            ask = [(_ask_key(keys[each]), (values[each],), 'Corresponding value: "') for each in missing]
            return [Draft(context, *each, meta=meta) for each in ask]
        places = spread_over(min(draw.questions, count), count)
        free = [place for place in range(count) if place not in places]
        shown = free[:: max(1, len(free) // max(1, draw.demos))][: draw.demos]
        demos = "\n\n".join(f'{_ask_key(keys[place])}\nCorresponding value: "{values[place]}"' for place in shown)
        return [
            Draft(
                context,
                _ask_key(keys[place]),
                (values[place],),
                'Corresponding value: "',
                demos,
                depth_of(place, count),
                meta={"chance": 1 / count},
            )
            for place in places
        ]

    instruction = "Extract the value corresponding to the specified key in the JSON object below."
    budget = 48 if kind == "uuid" else 12  # tokens: a UUID has about 24 in the usual vocabularies, and none is cut
    return Plan(
        make, 3, len(keys) - draw.questions, instruction, budget, filler=_filler(chance) if kind == "uuid" else None
    )


def _ask_key(key: str) -> str:
    return f'Key: "{key}"'


def niah(draw: Draw) -> Plan:
    """One needle between passages (Kamradt 2023): a control, since models find it that can do little else. The variants
    tell one fact twice: `lit` in the words of the question, `nolit` in others (NoLiMa, Modarressi et al. 2025), so that
    it cannot be found by its words.
    """
    chance = draw.random
    if draw.variant == "default":
        key, number = chance.choice(words()), _number(chance)
        needle, question, prefix = _needle(key, number), _ask(key), _begin(key)
        answer = number
    else:
        # the same fact and the same person in both variants
        twin = Draw(draw.task, "fact", draw.length, draw.context_index, draw.seed, 1, 0).random
        fact, answer = FACTS[twin.randrange(len(FACTS))], twin.choice(NAMES)
        needle = (fact.literal if draw.variant == "lit" else fact.implied).format(name=answer)
        question, prefix = f"Question: {fact.question}", "Answer:"
    texts = _shuffled_passages(chance)
    depth = _DEPTHS[draw.context_index % len(_DEPTHS)]

    def make(count: int) -> list[Draft]:
        items = list(texts[:count])
        place = round(depth * count)
        items.insert(place, needle)
        told = depth_of(place, len(items))
        return [Draft(laid_out(items), question, (answer,), prefix, depth=told, meta={"chance": 0.0})]

    instruction = "Answer the question by what the following text says."
    return Plan(make, 0, len(texts), instruction, 12, filler=_filler(chance))


def niah_multikey(draw: Draw) -> Plan:
    """Eight needles with keys of their own, at even depths; in the variant `all` nothing but needles (RULER, Hsieh et
    al. 2024).
    """
    chance = draw.random
    only = draw.variant == "all"
    texts = [] if only else _shuffled_passages(chance)
    keys = chance.sample(words(), _MOST_PAIRS if only else _NEEDLES)
    numbers = [_number(chance) for _ in keys]

    def make(count: int) -> list[Draft]:
        if only:
            places = list(range(count))
            items = [_needle(keys[place], numbers[place]) for place in places]
            asked = spread_over(min(draw.questions, count), count)
        else:
            items, asked = list(texts[:count]), list(range(min(draw.questions, _NEEDLES)))
            places = [round(number * (count + _NEEDLES - 1) / (_NEEDLES - 1)) for number in range(_NEEDLES)]
            for number, place in enumerate(places):
                items.insert(place, _needle(keys[number], numbers[number]))
        context = laid_out(items, "\n" if only else "\n\n")
        total = len(items)
        return [
            Draft(
                context,
                _ask(keys[number]),
                (numbers[number],),
                _begin(keys[number]),
                depth=depth_of(places[number], total),
                meta={"chance": 1 / (total if only else _NEEDLES)},
            )
            for number in asked
        ]

    instruction = "Answer the question by what the following text says."
    least, most = (1, len(keys)) if only else (0, len(texts))
    return Plan(make, least, most, instruction, 12, filler=_filler(chance))


def niah_multivalue(draw: Draw) -> Plan:
    """Four values of one key, at random depths: what share of them is found."""
    chance = draw.random
    texts = _shuffled_passages(chance)
    key = chance.choice(words())
    numbers = [_number(chance) for _ in range(_VALUES)]
    shares = sorted(chance.random() for _ in numbers)

    def make(count: int) -> list[Draft]:
        items = list(texts[:count])
        for rank, (share, number) in enumerate(zip(shares, numbers, strict=True)):
            items.insert(round(share * count) + rank, _needle(key, number))
        question = f"What are all the special magic numbers for {key} mentioned in the text?"
        prefix = f"The special magic numbers for {key} mentioned in the text are:"
        meta = {"chance": 0.0, "values": numbers}
        return [Draft(laid_out(items), question, (", ".join(numbers),), prefix, meta=meta)]

    instruction = "Answer the question by what the following text says."
    return Plan(make, 0, len(texts), instruction, 48, filler=_filler(chance))


def _needle(key: str, number: str) -> str:
    return f"One of the special magic numbers for {key} is: {number}."


def _ask(key: str) -> str:
    return f"What is the special magic number for {key} mentioned in the text?"


def _begin(key: str) -> str:
    return f"The special magic number for {key} mentioned in the text is:"


def _number(chance: random.Random) -> str:
    return str(chance.randrange(10**6, 10**7))


def _uuid(chance: random.Random) -> str:
    return str(uuid.UUID(int=chance.getrandbits(128), version=4))


def _shuffled_passages(chance: random.Random) -> list[str]:
    return [passage.text for passage in chance.sample(passages(), min(_MOST_PASSAGES, len(passages())))]


def _filler(chance: random.Random) -> str:
    """Prose for the last few tokens of a length."""
    return " ".join(passage.text for passage in chance.sample(passages(), 6))
