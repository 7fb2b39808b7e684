"""The batched engine behind `lmlab serve`, in this process, with 1, 8 and 32 clients that each ask one thing after the
other.

Prompts differ in length and have nothing in common. Beside it: the engine with one row, and `transformers`' continuous
batching (`generate_batch`), which is handed as many prompts at once as there are clients, in turns. Bodies, sockets and
tokenizers are left out for both. The wait is that of a client for its whole answer.
"""

from __future__ import annotations

import asyncio
import inspect
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from gpu_parts.session import Session
from gpu_parts.shapes import llama, make, shape
from lmlab.endpoints.engine.engine import Engine
from lmlab.models import DecodingConfig, ModelConfig

_CLIENTS, _NEW = (1, 8, 32), 96
Found = tuple[float, list[float]]  # seconds in all, and what each client waited


def run(session: Session) -> None:
    """lmlab's engine, then its peer."""
    size, new = ("135M", 6) if session.tiny else ("1B", _NEW)
    config = shape(size, session.tiny)
    table = f"serving, {size}, {new} tokens an answer, bf16"
    speed: dict[int, float] = {}
    for name, start in (("lmlab", _engine), ("lmlab, one by one", _one_by_one), ("transformers", _peer)):
        if (name == "transformers" and not session.is_cuda) or not session.has(f"serve {name}", 20):
            continue
        with session.attempt(table, {"contender": name}):
            ask, stop = start(session, config, new)
            try:
                ask(_prompts(config, 2, session.tiny), 2)  # warms up
                for clients in (8,) if "one by one" in name else _CLIENTS:
                    if not session.has(f"serve {name} {clients}", 8):
                        continue
                    prompts = _prompts(config, max(4, 2 * clients), session.tiny)
                    seconds, waits = ask(prompts, clients)
                    rate = len(prompts) * new / seconds
                    speed.setdefault(clients, rate)
                    row = {"contender": name, "clients": clients, "requests/s": len(prompts) / seconds}
                    row |= {"tokens/s": rate, "median wait s": statistics.median(waits)}
                    row["lmlab over it"] = speed[clients] / rate if name != "lmlab" else ""
                    session.record.row(table, row)
            finally:
                stop()
            del ask, stop


def _prompts(config: ModelConfig, count: int, tiny: bool) -> list[list[int]]:
    generator = torch.Generator().manual_seed(count)
    lengths = torch.randint(*((5, 20) if tiny else (50, 500)), (count,), generator=generator).tolist()
    return [torch.randint(0, config.vocab_size, (each,), generator=generator).tolist() for each in lengths]


def _engine(
    session: Session, config: ModelConfig, new: int, max_rows: int | None = None
) -> tuple[Callable[[list[list[int]], int], Found], Callable[[], None]]:
    engine = Engine(make(config, session.device, torch.bfloat16).eval(), lambda ids: " ".join(map(str, ids)), max_rows)
    settings = DecodingConfig(max_new_tokens=new, temperature=0)

    def ask(prompts: list[list[int]], clients: int) -> Found:
        return asyncio.run(_all(engine, settings, prompts, clients))

    return ask, engine.close


def _one_by_one(session: Session, config: ModelConfig, new: int) -> Any:
    return _engine(session, config, new, 1)


async def _all(engine: Engine, settings: DecodingConfig, prompts: list[list[int]], clients: int) -> Found:
    waiting, waits = list(prompts), []

    async def client() -> None:
        while waiting:
            prompt, began = waiting.pop(), time.perf_counter()
            (job,) = engine.submit([prompt], settings)
            (row,) = await job.rows()
            assert len(row.ids) == settings.max_new_tokens
            waits.append(time.perf_counter() - began)

    start = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(clients)))
    return time.perf_counter() - start, waits


def _peer(
    session: Session, config: ModelConfig, new: int
) -> tuple[Callable[[list[list[int]], int], Found], Callable[[], None]]:
    from transformers import GenerationConfig

    model = llama(config, session.device, torch.bfloat16).eval()
    settings = GenerationConfig(max_new_tokens=new, do_sample=False, eos_token_id=-1, pad_token_id=0)
    keep = (
        {"persistent_manager": True}
        if "persistent_manager" in inspect.signature(model.generate_batch).parameters
        else {}
    )

    def ask(prompts: list[list[int]], clients: int) -> Found:
        waits, start = [], time.perf_counter()
        for first in range(0, len(prompts), clients):
            began, part = time.perf_counter(), prompts[first : first + clients]
            answers = model.generate_batch(part, generation_config=settings, **keep)
            assert len(answers) == len(part), "an answer is missing"
            waits += [time.perf_counter() - began] * len(part)
        return time.perf_counter() - start, waits

    return ask, lambda: getattr(model, "destroy_cached_continuous_batching_manager", lambda: None)()
