"""What is measured on a circuit: distance to the model, behavior on the task, faithfulness, completeness, minimality,
areas, overlaps.

Shapes: N examples, B examples of a batch, P positions, V tokens, E edges.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lmlab.errors import UserError
from lmlab.methods.edge_pruning.graph.clean import clean, writes_constants
from lmlab.methods.edge_pruning.masking.counterfactuals import Counterfactuals
from lmlab.stats import overlap_test

FRACTIONS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""Shares of edges at which the Mechanistic Interpretability Benchmark measures (Mueller et al. 2025)."""
_CLOSE = 0.05


def logit_difference(task: Counterfactuals, logits_BPV: Tensor, index_B: Tensor) -> Tensor:
    """Logit of the answer minus that of the distractor at the last position, [B]."""
    answers_B, distractors_B = (
        each[index_B].to(logits_BPV.device) for each in (task.examples.answers, task.examples.distractors)
    )
    last_BV = _last(task, logits_BPV, index_B)
    return last_BV.gather(1, answers_B[:, None])[:, 0] - last_BV.gather(1, distractors_B[:, None])[:, 0]


def _last(task: Counterfactuals, logits_BPV: Tensor, index_B: Tensor) -> Tensor:
    place_B = task.examples.weights[index_B].to(logits_BPV.device).sum(1).long() - 1
    return logits_BPV[torch.arange(len(logits_BPV), device=logits_BPV.device), place_B]


def measure(task: Counterfactuals, kept_E: Tensor) -> dict[str, float]:
    """The figures of one set of edges, means over all examples.

    Returns:
        `distance` (KL in nats, or the squared error) and `exact_match` (the most probable token is that of the whole
        model at every position; for `mse` the output is within 0.05); and where there are answers `logit_difference`,
        `prefers_answer` (it is above 0), `accuracy` (the answer is the most probable of those that can be chosen) and
        `probability_difference`.
    """
    examples, parts = task.examples, []
    for index, logits in task.run(kept_E.float()):
        ours, full = task.outputs(logits), task.full(index)
        same_BP = (
            (ours - full).abs().amax(-1) <= _CLOSE if examples.distance == "mse" else ours.argmax(-1) == full.argmax(-1)
        )
        counts_BP = examples.weights[index].to(same_BP.device) > 0
        figures = {"distance": task.distance(logits, index), "exact_match": (same_BP | ~counts_BP).all(1).float()}
        if examples.has_answers:
            last_BV = _last(task, logits, index)
            chosen = (
                torch.arange(last_BV.shape[1]) if examples.answer_ids is None else torch.tensor(examples.answer_ids)
            )
            best_B = chosen.to(last_BV.device)[last_BV[:, chosen].argmax(1)]
            difference_B, answers_B = logit_difference(task, logits, index), examples.answers[index].to(last_BV.device)
            probabilities_BV = (
                torch.full_like(last_BV, -torch.inf)
                .index_copy(1, chosen.to(last_BV.device), last_BV[:, chosen])
                .softmax(1)
            )
            pair = [
                probabilities_BV.gather(1, each[index].to(last_BV.device)[:, None])[:, 0]
                for each in (examples.answers, examples.distractors)
            ]
            figures |= {
                "logit_difference": difference_B,
                "prefers_answer": (difference_B > 0).float(),
                "accuracy": (best_B == answers_B).float(),
                "probability_difference": pair[0] - pair[1],
            }
        parts.append(figures)
    means = {name: float(torch.cat([part[name] for part in parts]).mean()) for name in parts[0]}
    return {**means, "distance": max(0.0, means["distance"])}  # rounding can leave a KL of 0 just below


@dataclass(frozen=True)
class Ends:
    """The figures of the whole model and of the circuit without edges, between which a circuit lies."""

    full: dict[str, float]
    empty: dict[str, float]

    @staticmethod
    def of(task: Counterfactuals) -> Ends:
        """Measure them."""
        edges = task.masked.graph.num_edges
        return Ends(measure(task, torch.ones(edges)), measure(task, torch.zeros(edges)))

    @property
    def metric(self) -> str:
        """By what faithfulness is measured: the logit difference where there are answers, else the distance."""
        return "logit_difference" if "logit_difference" in self.full else "distance"

    def faithfulness(self, figures: dict[str, float]) -> float:
        """(M(circuit) - M(empty)) / (M(full) - M(empty))."""
        low, high = self.empty[self.metric], self.full[self.metric]
        return (figures[self.metric] - low) / (high - low)

    def require_ability(self, force: bool = False) -> None:
        """See that the whole model does the task better than the empty circuit.

        Raises:
            UserError: it does not.
        """
        if self.metric == "logit_difference" and self.full[self.metric] <= self.empty[self.metric] and not force:
            raise UserError(
                f"The model cannot do the task: its logit difference is {self.full[self.metric]:.3g}, without edges"
                f" {self.empty[self.metric]:.3g}.",
                "Faithfulness would mean nothing; check answers and prompts, or go on with --force.",
            )


