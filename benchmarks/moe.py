"""Speed of mixtures of experts on one core, in process time: the layer beside dense ones and `transformers`, and whole
models.

    python benchmarks/moe.py [--what block model] [--precisions fp32 bf16] [--rounds N]

`block`: forward and backward of one feed-forward block. The dense block has the active width of the sparse one; "plain"
is the same from `torch.nn`. Every round has fresh inputs, so that loads change as in training, and all contenders take
turns within it. The lower quartile of the rounds is
printed: process time still depends on what other processes do to the caches.

`model`: forward and backward of a language model of 8 layers, 16 experts of which 2 serve a token, 4 rows of 512
tokens; dense: the twin of equal active size.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SHAPES = {
    "E 16, k 2, d 256, f 128, N 2048": (16, 2, 256, 128, 2048),
    "E 64, k 8, d 512, f 256, N 1024": (64, 8, 512, 256, 1024),
}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
STEP = Callable[[int], None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--what", nargs="+", default=["block", "model"], choices=["block", "model"])
    parser.add_argument("--precisions", nargs="+", default=list(DTYPES), choices=DTYPES)
    parser.add_argument("--rounds", type=int, default=20)
    arguments = parser.parse_args()
    from lmlab.hardware import reuse_memory

    torch.set_num_threads(1)
    reuse_memory()
    for precision in arguments.precisions:
        if "block" in arguments.what:
            for title, shape in SHAPES.items():
                report(
                    f"block, {title}, {precision}",
                    blocks(shape, DTYPES[precision], arguments.rounds + 2),
                    arguments.rounds,
                    "dense",
                )
        if "model" in arguments.what:
            report(
                f"model, {precision}", models(DTYPES[precision]), max(5, arguments.rounds // 3), "dense twin", 4 * 512
            )


def report(title: str, contenders: dict[str, STEP], rounds: int, base: str, tokens: int | None = None) -> None:
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(rounds + 2):
        for name, step in contenders.items():
            start = time.process_time()
            step(number)
            if number >= 2:
                times[name].append(time.process_time() - start)
    quartile = {name: sorted(each)[len(each) // 4] for name, each in times.items()}
    print(f"\n{title}\n| contender | {'tokens/s' if tokens else 'ms'} | time over {base} |\n|---|---|---|")
    for name, seconds in quartile.items():
        figure = f"{tokens / seconds:,.0f}" if tokens else f"{1000 * seconds:.1f}"
        print(f"| {name} | {figure} | {seconds / quartile[base]:.2f} |", flush=True)


def blocks(shape: tuple[int, ...], dtype: torch.dtype, rounds: int) -> dict[str, STEP]:
    from transformers import OlmoeConfig
    from transformers.models.olmoe.modeling_olmoe import OlmoeSparseMoeBlock

    from lmlab.models import ModelConfig, MoE
    from lmlab.models.layers.feed_forward import FeedForward

    experts, k, width, inner, tokens = shape
    sizes: dict[str, Any] = {"vocab_size": 64, "num_layers": 1, "d_model": width, "num_heads": 4}
    moe = {"num_experts": experts, "top_k": k, "expert_hidden_size": inner}

    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate, self.up = (nn.Linear(width, k * inner, bias=False) for _ in range(2))
            self.down = nn.Linear(k * inner, width, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.down(F.silu(self.gate(x)) * self.up(x))

    found: dict[str, nn.Module] = {"dense": FeedForward(ModelConfig(**sizes, d_ff=k * inner)), "dense, plain": Plain()}
    for backend in ("grouped_mm", "batched", "loop"):
        found[f"lmlab {backend}"] = MoE(ModelConfig(**sizes, ffn="moe", moe={**moe, "experts_backend": backend}))
    for way in ("grouped_mm", "eager"):
        config = OlmoeConfig(
            hidden_size=width,
            intermediate_size=inner,
            num_experts=experts,
            num_experts_per_tok=k,
            experts_implementation=way,
        )
        found[f"transformers {way}"] = OlmoeSparseMoeBlock(config)
    inputs = [
        torch.randn(4, tokens // 4, width, generator=torch.Generator().manual_seed(seed)).to(dtype)
        for seed in range(rounds)
    ]

    def step_of(module: nn.Module) -> STEP:
        for parameter in module.parameters():
            nn.init.normal_(parameter, std=0.02)
        module.to(dtype)

        def step(number: int) -> None:
            out = module(inputs[number].detach().requires_grad_())
            (out[0] if isinstance(out, tuple) else out).backward(inputs[number])
            for parameter in module.parameters():
                parameter.grad = None

        return step

    return {name: step_of(module) for name, module in found.items()}


def models(dtype: torch.dtype) -> dict[str, STEP]:
    from transformers import OlmoeConfig, OlmoeForCausalLM

    from lmlab.models import ModelConfig, Transformer

    sizes: dict[str, Any] = {
        "vocab_size": 2048,
        "num_layers": 8,
        "d_model": 256,
        "num_heads": 4,
        "qk_norm": "full",
        "tie_embeddings": False,
    }
    moe = {"num_experts": 16, "top_k": 2, "expert_hidden_size": 128}
    inputs = [torch.randint(0, 2048, (4, 513), generator=torch.Generator().manual_seed(seed)) for seed in range(64)]

    def ours(**changes: Any) -> STEP:
        model = Transformer(ModelConfig(**sizes, **changes)).initialize(0).to(dtype).train()

        def step(number: int) -> None:
            output = model(inputs[number][:, :-1], labels_BT=inputs[number][:, 1:])
            loss = output.loss.mean if output.router_losses is None else output.loss.mean + output.router_losses.total
            loss.backward()
            if output.router_losses is not None:
                model.end_step(output.router_losses.counts_LE)
            model.zero_grad()

        return step

    def theirs(way: str) -> STEP:
        config = OlmoeConfig(
            vocab_size=2048,
            hidden_size=256,
            num_hidden_layers=8,
            num_attention_heads=4,
            num_key_value_heads=4,
            intermediate_size=128,
            num_experts=16,
            num_experts_per_tok=2,
            output_router_logits=True,
            experts_implementation=way,
            pad_token_id=None,
            eos_token_id=1,
        )
        model = OlmoeForCausalLM(config).to(dtype).train()

        def step(number: int) -> None:
            ids = inputs[number][:, :-1]
            model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
            model.zero_grad()

        return step

    return {
        "dense twin": ours(d_ff=256),
        "lmlab": ours(ffn="moe", moe=moe),
        "transformers grouped_mm": theirs("grouped_mm"),
        "transformers eager": theirs("eager"),
    }


if __name__ == "__main__":
    main()
