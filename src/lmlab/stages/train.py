"""The stage `train`: a language model on packed rows of a tokenized corpus."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar, cast

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from lmlab.config import Config, influences
from lmlab.data import (
    GrowingRows,
    JoinedRows,
    Loader,
    Mixture,
    MixtureOrder,
    MixtureSource,
    PackedRows,
    Packing,
    PackRows,
    Rows,
    RowSource,
    TokenizedCorpus,
    Tokenizer,
    WindowSchedule,
    check_shares,
    is_packs,
)
from lmlab.distributed import world
from lmlab.errors import UserError
from lmlab.evals import RankedTask, Settings, evaluation_during_training, find_tasks
from lmlab.files import write_json
from lmlab.models import ModelConfig, WindowConfig, window_notice, with_window
from lmlab.progress import console, short
from lmlab.reports import Facts, Figure, Section, Series, Table, line_chart
from lmlab.runs import (
    Artifact,
    Model,
    ModelInput,
    Questions,
    QuestionsInput,
    Stage,
    StageContext,
    Tokens,
    TokensInput,
    Vocabulary,
    VocabularyInput,
)
from lmlab.stages.parts.adapters import Adapters, check_adapters, export_adapters, note_adapters
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
    routing_curves,
    series,
    training_facts,
    utilization,
)
from lmlab.train import (
    Evaluation,
    StepFunction,
    Trainer,
    TrainerConfig,
    flops_per_token,
    language_model_step_by_domain,
    long_ce_step,
    read_metrics,
    routed,
    way_of,
    with_saturation,
)


class MixtureInput(MixtureSource):
    """A source of a mixture: tokenized text, and its part."""

    tokens: TokensInput


class TrainConfig(Config):
    """The model, its data, and the loop.

    Attributes:
        tokens: tokenized training text.
        mixture: several of them with their shares, in place of `tokens`.
        order: how the sources of a mixture follow each other.
        tokenizer: by default the one that is stored with the shards.
        data_seed: added to the recipe's seed for the order of the rows, so that a later stage sees the same text in
            another order.
        packing: how documents become rows.
        document_masks: tokens see their own document alone; without, all that stands before them in the row.
        window_schedule: tokens see a few before them at first and more from step to step, within their documents.
        max_epochs: how often `tokens` may be gone through.
        heldout_tokens: tokenized held-out text, whose loss is logged every `trainer.evaluate_every` steps on
            `heldout_rows` rows spread over it.
        tasks: benchmarks that are measured then, too, on at most `tasks_limit` questions of each: names, groups, or
            YAML files.
        questions: a stage or a file with ranked questions, measured in the same way; its figures are logged as
            `questions/accuracy` and so on.
        model: the network; without it, that of `start`.
        start: where the weights come from in place of chance: an earlier stage `train`, one of its checkpoints, or a
            model's directory.
        window: another window for the model of `start`, with what its rotary positions need for it.
        start_optimizer: take the optimizer's state from there too; steps and schedule begin anew.
        lora: train low-rank adapters beside the weights of `start`, which stay as they are.
        long_ce: weigh tokens by what they gain from what stands more than so many tokens before them (LongCE).
        z_loss: coefficient of the z-loss.
        router_losses: learn from the losses of the routers of mixtures of experts too, as the model's section `moe`
            says.
    """

    tokens: TokensInput | None = None
    mixture: dict[str, MixtureInput] = Field(default={})
    order: MixtureOrder = MixtureOrder()
    data_seed: NonNegativeInt = 0
    packing: Packing = "concat"
    document_masks: bool = True
    window_schedule: WindowSchedule | None = None
    max_epochs: PositiveFloat = 4.0
    tokenizer: VocabularyInput | None = None
    heldout_tokens: TokensInput | None = None
    heldout_rows: PositiveInt = 64
    tasks: list[str] = Field(default=[])
    tasks_limit: PositiveInt = 100
    questions: QuestionsInput | None = None
    model: ModelConfig | None = None
    start: ModelInput | None = None
    window: WindowConfig | None = None
    start_optimizer: bool = False
    lora: Adapters | None = None
    seq_len: PositiveInt
    long_ce: PositiveInt | None = None
    z_loss: float = Field(default=0.0, ge=0)
    router_losses: bool = True
    trainer: TrainerConfig

    @model_validator(mode="after")
    def _check(self) -> TrainConfig:
        if (self.tokens is None) == (not self.mixture):
            raise ValueError("give either tokens or mixture.")
        check_shares({name: source.weight for name, source in self.mixture.items()}, "mixture: ")
        if self.model is None and self.start is None:
            raise ValueError("the key 'model' is required where there is no 'start'.")
        if self.model is not None and self.seq_len > self.model.max_seq_len:
            raise ValueError(f"seq_len {self.seq_len} is longer than the model's max_seq_len {self.model.max_seq_len}.")
        if self.trainer.epochs is not None and self.mixture:
            raise ValueError("trainer.epochs belongs to one source; give the length of a mixture in steps or tokens.")
        if self.long_ce is not None and (self.long_ce >= self.seq_len or self.z_loss):
            raise ValueError("long_ce must be below seq_len, and goes without z_loss.")
        if self.long_ce is not None and self.trainer.parallel.sequence_parallel > 1:
            # Its weights compare two readings of a whole row, of which a process has only its share.
            raise ValueError("long_ce goes without trainer.parallel.sequence_parallel.")
        if self.start_optimizer and self.start is None:
            raise ValueError("start_optimizer needs 'start'.")
        if self.window_schedule is not None and self.window_schedule.start > self.seq_len:
            raise ValueError(f"window_schedule.start {self.window_schedule.start} exceeds seq_len {self.seq_len}.")
        if self.window is not None and (self.start is None or self.model is not None or self.lora is not None):
            raise ValueError("window changes the model of 'start'; it goes with neither 'model' nor 'lora'.")
        check_adapters(self.lora, self.start, self.start_optimizer)
        return self


class TrainResults(TrainingResults):
    """The training, the size of the model, what each source gave, and which conversations do not fit the rows."""

    parameters: int
    trained_parameters: int
    active_parameters: int
    conversations_shortened: int = 0
    conversations_left_out: int = 0
    sources: list[dict[str, Any]]


class Train(Stage[TrainConfig, TrainResults]):
    """Writes metrics.jsonl, checkpoints/ and the trained model as model/."""

    version: ClassVar[int] = 2
    gives: ClassVar[tuple[type[Artifact], ...]] = (
        Model,
        Vocabulary,
    )
    distributed: ClassVar[bool] = True

    def depends_on(self, config: TrainConfig, promised: Mapping[str, Any]) -> Any:
        """The requests of the tasks; and the micro-batch, where experts' loads are counted over it."""
        found: dict[str, Any] = {task.name: task.fingerprint() for task in find_tasks(config.tasks)}
        model = planned_model(config.model, config.start, promised)
        balancing = model.moe.load_balancing_loss if model is not None and model.moe is not None else None
        if config.router_losses and balancing is not None and balancing.granularity == "micro_batch":
            found["micro_batch_size"] = config.trainer.rows_at_once
        return found or None

    def plan(self, config: TrainConfig, promised: Mapping[str, Any]) -> dict[str, str]:
        """Parameters, arithmetic, memory, communication and time."""
        model = self._shape(config, promised)
        return plan_training(model, config.seq_len, config.trainer, config.lora)

    def promises(self, config: TrainConfig, promised: Mapping[str, Any]) -> Any:
        """The shape of the model."""
        shape = self._shape(config, promised)
        return shape if shape is None or config.lora is None else config.lora.folded(shape)

    @staticmethod
    def _shape(config: TrainConfig, promised: Mapping[str, Any]) -> ModelConfig | None:
        shape = planned_model(config.model, config.start, promised)
        return shape if shape is None or config.window is None else with_window(shape, config.window)

    def continues(self, config: TrainConfig, before: Mapping[str, Any], finished: bool, directory: Path) -> str | None:
        """With another length, schedule or precision, where that leaves what was trained as it is."""
        return continues_training(config.trainer, config.seq_len, before, influences(config), finished, directory)

    def run(self, config: TrainConfig, context: StageContext) -> TrainResults:
        """Train from the newest checkpoint, or from the start."""
        rows, sources, tokenizer = _rows(config, context)
        loop = config.trainer.in_steps(config.seq_len, sum(map(len, rows.values())))
        data_seed = context.seed + config.data_seed
        mixture = Mixture(rows, sources, cast(int, loop.steps) * loop.batch_size, data_seed, config.order)
        start = context.find(Model, "start") if config.start else None
        model_config = config.model or cast(Model, start).config
        if config.window is not None:
            before, model_config = model_config, with_window(model_config, config.window)
            if (notice := window_notice(before, model_config)) is not None:
                console.print(notice, markup=False)
        if tokenizer.vocab_size > model_config.vocab_size:
            raise UserError(
                f"model.vocab_size {model_config.vocab_size} is smaller than the tokenizer's {tokenizer.vocab_size}.",
                "Raise it.",
            )
        if config.seq_len > model_config.max_seq_len:
            raise UserError(
                f"seq_len {config.seq_len} is longer than the model's max_seq_len {model_config.max_seq_len}.",
                "Lower it.",
            )
        if config.start_optimizer and cast(Model, start).checkpoint is None:
            raise UserError(
                f"start_optimizer: '{cast(Model, start).path}' holds weights, but no optimizer's state.",
                "Name a stage 'train'.",
            )
        place = world()
        if loop.parallel.sequence_parallel > 1:  # heads that do not suit are told before the model is built
            way_of(model_config, loop.parallel.sequence_parallel, loop.parallel.sequence_attention)
        ordered: Rows = mixture
        if config.window_schedule is not None:
            ordered = GrowingRows(mixture, loop.batch_size, config.window_schedule)
        loader = Loader(ordered, loop.batch_size, data_seed, *loop.parallel.data_place(place), shuffle=False)
        trainer = Trainer(
            build_network(model_config, start, context.seed, config.lora),
            routed(_step(config, mixture.domains, tokenizer.begin_ids), model_config, config.router_losses),
            loader,
            loop,
            context.directory,
            _evaluation(config, context, tokenizer),
            flops_per_token(model_config, config.seq_len, config.lora),
            tokens_per_row=config.seq_len,
            materialize=lambda model: model.initialize(context.seed),
            start=start.checkpoint if start and config.lora is None else None,
            start_optimizer=config.start_optimizer,
        )
        if place.is_main:
            tokenizer.save(context.directory / "model", model_config.max_seq_len)
            write_json(context.directory / "checkpoints" / "model.json", model_config.model_dump(mode="json"))
            if config.lora is not None:
                note_adapters(cast(Model, start), config.lora, context.directory)
        summary = trainer.fit()
        if config.lora is not None:
            export_adapters(trainer.model, cast(Model, start), config.lora, context.seed, tokenizer, context.directory)
        else:
            export_model(trainer.model, model_config, tokenizer, context.directory / "model")
        plan = mixture.plan()
        epochs = {"epochs": round(max(share.epochs for share in plan), 3)}
        return TrainResults(
            **{**summary, **final_figures(context.directory), **epochs},
            parameters=model_config.num_parameters(),
            trained_parameters=sum(each.numel() for each in trainer.optimizers.parameters.values()),
            active_parameters=model_config.num_parameters(active=True),
            conversations_shortened=sum(each.shortened for each in rows.values()),
            conversations_left_out=sum(each.left_out for each in rows.values()),
            sources=[asdict(share) for share in plan],
        )

    def summary(self, results: TrainResults) -> str:
        """Loss and speed."""
        loss = f"loss {results.final_loss:.3f}" + (
            f", held out {heldout:.3f}" if (heldout := results.heldout("loss")) is not None else ""
        )
        return (
            f"{loss}, {results.tokens_per_second:,.0f} tokens/s, of this machine's GEMM peak {utilization(results)}."
            + _too_long(results)
        )

    def headline(self, results: TrainResults) -> dict[str, str]:
        """Size, tokens, held-out loss, speed."""
        loss = results.heldout("loss")
        heldout = {} if loss is None else {"Held-out loss": f"{loss:.3f}"}
        return {
            "Parameters": short(results.parameters) + _active(results),
            "Training tokens": short(results.tokens),
            **heldout,
            "Tokens a second": f"{results.tokens_per_second:,.0f}",
            "Of GEMM peak": utilization(results),
        }

    def report(self, config: TrainConfig, results: TrainResults, directory: Path) -> list[Section]:
        """Curves, and what each source gave."""
        rows = read_metrics(directory / "metrics.jsonl")
        steps = [row["step"] for row in rows]
        losses = [Series("training", steps, [row["loss"] for row in rows])]
        heldout = [row for row in rows if "heldout_loss" in row]
        if heldout:
            losses.append(
                Series("held out", [row["step"] for row in heldout], [row["heldout_loss"] for row in heldout])
            )
        blocks: list[Any] = [
            Facts(training_facts(results) | {"Epochs": f"{results.epochs:.2f}"}),
            Figure(line_chart(losses, "step", "loss (nats a token)"), "Loss of the logged steps.", "Loss curve"),
        ]
        by_domain = [
            series(rows, name, name.removeprefix("loss/"))
            for name in sorted({name for row in rows for name in row if name.startswith("loss/")})
        ]
        if len(by_domain) > 1:
            blocks.append(
                Figure(
                    line_chart(by_domain, "step", "loss (nats a token)"), "Training loss by domain.", "Loss by domain"
                )
            )
        for metric, title in (("accuracy", "accuracy"), ("bits_per_byte", "bits per byte of the right answer")):
            names = sorted({name for row in rows for name in row if name.endswith(f"/{metric}")})
            if names:
                curves = [series(rows, name, name.removesuffix(f"/{metric}")) for name in names]
                blocks.append(
                    Figure(
                        line_chart(curves, "step", title), f"Tasks while the model learns: {title}.", f"Tasks: {title}"
                    )
                )
        if len(results.sources) > 1:
            table = [
                [each["name"], each["rows"], each["tokens"], f"{each['share']:.1%}", f"{each['epochs']:.2f}"]
                for each in results.sources
            ]
            blocks.append(Table(["source", "rows", "tokens", "share", "epochs"], table, "Sources of the mixture"))
        return [Section("Training", blocks + routing_curves(rows) + loop_curves(rows), rank=4)]


