"""What a user types first: `import lmlab`, then one function for each thing to do.

Each is thin: it finds the model or the file, and calls what the command of the same name calls. Places are strings or
paths; a model is whatever `lmlab.runs.Model.find` takes: a directory, a GGUF file, a checkpoint, a stage or a run.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast, overload

from lmlab import arguments
from lmlab.errors import UserError, did_you_mean, from_unforeseen

if TYPE_CHECKING:
    from lmlab.data import Tokenizer
    from lmlab.evals import Evaluator, Measurement
    from lmlab.methods.edge_pruning import Circuit
    from lmlab.methods.ladder import Forecaster
    from lmlab.methods.olmoe import RoutingTrace
    from lmlab.methods.qurating import Manifest
    from lmlab.models import Transformer
    from lmlab.runs import Model
    from lmlab.stages.parts.evaluate_report import EvaluateResults

_HERE = "the settings"  # what messages call the arguments of a call
_WIDEST = 2048  # tokens; attention to more than these costs memory and hardly lowers the bits of usual texts


F = TypeVar("F", bound=Callable[..., Any])


def _told(function: F) -> F:
    """Let what the system refuses and packages that are missing end in the sentences of the command line."""

    @functools.wraps(function)
    def call(*values: Any, **named: Any) -> Any:
        try:
            return function(*values, **named)
        except (OSError, ModuleNotFoundError) as error:
            raise from_unforeseen(error, purpose=f"lmlab.{function.__name__}") from error

    return cast(F, call)


@dataclass(frozen=True)
class LanguageModel:
    """A model with its tokenizer, as `load` gives it.

    Attributes:
        place: where it was found.
        network: the transformer, in evaluation mode.
        precision: in which it was read.
        adapter: what was folded into its weights.
    """

    place: Model
    network: Transformer
    tokenizer: Tokenizer
    precision: str = "fp32"
    adapter: Path | None = None

    def __post_init__(self) -> None:
        self.__dict__["_as_read"] = self._state()

    def _state(self) -> list[tuple[str, int, int]]:
        """Where each weight is in memory, and how often it was written to."""
        tensors = self.network.state_dict().items()
        return [(name, each.data_ptr(), 0 if each.is_inference() else each._version) for name, each in tensors]

    @overload
    def generate(self, prompt: str, **settings: Any) -> str: ...

    @overload
    def generate(self, prompt: Sequence[str], **settings: Any) -> list[str]: ...

    def generate(self, prompt: str | Sequence[str], **settings: Any) -> str | list[str]:
        """Continue a text, or several; what is added, without the prompt.

        Arguments:
            settings: those of `lmlab.models.GenerationConfig`, such as `max_new_tokens=100`, `temperature=0.8`,
                `stop=("\\n",)`, `seed=0`; by default what the model's makers say, as in `lmlab generate`.

        Raises:
            UserError: a setting is wrong, or a text does not fit the model.
        """
        from lmlab.commands.models import CONTINUING, sampling
        from lmlab.stages.generate import complete_texts, generation_config

        prompts = arguments.texts(prompt, "prompt")
        given = _decoding(settings)
        config = generation_config(sampling(self.place, CONTINUING, given), self.place, self.tokenizer)
        if config.num_samples != 1:
            raise UserError("num_samples: one text is given for each prompt.", "Repeat the prompt, or change the seed.")
        found = [each[0].text or "" for each in complete_texts(self.network, self.tokenizer, prompts, config)]
        return found[0] if isinstance(prompt, str) else found

    def chat(self, messages: str | Sequence[Mapping[str, str]], **settings: Any) -> str:
        """The answer to a message, or to a conversation whose last message is a user's.

        Arguments:
            messages: a text, or messages with `role` (system, user, assistant) and `content`.
            settings: as in `generate`.

        Raises:
            UserError: the tokenizer has no chat template, the last message is not a user's, or the conversation does
                not fit the model.
        """
        return "".join(self.stream_chat(messages, **settings))

    def stream_chat(self, messages: str | Sequence[Mapping[str, str]], **settings: Any) -> Iterator[str]:
        """The answer of `chat`, piece by piece."""
        from lmlab.commands.chat import Conversation
        from lmlab.commands.models import chat_settings

        said = arguments.messages(messages)
        if said[-1]["role"] != "user":
            raise UserError("The last message of the conversation is not a user's.", "End it with role 'user'.")
        config = chat_settings(self.place, self.network, self.tokenizer, _decoding(settings))
        conversation = Conversation(self.network, self.tokenizer, config)
        conversation.messages = said[:-1]
        return conversation.reply(said[-1]["content"])

    def score(self, context: str, options: Sequence[str]) -> list[float]:
        """The natural-log probability of each option after a context.

        Raises:
            UserError: an option adds no token, or does not fit the model's window.
        """
        from lmlab.evals import Question, option_scores, rank_questions

        chosen = arguments.texts(options, "options", single=False)
        if not chosen:
            raise UserError("options: there is no option.", "Give a list of texts.")
        question = Question(id="question", context=arguments.text(context, "context"), options=chosen, gold=0)
        row = next(iter(rank_questions(self.evaluator.scorer, self.tokenizer, [question])))
        return [float(each) for each in option_scores(row, "none")]

    def measure(self, text: str | Sequence[str], window: int | None = None) -> dict[str, Measurement]:
        """`bits_per_byte`, `bits_per_token` and `perplexity` of a text, or of several, with standard errors over them.

        Arguments:
            window: the most tokens that the model sees at once, by default all that it can, up to 2,048.

        Raises:
            UserError: there is no text, or none but empty ones.
        """
        from lmlab.data import Document
        from lmlab.evals import measure_documents, perplexity_figures

        texts = arguments.texts(text, "text")
        if not any(texts):
            raise UserError("text: it is empty, so that there is nothing to measure.")
        documents = [Document(str(number), each) for number, each in enumerate(texts)]
        most = self.evaluator.scorer.max_seq_len
        seen = min(most, _WIDEST) if window is None else arguments.whole(window, "window", least=2)
        if seen > most:
            raise UserError(f"window: {seen} tokens are more than the model's {most}.")
        begins = self.evaluator.begins_windows
        rows = measure_documents(self.evaluator.scorer, self.tokenizer, documents, seen, begin_every=begins)
        return perplexity_figures(list(rows))

    def bits_per_byte(self, text: str | Sequence[str]) -> float:
        """Bits that the model needs for a byte of the text: comparable between models with other tokenizers."""
        return self.measure(text)["bits_per_byte"].value

    def perplexity(self, text: str | Sequence[str]) -> float:
        """Two to the bits of a token, which depends on the tokenizer."""
        return self.measure(text)["perplexity"].value

    @cached_property
    def evaluator(self) -> Evaluator:
        """What `lmlab.evals` measures, in the precision of the weights."""
        from lmlab.config import PACKED
        from lmlab.evals import Evaluator, ModelScorer

        precision = "bf16" if self.network.embedding.weight.dtype.itemsize == 2 else "fp32"  # 2 bytes: bf16
        if self.precision in PACKED:
            precision = self.precision
        return Evaluator(ModelScorer(self.network, precision), self.tokenizer, self.network, self.place.end_token_ids())

    def _as_stored(self) -> Path:
        """Where the same weights stand, for what reads them from there."""
        where = self.place.path
        if self.adapter is not None:
            raise UserError(
                f"The model has '{self.adapter}' folded in, and '{where}' has not.",
                "Fold it in on disk with lmlab convert --adapter, and name what that writes.",
            )
        if self._state() != self.__dict__["_as_read"]:
            raise UserError(
                f"The weights in memory are no longer those of '{where}'.",
                "Save them with lmlab.models.save_pretrained(model.network, directory), and name that directory.",
            )
        return where


@_told
def load(place: str | Path, *, precision: str = "fp32", adapter: str | Path | None = None) -> LanguageModel:
    """A model with its tokenizer, on the GPU where there is one.

    Arguments:
        place: a Hugging Face directory, a GGUF file, a checkpoint, a stage's directory, or a run.
        precision: of the weights: `fp32`, `bf16`, `auto` (the faster one here), or `int8` or `int4` on a CPU.
        adapter: LoRA adapters as `peft` stores them, to fold in.

    Raises:
        UserError: nothing of the kind is there.
    """
    from lmlab.commands.models import load_model

    found, kind = arguments.place_or_none(adapter, "adapter"), arguments.text(precision, "precision")
    return LanguageModel(*load_model(arguments.place(place, "place"), kind, found), kind, found)


@_told
def generate(model: LanguageModel | str | Path, prompt: str, **settings: Any) -> str:
    """Continue a text: `LanguageModel.generate` of a model by its place. Load it once to use it more than once."""
    return _loaded(model).generate(prompt, **settings)


@_told
def chat(model: LanguageModel | str | Path, messages: str | Sequence[Mapping[str, str]], **settings: Any) -> str:
    """Answer a message or a conversation: `LanguageModel.chat` of a model by its place."""
    return _loaded(model).chat(messages, **settings)


@_told
def evaluate(
    model: LanguageModel | str | Path,
    tasks: str | Sequence[str] = (),
    *,
    documents: str | Path | None = None,
    questions: str | Path | None = None,
    out: str | Path | None = None,
    redo: bool = False,
    **settings: Any,
) -> EvaluateResults:
    """Measure a model, as `lmlab eval` does: the same run directory, rows and report, and its figures returned.

    Arguments:
        model: by its place; one that was loaded is read from there again, in its precision.
        tasks: names, groups or YAML files, in a list or with commas between them; `lmlab eval tasks` lists them.
        documents: to measure bits per byte on: JSON lines with a `text` each.
        questions: a file of ranked questions.
        settings: further ones of the stage `evaluate`, such as `limit=200` or `too_long="truncate"`.

    Raises:
        UserError: there is nothing to measure, something is not there, or the weights of a loaded model are no longer
            those of its place.
    """
    from lmlab.commands.evaluation import run_evaluation
    from lmlab.runs import StageRecord
    from lmlab.stages.parts.evaluate_report import EvaluateResults

    further = {
        "documents": arguments.place_or_none(documents, "documents"),
        "task": arguments.place_or_none(questions, "questions"),
        **arguments.plain(settings),
    }
    if isinstance(model, LanguageModel):
        place, further = model._as_stored(), {"precision": model.precision, **further}
    else:
        place = arguments.place(model, "model")
    directory = arguments.place_or_none(out, "out")
    found = run_evaluation([place], arguments.words(tasks, "tasks"), further, directory, False, bool(redo), _HERE)
    return StageRecord.finished_in(found[0]).read_results(EvaluateResults)


@_told
def train_model(
    config: str | Path | Mapping[str, Any],
    out: str | Path | None = None,
    *,
    overrides: str | Sequence[str] = (),
    redo: bool = False,
) -> Path:
    """Train a language model, as `lmlab train` does; the directory of its run, which `load` takes.

    Arguments:
        config: a YAML file or a mapping: tokens, tokenizer, model, seq_len, trainer; see the stage `train`.
        out: the run's directory, by default below `runs/`.
        overrides: `key=value`, as behind `--set`.
        redo: train again where the configuration has changed.

    Raises:
        UserError: a setting is wrong, or the text is not there.
    """
    from lmlab.commandline.options import run_stages
    from lmlab.commands.recipes import train_stages

    given = arguments.plain(config) if isinstance(config, Mapping) else arguments.place(config, "config")
    name, stages, seed = train_stages(given, arguments.texts(overrides, "overrides"))
    return run_stages(name, stages, arguments.place_or_none(out, "out"), None, False, bool(redo), seed, _HERE)


@_told
def run(
    recipe: str | Path | Mapping[str, Any],
    out: str | Path | None = None,
    *,
    overrides: str | Sequence[str] = (),
    redo: bool = False,
) -> Path:
    """Run a recipe, as `lmlab run` does: finished stages are skipped. The directory of the run.

    Arguments:
        recipe: a YAML file, or what one holds: name, seed, stages.
        out: the run's directory, by default below `runs/`.
        overrides: `STAGE.key=value`, as behind `--set`.
        redo: run changed stages again; what they wrote before is moved aside.

    Raises:
        UserError: the recipe is wrong; the field is named.
    """
    from lmlab.commandline.options import execute
    from lmlab.runs import Recipe

    given = arguments.plain(recipe) if isinstance(recipe, Mapping) else arguments.place(recipe, "recipe")
    loaded = Recipe.load(given, arguments.texts(overrides, "overrides"))
    return execute(loaded, arguments.place_or_none(out, "out"), False, bool(redo))


@_told
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
    options = validate(RunsOptions, chosen, _HERE)
    estimator = validate(EstimatorOptions, {"preset": preset}, _HERE)
    estimator.settings()  # a preset that is none is named before anything is read
    return fitted(read_runs(arguments.place(runs, "runs")), options, estimator, arguments.whole(seed, "seed"))


@_told
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
    return trace_texts(place, source, validate(TraceConfig, arguments.plain(settings), _HERE))


@_told
def find_circuit(model: str | Path, examples: str | Path | None = None, *, seed: int = 0, **settings: Any) -> Circuit:
    """The edges between the parts of a model that do a task, as `lmlab circuits find` does (Bhaskar et al. 2024).

    Arguments:
        model: any model, or a directory of a program compiled by Tracr, which brings its examples.
        examples: JSON lines of clean and corrupted prompts.
        settings: those of `FindConfig`, such as `method="eap-ig"`, `target=0.98` or `ablation="zero"`, and of
            `TaskOptions`, such as `split="train"` or `batch_size=8`.

    Returns:
        the circuit; `about` says where model and examples come from, with their hashes, as a file of the command does.

    Raises:
        UserError: a setting is wrong, or the model cannot do the task.
    """
    from lmlab.config import validate
    from lmlab.methods.edge_pruning import FindConfig, TaskOptions
    from lmlab.methods.edge_pruning import find_circuit as find
    from lmlab.methods.edge_pruning.config import with_training
    from lmlab.methods.edge_pruning.examples.load import load as load_task

    settings = arguments.plain(settings)
    chosen = {name: settings.pop(name) for name in TaskOptions.model_fields if name in settings}
    options = validate(TaskOptions, {**chosen, "data": arguments.place_or_none(examples, "examples")}, _HERE)
    config = validate(FindConfig, with_training(settings, {"micro_batch_size": options.batch_size}), _HERE)
    drawn = arguments.whole(seed, "seed")
    loaded = load_task(arguments.place(model, "model"), options)
    task, _ = loaded.task(config.ablation, config.graph, options)
    return find(task, config, drawn, None, options.force, loaded.about())


@_told
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
    chosen = validate(LongSettings, arguments.plain(settings), _HERE)
    evaluator = _loaded(model).evaluator
    with TemporaryDirectory() as folder:
        place = Path(folder)
        file = instances_for(Asking(evaluator.tokenizer, chat), chosen, place / "instances.jsonl")
        found = measure(evaluator, file, place, model="model", mode=cast(Mode, mode), chat=chat)
    return {
        task: {int(length): cell["score"] for length, cell in cells.items() if "score" in cell}
        for task, cells in found["tasks"].items()
    }


@_told
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


@_told
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
    from lmlab.methods.qurating.selecting.tables.table import budget_of

    table = rated if isinstance(rated, Mapping) else str(arguments.place(rated, "rated"))
    chosen = arguments.plain(settings)
    wanted = arguments.text(tokens, "tokens") if isinstance(tokens, str) else arguments.whole(tokens, "tokens", least=1)
    budget = budget_of(wanted, table, chosen.get("length", "length"))
    return select(table, **{"mode": "sample", **chosen, "tokens": budget})


def _decoding(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of decoding; one stop stands for several."""
    found: dict[str, Any] = arguments.plain(settings)
    return found | {"stop": (found["stop"],)} if isinstance(found.get("stop"), str) else found


def _loaded(model: LanguageModel | str | Path) -> LanguageModel:
    return model if isinstance(model, LanguageModel) else load(model)
