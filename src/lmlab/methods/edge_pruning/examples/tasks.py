"""Tasks made for any tokenizer: pairs of prompts of equal length, with answers that are single tokens.

`ioi`: indirect object identification (Wang et al. 2023). `greater-than` (Hanna et al. 2023). `pronouns`: gendered
pronouns (Mathwin et al. 2023). `boolean`: the value of an expression, with solved expressions before it as examples in
context. `induction`: [A B ... A] -> B over random tokens.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from typing import Any

from lmlab.data.tokenizer import Tokenizer
from lmlab.errors import UserError, did_you_mean

Row = dict[str, Any]

IOI_TEMPLATES = (
    "Then, {B} and {A} went to the {PLACE}. {B} gave a {OBJECT} to",
    "Then, {B} and {A} had a lot of fun at the {PLACE}. {B} gave a {OBJECT} to",
    "Then, {B} and {A} were working at the {PLACE}. {B} decided to give a {OBJECT} to",
    "Then, {B} and {A} were thinking about going to the {PLACE}. {B} wanted to give a {OBJECT} to",
    "Then, {B} and {A} had a long argument, and afterwards {B} said to",
    "After {B} and {A} went to the {PLACE}, {B} gave a {OBJECT} to",
    "When {B} and {A} got a {OBJECT} at the {PLACE}, {B} decided to give it to",
    "When {B} and {A} got a {OBJECT} at the {PLACE}, {B} decided to give the {OBJECT} to",
    "While {B} and {A} were working at the {PLACE}, {B} gave a {OBJECT} to",
    "While {B} and {A} were commuting to the {PLACE}, {B} gave a {OBJECT} to",
    "After the lunch, {B} and {A} went to the {PLACE}. {B} gave a {OBJECT} to",
    "Afterwards, {B} and {A} went to the {PLACE}. {B} gave a {OBJECT} to",
    "Then, {B} and {A} had a long argument. Afterwards {B} said to",
    "The {PLACE} {B} and {A} went to had a {OBJECT}. {B} gave it to",
    "Friends {B} and {A} found a {OBJECT} at the {PLACE}. {B} gave it to",
)
"""Templates of Wang et al. 2023, appendix E; in half of the prompts the first two names are swapped. The last
two are held out for `test`.
"""
_HELD_OUT = 2
_WOMEN = (
    "Mary",
    "Anna",
    "Laura",
    "Emma",
    "Sarah",
    "Jane",
    "Alice",
    "Julia",
    "Kate",
    "Emily",
    "Lisa",
    "Maria",
    "Susan",
    "Karen",
    "Helen",
    "Nancy",
    "Linda",
    "Ruth",
    "Amy",
    "Rose",
    "Grace",
    "Claire",
    "Victoria",
    "Diana",
    "Rachel",
    "Barbara",
    "Martha",
    "Lucy",
    "Sophie",
    "Elizabeth",
)
_MEN = (
    "John",
    "Tom",
    "James",
    "Paul",
    "David",
    "Mark",
    "Peter",
    "Michael",
    "Robert",
    "Daniel",
    "Andrew",
    "George",
    "Henry",
    "Jack",
    "Simon",
    "Martin",
    "Scott",
    "Steven",
    "Kevin",
    "Brian",
    "Richard",
    "Charles",
    "William",
    "Thomas",
    "Edward",
    "Frank",
    "Eric",
    "Adam",
    "Alex",
    "Joseph",
)
_PLACES = ("store", "garden", "restaurant", "school", "hospital", "office", "house", "station", "park", "library")
_OBJECTS = ("ring", "kiss", "bone", "basketball", "computer", "necklace", "drink", "snack", "book", "ticket")
_EVENTS = (
    "war",
    "siege",
    "reign",
    "voyage",
    "campaign",
    "expedition",
    "rebellion",
    "famine",
    "drought",
    "plague",
    "conflict",
    "alliance",
    "dynasty",
    "journey",
    "occupation",
    "strike",
    "trial",
    "project",
    "tour",
    "treaty",
    "raid",
    "mission",
    "blockade",
    "feud",
)
_SPANS = ("lasted from", "stretched from", "went on from", "continued from")
_HABITS = (
    "is great at giving advice, isn't",
    "always texts back promptly, doesn't",
    "makes the best homemade cookies, doesn't",
    "is a really good friend, isn't",
    "knows a lot about music, doesn't",
    "can run very fast, can't",
    "is a careful driver, isn't",
    "loves to read at night, doesn't",
    "works very hard, doesn't",
    "is never late, is",
)


def generate(
    name: str, tokenizer: Tokenizer, count: int, seed: int = 0, split: str = "train", shots: int = 3
) -> list[Row]:
    """Make different examples of a task.

    Arguments:
        name: one of `TASKS`.
        split: `train`, `validation` or `test`: drawn apart by the seed; `ioi` keeps two templates for `test` alone.
        shots: of `boolean`: solved expressions before the one that is asked for.

    Returns:
        rows for JSON lines: `clean`, `corrupted`, `answer`, `distractor`, `split`, and where the choice is narrow
        `answer_set`.

    Raises:
        UserError: the task is not known, or the tokenizer cannot express so many examples with single-token answers.
    """
    if name not in TASKS:
        raise UserError(f"There is no task '{name}'. {did_you_mean(name, TASKS)}")
    draws = random.Random(f"{name} {split} {seed}")
    make = TASKS[name](tokenizer, draws, split, shots)
    rows: list[Row] = []
    seen: set[str] = set()
    for _ in range(100 * count):
        row = make()
        if (
            row is None
            or str(row["clean"]) in seen
            or len(_encode(tokenizer, row["clean"])) != len(_encode(tokenizer, row["corrupted"]))
        ):
            continue
        seen.add(str(row["clean"]))
        rows.append({**row, "split": split})
        if len(rows) == count:
            return rows
    raise UserError(
        f"Only {len(rows)} different examples of '{name}' could be made of {count}.",
        "Ask for fewer, or take another tokenizer.",
    )


def _encode(tokenizer: Tokenizer, text: str | list[int]) -> list[int]:
    return tokenizer.encode(text) if isinstance(text, str) else text


def _single(tokenizer: Tokenizer, words: Sequence[str], least: int, what: str) -> list[str]:
    """Those of the words that are one token after a space."""
    found = [word for word in words if len(tokenizer.encode(f" {word}")) == 1]
    if len(found) < least:
        raise UserError(
            f"This tokenizer has {len(found)} of the {what} as single tokens; the task needs {least}.",
            "Take a tokenizer of a larger model.",
        )
    return found


def _ioi(tokenizer: Tokenizer, draws: random.Random, split: str, shots: int) -> Callable[[], Row]:
    names = _single(tokenizer, [*_WOMEN, *_MEN], 5, "names")
    numbers = range(len(IOI_TEMPLATES))
    usable = list(numbers)[-_HELD_OUT:] if split == "test" else list(numbers)[:-_HELD_OUT]

    def make() -> Row:
        number = draws.choice(usable)
        template = (
            IOI_TEMPLATES[number].replace("{PLACE}", draws.choice(_PLACES)).replace("{OBJECT}", draws.choice(_OBJECTS))
        )
        if draws.random() < 0.5:
            template = template.replace("{B}", "{X}", 1).replace("{A}", "{B}", 1).replace("{X}", "{A}", 1)
        a, b, *others = draws.sample(names, 5)
        new = iter(others)
        corrupted = re.sub(r"\{[AB]\}", lambda match: next(new), template)
        clean = template.replace("{A}", a).replace("{B}", b)
        return {"clean": clean, "corrupted": corrupted, "answer": f" {a}", "distractor": f" {b}", "template": number}

    return make


def _greater_than(tokenizer: Tokenizer, draws: random.Random, split: str, shots: int) -> Callable[[], Row | None]:
    by_digit = len(tokenizer.encode("1743")) - len(tokenizer.encode("17")) >= 2
    offset = {"train": 0, "validation": 1, "test": 2}.get(split, 0)

    def make() -> Row | None:
        start = f"The {draws.choice(_EVENTS)} {draws.choice(_SPANS)} the year "
        (century, year), (other, other_year) = ((draws.randint(11, 20), draws.randint(2, 98)) for _ in range(2))
        if year % 3 != offset:
            return None
        clean, corrupted = (f"{start}{c}{y:02d} to the year {c}" for c, y in ((century, year), (other, other_year)))
        if by_digit:  # the digit of the decade
            decade = year // 10
            if not 1 <= decade <= 8:
                return None
            row = {
                "answer": str(decade + 1),
                "distractor": str(decade - 1),
                "answer_set": [str(digit) for digit in range(10)],
            }
        else:
            row = {
                "answer": f"{year + 1:02d}",
                "distractor": f"{year - 1:02d}",
                "answer_set": [f"{each:02d}" for each in range(100)],
            }
            if any(len(tokenizer.encode(each)) != 1 for each in row["answer_set"]):
                raise UserError(
                    "This tokenizer has neither single digits nor pairs of digits as tokens, which greater-than needs."
                )
            if tokenizer.encode(clean)[-1:] != tokenizer.encode(str(century))[-1:]:
                return None
        return {"clean": clean, "corrupted": corrupted, **row}

    return make


def _pronouns(tokenizer: Tokenizer, draws: random.Random, split: str, shots: int) -> Callable[[], Row]:
    women, men = (_single(tokenizer, names, 3, "names") for names in (_WOMEN, _MEN))

    def make() -> Row:
        habit, woman = draws.choice(_HABITS), draws.random() < 0.5
        her, him = draws.choice(women), draws.choice(men)
        name, other, answer, distractor = (her, him, " she", " he") if woman else (him, her, " he", " she")
        return {
            "clean": f"So {name} {habit}",
            "corrupted": f"So {other} {habit}",
            "answer": answer,
            "distractor": distractor,
        }

    return make


def _boolean(tokenizer: Tokenizer, draws: random.Random, split: str, shots: int) -> Callable[[], Row]:
    def literals(count: int) -> list[str]:
        return [draws.choice(("True", "False")) for _ in range(count)]

    def shape() -> str:
        """An expression with {} in the place of literals; of depth 3 at most."""
        parts = [f"{'not ' * draws.choice((0, 0, 1))}{{}}" for _ in range(draws.randint(1, 4))]
        while len(parts) > 1:
            place = draws.randrange(len(parts) - 1)
            joined = f"{parts[place]} {draws.choice(('and', 'or'))} {parts[place + 1]}"
            parts[place : place + 2] = [f"( {joined} )" if len(parts) > 2 and joined.count("(") < 2 else joined]
        return parts[0]

    def make() -> Row:
        lines = ""
        for _ in range(shots):
            expression = (form := shape()).format(*literals(form.count("{}")))
            lines += f"{expression} is {value_of(expression)}\n"
        form = shape()
        first, second = (form.format(*literals(form.count("{}"))) for _ in range(2))
        while value_of(first) == value_of(second):
            form = shape()
            first, second = (form.format(*literals(form.count("{}"))) for _ in range(2))
        answer, distractor = f" {value_of(first)}", f" {value_of(second)}"
        return {
            "clean": f"{lines}{first} is",
            "corrupted": f"{lines}{second} is",
            "answer": answer,
            "distractor": distractor,
            "answer_set": [" True", " False"],
        }

    return make


def value_of(expression: str) -> bool:
    """The value of a Boolean expression of True, False, not, and, or, and brackets, by Python's precedence."""
    words = expression.replace("(", " ( ").replace(")", " ) ").split()

    def either() -> bool:
        value = both()
        while words and words[0] == "or":
            words.pop(0)
            value = both() or value
        return value

    def both() -> bool:
        value = one()
        while words and words[0] == "and":
            words.pop(0)
            value = one() and value
        return value

    def one() -> bool:
        word = words.pop(0)
        if word == "not":
            return not one()
        if word == "(":
            value = either()
            words.pop(0)
            return value
        return word == "True"

    return either()


def _induction(tokenizer: Tokenizer, draws: random.Random, split: str, shots: int) -> Callable[[], Row]:
    specials = {tokenizer.backend.token_to_id(token) for token in tokenizer.special_tokens}
    ids = [number for number in range(tokenizer.vocab_size) if number not in specials]

    def make() -> Row:
        return induction_row(ids, draws)

    return make


def induction_row(ids: Sequence[int], draws: random.Random, length: int = 12) -> Row:
    """[...

    A B ... A] -> B over random tokens; corrupted, the first A is another token. The distractor is some other token of
    the text.
    """
    *text, other = draws.sample(list(ids), length)
    place = draws.randrange(1, length - 3)
    clean, corrupted = [*text, text[place]], [*text, text[place]]
    corrupted[place] = other
    return {"clean": clean, "corrupted": corrupted, "answer": text[place + 1], "distractor": text[place - 1]}


TASKS: dict[str, Callable[[Tokenizer, random.Random, str, int], Callable[[], Row | None]]] = {
    "ioi": _ioi,
    "greater-than": _greater_than,
    "pronouns": _pronouns,
    "boolean": _boolean,
    "induction": _induction,
}
"""Names of tasks and what makes them."""