def _step(config: TrainConfig, domains: Sequence[str], begin_ids: Sequence[int]) -> StepFunction:
    """The loss of a micro-batch."""
    if config.long_ce is not None:
        return long_ce_step(config.long_ce, begin_ids=begin_ids)
    return language_model_step_by_domain(domains, config.z_loss)


def _too_long(results: TrainResults) -> str:
    """Which conversations do not fit the rows."""
    if not results.conversations_shortened and not results.conversations_left_out:
        return ""
    return (
        f" Of the conversations {results.conversations_shortened:,} lost answers and {results.conversations_left_out:,}"
        " were left out, as rows of seq_len are too short for them."
    )


def _active(results: TrainResults) -> str:
    """How many parameters a token uses, where that is not all of them."""
    return f", {short(results.active_parameters)} active" if results.active_parameters < results.parameters else ""


def _rows(
    config: TrainConfig, context: StageContext
) -> tuple[dict[str, RowSource], dict[str, MixtureSource], Tokenizer]:
    """The packed rows of each source, its part, and the tokenizer of all."""
    if config.tokens is not None:
        sources: dict[str, MixtureSource] = {"tokens": MixtureSource(weight=1, max_epochs=config.max_epochs)}
        places = {"tokens": context.find(Tokens, "tokens").path}
    else:
        sources = dict(config.mixture)
        places = {name: context.find(Tokens, f"mixture.{name}.tokens").path for name in sources}
    rows: dict[str, RowSource] = {}
    packed: list[PackRows] = []
    tokenizer = context.find(Vocabulary, "tokenizer").load() if config.tokenizer else None
    for name, source in sources.items():
        if is_packs(places[name]):
            packed.append(PackRows(places[name], config.seq_len, domains=source.domains))
            rows[name] = packed[-1]
            stored = packed[-1].stored_tokenizer()
            tokenizer = tokenizer or stored
            if stored is not None and tokenizer is not None and stored.fingerprint != tokenizer.fingerprint:
                raise UserError(
                    f"The sequences in '{places[name]}' were made with another tokenizer.", "Pack its text again."
                )
            continue
        corpus = TokenizedCorpus(places[name], verify=world().is_main)
        tokenizer = tokenizer or corpus.tokenizer
        corpus.check_tokenizer(tokenizer)
        rows[name] = PackedRows(corpus, config.seq_len, config.packing, source.domains)
    if tokenizer is None:
        raise UserError(
            "The packed sequences do not say which tokenizer made them.", "Name it with the key 'tokenizer'."
        )
    for each in packed:
        each.vocab_size = tokenizer.vocab_size
    if not config.document_masks:
        rows = {name: JoinedRows(each) for name, each in rows.items()}
    return rows, sources, tokenizer


