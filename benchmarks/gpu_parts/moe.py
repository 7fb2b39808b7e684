"""Mixtures of experts beside dense networks of equal active size, and beside `transformers`' OLMoE.

`block` is one feed-forward network of OLMoE-1B-7B, forward and backward; `model` a training step of OLMoE-1B-7B with
fewer layers, so that its optimizer fits the card. The dense one has the active width of the sparse one: 1 means that
experts cost nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from gpu_parts.session import Session
from gpu_parts.shapes import rows
from gpu_parts.train import measure_peak, ours, utilization
from lmlab.models import ModelConfig, MoE
from lmlab.models.layers.feed_forward import FeedForward

_EXPERTS = {"num_experts": 64, "top_k": 8, "expert_hidden_size": 1024}
_TINY_EXPERTS = {"num_experts": 8, "top_k": 2, "expert_hidden_size": 32}


def run(session: Session) -> None:
    """The block first: it takes seconds."""
    measure_peak(session)
    _blocks(session)
    _models(session)


def _sizes(session: Session) -> tuple[dict[str, Any], dict[str, Any]]:
    if session.tiny:
        return {"vocab_size": 512, "num_layers": 2, "d_model": 64, "num_heads": 4, "qk_norm": "full"}, _TINY_EXPERTS
    shape = {"vocab_size": 50_304, "num_layers": 4, "d_model": 2048, "num_heads": 16, "qk_norm": "full"}
    return {**shape, "max_seq_len": 4096, "tie_embeddings": False}, _EXPERTS


def _blocks(session: Session) -> None:
    sizes, experts = _sizes(session)
    width, active = sizes["d_model"], experts["top_k"] * experts["expert_hidden_size"]
    tokens = 256 if session.tiny else 16_384
    dense = ModelConfig(**sizes, d_ff=active)
    contenders: dict[str, Callable[[], nn.Module]] = {"dense": lambda: FeedForward(dense)}
    for backend in ("grouped_mm", "loop"):
        sparse = ModelConfig(**sizes, ffn="moe", moe={**experts, "experts_backend": backend})
        contenders[f"lmlab, {backend}"] = lambda config=sparse: MoE(config)  # type: ignore[misc]
    for way in ("grouped_mm", "eager"):
        contenders[f"transformers, {way}"] = lambda way=way: _their_block(width, experts, way)  # type: ignore[misc]
    table = f"feed-forward block of OLMoE, {tokens:,} tokens, forward and backward, bf16"
    base = None
    for weights in ("bf16", "fp32 and autocast"):
        for name, build in contenders.items():
            row: dict[str, Any] = {"weights": weights, "contender": name}
            if not session.has(f"block {name} {weights}", 6):
                continue
            with session.attempt(table, row):
                took = session.median(_block_step(session, build, tokens, width, weights == "bf16"), 2.0)
                base = took if name == "dense" else base
                achieved = 18 * tokens * width * active / took
                row |= {
                    "ms": 1000 * took,
                    **utilization(session, achieved),
                    "dense takes of its time": base and base / took,
                }
                row["peak GiB"] = session.peak_gib()
                session.record.row(table, row)


def _block_step(
    session: Session, build: Callable[[], nn.Module], tokens: int, width: int, cast: bool
) -> Callable[[], None]:
    with torch.device(session.device):
        module = build()
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.02)
    module.to(torch.bfloat16 if cast else torch.float32)
    inputs = [torch.randn(4, tokens // 4, width, device=session.device, dtype=torch.bfloat16) for _ in range(4)]
    turn = [0]

    def step() -> None:
        x = inputs[turn[0] % len(inputs)].detach().requires_grad_()  # other loads each time, as in training
        turn[0] += 1
        with torch.autocast(session.device.type, torch.bfloat16, enabled=not cast):
            out = module(x)
        out = out[0] if isinstance(out, tuple) else out
        out.backward(inputs[0].to(out.dtype))
        for parameter in module.parameters():
            parameter.grad = None

    return step


def _their_block(width: int, experts: dict[str, int], way: str) -> nn.Module:
    from transformers import OlmoeConfig
    from transformers.models.olmoe.modeling_olmoe import OlmoeSparseMoeBlock

    config = OlmoeConfig(
        hidden_size=width,
        intermediate_size=experts["expert_hidden_size"],
        num_experts=experts["num_experts"],
        num_experts_per_tok=experts["top_k"],
        experts_implementation=way,
    )
    return OlmoeSparseMoeBlock(config)


def _models(session: Session) -> None:
    sizes, experts = _sizes(session)
    count, length = (2, 64) if session.tiny else (4, 4096)
    active = experts["top_k"] * experts["expert_hidden_size"]
    dense, sparse = ModelConfig(**sizes, d_ff=active), ModelConfig(**sizes, ffn="moe", moe=experts)
    table = f"training, {sizes['num_layers']} layers of OLMoE-1B-7B, {count} x {length} tokens, bf16"
    base = None
    for compiled in (False, True):
        for name, config in (("dense of equal active size", dense), ("lmlab", sparse), ("transformers", sparse)):
            how = "compiled" if compiled else "eager"
            row: dict[str, Any] = {"contender": name, "how": how}
            if compiled and (not session.is_cuda or name == "transformers"):
                continue
            if not session.has(f"model {name} {how}", 35 if compiled else 12):
                continue
            with session.attempt(table, row):
                batch = rows(config, count, length, session.device)
                step = (
                    _their_step(session, sizes, experts, batch)
                    if name == "transformers"
                    else ours(session, config, batch, False, compiled)
                )
                took = session.median(step)
                base = took if config is dense else base
                rate = count * length / took
                row |= {"ms": 1000 * took, "tokens/s": rate}
                row |= utilization(session, rate * config.flops_per_token(length))
                row |= {"dense takes of its time": base and base / took, "peak GiB": session.peak_gib()}
                session.record.row(table, row)
                del step


def _their_step(
    session: Session, sizes: dict[str, Any], experts: dict[str, int], batch: dict[str, Tensor]
) -> Callable[[], Tensor]:
    from transformers import OlmoeConfig, OlmoeForCausalLM

    config = OlmoeConfig(
        vocab_size=sizes["vocab_size"],
        hidden_size=sizes["d_model"],
        intermediate_size=experts["expert_hidden_size"],
        num_hidden_layers=sizes["num_layers"],
        num_attention_heads=sizes["num_heads"],
        num_experts=experts["num_experts"],
        num_experts_per_tok=experts["top_k"],
        output_router_logits=True,  # with the loss that balances loads, as lmlab's step has it
        attn_implementation="sdpa",
        experts_implementation="grouped_mm",
        use_cache=False,
        pad_token_id=None,
    )
    with torch.device(session.device):
        model = OlmoeForCausalLM(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)

    def step() -> Tensor:
        with torch.autocast(session.device.type, torch.bfloat16):
            loss = model(input_ids=batch["input_ids"], labels=batch["input_ids"]).loss
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return step
