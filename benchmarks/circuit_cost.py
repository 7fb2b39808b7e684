"""What a training step of gates costs against layers, heads and tokens.

    python benchmarks/circuit_cost.py

Models of random weights, all sizes but one held at that of the first line; the median of some steps in process time,
with the memory of the store of writers that a search plans. Reads of the masked residual stream grow with the square
of the writers (layers times heads), the model itself with the layers alone; both grow with the tokens.
"""

from __future__ import annotations

import argparse
import os
import time
from statistics import median
from typing import Any

BASE = {"layers": 4, "heads": 8, "tokens": 24}
SWEEPS = {"layers": (2, 4, 8, 16), "heads": (4, 8, 16, 32), "tokens": (12, 24, 48, 96)}


def _step(sizes: dict[str, int], batch: int, steps: int) -> dict[str, Any]:
    import torch

    from lmlab.methods.edge_pruning import CircuitGraph, Counterfactuals, MaskedModel, make_examples, plan
    from lmlab.methods.edge_pruning.masking.gates import Gates
    from lmlab.models import ModelConfig, Transformer

    config = ModelConfig(
        vocab_size=1000,
        num_layers=sizes["layers"],
        d_model=256,
        num_heads=sizes["heads"],
        d_ff=1024,
        max_seq_len=128,
    )
    model = Transformer(config).initialize(0)
    generator = torch.Generator().manual_seed(0)
    clean, corrupted = torch.randint(0, 1000, (2, batch, sizes["tokens"]), generator=generator).tolist()
    examples = make_examples(clean, corrupted, [[sizes["tokens"] - 1]] * batch)
    graph = CircuitGraph(config)
    task = Counterfactuals(MaskedModel(model, graph), examples, batch_size=batch)
    gates = Gates(torch.full((graph.num_edges,), 1.0), graph.edge_writers)
    index, taken = torch.arange(batch), []
    for _ in range(steps + 1):
        begin = time.process_time()
        loss = task.distance(task.masked(task.inputs(index), gates(batch)), index).mean() + 1e-4 * gates.open().sum()
        loss.backward()
        taken.append(time.process_time() - begin)
    planned = plan(graph, batch, sizes["tokens"], batch)
    return {
        "edges": graph.num_edges,
        "writers": len(graph.writers),
        "seconds": median(taken[1:]),
        "store": planned.store,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--steps", type=int, default=5)
    arguments = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    print(f"load {os.getloadavg()[0]:.1f}; width 256, {arguments.batch} prompts, one thread, process time")
    print("| layers | heads | tokens | edges | writers | a step, ms | us a token | store, MB |")
    print("|---|---|---|---|---|---|---|---|")
    done = set()
    for name, values in SWEEPS.items():
        for value in values:
            sizes = {**BASE, name: value}
            if tuple(sizes.values()) in done:
                continue
            done.add(tuple(sizes.values()))
            found = _step(sizes, arguments.batch, arguments.steps)
            each = 1e6 * found["seconds"] / (arguments.batch * sizes["tokens"])
            print(
                f"| {sizes['layers']} | {sizes['heads']} | {sizes['tokens']} | {found['edges']:,} |"
                f" {found['writers']} | {1e3 * found['seconds']:.0f} | {each:.0f} | {found['store'] / 1e6:.1f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
