"""A step of edge pruning on SmolLM2's shape, in fp32 and up to its full length: time and memory.

Each is that of `lmlab circuits`' training: masks drawn for each example, a masked pass and its gradient, the penalty,
and AdamW on the gates; what takes the place of pruned edges is computed anew. Beside it stands the plain forward pass
of the model on the same tokens: the reference implementation needs a `transformers` of 2024.
"""

from __future__ import annotations

from typing import Any

import torch

from gpu_parts.session import Session
from gpu_parts.shapes import make, shape
from lmlab.methods.edge_pruning import CircuitGraph, Counterfactuals, EdgePruningConfig, MaskedModel, make_examples
from lmlab.methods.edge_pruning.masking.gates import Gates
from lmlab.methods.edge_pruning.search.prune import PruningStep

_TABLE = "a step of edge pruning, SmolLM2-135M, fp32"
_CASES = ((8, 512, False), (1, 2048, False), (1, 8192, False), (1, 8192, True), (8, 512, True))


def run(session: Session) -> None:
    """By length; with and without recomputation."""
    for batch, length, recompute in ((2, 24, False), (2, 24, True)) if session.tiny else _CASES:
        row: dict[str, Any] = {"examples": batch, "tokens": length, "recomputing": "yes" if recompute else "no"}
        if not session.has(f"circuits {batch} x {length} {recompute}", 15):
            continue
        with session.attempt(_TABLE, row):
            model = make(shape("135M", session.tiny), session.device)
            graph = CircuitGraph(model.config)
            ids = torch.randint(
                0, model.config.vocab_size, (2, batch, length), generator=torch.Generator().manual_seed(0)
            )
            masked = MaskedModel(model, graph, recompute)
            examples = make_examples(*ids.tolist(), [[length - 1]] * batch)
            task = Counterfactuals(masked, examples, batch_size=batch, cache_bytes=0)
            gates = Gates(3 + 0.01 * torch.randn(graph.num_edges), graph.edge_writers).to(session.device)
            function = PruningStep(task, EdgePruningConfig(target=0.95, normalize=False))
            optimizer = torch.optim.AdamW(gates.parameters(), lr=0.1, weight_decay=0, fused=True)
            numbers = {"example": torch.arange(batch)}

            def step(
                function: PruningStep = function,
                gates: Gates = gates,
                optimizer: torch.optim.Optimizer = optimizer,
                numbers: dict[str, torch.Tensor] = numbers,
            ) -> None:
                output = function(gates, numbers)
                (output.loss_sum / len(numbers["example"])).backward()
                optimizer.step()
                optimizer.zero_grad()
                function.after_step(gates)

            took = session.median(step, 4.0, least=2, most=10)
            row |= {"edges": graph.num_edges, "ms": 1000 * took, "peak GiB": session.peak_gib()}
            clean = ids[0].to(session.device)
            with torch.no_grad():
                plain = session.median(lambda model=model, clean=clean: model(clean, logits="none"), 1.0)
            session.record.row(_TABLE, {**row, "forward pass ms": 1000 * plain, "passes a step takes": took / plain})
            del task, masked, model, step, function, gates, optimizer
