"""`lmlab long`: long context, measured and learned."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lmlab.commandline.from_config import options
from lmlab.commandline.model_place import takes_model
from lmlab.commandline.options import ModelPlace, NewRun, OnlyTell, example
from lmlab.endpoints.settings import EndpointSettings
from lmlab.errors import UserError
from lmlab.evals.long.config import LongSettings
from lmlab.judging.answers.config import AnswerJudgeConfig
from lmlab.methods.prolong.config import (
    FactorSettings,
    MeasuringSettings,
    PerplexitySettings,
    ProbeSettings,
    RopeSettings,
)
from lmlab.runs.loading import Loading
from lmlab.words import counted

app = typer.Typer(
    no_args_is_help=True,
    help="Long context: measure what a model does with it, on real text at exact lengths; extend its window.",
)


@app.command(
    epilog=example(
        "lmlab long build models/smollm2 --preset cpu --out instances.jsonl",
        "lmlab long build models/smollm2 --length 4096 --task json_kv.uuid --task rag --contexts 10 --out hard.jsonl",
    )
)
@takes_model
@options(LongSettings)
@options(MeasuringSettings, "how", only=("chat",))
def build(
    model: Annotated[str, typer.Argument(help="Model, or tokenizer, by whose tokens lengths are measured.")],
    settings: LongSettings,
    how: MeasuringSettings,
    out: Annotated[Path, typer.Option("--out", "-o", help="The file, JSON lines.")],
) -> None:
    """Write instances of the suite to a file, which any number of models with the same tokenizer are measured on."""
    from lmlab.evals.long import Asking, summary_of
    from lmlab.methods.prolong.evaluate import instances_for
    from lmlab.runs import Vocabulary

    asking = Asking(Vocabulary.find(model).load(), how.chat)
    file = instances_for(asking, settings, out)
    columns = ["task", "tokens", "questions", "contexts", "items", "longest prompt", "short"]
    _print_rows(columns, summary_of(file.instances))
    print(f"Instances: {out}")


@app.command(
    name="eval",
    epilog=example(
        "lmlab long eval models/smollm2 --mode forced --out runs/long",
        "lmlab long eval models/smollm2 --instances instances.jsonl --short-task arc_easy --out runs/long",
        "lmlab long eval models/longer --instances instances.jsonl --short-task arc_easy --against runs/long --gate"
        " --out runs/longer",
        "lmlab long eval openai:gpt-4o-mini --base-url https://api.openai.com/v1 --key-env OPENAI_API_KEY"
        " --instances instances.jsonl --out runs/api",
        "torchrun --nproc-per-node 8 -m lmlab long eval models/llama --preset full --out runs/long",
    ),
)
@takes_model
@options(LongSettings)
@options(MeasuringSettings, "how")
@options(EndpointSettings, "endpoint", only=("base_url", "key_env"))
def evaluate(
    model: Annotated[
        str,
        typer.Argument(
            help="A model's directory, stage, run, checkpoint or GGUF file; or openai:NAME for an endpoint."
        ),
    ],
    settings: LongSettings,
    how: MeasuringSettings,
    endpoint: EndpointSettings,
    out: Annotated[Path, typer.Option("--out", "-o", help="Directory of the results.")],
    instances: Annotated[
        Path | None, typer.Option(help="A file of `build`; without it, one is built.", show_default=False)
    ] = None,
    against: Annotated[
        Path | None,
        typer.Option(
            help="Results of another model, such as the one it was made from, for the page.", show_default=False
        ),
    ] = None,
) -> None:
    """Measure a model on long contexts. The same command after a kill goes on with the contexts that are missing."""
    from lmlab.distributed import joined, world
    from lmlab.evals import find_tasks
    from lmlab.evals.long import read_instances
    from lmlab.files import read_mapping
    from lmlab.methods.prolong.evaluate import INSTANCES, evaluate, evaluate_endpoint, instances_for
    from lmlab.methods.prolong.short import SHORT, require_kept, short_cost

    if how.gate:
        known = against is not None and (against / SHORT).is_file()
        measured = read_mapping(against / SHORT) if against is not None and known else {}
        missing = [each.name for each in find_tasks(how.short_tasks) if each.name not in measured]
        if missing or not how.short_tasks:
            which = f" ({', '.join(missing)})" if missing and known else ""
            raise UserError(
                f"--gate compares short tasks, which were not measured on both models{which}.",
                "Name some with --short-task, and with --against results that have them too.",
            )
    with joined():
        if model.startswith("openai:"):
            if instances is None:
                raise UserError("An endpoint needs --instances: it does not tell its tokenizer.", "lmlab long build")
            if how.mode != "generate":
                raise UserError("An endpoint writes, and tells no probabilities of long answers.", "--mode generate")
            if how.short_tasks:
                raise UserError("Short tasks are not measured of an endpoint.", "Leave --short-task out.")
            address = endpoint.base_url, endpoint.key_env
            results = evaluate_endpoint(model, read_instances(instances), out, *address, how.controls)
        else:
            from lmlab.evals import Evaluator
            from lmlab.evals.long import Asking

            evaluator = Evaluator.load(model, how.device, how.precision)
            asking = Asking(evaluator.tokenizer, how.chat)
            if instances is not None:
                file = read_instances(instances, evaluator.tokenizer.fingerprint)
            else:
                file = instances_for(asking, settings, out / INSTANCES)
            results = evaluate(
                evaluator,
                file,
                out,
                model=model,
                mode=how.mode,
                chat=how.chat,
                controls=how.controls,
                share=how.share,
                short_tasks=how.short_tasks,
                short_limit=how.short_limit,
            )
        if world().is_main:
            _show(results)
            print(f"Results: {out}\nPage: {_page([out] if against is None else [against, out], out / 'report.html')}")
            cost = None if against is None else short_cost(against, out)
            if how.gate:
                require_kept(cost, str(out), str(against))
            if cost is not None:
                print(cost.sentence(str(out), str(against)))


@app.command(epilog=example("lmlab long report runs/base runs/tuned --out compared.html"))
def report(
    results: Annotated[
        list[Path],
        typer.Argument(
            help="Directories of `eval`, the first of which others compare with; or folders of `helmet`, or of HELMET."
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="The page.")] = Path("long.html"),
) -> None:
    """Show runs of the suite on one page, side by side: scores over length, depth, controls, short tasks. Results of
    HELMET's own files stand side by side by their names.
    """
    from lmlab.evals.long.helmet.results import holds_helmet_results, read_helmet_results
    from lmlab.methods.prolong.report import helmet_section
    from lmlab.reports import Page

    if not any(map(holds_helmet_results, results)):
        print(f"Page: {_page(results, out)}")
        return
    found = [read_helmet_results(each) for each in results]
    print(f"Page: {Page('HELMET', sections=[helmet_section(found)]).write(out)}")


@app.command(
    epilog=example("lmlab long helmet models/llama --data HELMET/data --config HELMET/configs/recall.yaml --out helmet")
)
@takes_model
@options(Loading, "loading", precision="auto")
def helmet(
    model: ModelPlace,
    loading: Loading,
    data: Annotated[Path, typer.Option(help="HELMET's folder data.")],
    config: Annotated[Path, typer.Option(help="A configuration of HELMET (YAML).")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the results, under HELMET's names.")],
) -> None:
    """Measure a model on HELMET's own files. Prompts are worded as here, not as there."""
    from lmlab.distributed import joined, world
    from lmlab.evals import Evaluator
    from lmlab.files import read_mapping
    from lmlab.methods.prolong.evaluate import SUITES, evaluate_helmet

    with joined():
        found = evaluate_helmet(Evaluator.load(model, loading.device, loading.precision), config, data, out, model)
        if world().is_main:
            rows: list[list[object]] = [
                [name, metric, f"{value:.2f}"] for name, each in found.items() for metric, value in each.items()
            ]
            _print_rows(["file", "metric", "score"], rows)
            means = read_mapping(out / SUITES)["suites"]
            _print_rows(["suite", "mean"], [[name, f"{value:.2f}"] for name, value in means.items()])


