"""A function or two for each method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from lmlab.door import arguments
from lmlab.door.calls import HERE, told
from lmlab.door.model import LanguageModel, loaded
from lmlab.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from lmlab.methods.corpus_poisoning.stages import PoisonResults
    from lmlab.methods.edge_pruning import Circuit
    from lmlab.methods.ladder import Forecaster
    from lmlab.methods.olmoe import RoutingTrace
    from lmlab.methods.qurating import Manifest
    from lmlab.methods.swebench.stages import SweEvaluateResults
    from lmlab.methods.transformer_programs import Program
    from lmlab.methods.tutor.stages import TutorResults
    from lmlab.models import SoftPrompt
    from lmlab.runs import Results

R = TypeVar("R", bound="Results")


@told
def fit_ladder(
    runs: str | Path,
    *,
    tasks: str | Sequence[str] = "main",
    task_file: str | Path | None = None,
    preset: str = "recommended",
    seed: int = 0,
    allow_unfinished: bool = False,
    drop_bad_rows: bool = False,
) -> Forecaster:
    """Fit a ladder of small models, as `lmlab ladder predict` does; `.predict_all(n, tokens, interval)` of the result
    predicts a larger one (Bhagia et al. 2024).

    Arguments:
        runs: a run table (.csv, .parquet), a folder of `lmlab ladder collect`, or the reference's .json.
        tasks: by name, in a list or with commas between them, or `main`, `main+`, `all`.
        task_file: tasks of your own, TOML or JSON.
        preset: `recommended`, or `paper` for the published estimator.

    Raises:
        UserError: the table lacks what a task needs, or holds what cannot be.
    """
    from lmlab.config import validate
    from lmlab.methods.ladder import EstimatorOptions, RunsOptions
    from lmlab.methods.ladder.fitting.prepare import fitted, read_runs

    chosen = {
        "tasks": ",".join(arguments.words(tasks, "tasks")),
        "task_file": arguments.place_or_none(task_file, "task_file"),
        "drop_bad_rows": drop_bad_rows,
        "allow_unfinished": allow_unfinished,
    }
    options = validate(RunsOptions, chosen, HERE)
    estimator = validate(EstimatorOptions, {"preset": preset}, HERE)
    estimator.settings()  # a preset that is none is named before anything is read
    return fitted(read_runs(arguments.place(runs, "runs")), options, estimator, arguments.whole(seed, "seed"))


@told
def trace_routing(model: str | Path, texts: str | Path, **settings: Any) -> RoutingTrace:
    """Which experts a model's routers choose for each token of texts, as `lmlab olmoe trace` does (Muennighoff et al.
    2024).

    Arguments:
        texts: files, a glob, a folder or a URL.
        settings: those of `TraceConfig`, such as `tokenizer="bytes"`, `length=512` or `domain_field="domain"`.

    Raises:
        UserError: a setting is wrong, the model has no routers, or the texts do not fill a sequence.
    """
    from lmlab.config import validate
    from lmlab.methods.olmoe import TraceConfig, trace_texts

    place, source = arguments.place(model, "model"), str(arguments.place(texts, "texts"))
    if isinstance(texts, str):
        source = texts  # a URL is no path
    return trace_texts(place, source, validate(TraceConfig, arguments.plain(settings), HERE))


@told
def find_circuit(model: str | Path, examples: str | Path | None = None, *, seed: int = 0, **settings: Any) -> Circuit:
    """The edges between the parts of a model that do a task, as `lmlab circuits find` does (Bhaskar et al. 2024).

    Arguments:
        model: any model, or a directory of a program compiled by Tracr, which brings its examples.
        examples: JSON lines of clean and corrupted prompts.
        settings: those of `FindConfig`, such as `method="eap-ig"`, `target=0.98` or `ablation="zero"`, and of
            `TaskOptions`, such as `split="train"` or `batch_size=8`.

    Returns:
        the circuit; `about` says where model and examples come from, with their hashes, as a file of the command does.
            `metrics["held_out"]` are the figures of examples that the search did not see, where there are ten or more.

    Raises:
        UserError: a setting is wrong, or the model cannot do the task.
    """
    from lmlab.config import validate
    from lmlab.methods.edge_pruning import FindConfig, TaskOptions
    from lmlab.methods.edge_pruning import find_circuit as find
    from lmlab.methods.edge_pruning.config import with_training
    from lmlab.methods.edge_pruning.examples.load import load_to_search

    settings = arguments.plain(settings)
    chosen = {name: settings.pop(name) for name in TaskOptions.model_fields if name in settings}
    options = validate(TaskOptions, {**chosen, "data": arguments.place_or_none(examples, "examples")}, HERE)
    config = validate(FindConfig, with_training(settings, {"micro_batch_size": options.batch_size}), HERE)
    drawn = arguments.whole(seed, "seed")
    loaded = load_to_search(arguments.place(model, "model"), options)
    task, _ = loaded.task(config.ablation, config.graph, options)
    held_out = loaded.held_out_task(task, options)
    return find(task, config, drawn, None, options.force, loaded.about(), held_out)


@told
def measure_long(
    model: LanguageModel | str | Path, *, mode: str = "forced", chat: bool = False, **settings: Any
) -> dict[str, dict[int, float]]:
    """What a model does with long contexts, as `lmlab long eval` measures it (Gao et al. 2024): task -> length ->
    score, 0 to 1.

    Arguments:
        mode: `forced` reads off how probable the right answers are; `generate` lets the model write.
        chat: ask by the model's chat template.
        settings: those of `LongSettings`, such as `tasks=["json_kv", "rag"]`, `lengths=[2048]` or `contexts=5`.

    Raises:
        UserError: a setting is wrong, or a length exceeds the model's window.
    """
    from tempfile import TemporaryDirectory
    from typing import get_args

    from lmlab.config import validate
    from lmlab.evals.long import Asking, LongSettings, Mode
    from lmlab.methods.prolong.evaluate import evaluate as measure
    from lmlab.methods.prolong.evaluate import instances_for

    if arguments.text(mode, "mode") not in get_args(Mode):
        raise UserError(f"mode: there is no mode '{mode}'. {did_you_mean(mode, get_args(Mode))}")
    chosen = validate(LongSettings, arguments.plain(settings), HERE)
    evaluator = loaded(model).evaluator
    with TemporaryDirectory() as folder:
        place = Path(folder)
        file = instances_for(Asking(evaluator.tokenizer, chat), chosen, place / "instances.jsonl")
        found = measure(evaluator, file, place, model="model", mode=cast(Mode, mode), chat=chat)
    return {
        task: {int(length): cell["score"] for length, cell in cells.items() if "score" in cell}
        for task, cells in found["tasks"].items()
    }


@told
def rate_texts(rater: str | Path, texts: str | Sequence[str]) -> dict[str, list[float]]:
    """Ratings of texts by each criterion of a rater that `lmlab quality train` has trained (Wettig et al. 2024); NaN
    for a text without tokens.

    Raises:
        UserError: there is no rater.
    """
    from lmlab.methods.qurating import Rater

    rated = arguments.texts(texts, "texts")
    found = Rater.from_pretrained(arguments.place(rater, "rater"))
    ratings_NC = found.rate(rated)
    return {name: ratings_NC[:, column].tolist() for column, name in enumerate(found.criteria)}


@told
def select_texts(rated: str | Path | Mapping[str, Any], tokens: int | str, **settings: Any) -> Manifest:
    """The rows of a rated corpus that are worth training on, as `lmlab quality select` chooses them (Wettig et al.
    2024).

    Arguments:
        rated: an annotated corpus (file or folder of Parquet, Arrow or JSON lines), or a mapping of columns.
        tokens: how many to choose, such as 500000 or `"1.5M"`, or a share such as `"30%"`.
        settings: those of `SelectionConfig`, such as `metric="educational_value_average"`, `mode="sample"`, `tau=2.0`.

    Raises:
        UserError: a column is missing or a setting is wrong.
    """
    from lmlab.methods.qurating import select
    from lmlab.methods.qurating.selecting.tables.lengths import budget_of

    table = rated if isinstance(rated, Mapping) else str(arguments.place(rated, "rated"))
    chosen = arguments.plain(settings)
    wanted = arguments.text(tokens, "tokens") if isinstance(tokens, str) else arguments.whole(tokens, "tokens", least=1)
    budget = budget_of(wanted, table, chosen.get("length", "length"))
    return select(table, **{"mode": "sample", **chosen, "tokens": budget})


@told
def compress_text(
    compressor: str | Path, text: str, *, segment: int | None = None, vectors: int | None = None
) -> SoftPrompt:
    """The vectors that stand for a text, as `lmlab compress text` writes them (Chevalier et al. 2023).

    Arguments:
        compressor: its directory, the stage that trained it, or a run.
        segment: tokens of a segment, by default the compressor's.
        vectors: of a segment, of a nested compressor.

    Raises:
        UserError: there is no compressor, or the text has no tokens.
    """
    from lmlab.methods.autocompressor.compressor.run import compressed

    place = arguments.place(compressor, "compressor")
    longest = None if segment is None else arguments.whole(segment, "segment", least=1)
    number = None if vectors is None else arguments.whole(vectors, "vectors", least=1)
    return compressed(place, arguments.text(text, "text"), longest, number)[1].soft_prompt


@told
def attack_retriever(
    data: str | Path,
    sentinels: str | Path,
    out: str | Path,
    *,
    encoder: str | Path = "minilm",
    seed: int = 0,
    redo: bool = False,
    **settings: Any,
) -> PoisonResults:
    """How far crafted passages mislead a retriever of your own, undefended and behind a gate: a run of the stage
    `poison` (Zhong et al. 2023). What is crafted is an overlay in the run, with a list of ids to remove.

    Arguments:
        data: a collection, a BEIR folder; `train` is what the attacker knows, `test` is held out.
        sentinels: questions of your own for the defenses, a file or folder.
        out: the run's directory; what is finished there is not done again.
        encoder: directory of an encoder, any model, or `minilm` where its package is installed.
        settings: further ones of the stage, such as `attacks={"stuffing": {"optimizer": "none"}}` or `k=[10, 20]`.

    Raises:
        UserError: a setting is wrong, or something is not there.
    """
    from lmlab.methods.corpus_poisoning.stages import PoisonResults

    places = {"data": data, "sentinels": sentinels, "encoder": encoder}
    given = {name: str(arguments.place(place, name)) for name, place in places.items()}
    return _stage("poison", PoisonResults, given | arguments.plain(settings), out, seed, redo)[0]


@told
def train_program(out: str | Path, *, seed: int = 0, redo: bool = False, **settings: Any) -> Program:
    """The program that a transformer learns, as `lmlab programs train` does (Friedman et al. 2023);
    `Interpreter(program).run([tokens])` of `lmlab.methods.transformer_programs` runs it.

    Arguments:
        out: the run's directory; what is finished there is not done again.
        settings: those of the stage `train_program`, such as `task="hist"` or `data="texts.jsonl"`, `num_layers=1`.

    Raises:
        UserError: a setting is wrong.
    """
    from lmlab.methods.transformer_programs import load_program
    from lmlab.methods.transformer_programs.stages import PROGRAM_DIRECTORY, TrainProgramResults

    chosen = {**arguments.plain(settings), "export": True}
    _, directory = _stage("train_program", TrainProgramResults, chosen, out, seed, redo)
    return load_program(directory / PROGRAM_DIRECTORY)


@told
def judge_patches(
    instances: str | Path, patches: str | Path | None, out: str | Path, *, redo: bool = False, **settings: Any
) -> SweEvaluateResults:
    """Which issues of real repositories patches resolve, by their tests in a sandbox, as `lmlab swe eval` does (Jimenez
    et al. 2024).

    Arguments:
        instances: a file, a saved dataset, a task repository, or `lite`, `verified` or `full`.
        patches: a file of patches; None for the reference solutions.
        out: the run's directory; what is finished there is not done again.
        settings: further ones of the stage `swe_evaluate`, such as `ids=["owner__name-7"]` or `timeout_s=300`.

    Raises:
        UserError: a setting is wrong, or something is not there.
        LmlabError: some patches have no verdict, as their surroundings failed.
    """
    from lmlab.methods.swebench.stages import SweEvaluateResults

    given: dict[str, Any] = {"instances": str(arguments.place(instances, "instances"))}
    if patches is not None:
        given["patches"] = str(arguments.place(patches, "patches"))
    return _stage("swe_evaluate", SweEvaluateResults, given | arguments.plain(settings), out, 0, redo)[0]


@told
def grade_tutor(
    model: str | Path, questions: str | Path, out: str | Path, *, redo: bool = False, **settings: Any
) -> TutorResults:
    """How well a model answers questions about chapters: a run of the stage `tutor_evaluate`, which asks, grades and
    scores (Chevalier et al. 2024).

    Arguments:
        questions: TutorEval, or JSON lines with its columns.
        out: the run's directory; what is finished there is not done again.
        settings: `answers` and `grading`, such as `answers={"book": "closed"}`, `grading={"judge": ["coverage"]}`.

    Raises:
        UserError: a setting is wrong, or something is not there.
    """
    from lmlab.methods.tutor.stages import TutorResults

    given = {"model": str(arguments.place(model, "model")), "questions": str(arguments.place(questions, "questions"))}
    return _stage("tutor_evaluate", TutorResults, given | arguments.plain(settings), out, 0, redo)[0]


def _stage(
    kind: str, results: type[R], settings: Mapping[str, Any], out: str | Path, seed: int, redo: bool
) -> tuple[R, Path]:
    """Run one stage as a recipe of its own: its results and its directory."""
    from lmlab.commandline.options import run_stages
    from lmlab.runs import StageRecord

    name, place = kind.replace("_", "-"), arguments.place(out, "out")
    run = run_stages(
        name, {kind: {"kind": kind, **settings}}, place, None, False, redo, arguments.whole(seed, "seed"), HERE
    )
    return StageRecord.finished_in(run / kind).read_results(results), run / kind
