"""What is measured on a circuit: distance to the model, behavior on the task, faithfulness, completeness, minimality,
areas, overlaps.

Shapes: N examples, B examples of a batch, P positions, V tokens, E edges.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lmlab.errors import UserError
from lmlab.methods.edge_pruning.graph.clean import clean, writes_constants
from lmlab.methods.edge_pruning.masking.counterfactuals import Counterfactuals, require_change
from lmlab.methods.edge_pruning.masking.metrics import last, logit_difference, values
from lmlab.stats import overlap_test, percentile_interval, standard_error, wilson
from lmlab.words import counted

FRACTIONS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""Shares of edges at which the Mechanistic Interpretability Benchmark measures (Mueller et al. 2025)."""
_BY_CHANCE = 0.5
_CLOSE, _RESAMPLES = 0.05, 1000  # numbers that near count as equal; resamples of an interval


def measure_each(task: Counterfactuals, kept_E: Tensor, neurons_WD: Tensor | None = None) -> dict[str, Tensor]:
    """The figures of one set of edges (and neurons, by default all) for each example, [N] each.

    Returns:
        `distance` (KL in nats, or the squared error) and `exact_match` (the most probable token is that of the whole
        model at every position; for `mse` the output is within 0.05); and where there are answers `logit_difference`,
        `prefers_answer` (it is above 0), `probability` (of what is right), `accuracy` (the most probable of the tokens
        that can be chosen is right) and `probability_difference` (of answer and distractor among those tokens). Where
        several answers are right, `probability_difference` is the sum over all right less that over all wrong ones
        (Hanna et al. 2023, section 2.2), `log_odds` the logarithm of the quotient of these sums, `cutoff_sharpness` the
        difference between answer and distractor, the values next to the border, and `rank_correlation` Kendall's tau-b
        of the logits of all answers with the whole model's.
    """
    parts = []
    for index, logits in task.run(kept_E.float(), neurons_WD):
        ours, full, examples = task.outputs(logits), task.full(index), task.examples
        same_BP = (
            (ours - full).abs().amax(-1) <= _CLOSE if examples.distance == "mse" else ours.argmax(-1) == full.argmax(-1)
        )
        counts_BP = examples.weights[index].to(same_BP.device) > 0
        # rounding can leave a KL of 0 just below
        figures = {
            "distance": task.distance(logits, index).clamp(min=0),
            "exact_match": (same_BP | ~counts_BP).all(1).float(),
        }
        if examples.has_answers:
            figures |= _answered(task, logits, index)
        parts.append(figures)
    return {name: torch.cat([part[name] for part in parts]).cpu() for name in parts[0]}


def _answered(task: Counterfactuals, logits: Tensor, index: Tensor) -> dict[str, Tensor]:
    """The figures that need answers, at the last position, [B] each."""
    examples, last_BV = task.examples, last(task, logits, index)
    chosen_A = torch.arange(last_BV.shape[1]) if examples.answer_ids is None else torch.tensor(examples.answer_ids)
    logits_BA = last_BV[:, chosen_A]
    log_probabilities_BV = torch.full_like(last_BV, -torch.inf).index_copy(
        1, chosen_A.to(last_BV.device), logits_BA.log_softmax(1)
    )
    answers_B, distractors_B = (
        each[index].to(last_BV.device)[:, None] for each in (examples.answers, examples.distractors)
    )
    first_B, second_B = (log_probabilities_BV.gather(1, each)[:, 0].exp() for each in (answers_B, distractors_B))
    best_B, difference_B = logits_BA.argmax(1), logit_difference(task, logits, index)
    found = {
        "logit_difference": difference_B,
        "prefers_answer": (difference_B > 0).float(),
        "probability": values(task, task.outputs(logits), index, "probability"),
    }
    if examples.signs is None:
        right_B = chosen_A.to(last_BV.device)[best_B] == answers_B[:, 0]
        return {**found, "accuracy": right_B.float(), "probability_difference": first_B - second_B}
    signs_BA = examples.signs[index].to(logits_BA)
    return {
        **found,
        "log_odds": values(task, task.outputs(logits), index, "log_odds"),
        "accuracy": (signs_BA.gather(1, best_B[:, None])[:, 0] > 0).float(),
        "probability_difference": (logits_BA.softmax(1) * signs_BA).sum(1),
        "cutoff_sharpness": first_B - second_B,
        "rank_correlation": _rank_correlation(logits_BA, last(task, task.full(index), index)),
    }