@app.command(
    epilog=example(
        "lmlab long ppl models/base --length 4096 --context 1024 --keys keys.json",
        "lmlab long ppl models/tuned --keys keys.json",
    )
)
@takes_model
@options(PerplexitySettings)
@options(Loading, "loading")
def ppl(
    model: ModelPlace,
    loading: Loading,
    keys: Annotated[Path, typer.Option(help="Key tokens: read where the file exists, else found by this model.")],
    settings: PerplexitySettings,
) -> None:
    """LongPPL: the perplexity of the tokens that need what stands far before them. They are found once, by the base,
    and kept, so that other models are measured on the same ones.
    """
    from lmlab.methods.prolong.perplexity import measure_long_ppl

    found = measure_long_ppl(model, keys, settings, loading.device, loading.precision)
    long = "there are no key tokens" if found.long_perplexity is None else f"LongPPL {found.long_perplexity:.3f}"
    print(f"{long}; perplexity {found.perplexity:.3f}; {found.keys:,} key tokens of {found.tokens:,}.\nKeys: {keys}")


@app.command(
    name="rope",
    epilog=example(
        "lmlab long rope models/llama --to 65536",
        "lmlab long rope models/llama --to 32768 --rope-theta auto-ntk --out models/llama-32K",
    ),
)
@takes_model
@options(RopeSettings)
def rope(
    model: ModelPlace,
    settings: RopeSettings,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Write the model there with this window, untrained.", show_default=False),
    ] = None,
) -> None:
    """Say which bases of the rotary frequencies the two rules give for a longer window; or write the model with one, to
    measure what a rule gives without training.
    """
    from lmlab.config import validate
    from lmlab.models import RopeScaling, WindowConfig, extended_theta
    from lmlab.runs import Model

    place = Model.find(model)
    config = place.config
    if config.positions != "rotary":
        raise UserError(f"'{model}' has {config.positions} positions, and no rotary frequencies.")
    if out is None and (settings.rope_theta is not None or settings.yarn):
        raise UserError("--rope-theta and --yarn say how a model is written.", "Name its directory with --out.")
    rows: list[list[object]] = [["as it is", config.max_seq_len, f"{config.rope_theta:g}"]]
    for rule in ("auto", "auto-ntk"):
        theta = extended_theta(config.rope_theta, config.max_seq_len, settings.to, config.rotary_dim, rule)
        rows.append([f"window.rope_theta: {rule}", settings.to, f"{theta:g}"])
    _print_rows(["", "window", "theta"], rows)
    if (scaling := config.rope_scaling) is not None:
        print(f"The model scales its positions ({scaling.type}) by a factor of {scaling.factor:g}.")
    if out is not None:
        from lmlab.methods.prolong.factors import extend_untrained

        given: dict[str, object] = {"max_seq_len": settings.to, "rope_theta": settings.rope_theta}
        if settings.yarn:
            factor = settings.to / config.max_seq_len
            given["rope_scaling"] = RopeScaling(
                type="yarn", factor=factor, original_max_seq_len=config.max_seq_len
            ).model_dump()
        written = extend_untrained(place, validate(WindowConfig, given, "the options"), out)
        how = f"{written.rope_scaling.type} scaling" if written.rope_scaling else f"theta {written.rope_theta:g}"
        print(f"Written with a window of {written.max_seq_len:,} and {how}, untrained: {out}")


