"""Settings of the method: examples, graphs, the search for circuits and its training."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from lmlab.config import NO_INFLUENCE, Config, Flag, validate
from lmlab.errors import UserError
from lmlab.hardware.settings import OnDevice
from lmlab.runs import Input, ModelInput, QuestionsInput, VocabularyInput
from lmlab.train import ParallelConfig
from lmlab.words import counted

Ablation = Literal["interchange", "zero", "mean", "optimal"]
Metric = Literal["distance", "logit_difference", "log_odds", "probability", "probability_difference", "accuracy"]
Attribution = Literal["eap", "eap-ig", "eap-gp", "mask-ig", "nap", "nap-ig", "relp", "atp-star"]
Method = Literal[
    "edge-pruning",
    "node-pruning",
    "ugs",
    "ranking",
    "eap",
    "eap-ig",
    "eap-gp",
    "mask-ig",
    "nap",
    "nap-ig",
    "relp",
    "atp-star",
    "ifr",
    "exact",
    "acdc",
    "random",
]
METHODS: tuple[Method, ...] = get_args(Method)
_GATED: tuple[Method, ...] = ("edge-pruning", "node-pruning", "ugs")
TRAINED: tuple[Method, ...] = (*_GATED, "ranking")
"""Methods that train."""
RANKED = (*TRAINED, "acdc", "checkpoint")
"""Where scores come from that say by themselves which edges come first, also below 0; those of others are effects, of
either sign. `checkpoint` are gates of the reference implementation."""
DRAWN: tuple[Method, ...] = (*TRAINED, "random")
"""Methods that depend on a seed."""
_IG_STEPS = 5  # more follow the path more closely, and take a backward pass each
CONVERGED = {True: "yes", False: "no", None: "not known"}
"""Whether a search has converged, in words."""
_READ_BY: dict[str, tuple[Method, ...]] = {
    "price": _GATED,
    "preset": _GATED,
    "pruning": _GATED,
    "ranking": ("ranking",),
    "threshold": ("acdc",),
    "ig_steps": ("edge-pruning", "ugs", "eap-ig", "eap-gp", "mask-ig", "nap-ig"),
    "warm_start": ("edge-pruning", "ugs"),
    "whole_gradient": ("atp-star",),
    "metric": tuple(method for method in METHODS if method not in ("ifr", "random")),
}
"""The methods that read a setting; one that is not named here is read by all."""


def reads(method: str, setting: str) -> bool:
    """Whether a setting of `FindConfig` has an influence on a method."""
    return method in _READ_BY.get(setting, METHODS)


class GraphOptions(Config):
    """How fine the graph is.

    Attributes:
        embedding_nodes: embeddings are writers with edges; without, every reader gets the clean embeddings.
        post_norm: where a norm follows the attention (OLMo 2), whose output then is no sum over heads: `frozen` takes
            the norm's scale from the clean run, so that heads are writers of their own; `block` makes one writer of
            them.
        moe: a mixture of experts is one writer (`block`), or each expert is one (`expert`); the router is inside and
            reads what the experts read.
        join_embeddings: the tables of tokens and of positions are one writer, as in EAP-IG and MIB.
        positions: an edge is kept or pruned for all tokens alike (`shared`), or for the tokens of each span by itself:
            `spans` are those that the examples name, `each` is every token, of examples that all have the same length.
    """

    embedding_nodes: bool = True
    post_norm: Literal["frozen", "block"] = "frozen"
    moe: Literal["block", "expert"] = "block"
    join_embeddings: bool = False
    positions: Literal["shared", "spans", "each"] = "shared"


class EdgePruningConfig(Config):
    """How gates are trained.

    Attributes:
        target: edge sparsity, held by a Lagrangian (section 3.3 of the paper); targets above 1 push harder.
        price: in place of a target, what one edge costs, as a share of the distance of the empty circuit.
        node_gates: gates on writers too; an edge is kept where both are. `only` prunes writers alone.
        node_target: sparsity of writers, held like `target`.
        warmup_fraction: of the learning rate; `sparsity_warmup` is the share of steps over which the target (or price)
            rises.
        sparsity_schedule: the target rises from the sparsity at the start linearly, or `log`: linearly in log(1 -
            sparsity).
        mask_samples: draw masks for each example, or as in the paper one for each step.
        estimator: what sparsity is computed from: the expected number of open gates, or the gates drawn.
        init_log_alpha, init_std: where gates begin.
        normalize: divide the distance by that of the empty circuit.
        polish: when gates are decided, drop edges that are not worth the price and add those that are, until no single
            one improves it. None does so where the graph is small enough to try each edge, and with a price by
            first-order estimates where it is not.
        restarts: trainings with different seeds, of which the circuit with the lowest loss is taken. None goes on while
            a search on a small graph has not converged, up to three.
        num_edges: keep so many edges, whatever the gates say.
        sampler: how gates are drawn: hard concrete, or `uniform`, the window of UGS (Li and Janson 2024), which has no
            saturated ends.
        own_price: the price is the user's own; one that was derived gives way to a circuit that leaves no distance.
    """

    target: float | None = Field(default=None, gt=0)
    price: PositiveFloat | None = None
    node_gates: Literal["none", "also", "only"] = "none"
    node_target: float | None = Field(default=None, gt=0)
    steps: PositiveInt = 1000
    batch_size: PositiveInt = 32
    micro_batch_size: PositiveInt | None = None
    learning_rate: PositiveFloat = 0.1
    lambda_learning_rate: PositiveFloat = 0.1
    weight_decay: float = Field(default=0.0, ge=0)
    warmup_fraction: float = Field(default=0.02, ge=0, lt=1)
    final_fraction: float = Field(default=0.1, ge=0, le=1)
    sparsity_warmup: float = Field(default=0.7, gt=0, le=1)
    sparsity_schedule: Literal["linear", "log"] = "linear"
    mask_samples: Literal["per_example", "per_step"] = "per_example"
    estimator: Literal["expected", "sampled"] = "expected"
    init_log_alpha: float = 3.0
    init_std: float = Field(default=0.01, ge=0)
    normalize: bool = True
    polish: bool | None = None
    restarts: PositiveInt | None = None
    num_edges: PositiveInt | None = None
    sampler: Literal["hard_concrete", "uniform"] = "hard_concrete"
    own_price: bool = True
    clip_norm: PositiveFloat = 1.0
    checkpoint_every: PositiveInt = 200
    parallel: ParallelConfig = ParallelConfig(kind="data")

    @model_validator(mode="after")
    def _check(self) -> EdgePruningConfig:
        if (self.target is None) == (self.price is None):
            raise ValueError("give either target or price.")
        if self.node_target is not None and self.node_gates == "none":
            raise ValueError("node_target needs node_gates: also, or only.")
        if self.sparsity_schedule == "log" and (self.target is None or self.target >= 1):
            raise ValueError("sparsity_schedule log needs a target below 1.")
        return self

    def edge_price(self, edges: int) -> float:
        """What one edge of a graph of so many costs when circuits are polished, as a share of the empty circuit's
        distance.
        """
        if self.price is not None:
            return self.price
        assert self.target is not None
        return default_price(edges) if self.target >= 1 else _TARGET_COST / max(1.0, (1 - self.target) * edges)


# `default_price` has the rule; at a target, all edges of that size cost a twentieth of the distance together.
_SMALL_GRAPH, _SHARE, _COST, _TARGET_COST = 1000, 0.07, 0.5, 0.05


def default_price(edges: int) -> float:
    """What one edge costs where nobody says, as a share of the empty circuit's distance.

    So many edges as a circuit may need cost half of that distance together: all of a graph of up to a thousand edges,
    a thousand of a larger one, and 7 % of those beyond 14,000 edges. GPT-2: 0.0002; SmolLM2-135M: 0.0001.
    """
    return _COST / max(min(edges, _SMALL_GRAPH), _SHARE * edges)


PAPER = {
    "learning_rate": 0.8,
    "lambda_learning_rate": 0.8,
    "weight_decay": 0.01,
    "steps": 3000,
    "batch_size": 32,
    "warmup_fraction": 0.0667,
    "final_fraction": 0.0,
    "sparsity_warmup": 0.8333,
    "init_log_alpha": 10.0,
    "normalize": False,
    "mask_samples": "per_step",
    "estimator": "sampled",
    "node_gates": "also",
    "polish": False,
}
"""The settings of the paper for GPT-2, in place of the defaults."""


class RankingConfig(Config):
    """How one ranking for circuits of all sizes is trained (Matryoshka attribution).

    Attributes:
        objective: what a masked pass is to be: `distance`, close to the model; `faithful`, of its faithfulness,
            |1 - f| small (for CMD); `metric`, of the highest metric (for CPR): the logit difference, or what the search
            goes by.
        sizes: how many edges are drawn for each example: `log`, uniformly in their logarithm, or `uniform`.
        temperature: of the soft masks; at 0 they would be those of the best k edges.
    """

    objective: Literal["distance", "faithful", "metric"] = "distance"
    sizes: Literal["log", "uniform"] = "log"
    steps: PositiveInt = 500
    batch_size: PositiveInt = 32
    micro_batch_size: PositiveInt | None = None
    learning_rate: PositiveFloat = 0.05
    temperature: PositiveFloat = 0.5
    checkpoint_every: PositiveInt = 200


class OptimalConfig(Config):
    """How the constants of `optimal` ablation are learned: first for circuits of random edges of all sizes, then for
    the circuit that was found.
    """

    steps: PositiveInt = 200
    batch_size: PositiveInt = 32
    micro_batch_size: PositiveInt | None = None
    learning_rate: PositiveFloat = 0.01


class FindConfig(Config):
    """What to find, and how.

    Attributes:
        method: edge-pruning, node-pruning, ugs, ranking, eap, eap-ig, eap-gp, mask-ig, nap, nap-ig, relp, atp-star,
            ifr, exact, acdc or random.
        metric: what the search goes by: distance, logit_difference, log_odds (of several right and wrong answers),
            probability, probability_difference, or accuracy (of exact and acdc). By default searches that train or try
            edges go by the distance, first-order scores by the logit difference where there are answers.
        ablation: what pruned edges carry: interchange (the corrupted run), zero, mean, or optimal (a constant for each
            writer, learned to leave the circuit as close to the model as it can be).
        graph: how fine the graph is.
        target: edge sparsity, such as 0.98.
        num_edges: in its place, how many edges the circuit has before it is cleaned.
        price: of edge-pruning and node-pruning, in place of a target: what an edge costs, as a share of the empty
            circuit's distance; by default it follows from the size of the graph.
        threshold: of acdc: the rise of the distance that keeps an edge, as a share of that of the empty circuit.
        ig_steps: of integrated gradients.
        preset: `paper`: the paper's settings of edge-pruning; those of `pruning` go before it.
        pruning: further settings of edge-pruning, node-pruning and ugs.
        ranking: settings of `ranking`.
        optimal: how the constants of `optimal` ablation are learned.
        warm_start: begin edge-pruning from the scores of `eap-ig`.
        whole_gradient: of atp-star: the gradient that drops no layer is part of the mean too, for models of few layers.
    """

    method: Method = "edge-pruning"
    metric: Metric | None = None
    ablation: Ablation = "interchange"
    graph: GraphOptions = GraphOptions()
    target: float | None = Field(default=None, gt=0)
    num_edges: PositiveInt | None = None
    price: PositiveFloat | None = None
    threshold: PositiveFloat = 0.01
    ig_steps: PositiveInt = _IG_STEPS
    warm_start: bool = False
    whole_gradient: bool = False
    preset: Literal["default", "paper"] = "default"
    pruning: dict[str, object] = {}
    ranking: RankingConfig = RankingConfig()
    optimal: OptimalConfig = OptimalConfig()

    @model_validator(mode="after")
    def _check(self) -> FindConfig:
        if self.target is not None and self.price is not None:
            raise ValueError("give either target or price: a price decides itself how many edges are worth it.")
        # wrong keys and values are refused whatever the method, not only by those that train gates
        price = {} if {"target", "price"} & set(self.pruning) else {"price": default_price(_SMALL_GRAPH)}
        validate(EdgePruningConfig, {**price, **self.pruning}, "pruning")
        for name, readers in _READ_BY.items():
            default = FindConfig.model_fields[name].get_default(call_default_factory=True)
            if getattr(self, name) != default and self.method not in readers:
                raise ValueError(
                    f"{name} has no influence on the method {self.method}, only on {', '.join(readers)}; leave it out."
                )
        if self.optimal != OptimalConfig() and self.ablation != "optimal":
            raise ValueError("optimal has no influence without the ablation optimal; leave it out.")
        if self.ig_steps != _IG_STEPS and self.method in _GATED and not self.warm_start:
            raise ValueError("ig_steps has no influence without warm_start; leave it out.")
        return self

    @property
    def draws(self) -> bool:
        """Whether the circuit depends on the seed: that of the method, or of the constants that are learned for it."""
        return self.method in DRAWN or self.ablation == "optimal"

    def pruning_config(self, edges: int) -> EdgePruningConfig:
        """The settings of the training for a graph of so many edges.

        Raises:
            UserError: one of them is wrong.
        """
        if self.num_edges is not None and self.num_edges >= edges:
            raise UserError(
                f"A circuit of {counted(self.num_edges, 'edges')} was asked for; the graph has {edges:,}, of which some"
                " are to be pruned.",
                "Give another --num-edges.",
            )
        settings: dict[str, object] = dict(PAPER) if self.preset == "paper" else {}
        if self.method == "node-pruning":
            settings["node_gates"] = "only"
        if self.method == "ugs":
            settings |= {"sampler": "uniform", "init_log_alpha": 1.0}
        target = self.target if self.num_edges is None else 1 - self.num_edges / edges
        if self.price is not None:
            settings["price"] = self.price
        elif target is not None:
            settings["target"] = target
        else:
            settings |= {"price": default_price(edges), "own_price": False}
        if self.num_edges is not None:
            settings["num_edges"] = self.num_edges
        return validate(EdgePruningConfig, {**settings, **self.pruning}, "pruning")


def with_training(given: Mapping[str, Any], settings: Mapping[str, object]) -> dict[str, Any]:
    """The settings of a search with some of its training, if its method trains; those that were given go before."""
    method = given.get("method", FindConfig.model_fields["method"].default)
    part = "ranking" if method == "ranking" else "pruning"
    own = given.get(part, {})
    if method not in TRAINED or not isinstance(own, Mapping):  # what is no mapping is refused where it is validated
        return dict(given)
    return {**given, part: {**settings, **own}}


class ReadingOptions(OnDevice):
    """Which examples of a file circuits are looked for and measured on, and how.

    Attributes:
        split: take the lines of this split.
        tokenizer: directory of the tokenizer, by default the model's.
        num_examples: take the first so many examples.
        batch_size: examples at once.
        recompute: compute sub-layers again in the backward pass: less memory, more time.
        drop_mismatched: leave out pairs whose token counts differ.
        first_token: take the first token of answers that have several.
        force: go on though the model cannot do the task.
        held_out: the share of the examples that a search does not see and figures are measured on; a file whose lines
            name splits has its own, and a compiled program is searched on all its cases.
    """

    split: str | None = None
    tokenizer: VocabularyInput | None = None
    num_examples: Annotated[PositiveInt | None, Flag(("--examples",))] = None
    batch_size: Annotated[PositiveInt, NO_INFLUENCE] = 16
    recompute: Annotated[bool, NO_INFLUENCE] = False
    drop_mismatched: bool = False
    first_token: bool = False
    force: bool = False
    held_out: float = Field(default=0.2, ge=0, lt=1)


class TaskOptions(ReadingOptions):
    """On which examples circuits are looked for and measured.

    Attributes:
        data: examples, JSON lines; a compiled program brings its own.
    """

    data: Annotated[Path | None, Flag(("--data", "-d"))] = None


class RepeatOptions(Config):
    """How often to search.

    Attributes:
        seeds: search so often, with other seeds; the stability over them is told, and a single circuit is the best.
    """

    seeds: PositiveInt = 1


class SweepOptions(Config):
    """How searches share the machine.

    Attributes:
        workers: searches at once, each with the model in its memory.
    """

    workers: Annotated[PositiveInt, NO_INFLUENCE, Flag(("--workers", "-w"))] = 1


class ExampleOptions(Config):
    """Which examples a file gets.

    Attributes:
        count: how many.
        split: train, validation or test: no example of one is in another.
    """

    count: PositiveInt = 200
    split: Literal["train", "validation", "test"] = "train"


class CircuitExamplesConfig(Config):
    """A task, and how many examples of it.

    Attributes:
        tokenizer: a directory with tokenizer.json, or a stage that has one.
        splits: how many examples of each split.
        shots: of `boolean`: solved examples in the prompt.
    """

    task: str
    tokenizer: VocabularyInput
    splits: dict[Literal["train", "validation", "test"], PositiveInt] = {"train": 200, "validation": 200, "test": 200}
    shots: NonNegativeInt = 3


class CircuitQuestionsConfig(Config):
    """From which questions, and how many examples.

    Attributes:
        questions: a stage that makes questions, such as `next_line_task`, or a file of them.
        tokenizer: a directory with tokenizer.json, or a stage that has one.
        splits: how many examples of each split.
        tokens: of each prompt.
    """

    questions: QuestionsInput
    tokenizer: VocabularyInput
    splits: dict[Literal["train", "validation", "test"], PositiveInt] = {"train": 32, "test": 32}
    tokens: PositiveInt = 32


class CircuitConfig(FindConfig, ReadingOptions):
    """What to find on which model.

    Attributes:
        model: a model's directory, a stage that has one in model/, or a program compiled by Tracr.
        examples: a stage `circuit_examples` or `circuit_questions`, or a file of JSON lines; the split `train` serves
            the search and `test` (or else `validation`) the measures, and of a file without splits a share is held out.
            A compiled program brings its own.
        curve: also measure the best edges by rank at 0.1 to 100 % of all.
    """

    model: ModelInput
    examples: Input | None = None
    curve: bool = True