def _rank_correlation(ours_BA: Tensor, full_BA: Tensor) -> Tensor:
    from scipy.stats import kendalltau

    # outputs that are all equal have no order: their correlation with any other is 0
    pairs = zip(ours_BA.cpu().double().numpy(), full_BA.cpu().double().numpy(), strict=True)
    return torch.tensor([float(np.nan_to_num(kendalltau(a, b).statistic)) for a, b in pairs])


def measure(task: Counterfactuals, kept_E: Tensor) -> dict[str, float]:
    """The figures of one set of edges, as `measure_each` has them, means over all examples."""
    return _means(measure_each(task, kept_E))


def _means(each: Mapping[str, Tensor]) -> dict[str, float]:
    return {name: float(values.double().mean()) for name, values in each.items()}


@dataclass(frozen=True)
class Ends:
    """The figures of the whole model and of the circuit without edges, between which a circuit lies."""

    full: dict[str, float]
    empty: dict[str, float]
    full_each: Mapping[str, Tensor] = field(default_factory=dict)
    empty_each: Mapping[str, Tensor] = field(default_factory=dict)
    by: str | None = None

    @staticmethod
    def of(task: Counterfactuals, by: str | None = None) -> Ends:
        """Measure them.

        Arguments:
            by: the figure that faithfulness is measured by, one of `METRICS`.

        Raises:
            UserError: the examples do not have that figure.
        """
        edges = task.masked.graph.num_edges
        full, empty = (measure_each(task, kept(edges)) for kept in (torch.ones, torch.zeros))
        if by is not None and by not in full:
            raise UserError(
                f"These examples have no {by}; they have {', '.join(full)}.",
                "Give the examples answers (and for several right ones 'answers' and 'distractors').",
            )
        return Ends(_means(full), _means(empty), full, empty, by)

    @property
    def metric(self) -> str:
        """By what faithfulness is measured: by default the logit difference where there are answers, else the
        distance.
        """
        return self.by or ("logit_difference" if "logit_difference" in self.full else "distance")

    def summary(self, each: Mapping[str, Tensor], seed: int = 0) -> dict[str, Any]:
        """The figures of a circuit with what is known of their error.

        Arguments:
            each: its figures for each example, of `measure_each`.

        Returns:
            `circuit`, `full` and `empty`: means; `n`: examples; `errors`: standard errors of the circuit's means;
            `intervals`: 95 % of the bootstrap over examples; `worst`: the 99th percentile and the largest distance.
        """
        names, count = list(each), len(next(iter(each.values())))
        means = _means(each)
        circuit = {**means, "faithfulness": self.faithfulness(means)}
        found = {"circuit": circuit, "full": self.full, "empty": self.empty, "metric": self.metric, "n": count}
        distance = each["distance"].double()
        worst = {"distance_p99": float(distance.quantile(0.99)), "distance_max": float(distance.max())}
        if count < 2:
            return {**found, "errors": {}, "intervals": {}, "worst": worst}
        draws = np.random.default_rng(seed).integers(count, size=(_RESAMPLES, count))
        resampled = {name: each[name].double().numpy()[draws].mean(1) for name in names}
        low, high = (ends[self.metric].double().numpy()[draws].mean(1) for ends in (self.empty_each, self.full_each))
        with np.errstate(divide="ignore", invalid="ignore"):
            resampled["faithfulness"] = (resampled[self.metric] - low) / (high - low)
        intervals = {name: percentile_interval(circuit[name], values) for name, values in resampled.items()}
        errors = {name: interval.standard_error for name, interval in intervals.items()}
        errors |= {name: standard_error(values.double().numpy()) for name, values in each.items()}
        return {
            **found,
            "errors": errors,
            "intervals": {name: list(each.bounds) for name, each in intervals.items() if np.isfinite(each.low)},
            "worst": worst,
        }

    def faithfulness(self, figures: dict[str, float]) -> float:
        """(M(circuit) - M(empty)) / (M(full) - M(empty))."""
        low, high = self.empty[self.metric], self.full[self.metric]
        if high == low:
            return float("nan")
        return (figures[self.metric] - low) / (high - low) + 0.0  # never -0

    def require_ability(self, force: bool = False) -> None:
        """See that the whole model does the task better than the empty circuit.

        Raises:
            UserError: it does not; with `force`, only if both are the same or not finite, so that faithfulness is no
                number.
        """
        low, high = self.empty[self.metric], self.full[self.metric]
        if low == high:
            require_change(self.empty["distance"])  # the reason, where it is that
            raise UserError(
                f"Faithfulness cannot be measured: the {self._name} is {high:.3g} with all edges and without any.",
                "Check answers and prompts; without answers circuits are measured by their distance.",
            )
        if not isfinite(low) or not isfinite(high):
            raise UserError(
                f"The model gives no finite numbers: its {self._name} is {high:.3g}, without edges {low:.3g}.",
                "Check the weights, or run the model in fp32.",
            )
        if self._unable and not force:
            raise UserError(
                f"The model cannot do the task: its {self._name} is {high:.3g}, without edges {low:.3g}.",
                "Faithfulness would mean nothing; check answers and prompts, or go on with --force.",
            )

    @property
    def _name(self) -> str:
        return self.metric.replace("_", " ")

    @property
    def _unable(self) -> bool:
        """By every figure but the distance more is better."""
        return self.metric != "distance" and not self.full[self.metric] > self.empty[self.metric]

    def inability(self) -> str | None:
        """That the model does the task no better than without edges, in a sentence, if it is so."""
        if not self._unable:
            return None
        return (
            f"The model's {self._name} is {self.full[self.metric]:.3g}, without edges {self.empty[self.metric]:.3g}:"
            " faithfulness to it means nothing."
        )

    def doubts(self) -> list[str]:
        """What speaks against measuring circuits of this model on this task, in sentences for the user."""
        found = [each for each in (self.inability(),) if each]
        prefers = self.full_each.get("prefers_answer")
        if prefers is None:
            return found
        right, count = int(prefers.sum()), len(prefers)
        # of answer and distractor one is right by chance in half of the examples
        if wilson(right, count).low > _BY_CHANCE:
            return found
        return [
            *found,
            f"The model prefers the answer in {right} of {counted(count, 'examples')}, which may be by chance:"
            " faithfulness to it says little about the task.",
        ]


