"""SmolLM2-135M trained on as it is, and upcycled to experts, on the same texts: held-out perplexity before and after
equal numbers of tokens.

    LMLAB_SHARED=... python benchmarks/moe_upcycling.py models/smollm2 [--steps 24] [--rows 2] [--learning-rate 5e-5]
    [--noise 0.5]

Dense and upcycled see the same rows in the same order, with the same optimizer and learning rate. The upcycled model
has two of four copies of each feed-forward network active, so that a token costs it more. Held out are the last eighth
of each domain's rows.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

import torch

LENGTH = 256


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--rows", type=int, default=2)
    parser.add_argument("--learning-rate", type=float, default=5e-5)
    parser.add_argument(
        "--noise", type=float, nargs="*", default=[0.0], help="a share of entries drawn anew, for each upcycled model"
    )
    arguments = parser.parse_args()
    from lmlab.methods.olmoe import UpcycleConfig, upcycle
    from lmlab.methods.olmoe.routing.texts import cut_texts
    from lmlab.models import from_pretrained

    texts = Path(os.environ.get("LMLAB_SHARED", "../shared"), "data/texts")
    per_domain = -(-arguments.steps * arguments.rows // 5) * 8 // 7 + 2
    cut = cut_texts(f"{texts}/*.jsonl.zst", str(arguments.model), LENGTH, per_domain, domain_field="domain")
    by_domain = [torch.from_numpy(cut.ids_ST[cut.domain_S == number]) for number in range(len(cut.domains))]
    heldout = torch.cat([rows[-max(1, len(rows) // 8) :] for rows in by_domain])
    train = torch.cat([rows[: -max(1, len(rows) // 8)] for rows in by_domain])
    train = train[torch.randperm(len(train), generator=torch.Generator().manual_seed(0))]
    print(
        f"{arguments.steps * arguments.rows * LENGTH:,} tokens to train on, {heldout.numel():,} held out, domains"
        f" {', '.join(cut.domains)}"
    )
    print(
        "| model | active parameters | perplexity at step 0 | after training | seconds of a step"
        " |\n|---|---|---|---|---|"
    )
    for noise in (None, *arguments.noise):
        model = from_pretrained(arguments.model, dtype=torch.float32)
        if noise is not None:
            model = upcycle(model, UpcycleConfig(num_experts=4, top_k=2, noise=noise))
        before, started = perplexity(model, heldout), time.process_time()
        train_on(model, train, arguments.steps, arguments.rows, arguments.learning_rate)
        seconds = (time.process_time() - started) / arguments.steps
        name = "dense" if noise is None else f"upcycled, noise {noise:g}"
        print(
            f"| {name} | {model.config.num_parameters(active=True):,} | {before:.4f} | {perplexity(model, heldout):.4f}"
            f" | {seconds:.1f} |",
            flush=True,
        )


def losses(model: torch.nn.Module, rows: torch.Tensor) -> object:
    with torch.autocast("cpu", torch.bfloat16):
        return model(rows[:, :-1], labels_BT=rows[:, 1:])


@torch.no_grad()
def perplexity(model: torch.nn.Module, rows: torch.Tensor) -> float:
    model.eval()
    return float(torch.stack([losses(model, each).loss.mean for each in rows.split(4)]).mean().exp())


def train_on(model: torch.nn.Module, rows: torch.Tensor, steps: int, count: int, learning_rate: float) -> None:
    """AdamW with a warm-up of a tenth of the steps and a constant learning rate after it; losses of routers are learned
    from too.
    """
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), learning_rate, betas=(0.9, 0.95), weight_decay=0.1)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = learning_rate * min(1.0, (step + 1) / max(1, steps // 10))
        output = losses(model, rows[step * count : (step + 1) * count])
        loss = output.loss.mean if output.router_losses is None else output.loss.mean + output.router_losses.total
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()


if __name__ == "__main__":
    main()
