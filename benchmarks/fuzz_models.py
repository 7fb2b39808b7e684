"""Random model directories beside `transformers` and `peft`: how many are exact, refused, or silently wrong.

    python benchmarks/fuzz_models.py [--count 300] [--first 0]

Two in three are models of every family with its features on and off, older and newer keys, tied heads and heads that
are not what the configuration says; the others are adapters, tokenizer files that were saved after use with their
templates, and directories that only a refusal fits. Every difference is printed with its number, by which
`--first N --count 1` draws it again.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import sys
import tempfile
from collections import Counter
from pathlib import Path

import transformers

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "models"))

from compared_directories import Outcome, compare
from odd_directories import compare_adapters, compare_refusals, compare_tokenizer
from random_directories import FAMILIES, draw_directory

_KINDS = ("model", "model", "adapters", "model", "model", "tokenizer", "model", "model", "adapters", "model", "refusal")


def run(number: int, directory: Path) -> tuple[str, Outcome]:
    """Draw a directory by its number, and compare; also says of what kind it is."""
    kind = _KINDS[number % len(_KINDS)]
    if kind == "adapters":
        return kind, compare_adapters(number, directory)
    if kind == "tokenizer":
        return kind, compare_tokenizer(number, directory / "tokenizer")
    if kind == "refusal":
        return kind, compare_refusals(number, directory / "model")
    family = FAMILIES[number % len(FAMILIES)]
    drawn = draw_directory(number, directory / "model", family)
    return family, compare(drawn, directory / "model", number)


def main() -> None:
    """Run all, and print the counts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--first", type=int, default=0)
    arguments = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    logging.getLogger("lmlab").setLevel(logging.ERROR)
    counts: Counter[str] = Counter()
    for number in range(arguments.first, arguments.first + arguments.count):
        with tempfile.TemporaryDirectory() as name, contextlib.redirect_stderr(io.StringIO()):
            kind, found = run(number, Path(name))
        verdict = "wrong" if found.wrong else "refused" if found.refused else "exact"
        counts[verdict] += 1
        if verdict != "exact":
            print(f"{number} {kind}: {verdict}: {'; '.join(found.wrong) or found.refused}".replace("\n", " "))
    print(", ".join(f"{count} {verdict}" for verdict, count in sorted(counts.items())))


if __name__ == "__main__":
    main()
