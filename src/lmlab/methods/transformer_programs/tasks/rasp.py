"""The RASP tasks (Friedman et al. 2023, section 4 and appendix): generators, and the right answer for any input.

With a seed, the sequences are those of the reference, drawn in its order from NumPy's legacy generator.
"""

from __future__ import annotations

import string
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from lmlab.errors import UserError, did_you_mean

BOS, EOS, PAD, UNK = "<s>", "</s>", "<pad>", "<unk>"
Example = tuple[list[str], list[str]]
"""Tokens and labels of one sequence, marks included; `<pad>` where nothing is predicted."""

_Draw = Callable[[np.random.RandomState], list[str]]
_PAIRS = (("(", ")"), ("{", "}"))
_MOST, _MOST_PLACES = 1_000_000, 30_000_000  # of examples and of words, and of words in all examples
_PASSES = (2, 3, 4, 5)  # times the number wanted that are drawn, until enough are distinct


@dataclass(frozen=True)
class Task:
    """A task.

    Attributes:
        label: the labels of a sequence, marks included.
        answer: one sentence.
        specials: tokens of the vocabulary that are no symbols.
        autoregressive: a place may see only what is to its left.
        unmasked: `<unk>` is one of the answers.
        defaults: of vocabulary and length, as in the paper.
    """

    name: str
    answer: str
    label: Callable[[Sequence[str]], list[str]]
    specials: int = 2
    ends: bool = False
    autoregressive: bool = False
    unmasked: bool = False
    defaults: tuple[int, int, int] = (8, 1, 8)  # vocab_size, min_length, max_length


def _framed(label: Callable[[list[str]], list[str]]) -> Callable[[Sequence[str]], list[str]]:
    """A rule on the symbols alone as one on marked sequences."""

    def whole(tokens: Sequence[str]) -> list[str]:
        symbols = [token for token in tokens if token not in (BOS, EOS)]
        ends = [PAD] if tokens and tokens[-1] == EOS else []
        return [*([PAD] if tokens and tokens[0] == BOS else []), *label(symbols), *ends]

    return whole


def _hist(symbols: list[str]) -> list[str]:
    counts = Counter(symbols)
    return [str(counts[each]) for each in symbols]


def _double_hist(symbols: list[str]) -> list[str]:
    counts = Counter(symbols)
    with_count = Counter(counts.values())
    return [str(with_count[counts[each]]) for each in symbols]


def _most_freq(symbols: list[str]) -> list[str]:
    counts = Counter(symbols)
    # dictionaries keep the order of first occurrence, by which ties are decided; sorting is stable
    order = sorted(counts, key=lambda each: -counts[each])
    return order + [BOS] * (len(symbols) - len(order))


def _dyck(symbols: list[str]) -> list[str]:
    opened: list[str] = []
    partner = {close: open_ for open_, close in _PAIRS}
    tags: list[str] = []
    for each in symbols:
        if each not in partner:
            opened.append(each)
        elif not opened or opened.pop() != partner[each]:
            return tags + ["F"] * (len(symbols) - len(tags))
        tags.append("P" if opened else "T")
    return tags


def _induction(tokens: Sequence[str]) -> list[str]:
    seen: dict[str, str] = {}
    labels = []
    for place, token in enumerate(tokens):
        is_letter = token.isalpha() and len(token) == 1
        labels.append(seen.get(token, UNK) if is_letter else PAD)
        if is_letter and token not in seen and place + 1 < len(tokens):
            seen[token] = tokens[place + 1]
    return labels


TASKS = {
    task.name: task
    for task in (
        Task("reverse", "The sequence backwards.", _framed(lambda symbols: symbols[::-1]), 3, ends=True),
        Task("sort", "The sequence, sorted as texts: '10' comes before '2'.", _framed(sorted), 3, ends=True),
        Task("hist", "How often each token occurs.", _framed(_hist)),
        Task("double_hist", "How many distinct tokens occur as often as each.", _framed(_double_hist)),
        Task("most_freq", "The distinct tokens by falling frequency, the first to occur first.", _framed(_most_freq)),
        Task(
            "dyck1", "T balanced, P may still be, F will not be.", _framed(_dyck), autoregressive=True,
            defaults=(1, 16, 16),
        ),
        Task(
            "dyck2", "The same with two kinds of brackets.", _framed(_dyck), autoregressive=True, defaults=(2, 16, 16)
        ),
        Task(
            "induction", "At a letter, the digit that followed it before; <unk> if none did.", _induction,
            autoregressive=True, unmasked=True, defaults=(10, 9, 9),
        ),
    )
}  # fmt: skip


def task(name: str) -> Task:
    """The task of a name.

    Raises:
        UserError: there is none.
    """
    if name not in TASKS:
        raise UserError(f"Unknown task '{name}'. {did_you_mean(name, TASKS)}")
    return TASKS[name]


def symbols_of(name: str, vocab_size: int) -> list[str]:
    """The symbols that sequences of a task are made of.

    Raises:
        UserError: the vocabulary leaves none.
    """
    if name.startswith("dyck"):
        if vocab_size not in (1, 2):
            raise UserError(f"vocab_size {vocab_size}: {name} has 1 or 2 kinds of brackets.")
        return [each for pair in _PAIRS[:vocab_size] for each in pair]
    if name == "induction":
        count = (vocab_size - 2) // 2
        if not 1 <= count <= 26:
            raise UserError(f"vocab_size {vocab_size}: induction has 1 to 26 letters; choose 4 to 54.")
        return [*string.ascii_lowercase[:count], *map(str, range(count))]
    count = vocab_size - task(name).specials
    if count < 1:
        raise UserError(f"vocab_size {vocab_size} leaves no symbols for {name}.")
    return [str(number) for number in range(count)]


