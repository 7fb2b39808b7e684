"""Long outputs that rules check (LongProc, Ye et al. 2025): a table from prose, and a path through a network."""

from __future__ import annotations

from itertools import pairwise

from lmlab.evals.long.draft import Draft, Draw, Plan, laid_out
from lmlab.evals.long.tasks.facts import NAMES
from lmlab.evals.long.texts import passages, words

_CITIES = ("Oslo", "Lima", "Cairo", "Delhi", "Quito", "Seoul", "Turin", "Accra", "Dakar", "Perth", "Leeds", "Osaka")
_TOKENS_A_ROW = 14  # of an answer, about


def proc(draw: Draw) -> Plan:
    """`table`: records that stand in prose are to be written as tab-separated rows, in order. `path`: connections
    between stations are to be followed. The answer has 64 to 512 tokens, a quarter of the length at most.
    """
    # each token of an answer costs a pass of its own
    rows = max(3, min(512, draw.length // 4) // _TOKENS_A_ROW)
    return _table(draw, rows) if draw.variant == "table" else _path(draw, rows)


def _table(draw: Draw, rows: int) -> Plan:
    chance = draw.random
    people = [f"{chance.choice(NAMES)} {word.capitalize()}" for word in chance.sample(words(), rows)]
    records = [(person, chance.choice(_CITIES), str(chance.randrange(1950, 2010))) for person in people]
    told = [f"{person} was born in {city} in the year {year}." for person, city, year in records]
    # a context can be no longer than these
    texts = [passage.text for passage in chance.sample(passages(), min(400, len(passages())))]

    def make(count: int) -> list[Draft]:
        items = list(texts[:count])
        for number, record in enumerate(told):
            items.insert(round(number * (count + rows - 1) / max(1, rows - 1)), record)
        table = "\n".join("\t".join(record) for record in records)
        question = (
            "Write every person whose birth the text tells as one line: name, city and year, separated by tabs, in the"
            " order of the text. Write END after the last line."
        )
        return [Draft(laid_out(items), question, (table,), "Lines:\n", meta={"rows": rows})]

    instruction = "Read the following text."
    filler = " ".join(passage.text for passage in chance.sample(passages(), 6))
    return Plan(make, 0, len(texts), instruction, rows * (_TOKENS_A_ROW + 8), ("END",), filler)


def _path(draw: Draw, steps: int) -> Plan:
    chance = draw.random
    stations = [word.capitalize() for word in chance.sample(words(), 3000)]  # half as many lines; each name once
    route = stations[: steps + 1]
    edges = [f"From {a} the line goes to {b}." for a, b in pairwise(route)]
    rest = stations[steps + 1 :]
    others = [f"From {a} the line goes to {b}." for a, b in zip(rest[::2], rest[1::2], strict=False)]
    places = [chance.random() for _ in range(len(edges) + len(others))]

    def make(count: int) -> list[Draft]:
        lines = edges + others[:count]
        shown = sorted(range(len(lines)), key=lambda number: places[number])
        question = (
            f"Begin at {route[0]} and follow the lines for {steps} steps. Write each station that you reach on a line"
            " of its own. Write END after the last one."
        )
        answer = "\n".join(route[1:])
        context = "\n".join(lines[number] for number in shown)
        return [Draft(context, question, (answer,), "Lines:\n", meta={"rows": steps})]

    return Plan(make, 0, len(others), "The lines between stations:", steps * 8 + 8, ("END",))
