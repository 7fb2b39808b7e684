"""The worst that a circuit does: on prompts whose corrupted input is that of another prompt (adversarial evaluation of
circuits, arXiv 2407.15166).

Shapes: N examples, E edges.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lmlab.errors import UserError
from lmlab.methods.edge_pruning.masking.counterfactuals import Counterfactuals
from lmlab.methods.edge_pruning.measures import measure_each


def repaired(task: Counterfactuals, rounds: int, seed: int = 0) -> Counterfactuals:
    """The task with each clean prompt beside the corrupted input of another prompt of its length, so many times over; a
    prompt whose length no other has keeps its own.

    Raises:
        UserError: pruned edges do not carry the corrupted run, or no two prompts have the same length.
    """
    if task.ablation != "interchange":
        raise UserError(
            f"Under the ablation {task.ablation} pruned edges do not depend on the corrupted input.",
            "Leave out --repaired.",
        )
    examples, count = task.examples, len(task.examples)
    lengths = examples.real.sum(1)
    generator, parts = torch.Generator().manual_seed(seed), []
    for _ in range(rounds):
        order = torch.arange(count)
        for length in lengths.unique():
            alike = (lengths == length).nonzero().flatten()
            shuffled = alike[torch.randperm(len(alike), generator=generator)]
            order[shuffled] = shuffled.roll(1)  # a ring: none keeps its own, where there are two or more
        parts.append(order)
    order = torch.cat(parts)
    if bool((order == torch.arange(count).repeat(rounds)).all()):
        raise UserError("No two prompts have the same length, so that none can be paired anew.")
    others = examples.take(torch.arange(count).repeat(rounds))
    return task.on(others.corrupted_by(examples.corrupted[order]))


def worst_cases(task: Counterfactuals, kept_E: Tensor, rounds: int = 10, seed: int = 0) -> dict[str, Any]:
    """The distances of a circuit over prompts that are paired anew.

    Returns:
        `n`, `mean`, `p99`, `max`; `clean` and `corrupted`: tokens of the worst pair; `own`: the mean over the task's
        own pairs.
    """
    other = repaired(task, rounds, seed)
    distances = measure_each(other, kept_E)["distance"].double()
    place = int(distances.argmax())
    length = int(other.examples.real[place].sum())
    own: Mapping[str, Tensor] = measure_each(task, kept_E)
    return {
        "n": len(distances),
        "mean": float(distances.mean()),
        "p99": float(distances.quantile(0.99)),
        "max": float(distances.max()),
        "own": float(own["distance"].double().mean()),
        "clean": other.examples.clean[place, :length].tolist(),
        "corrupted": other.examples.corrupted[place, :length].tolist(),
    }
