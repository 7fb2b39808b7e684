"""The commands `lmlab judge`: grade answers, and find out how far the grades can be trusted."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lmlab.commandline.from_config import options
from lmlab.commandline.options import example, print_table
from lmlab.errors import UserError
from lmlab.judging.answers.config import AnswerJudgeConfig

if TYPE_CHECKING:
    from lmlab.judging.measures.agreement import Agreement
    from lmlab.judging.people.tables import GradeTable
    from lmlab.stats import Interval

app = typer.Typer(no_args_is_help=True)

EXIT_UNGRADED, EXIT_GATE = 3, 3
_MOST_UNGRADED = 0.02

Items = Annotated[Path, typer.Argument(help="Answers: JSON lines, Parquet or CSV with question, answer, key_points.")]
Table = Annotated[Path, typer.Argument(help="Grades of people and of the judge: CSV, JSON lines or Parquet.")]
JudgeColumn = Annotated[str, typer.Option("--judge-column", help="Column with the judge's grades.")]
HumanColumn = Annotated[str, typer.Option("--human-column", help="Column with people's grades.")]
ClusterColumn = Annotated[
    str | None,
    typer.Option("--cluster-column", help="Column of what makes rows depend on each other.", show_default=False),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Seed = Annotated[int, typer.Option(help="Of everything that is drawn.")]


@app.command(
    epilog=example(
        "lmlab judge run answers.jsonl --judge coverage --out runs/judged",
        "lmlab judge run answers.jsonl -j openai:NAME --base-url https://HOST/v1 --key-env KEY --prices prices.yaml"
        " --dry-run",
    )
)
@options(AnswerJudgeConfig)
def run(
    items: Items,
    settings: AnswerJudgeConfig,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of grades and replies.")] = Path("runs/judge"),
    prices: Annotated[
        Path | None, typer.Option(help="YAML of models to prices in USD per million tokens.", show_default=False)
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print requests, tokens and cost, and stop.")] = False,
    new_run: Annotated[bool, typer.Option("--new-run", help="Let the folder hold another judge's grades too.")] = False,
) -> None:
    """Grade answers. What was graded is not graded again; an answer without a readable grade is not a bad one."""
    from lmlab.judging.answers.find import make_answer_judge
    from lmlab.judging.answers.rows import REPLIES, counted, read_items, run_judge
    from lmlab.progress import progress

    settings = _with_price(settings, prices)
    asked = read_items(items)
    judge = make_answer_judge(settings, out / REPLIES)
    if dry_run:
        found = judge.estimate([item for item in asked if item.answer.strip()])
        print(f"{len(asked):,} answers; {found if found is not None else 'no requests: the judge is offline.'}")
        return
    with progress("judge", len(asked), "answers") as advance:
        rows = run_judge(judge, asked, out, new_run, advance)
    counts = counted(rows)
    headline = [row["grades"][judge.headline] for row in rows if row["status"] in ("ok", "empty_answer")]
    mean = f"{sum(headline) / len(headline):.3f}" if headline else "-"
    print(
        f"{out}: {counts['n_graded']:,} of {counts['n']:,} answers graded ({counts['ungraded_share']:.1%} without a"
        f" grade), mean {judge.headline} {mean}, by {judge.name}"
    )
    for status, count in counts["statuses"].items():
        if status != "ok":
            print(f"  {status}: {count:,}")
    if counts["ungraded_share"] > _MOST_UNGRADED:
        raise typer.Exit(EXIT_UNGRADED)


@app.command(epilog=example("lmlab judge parse replies.jsonl", "lmlab judge parse replies.jsonl --compat-reference"))
def parse(
    replies: Annotated[Path, typer.Argument(help="JSON lines with 'reply' (or 'raw'), or plain text for one reply.")],
    rubric: Annotated[str, typer.Option(help="Whose criteria and scale.")] = "tutoreval-v1",
    compat_reference: Annotated[
        bool, typer.Option("--compat-reference", help="Read as the reference implementation does, zeros included.")
    ] = False,
) -> None:
    """Read the grades of replies, one line of JSON each: to see what a judge's reply gives."""
    import json

    from lmlab.files import read_jsonl
    from lmlab.judging import GradingRubric, parse_like_reference

    chosen = GradingRubric.load(rubric)
    rows: Any = (
        read_jsonl(replies) if replies.suffix == ".jsonl" else [{"reply": replies.read_text("utf-8", "replace")}]
    )
    for row in rows:
        reply = row.get("reply", row.get("raw"))
        marks = parse_like_reference(reply) if compat_reference else chosen.parse(reply)
        grades = dict(zip(chosen.names, marks.grades, strict=False))
        id = {"id": row["id"]} if "id" in row else {}
        print(json.dumps({**id, **grades, "status": marks.status, "flags": list(marks.flags)}))