@app.command(
    epilog=example(
        "lmlab long judge runs/long --judge coverage",
        "lmlab long judge helmet/narrativeqa_7892-8192 --task answer -j openai:NAME --base-url https://HOST/v1"
        " --key-env KEY --price 0.15,0.6 --dry-run",
        "lmlab long judge helmet/alce_asqa_30-8192 --task alce_asqa --judge onnx-nli:models/nli/model.onnx",
    )
)
@options(AnswerJudgeConfig, exclude=("rubric", "calibration"))
def judge(
    results: Annotated[Path, typer.Argument(help="A directory of `eval`, in the mode generate, or of `helmet`.")],
    settings: AnswerJudgeConfig,
    task: Annotated[list[str], typer.Option(help="Tasks whose answers are judged.")] = ["summ"],  # noqa: B006
    dry_run: OnlyTell = False,
    new_run: NewRun = False,
) -> None:
    """Let a judge say what summaries and answers are worth: fluency, claims and correctness, as in HELMET; and of
    answers with citations (alce_asqa, alce_qampari) whether the documents bear out what they are cited for.
    """
    from lmlab.methods.prolong.judged import estimate_judgment, judge_results

    if dry_run:
        cost = estimate_judgment(results, settings, task)
        print(cost if cost is not None else "No requests: the judge is offline.")
        return
    found = judge_results(results, settings, task, new_run)
    rows: list[list[object]] = []
    for name, cells in found["tasks"].items():
        for length, cell in cells.items():
            parts = [cell.get(part) for part in ("score", "fluency", "correctness", "recall", "precision")]
            shown = ["" if value is None else f"{value:.3f}" for value in parts]
            rows.append([name, length, f"{cell['graded']} of {cell['n']}", *shown])
    _print_rows(["task", "tokens", "graded", "score", "fluency", "correctness", "recall", "precision"], rows)
    print(f"Judged: {results / 'judged.json'}\nPage: {_page([results], results / 'report.html')}")


@app.command(
    epilog=example(
        "lmlab long search models/mine --to 4096 --out runs/searched",
        "lmlab long eval runs/searched/model --length 4096 --mode forced --out runs/long",
    )
)
@takes_model
@options(FactorSettings)
@options(Loading, "loading")
def search(
    model: ModelPlace,
    settings: FactorSettings,
    loading: Loading,
    out: Annotated[Path, typer.Option("--out", "-o", help="Directory of what is found.")],
) -> None:
    """Search a factor for each rotary frequency that makes right answers probable in a longer window (LongRoPE), and
    write the model with them. Nothing is trained, and texts up to the old window are read as before.
    """
    from dataclasses import asdict

    from lmlab.methods.prolong.factors import extend_by_search
    from lmlab.methods.prolong.report import factor_summary
    from lmlab.runs import Model

    found = extend_by_search(Model.find(model), settings, loading.device, loading.precision, out)
    print(f"{factor_summary(asdict(found))}\nModel: {out / 'model'}")