def top_edges(task: Counterfactuals, scores_E: Tensor, count: int, cleaned: bool = True) -> Tensor:
    """The edges with the highest scores, without those that are dead, [E]."""
    kept_E = torch.zeros(len(scores_E), dtype=torch.bool)
    kept_E[scores_E.argsort(descending=True, stable=True)[:count]] = True
    return clean(task.masked.graph, kept_E, task.ablation, writes_constants(task.masked.model)) if cleaned else kept_E


def curve(
    task: Counterfactuals, scores_E: Tensor, ends: Ends, fractions: Sequence[float] = FRACTIONS
) -> list[dict[str, float]]:
    """The figures of the best edges at each share of all edges; `edges` counts those left after cleaning."""
    rows = []
    for fraction in fractions:
        kept_E = top_edges(task, scores_E, max(1, round(fraction * len(scores_E))))
        figures = measure(task, kept_E)
        rows.append(
            {"fraction": fraction, "edges": int(kept_E.sum()), **figures, "faithfulness": ends.faithfulness(figures)}
        )
    return rows


def areas(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """`cpr`, the area under faithfulness over the share of edges (higher is better), and `cmd`, that of its distance
    from 1 (0 is best).
    """
    x, y = np.array([row["fraction"] for row in rows]), np.array([row["faithfulness"] for row in rows])
    return {"cpr": float(np.trapezoid(y, x)), "cmd": float(np.trapezoid(np.abs(1 - y), x))}


def completeness(
    task: Counterfactuals, kept_E: Tensor, ends: Ends, samples: int = 10, share: float = 0.2, seed: int = 0
) -> dict[str, float]:
    """How alike circuit and model are once the same random edges K of the circuit are taken from both (Wang et al.
    2023, section 4).

    Returns:
        `completeness_gap`: the mean of |F(C without K) - F(M without K)| over draws of K, F being faithfulness; 0 is
        best.
    """
    generator, inside = torch.Generator().manual_seed(seed), kept_E.nonzero().flatten()
    gaps = []
    for _ in range(samples):
        taken = inside[torch.rand(len(inside), generator=generator) < share]
        circuit_E, model_E = kept_E.clone(), torch.ones_like(kept_E)
        circuit_E[taken] = model_E[taken] = False
        gaps.append(abs(ends.faithfulness(measure(task, circuit_E)) - ends.faithfulness(measure(task, model_E))))
    return {"completeness_gap": float(np.mean(gaps))}


def minimality(task: Counterfactuals, kept_E: Tensor, most: int = 200) -> dict[str, Any]:
    """What each edge of the circuit adds: the rise of the distance when it alone is taken out.

    Returns:
        `effects`: edge number -> rise, for at most `most` edges spread over the circuit; `superfluous`: the share whose
        rise is below 0.1 % of the empty circuit's distance.
    """
    whole, numbers = task.mean_distance(kept_E), kept_E.nonzero().flatten().tolist()
    numbers = numbers if len(numbers) <= most else [numbers[k * len(numbers) // most] for k in range(most)]
    effects = {}
    for number in numbers:
        without_E = kept_E.clone()
        without_E[number] = False
        effects[number] = task.mean_distance(without_E) - whole
    small = [rise < 1e-3 * task.empty_distance for rise in effects.values()]
    return {"effects": effects, "superfluous": float(np.mean(small)) if small else 0.0}


def auroc(scores_E: Tensor, truth_E: Tensor) -> float:
    """The probability that an edge of the known circuit has a higher score than another."""
    from scipy.stats import rankdata

    ranks, truth = rankdata(scores_E.double().numpy()), truth_E.bool().numpy()
    inside, outside = int(truth.sum()), int((~truth).sum())
    return float((ranks[truth].sum() - inside * (inside + 1) / 2) / (inside * outside))


def overlap(a_E: Tensor, b_E: Tensor) -> dict[str, float]:
    """How far two circuits agree, and the probability that random ones of their sizes share as many edges."""
    both, either, sizes = int((a_E & b_E).sum()), int((a_E | b_E).sum()), (int(a_E.sum()), int(b_E.sum()))
    return {
        "edges_a": sizes[0],
        "edges_b": sizes[1],
        "intersection": both,
        "jaccard": both / either if either else 1.0,
        "share_of_smaller": both / min(sizes) if min(sizes) else 0.0,
        "expected_by_chance": sizes[0] * sizes[1] / len(a_E),
        "p": overlap_test(both, *sizes, len(a_E)),
    }


def stability(circuits: Sequence[Tensor]) -> dict[str, Any]:
    """Over circuits of several seeds: the mean Jaccard index of pairs, and the share of circuits that each edge
    is in.
    """
    pairs = [overlap(a, b)["jaccard"] for i, a in enumerate(circuits) for b in circuits[:i]]
    frequency_E = torch.stack([each.float() for each in circuits]).mean(0)
    return {"jaccard": float(np.mean(pairs)) if pairs else 1.0, "frequency": frequency_E}
