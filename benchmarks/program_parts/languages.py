"""Twenty tasks and languages, learned up to 20 symbols and tested at twice and three times that, without positions.

Each sequence has one answer a place. Of a language the answer says whether the prefix is in it (T), may still become
one that is (P), or neither (F).
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lmlab.errors import LmlabError, UserError
from lmlab.hardware import machine_load
from lmlab.methods.transformer_programs import Interpreter, TrainedNetworks, TrainSettings, load_data, train
from lmlab.methods.transformer_programs.analysis.export import export_program
from lmlab.methods.transformer_programs.config import ExportOptions

LONGEST, MANY, FEW = 20, 4000, 300
_MARKS = 2
Symbols = Sequence[str]


@dataclass(frozen=True)
class Language:
    """A task.

    Attributes:
        label: the answers of a sequence.
        shape: layers, categorical and counting heads, categorical and counting tables.
        global_: places see what is to their right, too.
        step: of a language, the next state of a state and a symbol; None once no word can follow.
        predicates: sets where a place must look for the one before it, whatever stands there.
        uneven: each sequence has some of the symbols alone, so that counts get as high in training as answers say.
    """

    symbols: str | tuple[str, ...]
    label: Callable[[Symbols], list[str]]
    shape: tuple[int, int, int, int, int]
    global_: bool = False
    step: Callable[[Any, str], Any] | None = None
    start: Hashable = 0
    predicates: str = "table"
    uneven: bool = False


def running(answer: Callable[[Symbols], str]) -> Callable[[Symbols], list[str]]:
    """At each place the answer for what stands up to it."""
    return lambda symbols: [answer(symbols[: place + 1]) for place in range(len(symbols))]


def _larger(first: int, second: int) -> str:
    return ">" if first > second else "<" if first < second else "="


def _interleaved(prefix: Symbols) -> str:
    one, other = ("a", "b") if prefix[-1] in "ab" else ("c", "d")
    return _larger(prefix.count(one), prefix.count(other))


def _followed(prefix: Symbols) -> str:
    before = [prefix[place + 1] for place in range(len(prefix) - 1) if prefix[place] == prefix[-1]]
    return before[-1] if before else "-"


def _added(symbols: Symbols) -> list[str]:
    """Digit pairs of two binary numbers, the lowest first."""
    carry, found = 0, []
    for pair in symbols:
        total = int(pair[0]) + int(pair[1]) + carry
        found.append(str(total % 2))
        carry = total // 2
    return found


def _language(
    symbols: str, shape: tuple[int, int, int, int, int], start: Hashable, step: Callable[[Any, str], Any],
    accepts: Callable[[Any], bool], predicates: str = "table",
) -> Language:  # fmt: skip
    def label(word: Symbols) -> list[str]:
        state, found = start, []
        for each in word:
            state = None if state is None else step(state, each)
            found.append("F" if state is None else "T" if accepts(state) else "P")
        return found

    return Language(symbols, label, shape, step=step, start=start, predicates=predicates)


def _runs(state: tuple[str, int, bool], symbol: str) -> tuple[str, int, bool] | None:
    """Tomita 3: the last symbol, the length of its run modulo 2, whether the run of ones before it was odd."""
    last, odd, forbidden = state
    if symbol == last:
        return last, 1 - odd, forbidden
    if symbol == "0":
        return "0", 1, bool(odd) and last == "1"
    return None if forbidden and odd else ("1", 1, False)


def _brackets(state: str, symbol: str) -> str | None:
    if symbol in "([":
        return state + symbol
    return state[:-1] if state and state[-1] + symbol in ("()", "[]") else None


def _depth(limit: int) -> Callable[[int, str], int | None]:
    def step(state: int, symbol: str) -> int | None:
        state += 1 if symbol == "(" else -1
        return state if 0 <= state <= limit else None

    return step


def _pairs_of_ten(state: tuple[str, int], symbol: str) -> tuple[str, int] | None:
    """Tomita 7: how often a 0 stood after a 1; two are too many."""
    falls = state[1] + (state[0] == "1" and symbol == "0")
    return (symbol, falls) if falls < 2 else None


_MOST = 10  # counts above it are one answer: no longer test may ask for an answer that training never gave
LANGUAGES = {
    "copy": Language("012345", list, (1, 1, 0, 0, 0), True),
    "reverse": Language("012345", lambda symbols: list(symbols[::-1]), (2, 2, 2, 1, 1), True),
    "sort": Language("012345", sorted, (1, 0, 12, 0, 0), True),
    "hist": Language(
        "012345", lambda symbols: [str(min(_MOST, symbols.count(each))) for each in symbols], (1, 0, 1, 0, 1), True,
        uneven=True,
    ),
    "count": Language("ab", running(lambda prefix: str(min(_MOST, prefix.count("a")))), (1, 0, 2, 0, 1)),
    "majority": Language("ab", running(lambda prefix: _larger(prefix.count("a"), prefix.count("b"))), (1, 0, 2, 0, 0)),
    "interleaved majority": Language("abcd", running(_interleaved), (1, 0, 2, 0, 0), predicates="table"),
    "bigram copy": Language("abcd", running(_followed), (2, 1, 0, 0, 0), predicates="sets"),
    "parity": Language("ab", running(lambda prefix: str(prefix.count("a") % 2)), (2, 2, 2, 1, 1)),
    "addition": Language(("00", "01", "10", "11"), _added, (1, 1, 0, 1, 0), predicates="sets"),
    "Tomita 1": _language("01", (1, 1, 2, 0, 0), 0, lambda state, each: 0 if each == "1" else None, lambda _: True),
    "Tomita 2": _language(
        "01", (2, 1, 2, 1, 0), 0, lambda state, each: 1 - state if int(each) == 1 - state else None,
        lambda state: state == 0, "sets",
    ),
    "Tomita 3": _language("01", (3, 2, 2, 1, 1), ("0", 0, False), _runs, lambda state: not (state[2] and state[1])),
    "Tomita 4": _language(
        "01", (3, 1, 2, 1, 0), 0, lambda state, each: 0 if each == "1" else None if state == 2 else state + 1,
        lambda _: True, "sets",
    ),
    "Tomita 5": _language(
        "01", (2, 2, 2, 1, 1), (0, 0),
        lambda state, each: (1 - state[0], state[1]) if each == "0" else (state[0], 1 - state[1]),
        lambda state: state == (0, 0),
    ),
    "Tomita 6": _language(
        "01", (2, 2, 2, 1, 1), 0, lambda state, each: (state + (1 if each == "1" else 2)) % 3,
        lambda state: state == 0,
    ),
    "Tomita 7": _language("01", (2, 1, 2, 1, 0), ("", 0), _pairs_of_ten, lambda _: True, "sets"),
    "Dyck 1": _language("()", (2, 0, 2, 0, 1), 0, _depth(10**6), lambda state: state == 0),
    "Dyck 2": _language("()[]", (3, 2, 2, 1, 1), "", _brackets, lambda state: not state),
    "Dyck 1, depth 2": _language("()", (3, 1, 2, 1, 1), 0, _depth(2), lambda state: state == 0),
}  # fmt: skip


def draw(language: Language, count: int, shortest: int, longest: int, random: np.random.Generator) -> list[list[str]]:
    """Sequences; those of a language mostly turn away from symbols after which it cannot be completed."""
    found = []
    for _ in range(count):
        length, state, word = int(random.integers(shortest, longest + 1)), language.start, list[str]()
        careless = random.random() < 0.2
        slips = 0.5 / length
        symbols = list(language.symbols)
        if language.uneven:
            symbols = list(random.choice(symbols, int(random.integers(1, len(symbols) + 1)), replace=False))
        while len(word) < length:
            symbol = str(random.choice(symbols))
            if language.step is not None and state is not None:
                following = language.step(state, symbol)
                if following is None and not careless and random.random() > slips:
                    continue
                state = following
            word.append(symbol)
        found.append(word)
    return found


def _write(path: Path, language: Language, words: Sequence[list[str]]) -> Path:
    path.write_text("".join(json.dumps({"tokens": word, "labels": language.label(word)}) + "\n" for word in words))
    return path


def measure(program: Any, language: Language, words: Sequence[list[str]]) -> tuple[float, float]:
    """The share of right answers, and of sequences all of whose answers are right; what is refused is wrong."""
    interpreter, right, places, whole = Interpreter(program), 0, 0, 0
    for word in words:
        wanted = language.label(word)
        try:
            answer = interpreter.predict([["<s>", *word, "</s>"]])[0][1:-1]
        except UserError:
            answer = [""] * len(word)
        same = sum(a == b for a, b in zip(answer, wanted, strict=True))
        right, places, whole = right + same, places + len(word), whole + (same == len(word))
    return right / places, whole / len(words)


def measure_languages(directory: Path, only: Sequence[str], changes: dict[str, Any]) -> None:
    """A row a language; stopped, the same command goes on."""
    print("| language | lines | up to 20, % | 21 to 40, % | 41 to 60, % | most common answer, % | CPU-s |")
    print("|---|---|---|---|---|---|---|")
    for name in only or LANGUAGES:
        language, random = LANGUAGES[name], np.random.default_rng(0)
        place = directory / name.replace(" ", "-").replace(",", "")
        place.mkdir(parents=True, exist_ok=True)
        files = {
            split: str(_write(place / f"{split}.jsonl", language, draw(language, count, 1, LONGEST, random)))
            for split, count in (("data", MANY), ("valid", FEW), ("test", FEW))
        }
        layers, cat_heads, num_heads, cat_mlps, num_mlps = language.shape
        settings = TrainSettings(
            **{
                "num_layers": layers, "cat_heads": cat_heads, "num_heads": num_heads, "cat_mlps": cat_mlps,
                "num_mlps": num_mlps, "causal_num_heads": num_heads // 2 if language.global_ else 0, "d_mlp": 32,
                "autoregressive": not language.global_, "forbid": ("positions",), "predicates": language.predicates,
                "seeds": 3, "epochs": 12, "batch_size": 64, "sampling": "decoupled", "gradient_tau": 1.0,
                "tau_end": 0.1, "evaluations": 1, "polish": 3, **files, **changes,
            }
        )  # fmt: skip
        before = time.process_time()
        train(settings, place / "run")
        networks = TrainedNetworks.find(place / "run")
        options = ExportOptions(max_length=3 * LONGEST + _MARKS, exhaustive=0, max_rows=10_000)
        try:
            export_program(networks.load(), networks.place_of(None), load_data(settings), place / "program", options)
        except LmlabError as error:
            print(f"| {name} | {error} |", flush=True)
            continue
        from lmlab.methods.transformer_programs import load_program
        from lmlab.methods.transformer_programs.analysis.minimize import described

        program = load_program(place / "program")
        cells, common = [], Counter[str]()
        for shortest, longest in ((1, LONGEST), (LONGEST + 1, 2 * LONGEST), (2 * LONGEST + 1, 3 * LONGEST)):
            words = draw(language, FEW, shortest, longest, random)
            tokens, whole = measure(program, language, words)
            cells.append(f"{100 * tokens:.1f} ({100 * whole:.0f})")
            common.update(label for word in words for label in language.label(word))
        share = 100 * max(common.values()) / sum(common.values())
        spent = time.process_time() - before
        lines = described(program)["lines"]
        print(f"| {name} | {lines} | {' | '.join(cells)} | {share:.0f} | {spent:.0f} |", flush=True)
    print(f"in brackets whole sequences; load {machine_load()}")