def _evaluation(config: TrainConfig, context: StageContext, tokenizer: Tokenizer) -> Evaluation | None:
    """All that is measured while the model learns."""
    parts: list[Evaluation] = []
    if config.heldout_tokens:
        parts.append(with_saturation(_heldout_loss(context.find(Tokens, "heldout_tokens").path, config, tokenizer)))
    tasks = find_tasks(config.tasks)
    if config.questions is not None:
        path = context.find(Questions, "questions").path
        tasks.append(RankedTask(name="questions", requests=str(path), normalization="bytes"))
    if tasks:
        parts.append(
            evaluation_during_training(
                tasks, tokenizer, Settings(config.tasks_limit, too_long="truncate"), config.trainer.precision
            )
        )
    return (lambda model: {name: value for part in parts for name, value in part(model).items()}) if parts else None


def _heldout_loss(directory: Path, config: TrainConfig, tokenizer: Tokenizer) -> Evaluation:
    """The loss, by domain too, on rows that are spread over a held-out corpus."""
    corpus = TokenizedCorpus(directory)
    corpus.check_tokenizer(tokenizer)
    rows = PackedRows(corpus, config.seq_len)
    count = min(config.heldout_rows, len(rows))
    chosen = [rows[number * len(rows) // count] for number in range(count)]
    return heldout_evaluation(language_model_step_by_domain(corpus.domains), chosen, config.trainer.rows_at_once)
