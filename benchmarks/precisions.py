"""What weights in bf16, 8 and 4 bits cost in accuracy, on a real model: the same questions and texts in each precision.

    python benchmarks/precisions.py --model DIR [--questions 100] [--precisions fp32 bf16 int8 int4]

A question is a beginning of a module of the standard library and four continuations of 16 tokens, its own and those of
three other modules; the likeliest is the answer. Bits per byte are of the texts of those beginnings. `agrees` counts
answers that are fp32's.
"""

from __future__ import annotations

import argparse
import math
import random
import sysconfig
import time
from pathlib import Path

from lmlab.data import Tokenizer
from lmlab.evals import ModelScorer, Window
from lmlab.runs import Model

_CONTEXT, _OPTION, _OPTIONS = 48, 16, 4


def main() -> None:
    """Measure every precision and print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--questions", type=int, default=100)
    parser.add_argument("--precisions", nargs="+", default=["fp32", "bf16", "int8", "int4"])
    arguments = parser.parse_args()
    place = Model.find(arguments.model)
    tokenizer = place.tokenizer()
    texts = _texts(tokenizer, arguments.questions)
    questions = _questions(texts)
    size = sum(len(tokenizer.decode(list(text[1:])).encode()) for text in texts)
    print("| precision | right | agrees with fp32 | bits per byte | seconds |\n|" + "---|" * 5)
    first: list[int] = []
    for precision in arguments.precisions:
        scorer, start = ModelScorer(place.load_in(precision), precision), time.perf_counter()
        answers = _answers(scorer, questions)
        first = first or answers
        nats = sum(score.log_prob for _, score in scorer.score([Window(text, len(text) - 1) for text in texts]))
        right = sum(answer == own for answer, (_, own) in zip(answers, questions, strict=True))
        agrees = sum(a == b for a, b in zip(answers, first, strict=True))
        cells = [precision, f"{right} of {len(questions)}", str(agrees), f"{-nats / size / math.log(2):.4f}"]
        print("|", " | ".join(cells), f"| {time.perf_counter() - start:.0f} |", flush=True)


def _answers(scorer: ModelScorer, questions: list[tuple[list[Window], int]]) -> list[int]:
    """The likeliest option of each question."""
    windows = [window for options, _ in questions for window in options]
    found = dict(scorer.score(windows))
    starts = range(0, len(windows), _OPTIONS)
    return [max(range(_OPTIONS), key=lambda option: found[start + option].log_prob) for start in starts]


def _texts(tokenizer: Tokenizer, count: int) -> list[tuple[int, ...]]:
    """The beginnings of modules, of one length."""
    found: list[tuple[int, ...]] = []
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).rglob("*.py")):
        ids = tokenizer.encode(path.read_text(encoding="utf-8", errors="replace")[:2000])[: _CONTEXT + _OPTION]
        if len(ids) == _CONTEXT + _OPTION and tuple(ids) not in found:
            found.append(tuple(ids))
        if len(found) == count:
            break
    return found


def _questions(texts: list[tuple[int, ...]]) -> list[tuple[list[Window], int]]:
    """Each text's options, and the place of its own among them."""
    draws, found = random.Random(0), []
    for text in texts:
        others = draws.sample([each for each in texts if each != text], _OPTIONS - 1)
        options = [text[_CONTEXT:], *(other[_CONTEXT:] for other in others)]
        draws.shuffle(options)
        windows = [Window((*text[:_CONTEXT], *option), _OPTION) for option in options]
        found.append((windows, options.index(text[_CONTEXT:])))
    return found


if __name__ == "__main__":
    main()
