"""All ways to find a circuit, behind one function."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

import lmlab
from lmlab.errors import UserError
from lmlab.files import sha256_json
from lmlab.methods.edge_pruning.config import RANKED, FindConfig
from lmlab.methods.edge_pruning.graph.circuit import Circuit
from lmlab.methods.edge_pruning.graph.clean import clean, writes_constants
from lmlab.methods.edge_pruning.masking.counterfactuals import Counterfactuals
from lmlab.methods.edge_pruning.masking.metrics import require_metric
from lmlab.methods.edge_pruning.masking.optimal import learn_constants, to_lists
from lmlab.methods.edge_pruning.measures import Ends, measure_each, overlap, stability, top_edges
from lmlab.methods.edge_pruning.search.attribution import attribute
from lmlab.methods.edge_pruning.search.baselines import acdc, exact_effects, random_scores
from lmlab.methods.edge_pruning.search.flow import information_flow
from lmlab.methods.edge_pruning.search.prune import Found, find_by_pruning
from lmlab.methods.edge_pruning.search.rank import train_ranking
from lmlab.models import weights_fingerprint
from lmlab.runs import one_job, require_same_work
from lmlab.words import counted


def ranking(method: str, scores_E: Tensor) -> Tensor:
    """By what the edges of a method are ranked, higher is more, [E]: gates and trials by their scores, first-order
    effects by their size.
    """
    return scores_E if method in RANKED else scores_E.abs()


UNLIKE_COST = 5.0
"""How many prices an edge costs that a circuit to be unlike has."""


def search(
    task: Counterfactuals,
    config: FindConfig,
    seed: int = 0,
    directory: str | Path | None = None,
    unlike_E: Tensor | None = None,
) -> Found:
    """Find a circuit by any method.

    Arguments:
        unlike_E: edges that are to be done without where others do as well; they cost five prices each.
        directory: where edge-pruning keeps checkpoints to go on from.

    Raises:
        UserError: a size is needed and not given, the corruption changes nothing, or the method cannot go by the
            metric.
    """
    if config.metric is not None:
        require_metric(task, config.metric, gradients=config.method not in ("exact", "acdc"))
        task = task.by(config.metric)
    directory = None if directory is None else Path(directory)
    edges, _ = task.masked.graph.num_edges, task.empty_distance
    if config.method == "edge-pruning" or config.method == "node-pruning" or config.method == "ugs":
        if unlike_E is not None and config.target is None and config.num_edges is None:
            costs_E = 1 + (UNLIKE_COST - 1) * unlike_E.float()
            return find_by_pruning(task, config.pruning_config(edges), seed, directory, None, costs_E)
        if unlike_E is not None:
            raise UserError("A circuit unlike others is found by a price.", "Leave out --target and --num-edges.")
        warm = attribute(task, "eap-ig", config.ig_steps, config.metric).abs() if config.warm_start else None
        return find_by_pruning(task, config.pruning_config(edges), seed, directory, warm)
    if unlike_E is not None:
        raise UserError(f"The method {config.method} cannot be told what to be unlike.", "Take --method edge-pruning.")
    if config.method == "acdc":
        kept_E, rise_E = acdc(task, config.threshold * task.empty_distance)
        scores_E = rise_E + kept_E.float() * float(rise_E.abs().max() + 1)  # the edges that were kept come first
        if config.num_edges is None and config.target is None:
            return Found(
                clean(task.masked.graph, kept_E, task.ablation, writes_constants(task.masked.model)),
                scores_E,
                int(kept_E.sum()),
            )
    elif config.method == "ranking":
        scores_E = train_ranking(task, config.ranking, seed, directory)
    elif config.method == "exact":
        scores_E = exact_effects(task)
    elif config.method == "random":
        scores_E = random_scores(task, seed)
    elif config.method == "ifr":
        scores_E = information_flow(task)
    else:
        scores_E = attribute(task, config.method, config.ig_steps, config.metric, config.whole_gradient)
    if config.num_edges is None and config.target is None:
        raise UserError(
            f"The method {config.method} needs to know how many edges to keep.", "Give --target or --num-edges."
        )
    if config.num_edges is None and (config.target or 0) >= 1:
        raise UserError(
            f"A target of {config.target} leaves no edges to the method {config.method}.",
            "Give the share of edges to prune, such as 0.98; only the gates of edge-pruning and node-pruning can be"
            " pushed beyond 1.",
        )
    count = config.num_edges or round((1 - (config.target or 0)) * edges)
    if not 1 <= count <= edges:
        raise UserError(
            f"A circuit of {counted(count, 'edges')} was asked for; the graph has {edges:,}.",
            "Give another --target or --num-edges.",
        )
    return Found(top_edges(task, ranking(config.method, scores_E), count), scores_E, count)


def find_circuit(
    task: Counterfactuals,
    config: FindConfig,
    seed: int = 0,
    directory: str | Path | None = None,
    force: bool = False,
    about: Mapping[str, str] | None = None,
    held_out: Counterfactuals | None = None,
    unlike: Sequence[Circuit] = (),
) -> Circuit:
    """Find a circuit, and measure it.

    Arguments:
        unlike: circuits whose edges are to be done without, where others do as well.
        held_out: the task on examples that the search does not see; its figures are those to report.
        directory: where edge-pruning keeps checkpoints; another search cannot go on from there.
        force: go on though the model cannot do the task.
        about: what the circuit notes of model and examples (`Loaded.about`); `model_hash` is needed where the weights
            are spread over processes, and is computed else.

    Raises:
        UserError: the model cannot do the task, or the directory is that of another search.
    """
    directory = None if directory is None else Path(directory)
    ends = Ends.of(task)
    ends.require_ability(force)
    held_ends = None if held_out is None else Ends.of(held_out)
    if held_ends is not None:
        held_ends.require_ability(force=True)  # of few examples the figures are told with a warning
    graph = task.masked.graph
    given = dict(about or {})
    searched: dict[str, object] = {
        "method": config.method,
        "seed": seed,
        "settings": config.model_dump(mode="json"),
        "model_hash": given.get("model_hash") or weights_fingerprint(task.masked.model)[:16],
        "data_hash": task.examples.fingerprint,
        "examples": len(task.examples),
    }
    unlike_E = None
    if unlike:
        for each in unlike:
            each.require(graph_hash=graph.describe()["hash"])
            if each.ablation != task.ablation:
                raise UserError(
                    f"The circuit to be unlike was found under the ablation {each.ablation}, this search goes by"
                    f" {task.ablation}, so their edges do not mean the same.",
                    "Find both under the same --ablation.",
                )
        unlike_E = torch.stack([each.kept_E for each in unlike]).any(0)
        searched["unlike"] = sha256_json(unlike_E.nonzero().flatten().tolist())[:16]
    with nullcontext() if directory is None else one_job(directory, "--run"):
        if directory is not None:
            now = {**searched, "graph": graph.describe()["hash"], "ablation": task.ablation}
            require_same_work(directory / "search.json", now, "search", "--run")
        if task.ablation == "optimal":
            task = learn_constants(task, config.optimal, None, seed)
        found = search(task, config, seed, directory, unlike_E)
        if task.ablation == "optimal":  # those of the circuit itself
            task = learn_constants(task, config.optimal, found.kept_E, seed)
    if task.ablation == "optimal":
        ends = Ends.of(task)
    fixed = task.ablation in ("mean", "optimal")
    if held_out is not None and fixed and task.constants is not None:  # means too are those of the search
        held_out = held_out.with_constants(task.constants)
        held_ends = Ends.of(held_out)
    metrics = {**ends.summary(measure_each(task, found.kept_E)), "edges_before_cleaning": found.num_raw}
    doubts = ends.doubts()
    if held_out is not None and held_ends is not None:
        metrics["held_out"] = held_ends.summary(measure_each(held_out, found.kept_E))
        # a few held-out examples say nothing of chance, but an inability that shows on them alone is told
        if (unable := held_ends.inability()) and ends.inability() is None:
            doubts.append(f"On the examples that are held out: {unable[0].lower()}{unable[1:]}")
    if ends.inability():
        metrics["unable"] = True
    if found.figures:
        metrics["search"] = dict(found.figures)
    warnings = [*graph.warnings(), *doubts, *found.warnings]
    return Circuit(
        graph,
        found.kept_E,
        task.ablation,
        found.scores_E,
        {
            **given,
            **searched,
            "prompts": task.examples.prompt_hashes,
            "lmlab": source_version(),
            "warnings": warnings,
            "converged": found.converged,
        },
        metrics,
        to_lists(task.constants) if fixed and task.constants is not None else None,
    )


def best_of(circuits: Sequence[Circuit]) -> Circuit:
    """The circuit of several seeds with the lowest loss of its search, or else the lowest distance, with the stability
    of all in its metrics.
    """

    def rank(circuit: Circuit) -> tuple[bool, float]:
        own = circuit.metrics.get("search", {}).get("loss", circuit.metrics["circuit"]["distance"])
        return circuit.about["converged"] is False, float(own)

    best = min(circuits, key=rank)
    if len(circuits) == 1:
        return best
    steady = stability([each.kept_E for each in circuits])
    writers = [each.graph.edge_writers[each.kept_E].unique() for each in circuits]
    nodes = torch.zeros(len(circuits), len(best.graph.writers), dtype=torch.bool)
    for row, numbers in zip(nodes, writers, strict=True):
        row[numbers] = True
    frequency_E = steady["frequency"]
    found = {
        "seeds": [int(each.about["seed"]) for each in circuits],
        "edges": [each.num_edges for each in circuits],
        "jaccard": steady["jaccard"],
        "node_jaccard": stability(list(nodes))["jaccard"],
        "core": [list(edge) for edge in best.graph.edges(frequency_E == 1)],
        "in_any": int((frequency_E > 0).sum()),
        "frequency": {
            " -> ".join(best.graph.edge(n)): float(frequency_E[n]) for n in best.kept_E.nonzero()[:, 0].tolist()
        },
        "distances": [float(each.metrics["circuit"]["distance"]) for each in circuits],
        "converged": sum(bool(each.about["converged"]) for each in circuits),
    }
    return replace(best, metrics={**best.metrics, "stability": found})


def resampled(task: Counterfactuals, seed: int) -> Counterfactuals:
    """The task on as many examples, drawn with replacement."""
    count = len(task.examples)
    index = torch.randint(count, (count,), generator=torch.Generator().manual_seed(seed))
    return task.on(task.examples.take(index))


def with_bootstrap(circuit: Circuit, draws: Sequence[Circuit]) -> Circuit:
    """The circuit with how far circuits of resampled examples agree, in its metrics; `unable` counts the draws on which
    the model does the task no better than without edges.
    """
    steady = stability([each.kept_E for each in draws])
    own = [overlap(circuit.kept_E, each.kept_E)["jaccard"] for each in draws]
    found = {
        "searches": len(draws),
        "jaccard": steady["jaccard"],
        "jaccard_with_circuit": sum(own) / len(own),
        "core": int((steady["frequency"] == 1).sum()),
        "edges": [each.num_edges for each in draws],
        "unable": sum("unable" in each.metrics for each in draws),
    }
    return replace(circuit, metrics={**circuit.metrics, "bootstrap": found})


def source_version() -> str:
    """The version of lmlab, with the commit where it runs from a checkout."""
    folder = Path(lmlab.__file__).parent
    if not (folder.parents[1] / ".git").exists():
        return lmlab.__version__
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return lmlab.__version__
    return f"{lmlab.__version__} ({found.stdout.strip()})" if found.returncode == 0 else lmlab.__version__