@app.command(epilog=example("lmlab judge rubrics"))
def rubrics() -> None:
    """The rubrics that come with lmlab, with the hash of their words."""
    from lmlab.judging import GradingRubric, known_rubrics

    for name in known_rubrics():
        found = GradingRubric.load(name)
        scale = f"{found.scale.minimum:g} to {found.scale.maximum:g}"
        print(f"{name}  {', '.join(found.names)}  {scale}  {found.prompt_hash[:12]}")


@app.command(
    epilog=example(
        "lmlab judge validate graded.csv --human-column human --judge-column judge --cluster-column chapter",
        "lmlab judge validate graded.csv --min-spearman 0.6 --max-bias 0.2",
    )
)
def validate(
    table: Table,
    judge_column: JudgeColumn = "judge",
    human_column: HumanColumn = "human",
    cluster_column: ClusterColumn = None,
    second_column: Annotated[
        str | None, typer.Option(help="Column of a second person, for the ceiling.", show_default=False)
    ] = None,
    length_column: Annotated[
        str | None, typer.Option(help="Column with lengths of answers, or with answers.", show_default=False)
    ] = None,
    system_column: Annotated[str | None, typer.Option(help="Column of who answered.", show_default=False)] = None,
    by: Annotated[
        list[str] | None, typer.Option(help="Column by whose values to tell it too.", show_default=False)
    ] = None,
    min_spearman: Annotated[
        float | None, typer.Option(help="Exit with 3 where the correlation is lower.", show_default=False)
    ] = None,
    max_bias: Annotated[
        float | None, typer.Option(help="Exit with 3 where the bias is larger.", show_default=False)
    ] = None,
    calibrate: Annotated[
        str | None,
        typer.Option(help="Also of grades calibrated on other folds: linear or isotonic.", show_default=False),
    ] = None,
    resamples: Annotated[int, typer.Option(min=20, help="Of the bootstrap.")] = 1000,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """A judge's grades beside people's: correlations, kappa, bias, the effect of length, with clustered intervals."""
    from lmlab.judging.measures.validation import validate_judge
    from lmlab.judging.people.tables import GradeTable

    read = GradeTable.read(table)
    judge, people = read.numbers(judge_column), read.numbers(human_column)
    clusters = None if cluster_column is None else read.texts(cluster_column)
    found = validate_judge(
        judge,
        people,
        clusters,
        None if length_column is None else _lengths(read, length_column),
        None if system_column is None else read.texts(system_column),
        None if second_column is None else read.numbers(second_column),
        {column: read.texts(column) for column in by or ()},
        resamples=resamples,
        seed=seed,
    )
    shown = {"all": found.agreement}
    if calibrate is not None:
        shown[f"calibrated ({calibrate}, other folds)"] = _calibrated(
            judge, people, calibrate, clusters, resamples, seed
        )
    shown |= {} if found.ceiling is None else {"second person": found.ceiling}
    shown |= {f"{column} = {value}": each for column, part in found.by.items() for value, each in part.items()}
    if as_json:
        _print_json(
            {
                "agreement": {name: _agreement_json(each) for name, each in shown.items()},
                "length_effect": _interval_json(found.length_effect),
                "systems": found.systems,
                "reasons": found.reasons,
            }
        )
    else:
        _print_agreement(shown)
        for name, reason in found.reasons.items():
            print(f"{name} is not defined: {reason}.")
        if found.length_effect is not None:
            print(f"Judge beyond people for each unit of log length: {_shown(found.length_effect)}")
        if found.systems is not None:
            print(f"Rank correlation of {found.systems[1]} systems: {found.systems[0]:.3f}")
    failures = found.passes(min_spearman, max_bias)
    if failures:
        print(f"The judge does not pass: {'; '.join(failures)}.")
        raise typer.Exit(EXIT_GATE)


@app.command(epilog=example("lmlab judge calibrate graded.csv --kind isotonic --out calibration.json"))
def calibrate(
    table: Table,
    out: Annotated[Path, typer.Option("--out", "-o", help="File of the calibration.")] = Path("calibration.json"),
    kind: Annotated[str, typer.Option(help="linear or isotonic.")] = "isotonic",
    judge_column: JudgeColumn = "judge",
    human_column: HumanColumn = "human",
    cluster_column: ClusterColumn = None,
    level: Annotated[float, typer.Option(min=0.5, max=0.999, help="Of the interval for one answer.")] = 0.95,
    seed: Seed = 0,
) -> None:
    """Learn people's grades from a judge's; what is printed is measured on folds that it was not learned from."""
    import numpy as np

    from lmlab.judging.measures.calibration import cross_calibrated, fit_calibration, write_calibration
    from lmlab.judging.measures.conformal import fit_conformal
    from lmlab.judging.people.tables import GradeTable

    if kind not in ("linear", "isotonic"):
        raise UserError(f"--kind {kind}: linear or isotonic.")
    read = GradeTable.read(table)
    judge, people = read.numbers(judge_column), read.numbers(human_column)
    both = np.isfinite(judge) & np.isfinite(people)
    if not both.any():
        raise UserError("There is no row with both grades.")
    clusters = None
    if cluster_column is not None:
        clusters = [each for each, keep in zip(read.texts(cluster_column), both, strict=True) if keep]
    judge, people = judge[both], people[both]
    held_out = cross_calibrated(judge, people, kind, clusters, seed=seed)  # type: ignore[arg-type]
    write_calibration(fit_calibration(judge, people, kind), out)  # type: ignore[arg-type]
    conformal = fit_conformal(held_out, people, level)
    before, after = float((judge - people).mean()), float((held_out - people).mean())
    print(f"{out}: {kind}, of {len(people):,} answers; bias {before:+.3f}, on other folds {after:+.3f}")
    radius = f"±{conformal.radius:.2f}" if np.isfinite(conformal.radius) else "the whole scale (too few answers)"
    print(f"Interval of {level:.0%} for the grade that people would give to one answer: {radius}")


@app.command(epilog=example("lmlab judge estimate graded.csv --human-column human --cluster-column chapter"))
def estimate(
    table: Table,
    judge_column: JudgeColumn = "judge",
    human_column: HumanColumn = "human",
    cluster_column: ClusterColumn = None,
    level: Annotated[float, typer.Option(min=0.5, max=0.999, help="Of the intervals.")] = 0.95,
    as_json: AsJson = False,
) -> None:
    """The mean that people would give to all answers, from the judge's grades of all and people's of a few."""
    import numpy as np

    from lmlab.judging.measures.prediction_powered import estimate_mean
    from lmlab.judging.people.tables import GradeTable

    read = GradeTable.read(table)
    judge, people = read.numbers(judge_column), read.numbers(human_column)
    clusters = None if cluster_column is None else read.texts(cluster_column)
    graded = np.isfinite(judge)
    if not graded.any():
        raise UserError(f"The column '{judge_column}' has no grades.")
    if clusters is not None:
        clusters = [each for each, keep in zip(clusters, graded, strict=True) if keep]
    found = estimate_mean(people[graded], judge[graded], clusters, level)
    left_out = int((~graded).sum())
    if as_json:
        parts = {"mean": _interval_json(found.mean), "people_alone": _interval_json(found.people)}
        numbers = {"judge_alone": found.judge, "weight": found.weight, "labeled": found.labeled, "items": found.items}
        _print_json({**parts, **numbers, "clusters": found.clusters, "without_grade": left_out})
        return
    print(f"Mean that people would give: {_shown(found.mean)}")
    print(f"  people alone, {found.labeled:,} answers in {found.clusters:,} clusters: {_shown(found.people)}")
    print(f"  the judge alone, {found.items:,} answers: {found.judge:.3f}, which is off by its bias")
    source = (
        f"the judge has a weight of {found.weight:.2f}" if found.weight else "the judge does not help: people alone"
    )
    print(f"  {source}")
    if left_out:
        print(f"  {left_out:,} answers without a grade of the judge are left out")


@app.command(epilog=example("lmlab judge draw answers.jsonl --labels 60 --out to-grade.csv"))
def draw(
    items: Items,
    out: Annotated[Path, typer.Option("--out", "-o", help="CSV, or an HTML page in which people grade.")],
    labels: Annotated[int, typer.Option(min=1, help="How many answers people should grade.")] = 60,
    rubric: Annotated[str, typer.Option(help="Whose criteria people grade by.")] = "tutoreval-v1",
    by_group: Annotated[bool, typer.Option("--by-group", help="Draw from each group its share.")] = False,
    seed: Seed = 0,
) -> None:
    """Draw answers at random for people to grade: what `estimate` needs."""
    from lmlab.judging.answers.rows import read_items
    from lmlab.judging.measures.prediction_powered import draw_labels

    asked = read_items(items)
    chosen = draw_labels(len(asked), labels, seed, [each.group for each in asked] if by_group else None)
    _export(out, [asked[number] for number in chosen], rubric)


@app.command(
    "review-export",
    epilog=example(
        "lmlab judge review-export answers.jsonl --out review.html",
        "lmlab judge review-export answers.jsonl --run runs/judged --flagged --out review.csv",
    ),
)
def review_export(
    items: Items,
    out: Annotated[Path, typer.Option("--out", "-o", help="CSV, or an HTML page in which people grade.")],
    run: Annotated[Path | None, typer.Option(help="Folder of a judge's grades.", show_default=False)] = None,
    flagged: Annotated[
        bool, typer.Option("--flagged", help="Only answers without a grade, or with judges who disagree.")
    ] = False,
    rubric: Annotated[str, typer.Option(help="Whose criteria people grade by.")] = "tutoreval-v1",
) -> None:
    """Write a queue of answers for people, without what judges have said of them."""
    from lmlab.judging.answers.rows import GRADES, read_items, read_rows
    from lmlab.judging.people.review import review_queue

    asked = read_items(items)
    rows = None
    if run is not None:
        by_hash = {row["content_hash"]: row for row in read_rows(run / GRADES)}
        missing = [each.id for each in asked if each.content_hash not in by_hash]
        if missing:
            raise UserError(
                f"'{run}' has no grades of {len(missing)} answers, such as '{missing[0]}'.", "Judge them first."
            )
        rows = [by_hash[each.content_hash] for each in asked]
    _export(out, review_queue(asked, rows, flagged), rubric)


@app.command(
    "review-import", epilog=example("lmlab judge review-import grades.json --run runs/judged --out graded.csv")
)
def review_import(
    review: Annotated[Path, typer.Argument(help="The filled CSV, or the file that the page gives.")],
    run: Annotated[Path, typer.Option(help="Folder of a judge's grades.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="CSV of both grades.")] = Path("graded.csv"),
    rubric: Annotated[str, typer.Option(help="By whose criteria people graded.")] = "tutoreval-v1",
    criterion: Annotated[
        str | None, typer.Option(help="By default the headline of the rubric.", show_default=False)
    ] = None,
) -> None:
    """Put people's grades beside the judge's, for `validate`, `calibrate` and `estimate`."""
    import csv
    import io

    from lmlab.files import atomic_file
    from lmlab.judging import GradingRubric
    from lmlab.judging.answers.rows import GRADES, read_rows
    from lmlab.judging.people.review import joined_with_rows, read_review

    chosen = GradingRubric.load(rubric)
    found = read_review(review, chosen.names, chosen.grades)
    rows = read_rows(run / GRADES)
    beside = joined_with_rows(found, rows, criterion or chosen.headline)
    known = {each.content_hash for each in found}
    others = [row for row in rows if row["content_hash"] not in known]
    for row in others:
        own = {name: row[name] for name in ("item_id", "system", "group", "answer_length")}
        beside.append(own | {"judge": row["grades"].get(criterion or chosen.headline), "human": None, "note": ""})
    text = io.StringIO()
    writer = csv.DictWriter(text, ["item_id", "system", "group", "answer_length", "judge", "human", "note"])
    writer.writeheader()
    writer.writerows(beside)
    with atomic_file(out) as file:
        file.write(text.getvalue().encode())
    print(f"{out}: {len(found):,} answers graded by people, {len(others):,} by the judge alone")


@app.command(
    "mrbench",
    epilog=example("lmlab judge mrbench MRBench_V1.json --judged labels.jsonl"),
)
def mrbench(
    data: Annotated[Path, typer.Argument(help="A file in MRBench's form.")],
    judged: Annotated[
        Path | None,
        typer.Option(help="JSON lines with id, system, dimension and label of a judge.", show_default=False),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Write people's labels as such lines.", show_default=False)
    ] = None,
) -> None:
    """Macro-F1 of a judge's labels by dimension, exact and lenient, beside the best published; or export the labels."""
    from rich.table import Table as RichTable

    from lmlab.files import read_jsonl, write_jsonl
    from lmlab.judging.people.mrbench import dimension_table, read_mrbench

    responses = read_mrbench(data)
    if out is not None:
        rows = (
            {
                "id": each.id,
                "system": each.system,
                "dimension": name,
                "label": label,
                "question": each.history,
                "answer": each.response,
                "key_points": [each.solution] if each.solution else [],
            }
            for each in responses
            for name, label in each.labels.items()
        )
        print(f"{out}: {write_jsonl(out, rows):,} labels of {len(responses):,} answers")
    if judged is None:
        if out is None:
            raise UserError("There is nothing to do.", "Name a judge's labels with --judged, or a file with --out.")
        return
    said = {}
    for number, row in enumerate(read_jsonl(judged), 1):
        try:
            said[str(row["id"]), str(row["system"]), str(row["dimension"])] = str(row["label"])
        except KeyError as error:
            raise UserError(f"'{judged}', line {number} has no {error}.") from None
    shown = RichTable("dimension", "labels", "without", "macro-F1", "lenient", "best published")
    for row in dimension_table(responses, said):
        figures = [row["macro_f1"], row["macro_f1_lenient"], row["published_best"]]
        texts = [f"{100 * each:.1f}" if each is not None else "-" for each in figures[:2]]
        best = "-" if figures[2] is None else f"{figures[2]:.1f}"
        shown.add_row(row["dimension"], str(row["n"]), str(row["n_unjudged"]), *texts, best)
    print_table(shown)


def _with_price(settings: AnswerJudgeConfig, prices: Path | None) -> AnswerJudgeConfig:
    if prices is None:
        return settings
    from lmlab.endpoints import load_price

    model = settings.judge[0].partition(":")[2]
    return settings.model_copy(update={"price": load_price(prices, model)})


def _export(out: Path, items: list[Any], rubric: str) -> None:
    from lmlab.judging import GradingRubric
    from lmlab.judging.people.review import write_review_csv, write_review_page

    chosen = GradingRubric.load(rubric)
    if out.suffix.casefold() in (".html", ".htm"):
        count = write_review_page(out, items, chosen.criteria, chosen.grades)
    else:
        count = write_review_csv(out, items, chosen.names)
    print(f"{out}: {count:,} answers to grade by {', '.join(chosen.names)}")


def _lengths(table: GradeTable, column: str) -> Any:
    """A column of numbers, or the lengths of a column of texts."""
    try:
        return table.numbers(column)
    except UserError:
        return [len(text) for text in table.texts(column)]


def _calibrated(judge: Any, people: Any, kind: str, clusters: list[str] | None, resamples: int, seed: int) -> Agreement:
    import numpy as np

    from lmlab.judging.measures.calibration import cross_calibrated
    from lmlab.judging.measures.validation import on_scale
    from lmlab.judging.rubrics.parser import HALF_POINTS

    if kind not in ("linear", "isotonic"):
        raise UserError(f"--calibrate {kind}: linear or isotonic.")
    both = np.isfinite(judge) & np.isfinite(people)
    kept = None if clusters is None else [each for each, keep in zip(clusters, both, strict=True) if keep]
    learned = cross_calibrated(judge[both], people[both], kind, kept, seed=seed)  # type: ignore[arg-type]
    return on_scale(learned, people[both], kept, HALF_POINTS, resamples, seed)


def _print_agreement(shown: dict[str, Agreement]) -> None:
    from rich.table import Table as RichTable

    table = RichTable("figure", *shown)
    table.add_row("answers", *(f"{each.items:,}" for each in shown.values()))
    table.add_row("without both grades", *(f"{each.missing:,}" for each in shown.values()))
    for name in next(iter(shown.values())).figures:
        table.add_row(name, *(_shown(each.figures.get(name)) for each in shown.values()))
    print_table(table)


def _shown(interval: Interval[float] | None) -> str:
    return "-" if interval is None else f"{interval.value:.3f} [{interval.low:.3f}, {interval.high:.3f}]"


def _agreement_json(agreement: Agreement) -> dict[str, Any]:
    figures = {name: _interval_json(each) for name, each in agreement.figures.items()}
    return {"items": agreement.items, "missing": agreement.missing, **figures}


def _interval_json(interval: Interval[float] | None) -> dict[str, float | None] | None:
    import math

    if interval is None:
        return None
    return {
        name: value if math.isfinite(value) else None
        for name, value in (("value", interval.value), ("low", interval.low), ("high", interval.high))
    }


def _print_json(value: Any) -> None:
    import json

    print(json.dumps(value, indent=1))