def top_edges(task: Counterfactuals, scores_E: Tensor, count: int, cleaned: bool = True) -> Tensor:
    """The edges with the highest scores, without those that are dead, [E]."""
    kept_E = torch.zeros(len(scores_E), dtype=torch.bool)
    kept_E[scores_E.argsort(descending=True, stable=True)[:count]] = True
    return clean(task.masked.graph, kept_E, task.ablation, writes_constants(task.masked.model)) if cleaned else kept_E


def curve(
    task: Counterfactuals, scores_E: Tensor, ends: Ends, fractions: Sequence[float] = FRACTIONS
) -> list[dict[str, float]]:
    """The figures of the best edges at each share of all edges, of which `edges` are left after cleaning; with the
    standard error of the distance and the interval of faithfulness where there are two examples or more.

    The number of edges is cut, not rounded, as MIB does.
    """
    rows = []
    for fraction in fractions:
        kept_E = top_edges(task, scores_E, int(fraction * len(scores_E)))
        found = ends.summary(measure_each(task, kept_E))
        low, high = found["intervals"].get("faithfulness", (None, None))
        rows.append(
            {
                "fraction": fraction,
                "edges": int(kept_E.sum()),
                **found["circuit"],
                "distance_error": found["errors"].get("distance"),
                "faithfulness_low": low,
                "faithfulness_high": high,
            }
        )
    return rows


def areas(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The areas of the benchmark MIB, by trapezoids over the share of edges.

    Returns:
        `cpr`, under faithfulness (higher is better; above 1 it is overshoot), and `cmd`, of its distance from 1 (0 is
        best). Four fifths of their weight lie above a fifth of the edges; `cpr_log` and `cmd_log` are those over the
        logarithm of the share, divided by its width, so that small circuits count as much as large ones.
    """
    x, y = np.array([row["fraction"] for row in rows]), np.array([row["faithfulness"] for row in rows])
    width = np.log(x[-1] / x[0]) if len(x) > 1 else np.nan
    return {
        "cpr": float(np.trapezoid(y, x)),
        "cmd": float(np.trapezoid(np.abs(1 - y), x)),
        "cpr_log": float(np.trapezoid(y, np.log(x)) / width),
        "cmd_log": float(np.trapezoid(np.abs(1 - y), np.log(x)) / width),
    }


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
    # an edge that adds less could as well be left out
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
