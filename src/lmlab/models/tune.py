"""Measure which way this machine computes fastest by: what `lmlab doctor --tune` does.

Each question of `lmlab.hardware.ways` is put to the functions that networks call, at sizes of its class, forward and
backward. The ways take turns, and the quickest turn of each counts, so that other work on the machine disturbs little;
a way that is not the default must be clearly faster to be taken, in a second measurement too. Where threads waited for
a core most of the time, figures are chance, and nothing changes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from lmlab.hardware import ways
from lmlab.hardware.gemm import keep_in_order, linear
from lmlab.hardware.threads import TOO_LONG, Waiting
from lmlab.models.attention.backends import one_query
from lmlab.models.attention.cpu import cpu_attention
from lmlab.models.attention.visibility import Visibility
from lmlab.models.layers.feed_forward import gated_product
from lmlab.models.moe.config import MoEConfig
from lmlab.models.moe.experts import run_experts
from lmlab.models.moe.router import pairs_of_tokens

CLEARLY = 0.95  # of the default's time: what is not faster than that may be chance

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
_HEADS, _HEAD_DIM = 4, 64  # of a small model
_TOKENS = {"short": (8, 128), "medium": (4, 512), "long": (1, 4096)}  # rows and tokens of a text, by class
_PACKED = {"short": 4, "medium": 4, "long": 2}  # texts in a row
_WEIGHTS = 24  # of 1536 x 576: 85 MB in fp32, more than the caches of most processors hold
_MOST_ROUNDS, _FEWEST_ROUNDS = 30, 3  # the best of few rounds may be chance, and more than the first say little


@dataclass(frozen=True)
class Measured:
    """What was found for one question.

    Attributes:
        seconds: of the quickest forward and backward pass by each way.
        answer: the way to take.
        disturbed: whether other programs took the cores, so that the answer is the one that was in force.
    """

    question: str
    seconds: dict[str, float]
    answer: str
    disturbed: bool = False


def measure(questions: list[str] | None = None, seconds: float = 0.4) -> Iterator[Measured]:
    """Answer the questions one by one, all of `lmlab.hardware.ways` unless some are named.

    Arguments:
        seconds: spent on a question, though each way has three turns at least; as much again where another way than
            the default comes out.
    """
    for name in questions or list(ways.QUESTIONS):
        question, step = ways.QUESTIONS[name], _step_of(name)
        steps = {way: _by(name, way, step) for way in question.ways if question.possible(way)}
        found, disturbed = _undisturbed(steps, seconds)
        best = answer(name, found)
        if best != question.default and not disturbed:
            again, disturbed = _undisturbed({way: steps[way] for way in (question.default, best)}, seconds)
            best = answer(name, again)
        yield Measured(name, found, ways.way(name) if disturbed else best, disturbed)


def crowd(seconds: float = 1.0) -> float:
    """How many threads stand ready without a core on average while products are computed for so long; what is measured
    beside more than `lmlab.hardware.threads.TOO_LONG` is chance. 0 where the system does not tell.
    """
    step = _products(torch.float32)
    step()
    waiting, end = Waiting(), time.perf_counter() + seconds
    while time.perf_counter() < end:
        step()
    return waiting.share()


def answer(name: str, seconds: Mapping[str, float]) -> str:
    """The default unless another way was clearly faster."""
    default = ways.QUESTIONS[name].default
    best = min(seconds, key=lambda way: seconds[way])
    return best if best != default and seconds[best] < CLEARLY * seconds.get(default, float("inf")) else default


def _undisturbed(steps: Mapping[str, Callable[[], None]], seconds: float) -> tuple[dict[str, float], bool]:
    """The quickest turn of each way, of a second attempt if the first was disturbed, and whether that one was too."""
    for _ in range(2):
        waiting = Waiting()
        found = _quickest(steps, seconds)
        if waiting.share() <= TOO_LONG:
            return found, False
    return found, True


def _quickest(steps: Mapping[str, Callable[[], None]], seconds: float) -> dict[str, float]:
    found = dict.fromkeys(steps, float("inf"))
    begin = time.perf_counter()
    for number in range(_MOST_ROUNDS + 1):
        if number > _FEWEST_ROUNDS and time.perf_counter() - begin > seconds:
            break
        for way, step in steps.items():
            start = time.perf_counter()
            step()
            if number:  # the first turn warms up
                found[way] = min(found[way], time.perf_counter() - start)
    return found


def _by(name: str, way: str, step: Callable[[], None]) -> Callable[[], None]:
    def run() -> None:
        with ways.using({name: way}):
            step()

    return run


def _step_of(name: str) -> Callable[[], None]:
    """One forward and backward pass of what a question is about, or a forward pass if it is about inference."""
    kind, precision, *rest = name.split()
    dtype = _DTYPES[precision]
    if kind != "attention":
        return {
            "products": _products,
            "weights": _weights,
            "gate": _gate,
            "experts": _experts,
            "row": lambda dtype: _few_rows(dtype, 1),
            "rows": lambda dtype: _few_rows(dtype, 8),
            "step": _step,
            "query": _query,
        }[kind](dtype)
    return _attention(dtype, packed=rest[0] == "packed", length=rest[1])


def _products(dtype: torch.dtype) -> Callable[[], None]:
    x, weight = _leaf(dtype, 1024, 512), _leaf(dtype, 1536, 512)
    grad = torch.ones(1024, 1536, dtype=dtype)
    return lambda: linear(x, weight).backward(grad)


def _few_rows(dtype: torch.dtype, rows: int) -> Callable[[], None]:
    return _products_of(_several_weights(dtype), torch.randn(rows, 576, dtype=dtype))


def _step(dtype: torch.dtype) -> Callable[[], None]:
    plain, ordered = _several_weights(dtype), _several_weights(dtype)
    for weight in ordered if ways.QUESTIONS["step bf16"].possible("ordered") else ():
        keep_in_order(weight, [weight])
    steps = {
        way: _products_of(weights, torch.randn(1, 576, dtype=dtype))
        for way, weights in (("plain", plain), ("ordered", ordered))
    }
    return lambda: steps[ways.way("step bf16")]()


def _query(dtype: torch.dtype) -> Callable[[], None]:
    q, k, v = (torch.randn(1, 8, tokens, _HEAD_DIM, dtype=dtype) for tokens in (1, 512, 512))
    seen = Visibility(1, 512)

    def step() -> None:
        with torch.inference_mode():
            for _ in range(_WEIGHTS):
                one_query(q, k, v, seen, None)

    return step


def _several_weights(dtype: torch.dtype) -> list[Tensor]:
    """So many that they come from memory, as those of a network do."""
    return [torch.randn(1536, 576, dtype=dtype) for _ in range(_WEIGHTS)]


def _products_of(weights: list[Tensor], x: Tensor) -> Callable[[], None]:
    def step() -> None:
        with torch.inference_mode():
            for weight in weights:
                linear(x, weight)

    return step


def _weights(dtype: torch.dtype) -> Callable[[], None]:
    x, weight = _leaf(dtype, 4096, 256), _leaf(dtype, 256, 256)
    grad = torch.ones(4096, 256, dtype=dtype)
    return lambda: linear(x, weight).backward(grad)


def _gate(dtype: torch.dtype) -> Callable[[], None]:
    gate, up, down = _leaf(dtype, 2048, 704), _leaf(dtype, 2048, 704), _leaf(dtype, 256, 704)
    grad = torch.ones(2048, 256, dtype=dtype)
    return lambda: gated_product(gate, up, down, "silu").backward(grad)


def _experts(dtype: torch.dtype) -> Callable[[], None]:
    config = MoEConfig(num_experts=16, top_k=2, expert_hidden_size=128)
    x, gate_up, down = _leaf(dtype, 2048, 256), _leaf(dtype, 16, 256, 256), _leaf(dtype, 16, 256, 128)
    grad, generator = torch.ones_like(x), torch.Generator().manual_seed(0)

    def step() -> None:  # with fresh loads each time, as in training
        weights, indices = torch.rand(2048, 16, generator=generator).softmax(-1).topk(2)
        run_experts(x, pairs_of_tokens(weights, indices, config), gate_up, down).backward(grad)

    return step


def _attention(dtype: torch.dtype, packed: bool, length: str) -> Callable[[], None]:
    rows, tokens = _TOKENS[length]
    starts, total = None, tokens
    if packed:
        texts = _PACKED[length]
        rows, total = max(1, rows // texts), tokens * texts
        # each row begins a little further in its first text, for rows that are cut alike are rare
        shift = torch.arange(rows)[:, None]
        starts = ((torch.arange(total) + shift) // tokens * tokens - shift).clamp(min=0)
    q, k, v = (_leaf(dtype, rows, total, _HEADS, _HEAD_DIM) for _ in range(3))
    grad = torch.ones(rows, total, _HEADS, _HEAD_DIM, dtype=dtype)

    def step() -> None:
        cpu_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), starts).backward(grad)

    return step


def _leaf(dtype: torch.dtype, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype).requires_grad_()
