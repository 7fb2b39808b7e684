"""Stages of recipes: `compress_train` teaches a model to compress, `compress_fit` another kind of compression, and
`compress_compare` compares kinds that need no training.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from lmlab.methods.autocompressor.fitting.config import CompressCompareConfig, CompressFitConfig
from lmlab.methods.autocompressor.report import comparison_sections, training_sections
from lmlab.methods.autocompressor.training.config import CompressTrainConfig
from lmlab.methods.autocompressor.training.train import train_compressor
from lmlab.reports import Section
from lmlab.runs import Artifact, Model, Results, Stage, StageContext, Tokens, Vocabulary
from lmlab.runs.loading import Loading
from lmlab.stages.parts.training import TrainingResults, planned_model, promised_model
from lmlab.words import counted


class CompressTrainResults(TrainingResults):
    """The training; further fields are held-out losses by segment, `heldout_loss/segment_1` and so on."""


class CompressTrain(Stage[CompressTrainConfig, CompressTrainResults]):
    """Writes metrics.jsonl, checkpoints/ and the compressor as model/."""

    gives: ClassVar[tuple[type[Artifact], ...]] = (Model, Vocabulary)
    distributed: ClassVar[bool] = True

    def plan(self, config: CompressTrainConfig, promised: Mapping[str, Any]) -> dict[str, str]:
        """How rows are cut."""
        cut = config.segments
        return {
            "rows": f"{config.seq_len} tokens in {cut.blocks} x {cut.segments} segments"
            f"{' of random lengths' if cut.random else ''}, {config.compressor.summary_length} vectors each",
            "gradients": f"{cut.bptt} back-propagation",
        }

    def promises(self, config: CompressTrainConfig, promised: Mapping[str, Any]) -> Any:
        """The shape of the model.

        Raises:
            UserError: a model of this shape cannot compress, or its window does not hold the segments, which is told
                here so that no earlier stage trains for nothing.
        """
        from lmlab.methods.autocompressor.compressor.checks import require_compressible
        from lmlab.methods.autocompressor.training.step import CompressorStep

        shape = planned_model(None, config.start, promised)
        if shape is not None:
            require_compressible(shape, config.compressor)
            CompressorStep(config.segments).check(shape, config.compressor, config.seq_len)
        return promised_model(None, config.start, config.lora, promised)

    def run(self, config: CompressTrainConfig, context: StageContext) -> CompressTrainResults:
        """Train from the newest checkpoint, or from the start."""
        heldout = context.find(Tokens, "heldout_tokens").path if config.heldout_tokens else None
        found = train_compressor(
            config,
            context.find(Model, "start"),
            context.find(Tokens, "tokens").path,
            context.directory,
            heldout_tokens=heldout,
            seed=context.seed,
        )
        return CompressTrainResults(**found)

    def summary(self, results: CompressTrainResults) -> str:
        """The loss, and what summaries are worth."""
        first, last = results.heldout("loss/segment_1"), _last_segment(results)
        gain = "" if first is None or last is None else f"; held out {first:.3f} in the first segment, {last:.3f} later"
        return f"loss {results.final_loss:.3f}{gain}, {results.tokens_per_second:,.0f} tokens/s."

    def headline(self, results: CompressTrainResults) -> dict[str, str]:
        """Loss."""
        heldout = results.heldout("loss")
        return {"Loss": f"{results.final_loss:.3f}"} | ({} if heldout is None else {"Held-out loss": f"{heldout:.3f}"})

    def report(self, config: CompressTrainConfig, results: CompressTrainResults, directory: Path) -> list[Section]:
        """Curves by segment, and the health of the vectors."""
        return training_sections(results, directory)


def _last_segment(results: TrainingResults) -> float | None:
    """The held-out loss of the last segment."""
    found, number = None, 2
    while (value := results.heldout(f"loss/segment_{number}")) is not None:
        found, number = value, number + 1
    return found


class CompressFit(Stage[CompressFitConfig, TrainingResults]):
    """Writes metrics.jsonl, checkpoints/ and the kind as model/."""

    gives: ClassVar[tuple[type[Artifact], ...]] = (Model, Vocabulary)

    def plan(self, config: CompressFitConfig, promised: Mapping[str, Any]) -> dict[str, str]:
        """What is compressed."""
        return {"rows": f"{config.context} tokens by {config.compressor}, then {config.continuation} that are learned"}

    def promises(self, config: CompressFitConfig, promised: Mapping[str, Any]) -> Any:
        """The shape of the model.

        Raises:
            UserError: its window does not hold context and continuation, which is told here so that no earlier stage
                trains for nothing.
        """
        shape = planned_model(None, config.start, promised)
        if shape is not None:
            config.require_window(shape.max_seq_len)
        return shape

    def run(self, config: CompressFitConfig, context: StageContext) -> TrainingResults:
        """Train from the newest checkpoint, or from the start."""
        from lmlab.methods.autocompressor.fitting.fit import fit_kind

        start, tokens = context.find(Model, "start"), context.find(Tokens, "tokens").path
        return TrainingResults(**fit_kind(config, start, tokens, context.directory, seed=context.seed))

    def summary(self, results: TrainingResults) -> str:
        """The loss."""
        return f"loss {results.final_loss:.3f}, {results.tokens_per_second:,.0f} tokens/s."


class CompressCompareResults(Results):
    """The table, one entry a kind, ratio and task."""

    lines: list[dict[str, Any]]


class CompressCompare(Stage[CompressCompareConfig, CompressCompareResults]):
    """Writes rows.jsonl and table.json."""

    def run(self, config: CompressCompareConfig, context: StageContext) -> CompressCompareResults:
        """Measure what is missing."""
        from lmlab.evals import Evaluator
        from lmlab.files import read_mapping
        from lmlab.methods.autocompressor.comparing.config import CompareConfig
        from lmlab.methods.autocompressor.comparing.run import TABLE, compare

        evaluator = Evaluator.load(context.find(Model, "model"), config.device, config.precision)
        settings = CompareConfig.model_validate(config.model_dump(exclude={"model", *Loading.model_fields}))
        compare(evaluator, settings, context.directory / "comparison")
        return CompressCompareResults(lines=read_mapping(context.directory / "comparison" / TABLE)["lines"])

    def summary(self, results: CompressCompareResults) -> str:
        """How much there is, and the best."""
        kept = [line for line in results.lines if line["kind"] not in ("none", "full") and line["retained"]["value"]]
        if not kept:
            return f"{counted(len(results.lines), 'rows')}."
        best = max(kept, key=lambda line: line["retained"]["value"])
        return f"{len(results.lines)} rows; most is retained by {best['kind']} at {best['ratio']:g} on {best['task']}."

    def report(self, config: CompressCompareConfig, results: CompressCompareResults, directory: Path) -> list[Section]:
        """The table."""
        return comparison_sections(results.lines)
