"""Training steps: tokens/s and utilization, beside `transformers`' Llama with the same step around it.

Both have fp32 weights, autocast to bf16, clipping at 1, fused AdamW, and rows of one document each. lmlab's rows name
their documents, as those of its loader do. Compiled, lmlab is so as by `compile: true` of its trainer, block by block;
`transformers` has its layers and its loss compiled, which gives what compiling the whole gives, in less time.

Utilization is that of the model's operations (6 a parameter and token, the head included, and causal attention; what
recomputation repeats does not count) over the card's data sheet, and over what a product of 8,192 x 8,192 reaches here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gpu_parts.session import Session
from gpu_parts.shapes import llama, make, rows, shape
from lmlab.hardware import gemm_flops
from lmlab.models import ModelConfig
from lmlab.train import language_model_step
from lmlab.train.optimization.optimizer import OptimizerConfig, Optimizers
from lmlab.train.parallelism.parallel import clip_gradients
from lmlab.train.prepare import compile_network

_CASES = (  # size, tokens of a row, rows, recompute, seconds that both contenders take; what is worth most first
    ("1B", 2048, 8, False, 60),
    ("135M", 2048, 16, False, 50),
    ("1B", 8192, 2, False, 50),
    ("135M", 8192, 4, False, 50),
    ("3B", 2048, 2, True, 60),
    ("3B", 8192, 1, True, 60),
)
TABLE = "training, bf16"


def run(session: Session) -> None:
    """Eager and compiled by turns: the first cases are complete before the last begin."""
    measure_peak(session)
    for size, length, count, recompute, seconds in _CASES:
        for compiled in (True, False):
            if compiled and not session.is_cuda:
                continue
            if size == "3B" and not compiled:
                continue
            _case(
                session,
                size,
                64 if session.tiny else length,
                2 if session.tiny else count,
                recompute,
                compiled,
                seconds,
            )
    if session.has("profile 1B", 20):
        _profile(session)


def measure_peak(session: Session) -> None:
    """Measure the products to which utilization is related."""
    if session.is_cuda:
        session.measured_peak = gemm_flops(str(session.device), torch.bfloat16)
        session.record.note(f"a bf16 product of 8,192 x 8,192 reaches {session.measured_peak / 1e12:.0f} TFLOP/s here")


def _case(
    session: Session, size: str, length: int, count: int, recompute: bool, compiled: bool, seconds: float
) -> None:
    config = shape(size, session.tiny)
    how = "compiled" if compiled else "eager"
    found: dict[str, float] = {}
    for name, contender in (("lmlab", ours), ("transformers", theirs)):
        row: dict[str, Any] = {"model": size, "rows": f"{count} x {length}", "how": how, "contender": name}
        if recompute:
            row["how"] += ", recomputing"
        if not session.has(f"{size} {length} {how} {name}", seconds / 2 * (1.0 if compiled else 0.5)):
            continue
        with session.attempt(TABLE, row):
            step = contender(session, config, rows(config, count, length, session.device), recompute, compiled)
            loss = float(step())
            took = session.median(step)
            rate = count * length / took
            found[name] = rate
            row |= {"first loss": loss, "ms": 1000 * took, "tokens/s": rate}
            row |= utilization(session, rate * config.flops_per_token(length))
            row["peak GiB"] = session.peak_gib()
            row["lmlab over it"] = found["lmlab"] / rate if name != "lmlab" and "lmlab" in found else ""
            session.record.row(TABLE, row)
            del step


def utilization(session: Session, achieved: float) -> dict[str, Any]:
    """Of the card's data sheet, and of the measured product."""
    return {
        "utilization": achieved / session.peak if session.peak else "",
        "of the product": achieved / session.measured_peak if session.measured_peak else "",
    }


def ours(
    session: Session, config: ModelConfig, batch: dict[str, Tensor], recompute: bool, compiled: bool
) -> Callable[[], Tensor]:
    """A step of lmlab, of the parts that its trainer puts together."""
    model = make(config, session.device).train()
    model.recompute_blocks = int(recompute)
    optimizers = Optimizers(model, OptimizerConfig(learning_rate=1e-4))
    if compiled:
        compile_network(model)

    def step() -> Tensor:
        with torch.autocast(session.device.type, torch.bfloat16):
            output = language_model_step(model, batch)
        output.loss_sum.backward()
        gradients = [each.grad for each in model.parameters() if each.grad is not None]
        torch._foreach_div_(gradients, output.count.float())
        clip_gradients(model.parameters(), 1.0)
        optimizers.step()
        optimizers.zero_grad()
        return output.loss_sum.detach() / output.count

    return step


def theirs(
    session: Session, config: ModelConfig, batch: dict[str, Tensor], recompute: bool, compiled: bool
) -> Callable[[], Tensor]:
    """The same step of `transformers`."""
    model = llama(config, session.device, use_cache=False).train()
    if recompute:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    loss_of: Callable[[Tensor, Tensor], Tensor] = _cross_entropy
    if compiled:
        torch.compiler.reset()
        loss_of = torch.compile(_cross_entropy)
        for layer in model.model.layers:
            layer.compile()
    ids, labels = batch["input_ids"], batch["labels"]

    def step() -> Tensor:
        with torch.autocast(session.device.type, torch.bfloat16):
            loss = loss_of(model(input_ids=ids).logits, labels)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return step


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits.float().flatten(0, 1), labels.flatten())  # in fp32, as theirs is


def _profile(session: Session) -> None:
    """What an eager step of the 1B shape spends its time on."""
    config = shape("1B", session.tiny)
    with session.attempt("profile", {"model": "1B"}):
        count, length = (2, 64) if session.tiny else (8, 2048)
        step = ours(session, config, rows(config, count, length, session.device), False, False)
        for _ in range(2):
            step()
        session.synchronize()
        with torch.profiler.profile() as profiler:
            step()
            session.synchronize()
        key = "self_device_time_total" if session.is_cuda else "self_cpu_time_total"
        events = sorted(profiler.key_averages(), key=lambda event: -getattr(event, key))
        # kernels alone: the operators that launched them have the same time again
        on_gpu = torch.autograd.DeviceType.CUDA
        kernels = [event for event in events if not session.is_cuda or event.device_type == on_gpu]
        kernels = [
            event for event in kernels if "#" not in event.key
        ]  # such as Optimizer.step#AdamW.step, which holds others
        total = sum(getattr(event, key) for event in kernels) or 1.0
        for event in kernels[:16]:
            share = getattr(event, key) / total
            session.record.row(
                "a step of the 1B shape, eager, by kernel",
                {"kernel": event.key[:90], "calls": event.count, "ms": getattr(event, key) / 1000, "share": share},
                quiet=True,
            )
