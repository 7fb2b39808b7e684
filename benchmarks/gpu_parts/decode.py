"""Tokens/s of greedy decoding, beside `transformers.generate` with its own cache and with a static, compiled one.

Both continue the same random prompts by the same number of tokens with the same random weights' shape in bf16; the time
is that of the whole call, prompts included. The floor is the time in which the memory gives all weights once a token.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from gpu_parts.session import Session
from gpu_parts.shapes import llama, make, shape
from lmlab.models import GenerationConfig, ModelConfig, generate

_PROMPT, _NEW = 128, 256
_CASES = (("135M", (1, 16, 64)), ("1B", (1, 64)))


def run(session: Session) -> None:
    """By model, then by batch."""
    prompt, new = (12, 6) if session.tiny else (_PROMPT, _NEW)
    for size, batches in _CASES[:1] if session.tiny else _CASES:
        config = shape(size, session.tiny)
        table = f"decoding, {size}, {prompt} tokens and {new} more, bf16"
        speed: dict[tuple[str, int], float] = {}
        for name, build in (
            ("lmlab", _ours),
            ("transformers, static", _static),  # before the slower one: the fairer peer
            ("transformers", theirs),
        ):
            if not session.has(f"{size} {name}", 45 if "static" in name else 15):
                continue
            with session.attempt(table, {"contender": name}):
                run_batch = build(session, config)
                for batch in batches:
                    if not session.has(f"{size} {name} batch {batch}", 8):
                        continue
                    prompts = _prompts(config, batch, prompt)
                    took = session.median(
                        lambda prompts=prompts, run_batch=run_batch: run_batch(prompts, new), 6.0, least=2, most=5
                    )
                    speed[name, batch] = batch * new / took
                    over = speed.get(("lmlab", batch), 0.0) / speed[name, batch] if name != "lmlab" else ""
                    row = {"contender": name, "batch": batch, "tokens/s": speed[name, batch]}
                    row |= {"ms a token": 1000 * took / new, "lmlab over it": over, "peak GiB": session.peak_gib()}
                    session.record.row(table, row)
                del run_batch


def _prompts(config: ModelConfig, count: int, length: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, config.vocab_size, (count, length), generator=generator).tolist()


def _ours(session: Session, config: ModelConfig) -> Callable[[list[list[int]], int], Any]:
    model = make(config, session.device, torch.bfloat16).eval()
    return lambda prompts, new: generate(model, prompts, GenerationConfig(max_new_tokens=new, temperature=0))


def theirs(session: Session, config: ModelConfig, **options: Any) -> Callable[[list[list[int]], int], Any]:
    model = llama(config, session.device, torch.bfloat16).eval()
    model.generation_config.eos_token_id = None  # random weights may choose it

    def run_batch(prompts: list[list[int]], new: int) -> Any:
        ids = torch.tensor(prompts, device=session.device)
        length = {"max_new_tokens": new, "min_new_tokens": new, "do_sample": False, "pad_token_id": 0}
        return model.generate(ids, attention_mask=torch.ones_like(ids), **length, **options).tolist()

    return run_batch


def _static(session: Session, config: ModelConfig) -> Callable[[list[list[int]], int], Any]:
    return theirs(session, config, cache_implementation="static")
