"""The stage `prefer`: a language model that learns from preferences, against a frozen copy of itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, PositiveInt

from lmlab.config import Config, influences
from lmlab.data import (
    ChatConfig,
    ChatEncoder,
    KTORows,
    Loader,
    PreferenceRows,
    Reject,
    Rejects,
    Tokenizer,
    chat_tokenizer,
)
from lmlab.distributed import wait_for_all, world
from lmlab.errors import UserError
from lmlab.files import write_json
from lmlab.reports import Facts, Figure, Note, Section, Series, line_chart
from lmlab.runs import Artifact, Model, ModelInput, ReadResults, Stage, StageContext, Vocabulary, VocabularyInput
from lmlab.stages.parts.adapters import Adapters, export_adapters, frozen_base, note_adapters
from lmlab.stages.parts.records import REJECTS_REMEDY, Records, is_heldout, records_fingerprint, records_of
from lmlab.stages.parts.training import (
    TrainingResults,
    build_network,
    continues_training,
    export_model,
    final_figures,
    heldout_evaluation,
    loop_curves,
    plan_training,
    planned_model,
    promised_model,
    routing_curves,
    series,
    training_facts,
)
from lmlab.train import (
    DPOConfig,
    KTOConfig,
    SimPOConfig,
    StepFunction,
    Trainer,
    TrainerConfig,
    dpo_step,
    kto_step,
    read_metrics,
    reference_log_probs,
    routed,
    simpo_step,
)
from lmlab.words import counted

Rows = PreferenceRows | KTORows


class DPO(DPOConfig):
    """DPO and its variants."""

    kind: Literal["dpo"] = "dpo"


class SimPO(SimPOConfig):
    """SimPO."""

    kind: Literal["simpo"] = "simpo"


class KTO(KTOConfig):
    """KTO."""

    kind: Literal["kto"] = "kto"


Method = Annotated[DPO | SimPO | KTO, Field(discriminator="kind")]


class PreferConfig(Config):
    """The model, the preferences, and the loop.

    Attributes:
        records: with `prompt`, `chosen` and `rejected`, or for KTO with `prompt`, `completion` and `label`; files of
            JSON lines, Parquet, Arrow or MDS.
        start: the model that learns, and its reference: a stage `train`, a checkpoint, or a model's directory.
        tokenizer: by default that of `start`.
        heldout_fraction: share of the records that is measured and not learned from.
        max_reject_fraction: stop when a larger share of the records cannot be used.
        lora: train low-rank adapters beside the weights of `start`, which stay as they are.
        router_losses: learn from the losses of the routers of mixtures of experts too; OLMoE was adapted without.
    """

    records: Records
    start: ModelInput
    tokenizer: VocabularyInput | None = None
    method: Method = DPO()
    chat: ChatConfig = ChatConfig()
    seq_len: PositiveInt
    heldout_fraction: float = Field(default=0.05, ge=0, lt=1)
    max_reject_fraction: float = Field(default=0.1, ge=0, le=1)
    lora: Adapters | None = None
    router_losses: bool = False
    trainer: TrainerConfig


class PreferResults(ReadResults, TrainingResults):  # in this order, so that figures may be added
    """The training, and how many records were learned from, measured on, and set aside."""

    pairs: int
    heldout_pairs: int


class Prefer(Stage[PreferConfig, PreferResults]):
    """Writes metrics.jsonl, checkpoints/, reference/, rejects.jsonl and the trained model as model/."""

    gives: ClassVar[tuple[type[Artifact], ...]] = (
        Model,
        Vocabulary,
    )
    distributed: ClassVar[bool] = True

    def plan(self, config: PreferConfig, promised: Mapping[str, Any]) -> dict[str, str]:
        """The method and the length."""
        return {"method": config.method.kind} | plan_training(
            planned_model(None, config.start, promised), 2 * config.seq_len, config.trainer, config.lora
        )

    def promises(self, config: PreferConfig, promised: Mapping[str, Any]) -> Any:
        """The shape of the model."""
        return promised_model(None, config.start, config.lora, promised)

    def depends_on(self, config: PreferConfig, promised: Mapping[str, Any]) -> Any:
        """The files of a source, and the template; for KTO the micro-batch, over which it estimates a divergence."""
        found = records_fingerprint(config.records, config.chat)
        return [found, config.trainer.rows_at_once] if config.method.kind == "kto" else found

    def continues(self, config: PreferConfig, before: Mapping[str, Any], finished: bool, directory: Path) -> str | None:
        """With another length, schedule or precision, where that leaves what was trained as it is."""
        return continues_training(config.trainer, 2 * config.seq_len, before, influences(config), finished, directory)

    def run(self, config: PreferConfig, context: StageContext) -> PreferResults:
        """Encode, score by the reference, and train."""
        start = context.find(Model, "start")
        tokenizer = chat_tokenizer(
            context.find(Vocabulary, "tokenizer").load() if config.tokenizer else start.tokenizer(), config.chat
        )
        if config.seq_len > start.config.max_seq_len:
            raise UserError(
                f"seq_len {config.seq_len} is longer than the model's max_seq_len {start.config.max_seq_len}.",
                "Lower it.",
            )
        rows, heldout, rejects = _rows(config, context, tokenizer)
        place, step = world(), _step(config.method)
        if config.method.kind != "simpo":
            _score(start, [rows, heldout], config, context.directory / "reference")
        loader = Loader(rows, config.trainer.batch_size, context.seed, place.rank, place.size)
        trainer = Trainer(
            build_network(start.config, start, context.seed, config.lora),
            routed(step, start.config, config.router_losses),
            loader,
            config.trainer.in_steps(2 * config.seq_len, len(rows)),
            context.directory,
            heldout_evaluation(step, heldout, config.trainer.rows_at_once) if heldout else None,
            tokens_per_row=2 * config.seq_len,
            materialize=lambda model: model.initialize(context.seed),
            start=start.checkpoint if config.lora is None else None,
        )
        if place.is_main:
            tokenizer.save(context.directory / "model", start.config.max_seq_len)
            write_json(context.directory / "checkpoints" / "model.json", start.config.model_dump(mode="json"))
            if config.lora is not None:
                note_adapters(start, config.lora, context.directory)
        summary = trainer.fit()
        if config.lora is not None:
            export_adapters(trainer.model, start, config.lora, context.seed, tokenizer, context.directory)
        else:
            export_model(trainer.model, start.config, tokenizer, context.directory / "model")
        return PreferResults(
            **{**summary, **final_figures(context.directory)},
            pairs=len(rows),
            heldout_pairs=len(heldout) if heldout else 0,
            **rejects.account(),
        )

    def summary(self, results: PreferResults) -> str:
        """Loss, and what is preferred on held-out records."""
        shown = {"loss": "held-out loss", "accuracies": "held-out accuracy"}
        figures = [(title, results.heldout(name)) for name, title in shown.items()]
        heldout = [f"{title} {value:.3f}" for title, value in figures if value is not None]
        told = ", ".join([f"{counted(results.pairs, 'examples')}, loss {results.final_loss:.3f}", *heldout])
        return f"{told}. {results.set_aside()}".rstrip()

    def report(self, config: PreferConfig, results: PreferResults, directory: Path) -> list[Section]:
        """Curves."""
        rows = read_metrics(directory / "metrics.jsonl")
        blocks: list[Any] = [Facts(training_facts(results))]
        if set_aside := results.set_aside():
            blocks.append(Note(set_aside, "warning"))
        for key, title in (
            ("loss", "loss"),
            ("accuracies", "accuracy"),
            ("margins", "margin of rewards"),
            ("kl", "divergence (nats)"),
        ):
            curves: list[Series] = [series(rows, key, "training"), series(rows, f"heldout_{key}", "held out")]
            curves = [curve for curve in curves if curve.x]
            if curves:
                blocks.append(
                    Figure(line_chart(curves, "step", title), f"{title.capitalize()} of the logged steps.", title)
                )
        return [
            Section(
                "Learning from preferences",
                blocks + routing_curves(rows) + loop_curves(rows),
                f"Method: {config.method.kind}.",
            )
        ]


def _step(method: DPO | SimPO | KTO) -> StepFunction:
    if isinstance(method, DPO):
        return dpo_step(method)
    return simpo_step(method) if isinstance(method, SimPO) else kto_step(method)


def _rows(config: PreferConfig, context: StageContext, tokenizer: Tokenizer) -> tuple[Rows, Rows | None, Rejects]:
    """Rows to learn from, held-out ones if there are any, and the records that are set aside."""
    longest = min(config.chat.max_len or config.seq_len + 1, config.seq_len + 1)
    encoder = ChatEncoder(tokenizer, config.chat.model_copy(update={"max_len": longest}))
    encode: Callable[..., Any] = encoder.kto if config.method.kind == "kto" else encoder.preference
    parts: tuple[list[Any], list[Any]] = ([], [])
    path = context.directory / "rejects.jsonl" if world().is_main else None
    with Rejects(path, config.max_reject_fraction) as rejects:
        for number, item in enumerate(records_of(config.records, context)):
            found = item if isinstance(item, Reject) else encode(item[1], item[0])
            if not isinstance(found, Reject):
                parts[is_heldout(number, config.heldout_fraction, context.seed)].append(found)
                continue
            rejects.add(found)
            if rejects.too_many(sum(map(len, parts))):
                break
    rejects.check(sum(map(len, parts)), REJECTS_REMEDY)
    make: Callable[..., Rows] = KTORows if config.method.kind == "kto" else PreferenceRows
    train, heldout_examples = parts
    return (
        make(train, config.seq_len),
        make(heldout_examples, config.seq_len) if len(heldout_examples) > 1 else None,
        rejects,
    )


def _score(start: Model, parts: list[Rows | None], config: PreferConfig, directory: Path) -> None:
    """Give all rows the reference's figures: the main process computes what is not on the disk, the others then read
    it.
    """
    model = frozen_base(start, config.lora)

    def score() -> None:
        for rows in (rows for rows in parts if rows is not None):
            rows.reference = reference_log_probs(
                model,
                rows,
                directory,
                batch_size=config.trainer.rows_at_once,
                device=config.trainer.device,
                precision=config.trainer.precision,
            )

    if world().is_main:
        score()
    wait_for_all()
    if not world().is_main:
        score()
