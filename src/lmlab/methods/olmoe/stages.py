"""Stages of recipes: `upcycle` makes a mixture of experts from a dense model, `routing` measures what routers do."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from pydantic import Field, PositiveInt

from lmlab.config import Config
from lmlab.data import PackedRows, TokenizedCorpus
from lmlab.files import write_json
from lmlab.methods.olmoe.report import analyse, routing_page
from lmlab.methods.olmoe.routing.collect import batches_of, collect, watch
from lmlab.methods.olmoe.routing.trace import RoutingTrace
from lmlab.methods.olmoe.upcycling import UpcycleConfig
from lmlab.methods.olmoe.upcycling import upcycle as make_sparse
from lmlab.models import save_pretrained
from lmlab.progress import short
from lmlab.reports import Section
from lmlab.runs import Input, Stage, StageContext
from lmlab.stages.start import Start


class UpcycleStageConfig(UpcycleConfig):
    """A dense model, and how experts are made of it.

    Attributes:
        model: a stage `train`, a checkpoint, or a model's directory.
    """

    model: Input


class Upcycle(Stage[UpcycleStageConfig]):
    """Writes model/, from which a stage `train` starts."""

    config_type: ClassVar[type[Config]] = UpcycleStageConfig

    def run(self, config: UpcycleStageConfig, context: StageContext) -> dict[str, Any]:
        """Upcycle."""
        start = Start.find(context.inputs["model"])
        sparse = make_sparse(start.load(), config)
        kind = save_pretrained(sparse, context.directory / "model", companions=start.tokenizer_directory)
        shape = sparse.config
        return {
            "model_type": kind,
            "parameters": shape.num_parameters(),
            "active_parameters": shape.num_parameters(active=True),
        }

    def summary(self, results: dict[str, Any]) -> str:
        """Sizes."""
        return f"{short(results['parameters'])} parameters, {short(results['active_parameters'])} active."


class Earlier(Config):
    """An earlier checkpoint of a model."""

    model: Input


class RoutingConfig(Config):
    """Which model, on which tokens.

    Attributes:
        model: a stage `train`, a checkpoint, or a model's directory.
        tokens: tokenised text.
        earlier: earlier checkpoints of the model by name, for saturation.
        seq_len: tokens of a sequence.
        sequences: most sequences, spread evenly over the text.
    """

    model: Input
    tokens: Input
    earlier: dict[str, Earlier] = Field(default={})
    seq_len: PositiveInt = 256
    sequences: PositiveInt = 256
    batch_size: PositiveInt = 8


class Routing(Stage[RoutingConfig]):
    """Writes trace.npz, routing.json, and a trace of each earlier checkpoint."""

    config_type: ClassVar[type[Config]] = RoutingConfig

    def run(self, config: RoutingConfig, context: StageContext) -> dict[str, Any]:
        """Trace and measure."""
        corpus = TokenizedCorpus(context.inputs["tokens"])
        rows = PackedRows(corpus, config.seq_len)
        count = min(config.sequences, len(rows))
        chosen = [rows[number * len(rows) // count] for number in range(count)]
        ids_ST = np.stack([row["input_ids"] for row in chosen])
        domain_S = [int(np.bincount(row["domain_ids"]).argmax()) for row in chosen]
        places = {"trace": context.inputs["model"]} | {
            name: context.inputs[f"earlier.{name}.model"] for name in config.earlier
        }
        traces = {}
        for name, place in places.items():
            routed = watch(Start.find(place).load())
            traces[name] = collect(
                routed, batches_of(ids_ST, config.batch_size), domains=corpus.domains, domain_S=domain_S, total=count
            )
            traces[name].save(context.directory / f"{name}.npz")
        final = traces.pop("trace")
        figures = analyse(final, traces)
        write_json(context.directory / "routing.json", figures)
        load = figures["load"][str(final.top_k)]
        return {
            "tokens": figures["tokens"],
            "max_load": load["max_over_mean"]["value"],
            "entropy": load["normalised_entropy"]["value"],
        }

    def summary(self, results: dict[str, Any]) -> str:
        """Loads."""
        return f"{results['tokens']:,} tokens, highest load {max(results['max_load']):.2f} times the mean."

    def report(self, config: RoutingConfig, results: dict[str, Any], directory: Path) -> list[Section]:
        """The sections of the page about routing."""
        earlier = {name: RoutingTrace.load(directory / f"{name}.npz") for name in config.earlier}
        return list(routing_page(RoutingTrace.load(directory / "trace.npz"), earlier).sections)