def is_small(size: int, vocab_size: int, max_length: int) -> bool:
    """Whether such examples take about a minute and a gigabyte at most: what a file that may be a stranger's can ask
    for.
    """
    return size <= _MOST and vocab_size <= _MOST and size * max_length <= _MOST_PLACES


def generate(
    name: str, size: int, vocab_size: int, min_length: int, max_length: int, seed: int, unique: bool = True
) -> list[Example]:
    """Examples of a task.

    Arguments:
        size: how many; where fewer distinct ones turn up in five times as many draws, there are fewer.
        max_length: counts the marks.
        unique: no sequence twice.

    Raises:
        UserError: the lengths leave no sequence.
    """
    chosen = task(name)
    draw = _SAMPLERS[name](name, vocab_size, min_length, max_length)
    random = np.random.RandomState(seed)
    if name == "induction":
        drawn = _until_distinct(draw, random, size, unique)
    elif unique:
        drawn = _distinct(draw, random, size)
    else:
        drawn = [draw(random) for _ in range(size)]
    return [(tokens, chosen.label(tokens)) for tokens in drawn]


def _distinct(draw: _Draw, random: np.random.RandomState, size: int) -> list[list[str]]:
    """The first so many distinct sequences of 2, 3, 4 or 5 times as many draws."""
    seen: dict[str, list[str]] = {}
    count = 0
    for passes in _PASSES:
        for _ in range(passes * size - count):
            tokens = draw(random)
            # joined without spaces, as in the reference: "1 0" and "10" are the same to it
            seen.setdefault("".join(tokens), tokens)
        count = passes * size
        if len(seen) >= size:
            break
    return list(seen.values())[:size]


def _until_distinct(draw: _Draw, random: np.random.RandomState, size: int, unique: bool) -> list[list[str]]:
    """Draws until so many are distinct, or twice as many were not."""
    found, seen, repeated = list[list[str]](), set[str](), 0
    while len(found) < size and repeated <= 2 * size:
        tokens = draw(random)
        joined = "".join(tokens)
        if joined in seen and unique:
            repeated += 1
            continue
        seen.add(joined)
        found.append(tokens)
    return found


def split(examples: Sequence[Example], seed: int) -> tuple[list[Example], list[Example], list[Example]]:
    """Train, validation and test, about 81 : 9 : 10, as scikit-learn's `train_test_split` deals them out."""
    rest, test = _deal(examples, seed)
    train, valid = _deal(rest, seed)
    return train, valid, test


def _deal(examples: Sequence[Example], seed: int) -> tuple[list[Example], list[Example]]:
    order = np.random.RandomState(seed).permutation(len(examples)).tolist()
    held = -(-len(examples) // 10)  # as the reference splits
    return [examples[place] for place in order[held:]], [examples[place] for place in order[:held]]


def _plain(name: str, vocab_size: int, min_length: int, max_length: int) -> _Draw:
    chosen = task(name)
    symbols = symbols_of(name, vocab_size)
    below = max_length - 1 if chosen.ends else max_length
    if not 1 <= min_length < below:
        raise UserError(
            f"{name}: no length from min_length {min_length} to {below - 1} symbols (max_length {max_length} counts"
            " the marks).",
            "Raise max_length.",
        )

    def draw(random: np.random.RandomState) -> list[str]:
        drawn = _choice(random, symbols, random.randint(min_length, below))
        return [BOS, *drawn, *([EOS] if chosen.ends else [])]

    return draw


def _brackets(name: str, vocab_size: int, min_length: int, max_length: int) -> _Draw:
    symbols = symbols_of(name, vocab_size)
    pairs = _PAIRS[:vocab_size]
    if not 0 <= min_length // 2 <= max_length // 2 or max_length < 2:
        raise UserError(f"{name}: min_length {min_length} is above max_length {max_length}.")

    def balanced(random: np.random.RandomState) -> list[str]:
        drawn: list[str] = []
        for _ in range(random.randint(min_length // 2, max_length // 2 + 1)):
            opening, closing = pairs[random.randint(0, len(pairs))]
            drawn = [*drawn, opening, closing] if random.randint(0, 2) == 0 else [opening, *drawn, closing]
        return drawn

    def draw(random: np.random.RandomState) -> list[str]:
        count = max_length - 1
        drawn = balanced(random) if random.randint(2) else []
        if not drawn or len(drawn) < count:
            drawn = drawn + _choice(random, symbols, count - len(drawn))
        return [BOS, *drawn[:count]]

    return draw


def _letters(name: str, vocab_size: int, min_length: int, max_length: int) -> _Draw:
    symbols = symbols_of(name, vocab_size)
    count = len(symbols) // 2
    letters, digits = symbols[:count], symbols[count:]
    if not 0 <= min_length // 2 <= max_length // 2:
        raise UserError(f"{name}: min_length {min_length} is above max_length {max_length}.")

    def draw(random: np.random.RandomState) -> list[str]:
        pairs = random.randint(min_length // 2, max_length // 2 + 1)
        digit_of = random.randint(0, count, size=count)
        drawn = []
        for letter in random.randint(0, count, size=pairs):
            drawn += [letters[letter], digits[digit_of[letter]]]
        if random.randint(0, 2):
            return [BOS, *_choice(random, digits, 1), *drawn]
        return [BOS, *drawn, letters[random.randint(0, count)]]

    return draw


def _choice(random: np.random.RandomState, symbols: Sequence[str], count: int) -> list[str]:
    """What the legacy generator's `choice` with replacement draws, in less time."""
    return [symbols[place] for place in random.randint(0, len(symbols), size=count).tolist()]


_SAMPLERS = dict.fromkeys(TASKS, _plain) | {"dyck1": _brackets, "dyck2": _brackets, "induction": _letters}
