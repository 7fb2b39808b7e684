"""Which of several equal ways a CPU computes something by.

Attention, products, gates and experts can each be computed in ways that give the same numbers within rounding,
and which of them is fastest depends on the processor, the version of PyTorch, the precision and the shape. Each such
question has a default, which depends on the processor alone. `lmlab doctor --tune` measures them; its answers are kept
in the cache directory by machine and number of threads, and hold for every later process.

Rounding differs from way to way, so a run records its answers when it begins, and goes on with them wherever it is
resumed (`using`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lmlab.errors import UserError
from lmlab.files import cache_directory, read_json, update_json
from lmlab.hardware.machine import is_intel, machine_key

PRECISIONS = {torch.float32: "fp32", torch.float64: "fp32", torch.bfloat16: "bf16", torch.float16: "bf16"}
LENGTHS = ("short", "medium", "long")
_MEDIUM, _LONG = 256, 2048  # tokens of a text

_FILE = "ways.json"


@dataclass(frozen=True)
class Question:
    """What can be computed in several ways.

    Attributes:
        about: in a few words, for people.
        ways: their names.
        default: the way that is taken where nothing was measured.
        possible: whether this build of PyTorch has a way.
    """

    about: str
    ways: tuple[str, ...]
    default: str
    possible: Callable[[str], bool] = lambda way: True


def _onednn_is_there(way: str) -> bool:
    return way != "onednn" or (torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise"))


def _has_bf16() -> bool:
    """Whether oneDNN multiplies in bf16 here, by the processor's own instructions or with AVX-512 alone."""
    wide = torch.backends.cpu.get_cpu_capability().startswith("AVX512") and _onednn_is_there("onednn")
    operators = all(hasattr(torch.ops.mkldnn, name) for name in ("_reorder_linear_weight", "_is_mkldnn_bf16_supported"))
    return wide and operators and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _can_order_bf16(way: str) -> bool:
    return way != "ordered" or _has_bf16()


def _faster_library() -> str:
    """MKL runs processors that are not Intel's with narrower vectors than they have."""
    wide = torch.backends.cpu.get_cpu_capability() == "AVX512" and torch.backends.mkl.is_available()
    return "onednn" if wide and _onednn_is_there("onednn") and not is_intel() else "default"


def _attention(precision: str, length: str) -> str:
    """PyTorch's fused kernel, but for short rows in bf16. Its way back is slow there, on processors that are not
    Intel's its way forward too, whose products are MKL's. For long texts it is no slower, and takes less memory.
    """
    if precision == "fp32" or length == "long" or not _has_bf16():
        return "fused"
    return "mixed" if is_intel() else "blocks"


def _questions() -> dict[str, Question]:
    found: dict[str, Question] = {}
    others = _has_bf16() and not is_intel()
    for precision in ("fp32", "bf16"):
        for length in LENGTHS:
            for kind, what in (("one", "rows of one text"), ("packed", "rows of several texts")):
                found[f"attention {precision} {kind} {length}"] = Question(
                    f"attention in {precision}, {what}, {length}",
                    ("fused", "mixed", "blocks"),
                    _attention(precision, length),
                )
        found[f"gate {precision}"] = Question(
            f"gates of feed-forward networks in {precision}: computed again in the backward pass, or kept in memory",
            ("again", "kept"),
            "again",
        )
        found[f"experts {precision}"] = Question(
            f"the experts of a mixture in {precision}",
            ("grouped_mm", "batched", "loop"),
            "batched" if precision == "bf16" else "grouped_mm",
        )
    found["products fp32"] = Question(
        "products of training in fp32", ("default", "onednn"), _faster_library(), _onednn_is_there
    )
    found["row bf16"] = Question(
        "products of one row in bf16 without gradients: of a matrix and a vector, or as those of several rows",
        ("vector", "product"),
        "product" if others else "vector",
    )
    found["rows bf16"] = Question(
        "products of few rows in bf16 without gradients: transposed, or as they are",
        ("columns", "rows"),
        "rows" if others else "columns",
    )
    found["query bf16"] = Question(
        "attention in bf16 of the newest token where each head has keys of its own: its query alone, or twice",
        ("alone", "twice"),
        "twice" if others else "alone",
    )
    found["step bf16"] = Question(
        "products of few rows in bf16 of models that write texts: weights as they are, or once more in oneDNN's order",
        ("ordered", "plain"),
        "ordered" if others else "plain",
        _can_order_bf16,
    )
    found["weights fp32"] = Question(
        "gradients of weights in fp32 from many tokens, in parts or in one product", ("split", "whole"), "split"
    )
    return found


QUESTIONS = _questions()

_in_force: dict[str, str] | None = None


def length_class(tokens: float) -> str:
    """The class of texts of so many tokens."""
    return LENGTHS[(tokens >= _MEDIUM) + (tokens >= _LONG)]


def way(question: str) -> str:
    """The answer that is in force."""
    return (in_force() if _in_force is None else _in_force)[question]


def in_force() -> dict[str, str]:
    """All answers: what was measured on this machine with as many threads as there were when it was first asked, else
    the defaults.
    """
    global _in_force
    if _in_force is None:
        _in_force = known()
    return _in_force


def known() -> dict[str, str]:
    """What was measured on this machine with as many threads as there are now, else the defaults."""
    return defaults() | _known(_read().get(machine_key()))


def look_up() -> None:
    """Have in force what is known for as many threads as there are now."""
    global _in_force
    _in_force = known()


def defaults() -> dict[str, str]:
    """The answers where nothing was measured."""
    return {name: question.default for name, question in QUESTIONS.items()}


@contextmanager
def using(answers: Mapping[str, str] | None) -> Iterator[None]:
    """Answer as a run did when it began; questions that it did not know keep their answers. For the whole process."""
    global _in_force
    before = in_force()
    _in_force = before | _known(answers)
    try:
        yield
    finally:
        _in_force = before


def unknown(answers: Mapping[str, str]) -> list[str]:
    """The questions of a run whose answers this version, or this build of PyTorch, does not have."""
    return [name for name in answers if name not in _known(answers)]


def remember(measured: Mapping[str, Mapping[str, float]], answers: Mapping[str, str]) -> None:
    """Keep the answers of this machine, with the seconds that each way took, and have them in force.

    Raises:
        OSError, UserError: the cache directory cannot be written.
    """
    global _in_force
    entry = {"answers": dict(answers), "seconds": {name: dict(each) for name, each in measured.items()}}
    update_json(place_of_answers(), lambda known: {**known, machine_key(): entry})
    _in_force = defaults() | _known(entry)


def place_of_answers() -> Path:
    """The file that answers are kept in."""
    return cache_directory() / _FILE


def was_tuned() -> bool:
    """Whether this machine's answers were measured."""
    return bool(_known(_read().get(machine_key())))


def _known(answers: Any) -> dict[str, str]:
    """Of answers from a file those that can be followed here."""
    if isinstance(answers, Mapping) and isinstance(answers.get("answers"), Mapping):
        answers = answers["answers"]
    if not isinstance(answers, Mapping):
        return {}
    return {
        name: chosen
        for name, chosen in answers.items()
        if (question := QUESTIONS.get(name)) and chosen in question.ways and question.possible(chosen)
    }


def _read() -> dict[str, Any]:
    """What the cache holds; a file that cannot be read is none."""
    try:
        place = cache_directory() / _FILE
        known = read_json(place) if place.exists() else {}
    except (OSError, UserError):
        return {}
    return known if isinstance(known, dict) else {}


in_force()  # now: a graph that is being compiled can read a dictionary, and no file