@app.command(
    epilog=example(
        "lmlab long probe ladder/run/190M ladder/run/370M --tokens 1000000 --out runs/probes",
        "lmlab long probe models/early models/late --task json_kv.word --times 2 --out runs/probes",
    )
)
@options(ProbeSettings)
def probe(
    models: Annotated[list[str], typer.Argument(help="Checkpoints: each wherever a model may be.")],
    settings: ProbeSettings,
    out: Annotated[Path, typer.Option("--out", "-o", help="Directory, with one of each checkpoint in it.")],
) -> None:
    """Extend the window of checkpoints by the same short training, and rank them by what they recall in it, which
    losses and short tasks do not tell. The same command goes on where it was stopped.
    """
    from lmlab.methods.prolong.probe import probe_window, ranked
    from lmlab.runs import Model

    places = [Model.find(model) for model in models]
    found = [
        probe_window(place, settings, out / f"{number}-{Path(model).name}", model)
        for number, (place, model) in enumerate(zip(places, models, strict=True), 1)
    ]
    rows: list[list[object]] = []
    for each in ranked(found):
        (before,) = each["before"].values()
        cells = [_with_bounds(cell) for cell in each["after"].values()]
        rows.append([each["model"], f"{before['score']:.2f}", *cells, f"{each['reached']:.3f}"])
    old, lengths = found[0]["window"][0], [f"{int(length):,}" for length in found[0]["after"]]
    _print_rows(["model", f"before, {old:,}", *lengths, "beyond the old window"], rows)
    print(f"Share of right answers, with 95 % intervals over contexts, after {counted(found[0]['tokens'], 'tokens')}.")
    print(f"Probes: {out}")


def _with_bounds(cell: dict[str, float | None]) -> str:
    known = cell["low"] is not None and cell["high"] is not None
    return f"{cell['score']:.2f}" + (f" ({cell['low']:.2f} to {cell['high']:.2f})" if known else "")


def _page(places: list[Path], out: Path) -> Path:
    from lmlab.errors import reads
    from lmlab.evals.long import RESULTS, read_results, read_suite_rows
    from lmlab.files import read_mapping
    from lmlab.methods.prolong.evaluate import JUDGED
    from lmlab.methods.prolong.report import sections
    from lmlab.methods.prolong.short import SHORT, short_cost
    from lmlab.reports import Page

    @reads("what a measurement found")
    def found_at(place: Path) -> dict[str, object]:
        found = read_results(place)
        beside = {"short": place / SHORT, "judged": place / JUDGED}
        found = {**found, "directory": str(place)}
        return found | {name: read_mapping(path) for name, path in beside.items() if place.is_dir() and path.is_file()}

    found = [found_at(place) for place in places]
    for place, each in zip(places[1:], found[1:], strict=True):
        if place.is_dir() and places[0].is_dir() and (cost := short_cost(places[0], place)) is not None:
            each["short_cost"] = cost.row()
    last = places[-1] if places[-1].is_dir() else places[-1].parent
    rows = [read_suite_rows(last)] if (last / RESULTS).is_file() and (last / "rows.jsonl").is_file() else []
    return Page("Long context", sections=sections(found, rows)).write(out)


def _show(results: dict[str, object]) -> None:
    tasks = results["tasks"]
    assert isinstance(tasks, dict)
    rows = []
    for task, cells in tasks.items():
        for length, cell in cells.items():
            main = cell.get("score", cell["figures"].get(cell["metric"]))
            bounds = f"{cell['low']:.3f} to {cell['high']:.3f}" if cell.get("low") is not None else ""
            chance = "" if cell["chance"] is None else f"{cell['chance']:.3f}"
            rows.append(
                [task, length, cell["n"], cell["metric"], "" if main is None else f"{main:.3f}", bounds, chance]
            )
    _print_rows(["task", "tokens", "n", "metric", "score", "95 % interval", "chance"], rows)


def _print_rows(columns: list[str], rows: list[list[object]]) -> None:
    from rich import box
    from rich.table import Table

    from lmlab.commandline.options import print_table

    table = Table(*columns, box=box.SIMPLE)
    for row in rows:
        table.add_row(*(f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in row))
    print_table(table)
