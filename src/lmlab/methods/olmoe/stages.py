"""Stages of recipes: `upcycle` makes a mixture of experts from a dense model, `routing` measures what routers do,
`ablation` compares design choices by models that `train_bytes` trains.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from lmlab.data import PackedRows, TokenizedCorpus
from lmlab.files import write_json
from lmlab.methods.olmoe.ablation import ablation_sections, run_ablation, train_on_bytes
from lmlab.methods.olmoe.config import AblationConfig, ByteTrainingConfig, RoutingConfig, UpcycleStageConfig
from lmlab.methods.olmoe.report import analyze, routing_page
from lmlab.methods.olmoe.routing.collect import batches_of, collect, watch
from lmlab.methods.olmoe.routing.trace import RoutingTrace
from lmlab.methods.olmoe.upcycling import upcycle as make_sparse
from lmlab.models import save_pretrained
from lmlab.progress import console, short
from lmlab.reports import Section
from lmlab.runs import Artifact, Model, Results, Stage, StageContext, Tokens, Vocabulary


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
        """Sizes and family."""
        sizes = f"{short(results.parameters)} parameters, {short(results.active_parameters)} active"
        return f"{sizes}, as {results.model_type}."


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


class ByteTrainingResults(Results):
    """Validation loss in nats a byte, in the mean of domains and by domain; highest load of an expert over the mean, by
    layer.
    """

    loss: float
    loss_by_domain: dict[str, float]
    max_load: list[float]
    parameters: int
    active_parameters: int
    seconds: float


class TrainBytes(Stage[ByteTrainingConfig, ByteTrainingResults]):
    """Writes metrics.jsonl and checkpoints."""

    def run(self, config: ByteTrainingConfig, context: StageContext) -> ByteTrainingResults:
        """Train and measure."""
        placed = config.model_copy(update={"texts": str(context.inputs["texts"])})
        return ByteTrainingResults(**train_on_bytes(placed, context.directory, context.seed))

    def summary(self, results: ByteTrainingResults) -> str:
        """Loss and size."""
        return f"{results.loss:.4f} nats a byte, {short(results.parameters)} parameters."


class AblationResults(Results):
    """Results of each variant by seed, and the comparisons of choices."""

    results: dict[str, list[dict[str, Any]]]
    comparisons: list[dict[str, Any]]


class Ablation(Stage[AblationConfig, AblationResults]):
    """Writes a run for each variant and seed."""

    def run(self, config: AblationConfig, context: StageContext) -> AblationResults:
        """Train what is missing, and compare."""
        placed = config.model_copy(update={"texts": str(context.inputs["texts"])})
        return AblationResults(**run_ablation(placed, context.directory, _tell))

    def continues(
        self, config: AblationConfig, before: Mapping[str, Any], finished: bool, directory: Path
    ) -> str | None:
        """Each variant is a run of its own settings, so that those that are finished stay."""
        return "trains what is new; the runs of before are kept"

    def summary(self, results: AblationResults) -> str:
        """The differences."""
        return " ".join(comparison_sentence(row) for row in results.comparisons if row["difference"] is not None)

    def report(self, config: AblationConfig, results: AblationResults, directory: Path) -> list[Section]:
        """Tables and curves."""
        return ablation_sections(config, results.to_json(), directory)


def comparison_sentence(row: Mapping[str, Any]) -> str:
    """A row of a comparison in words."""
    tested = ""
    if row["p"] is not None:
        low, high = row["interval"]
        tested = f", 95 % interval {low:+.4f} to {high:+.4f}, p = {row['p']:.3f}"
    gap = f"{row['variant']} - {row['against']} = {row['difference']:+.4f} nats a byte ({row['seeds']} seeds{tested})"
    return f"{row['choice']}: {gap}"


def _tell(result: Mapping[str, Any]) -> None:
    console.print(f"  {result['variant']}, seed {result['seed']}: {result['loss']:.4f} nats a byte")
