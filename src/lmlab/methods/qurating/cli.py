"""`lmlab quality`: judge texts by pairs, train a rater, rate a corpus, choose from it."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Annotated

import typer

from lmlab.commandline.from_config import options
from lmlab.commandline.options import DryRun, Redo, Set, example
from lmlab.data.sources.reading.fields import ReadingOptions
from lmlab.errors import UserError, reads
from lmlab.methods.qurating.config import (
    AnnotateConfig,
    AnnotateOptions,
    JudgeStageConfig,
    PairConfig,
    QualityJudgeConfig,
    RaterStageConfig,
)

app = typer.Typer(
    no_args_is_help=True,
    help="Data selection by perceived quality: judge pairs of texts, train a rater, rate a corpus, sample from it.",
)

_JUDGE = "lmlab quality judge"
_REASONS = 100  # on the page: enough to see what a judge looks at; the file has all
Criteria = Annotated[
    list[str],
    typer.Option(
        "--criterion",
        metavar="NAME[=CLAUSE]",
        help="A criterion to judge by; with a clause, or @FILE, one of your own. May be repeated.",
    ),
]
Corpus = Annotated[str, typer.Argument(help="File, glob, folder or URL of texts or records.")]
Out = Annotated[Path, typer.Option("--out", "-o", help="Folder that receives the results.")]


@app.command(
    epilog=example(
        "lmlab quality judge corpus/ --tokenizer models/llama --criterion educational_value --judge offline --out"
        " judged",
        "lmlab quality judge corpus/ --tokenizer models/llama --judge openai:NAME --base-url URL --key-env JUDGE_KEY"
        " --max-cost-usd 5 --out judged",
        "lmlab quality judge corpus/ --tokenizer models/llama --judge exact:models/chat --criterion 'clarity=is"
        " clearer.' --out judged",
    )
)
@options(JudgeStageConfig, "stage", only=("tokenizer",))
@options(QualityJudgeConfig)
@options(PairConfig, "pairs")
@options(ReadingOptions, "fields")
def judge(
    corpus: Corpus,
    stage: JudgeStageConfig,
    settings: QualityJudgeConfig,
    pairs: PairConfig,
    fields: ReadingOptions,
    criterion: Criteria = ["educational_value"],  # noqa: B006
    out: Out = Path("judgments"),
) -> None:
    """Compare excerpts by criteria and write soft labels.

    Replies are kept: the same command after a kill asks only what is missing. Another one replaces the judgments.
    """
    from lmlab.files import check_owner, find_files, owned_folder
    from lmlab.judging import require_verdicts
    from lmlab.judging.judges.find import check_judge
    from lmlab.methods.qurating.commands.shared import documents_at, parse_criteria
    from lmlab.methods.qurating.rating.judge_documents import JUDGMENTS, compare_documents
    from lmlab.runs import Vocabulary

    check_judge(settings.judge)
    reads, asked = find_files(corpus), parse_criteria(criterion)
    check_owner(out, _JUDGE, reads)
    documents = documents_at(corpus, fields)
    words = Vocabulary.find(stage.tokenizer).load()
    told = [[each.name for each in asked], settings.judge, pairs.model_dump(mode="json")]
    with owned_folder(out, _JUDGE, told, reads) as folder:
        found, figures = compare_documents(
            documents, words, asked, settings, pairs, out, lambda name: folder.new(name, data=name == JUDGMENTS)
        )
    require_verdicts(found)
    print(
        f"{figures['groups']:,} groups, {figures['questions']:,} questions; {len(figures['missing'])} kinds of missing"
        " labels."
    )
    print(f"Judgments: {out / JUDGMENTS}\nLook at them: lmlab quality judge-report {out}")


@app.command("judge-report", epilog=example("lmlab quality judge-report judged --out judged.html"))
@options(QualityJudgeConfig, only=("generations",))
def judge_report(
    judged: Annotated[
        Path, typer.Argument(help="Folder that `lmlab quality judge` wrote, or judgments in a published layout.")
    ],
    settings: QualityJudgeConfig,
    out: Annotated[Path, typer.Option("--out", "-o", help="The page.")] = Path("judgments.html"),
) -> None:
    """Show how sure a judge is, what the order of texts does to it, and what labels are missing where."""
    from lmlab.files import read_jsonl, read_mapping
    from lmlab.judging import Judged, components, read_judgments, summarize
    from lmlab.methods.qurating.commands.shared import print_rows
    from lmlab.methods.qurating.rating.judge_documents import REASONS
    from lmlab.methods.qurating.report import judgment_sections
    from lmlab.reports import Page
    from lmlab.stats import without_noise

    if (judged / "judging.json").exists():
        figures = read_mapping(judged / "judging.json")
    else:
        judgments = list(read_judgments(judged))
        connected = components([each.ids or each.texts for each in judgments])
        figures = summarize(Judged(judgments), settings.generations) | {
            "judge": str(judged),
            "connected_sets": connected,
        }

    @reads("what a judging found")
    def show(path: Path) -> None:
        rows = [
            [name, each["labels"], without_noise(each["position_bias"]), each["swap_consistency"]]
            for name, each in figures["criteria"].items()
        ]
        print_rows(["criterion", "labels", "position bias", "same winner in both orders"], rows)
        print("Position bias: above 0 for a judge that likes the second place. The same winner: a share, at best 1.")
        told = judged / REASONS
        reasons = list(islice(read_jsonl(told), _REASONS)) if told.exists() else []
        print(f"Page: {Page('Judgments', sections=judgment_sections(figures, reasons)).write(out)}")

    show(judged)


@app.command(
    epilog=example(
        "lmlab quality train judged --init models/smollm2 --out rater",
        "lmlab quality train judged --tokenizer tokenizer/ --set size.num_layers=2 --set lr=1e-3 --out rater",
        "torchrun --nproc-per-node 8 -m lmlab quality train judged --init models/llama-1b --set trainer.precision=bf16"
        " --out rater",
    )
)
@options(RaterStageConfig, "stage", only=("init", "tokenizer"))
def train(
    judgments: Annotated[
        Path,
        typer.Argument(help="Judgments: a folder of `judge`, or Parquet, Arrow or JSON lines in a published layout."),
    ],
    stage: RaterStageConfig,
    heldout: Annotated[
        Path | None,
        typer.Option(help="Judgments to measure on, in place of a share of the others.", show_default=False),
    ] = None,
    set: Set = None,
    out: Out = Path("rater"),
) -> None:
    """Train a rater on judgments; the settings are those of `RaterConfig`. A training that was cut off goes on."""
    from lmlab.config import apply_overrides, validate
    from lmlab.distributed import joined
    from lmlab.judging import read_judgments
    from lmlab.methods.qurating import RaterConfig, train_rater
    from lmlab.methods.qurating.commands.shared import print_rows
    from lmlab.methods.qurating.report import CONFIDENCE
    from lmlab.methods.qurating.stages import judgments_of
    from lmlab.progress import console
    from lmlab.runs import Model, Vocabulary

    if (stage.init is None) == (stage.tokenizer is None):
        raise UserError("Give either --init, a model to start from, or --tokenizer, for a rater from scratch.")
    config = validate(RaterConfig, apply_overrides({}, set or []), "--set")
    found = list(read_judgments(judgments_of(judgments)))
    if not found:
        raise UserError(f"'{judgments}' holds no judgments.")
    held = None if heldout is None else list(read_judgments(judgments_of(heldout)))
    criteria = config.criteria or tuple(found[0].average)
    with joined() as world:
        start = None if stage.init is None else Model.find(stage.init)
        words = start.tokenizer() if start else Vocabulary.find(stage.tokenizer or "").load()
        trained = train_rater(found, criteria, words, config, out, start, held)
    if world.is_main:
        metrics = trained.results.get("metrics", {})
        rows = [
            [name, m, at["pairs"], at["accuracy"], at["ceiling"]]
            for name, each in metrics.items()
            for m, at in each["at"].items()
        ]
        print_rows(["criterion", "confidence from", "labels", "accuracy", "ceiling"], rows)
        if rows:
            print(CONFIDENCE)
        if warning := trained.results.get("warning"):
            console.print(f"warning: {warning}", style="yellow", markup=False)
        print(f"Rater: {out / 'rater'}")


@app.command(
    epilog=example(
        "lmlab quality annotate corpus/ --rater rater --out rated",
        "lmlab quality annotate 's3://bucket/corpus/*.parquet' --rater rater --backend ray --workers 16 --gpus 1 --out"
        " /shared/rated",
        "torchrun --nproc-per-node 8 -m lmlab quality annotate corpus/ --rater rater --out rated",
    )
)
@options(AnnotateConfig, "stage", only=("rater",))
@options(AnnotateOptions)
def annotate(
    corpus: Corpus,
    stage: AnnotateConfig,
    settings: AnnotateOptions,
    out: Out = Path("rated"),
) -> None:
    """Rate every row of a corpus. The same command goes on after a kill, and on other machines shares the work."""
    import os

    from lmlab.methods.qurating.annotating.annotate import annotate as run
    from lmlab.methods.qurating.annotating.corpus import Annotation

    device = f"cuda:{os.environ['LOCAL_RANK']}" if "LOCAL_RANK" in os.environ and _cuda() else "auto"
    job = Annotation(
        corpus,
        stage.rater,
        str(out),
        settings.text,
        settings.id,
        settings.input_ids,
        None if settings.ids_tokenizer is None else str(settings.ids_tokenizer),
        settings.block,
        settings.columns or None,
        device,
        settings.precision,
        settings.split,
    )
    found = run(job, settings.workers, settings.backend, settings.gpus)
    print(
        f"{found['rows']:,} rows, {found['tokens']:,} tokens, {found['empty']:,} empty; {found['rated']:,} were rated"
        f" now, {found['reused']:,} of changed files were known."
    )
    print(f"Ratings: {out}\nPlan a choice: lmlab quality plan --in {out} --metric NAME_average --tokens N")


@app.command(
    epilog=example(
        "lmlab quality pipeline quality.yaml --out runs/quality", "lmlab quality pipeline quality.yaml --dry-run"
    )
)
def pipeline(
    file: Annotated[Path, typer.Argument(help="YAML file with a section 'quality'; see docs/methods/qurating.md.")],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Directory of the run \\[default: runs/quality].", show_default=False),
    ] = None,
    set: Set = None,
    dry_run: DryRun = False,
    redo: Redo = False,
) -> None:
    """Judge, train, rate, choose and report, from one file. What is finished is skipped."""
    from lmlab.commandline.options import execute
    from lmlab.config import apply_overrides
    from lmlab.files import read_yaml
    from lmlab.methods.qurating.commands.pipeline import pipeline_recipe

    execute(pipeline_recipe(apply_overrides(read_yaml(file), set or []), f"'{file}'"), out, dry_run, redo)


def _cuda() -> bool:
    import torch

    return torch.cuda.is_available()


import lmlab.methods.qurating.commands.attributes  # noqa: E402 (adds those of attribute files)
import lmlab.methods.qurating.commands.cleaning  # noqa: E402 (adds clean)
import lmlab.methods.qurating.commands.selection  # noqa: E402 (adds the commands that choose)
import lmlab.methods.qurating.commands.weights  # noqa: E402, F401 (adds those that weigh criteria)
