"""Stages of recipes: `upcycle` makes a mixture of experts from a dense model, `routing` measures what routers do."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import numpy as np
from pydantic import Field, PositiveInt

from lmlab.config import Config
from lmlab.data import PackedRows, TokenizedCorpus
from lmlab.files import write_json
from lmlab.methods.olmoe.report import analyze, routing_page
from lmlab.methods.olmoe.routing.collect import batches_of, collect, watch
from lmlab.methods.olmoe.routing.trace import RoutingTrace
from lmlab.methods.olmoe.upcycling import UpcycleConfig
from lmlab.methods.olmoe.upcycling import upcycle as make_sparse
from lmlab.models import save_pretrained
from lmlab.progress import short
from lmlab.reports import Section
from lmlab.runs import Artifact, Model, ModelInput, Results, Stage, StageContext, Tokens, TokensInput, Vocabulary


class UpcycleStageConfig(UpcycleConfig):
    """A dense model, and how experts are made of it.

    Attributes:
        model: a stage `train`, a checkpoint, or a model's directory.
    """

    model: ModelInput


class UpcycleResults(Results):
    """What was written."""

    model_type: str
    parameters: int
    active_parameters: int


class Upcycle(Stage[UpcycleStageConfig, UpcycleResults]):
    """Writes model/, from which a stage `train` starts."""

    gives: ClassVar[tuple[type[Artifact], ...]] = (
        Model,
        Vocabulary,
    )

    def run(self, config: UpcycleStageConfig, context: StageContext) -> UpcycleResults:
        """Upcycle."""
        start = context.find(Model, "model")
        sparse = make_sparse(start.load(), config)
        kind = save_pretrained(sparse, context.directory / "model", companions=start.source)
        shape = sparse.config
        return UpcycleResults(
            model_type=kind,
            parameters=shape.num_parameters(),
            active_parameters=shape.num_parameters(active=True),
        )

    def summary(self, results: UpcycleResults) -> str:
        """Sizes."""
        return f"{short(results.parameters)} parameters, {short(results.active_parameters)} active."


class Earlier(Config):
    """An earlier checkpoint of a model."""

    model: ModelInput


class RoutingConfig(Config):
    """Which model, on which tokens.

    Attributes:
        model: a stage `train`, a checkpoint, or a model's directory.
        tokens: tokenized text.
        earlier: earlier checkpoints of the model by name, for saturation.
        seq_len: tokens of a sequence.
        sequences: most sequences, spread evenly over the text.
    """

    model: ModelInput
    tokens: TokensInput
    earlier: dict[str, Earlier] = Field(default={})
    seq_len: PositiveInt = 256
    sequences: PositiveInt = 256
    batch_size: PositiveInt = 8


class RoutingResults(Results):
    """By layer: the highest load of an expert over the mean, and the entropy of loads over its maximum."""

    tokens: int
    max_load: list[float]
    entropy: list[float]


class Routing(Stage[RoutingConfig, RoutingResults]):
    """Writes trace.npz, routing.json, and a trace of each earlier checkpoint."""

    def run(self, config: RoutingConfig, context: StageContext) -> RoutingResults:
        """Trace and measure."""
        corpus = TokenizedCorpus(context.find(Tokens, "tokens").path)
        rows = PackedRows(corpus, config.seq_len)
        count = min(config.sequences, len(rows))
        chosen = [rows[number * len(rows) // count] for number in range(count)]
        ids_ST = np.stack([row["input_ids"] for row in chosen])
        domain_S = [int(np.bincount(row["domain_ids"]).argmax()) for row in chosen]
        places = {"trace": "model"} | {name: f"earlier.{name}.model" for name in config.earlier}
        traces = {}
        for name, place in places.items():
            routed = watch(context.find(Model, place).load())
            traces[name] = collect(
                routed, batches_of(ids_ST, config.batch_size), domains=corpus.domains, domain_S=domain_S, total=count
            )
            traces[name].save(context.directory / f"{name}.npz")
        final = traces.pop("trace")
        figures = analyze(final, traces)
        write_json(context.directory / "routing.json", figures)
        load = figures["load"][str(final.top_k)]
        return RoutingResults(
            tokens=figures["tokens"],
            max_load=load["max_over_mean"]["value"],
            entropy=load["normalized_entropy"]["value"],
        )

    def summary(self, results: RoutingResults) -> str:
        """Loads."""
        return f"{results.tokens:,} tokens, highest load {max(results.max_load):.2f} times the mean."

    def report(self, config: RoutingConfig, results: RoutingResults, directory: Path) -> list[Section]:
        """The sections of the page about routing."""
        earlier = {name: RoutingTrace.load(directory / f"{name}.npz") for name in config.earlier}
        return list(routing_page(RoutingTrace.load(directory / "trace.npz"), earlier).sections)
