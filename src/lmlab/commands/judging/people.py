"""`lmlab judge draw`, `review-*`, `mrbench`, `judgebench`: what people say of answers, and files of it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from lmlab.commandline.from_config import options
from lmlab.commandline.options import Clause, OnlyTell, example, print_table
from lmlab.commands.judging.grading import Items
from lmlab.commands.judging.measuring import EXIT_GATE, interval_json, interval_text
from lmlab.errors import UserError
from lmlab.judging.answers.config import AnswerJudgeConfig
from lmlab.judging.config import JudgeConfig
from lmlab.judging.measures.config import DrawConfig
from lmlab.words import counted

Queue = Annotated[Path, typer.Option("--out", "-o", help="CSV, or an HTML page in which people grade.")]

draw_help = example("lmlab judge draw answers.jsonl --labels 60 --out to-grade.csv")


@options(DrawConfig)
@options(AnswerJudgeConfig, "asked", only=("rubric",))
def draw(
    items: Items,
    settings: DrawConfig,
    asked: AnswerJudgeConfig,
    out: Queue,
) -> None:
    """Draw answers at random for people to grade: what `estimate` needs."""
    from lmlab.judging.answers.rows import read_items
    from lmlab.judging.measures.prediction_powered import draw_labels

    read = read_items(items)
    groups = [each.group for each in read] if settings.by_group else None
    chosen = draw_labels(len(read), settings.labels, settings.seed, groups)
    _export(out, [read[number] for number in chosen], asked.rubric)


review_export_help = example(
    "lmlab judge review-export answers.jsonl --out review.html",
    "lmlab judge review-export answers.jsonl --run runs/judged --flagged --out review.csv",
)


@options(AnswerJudgeConfig, "asked", only=("rubric",))
def review_export(
    items: Items,
    asked: AnswerJudgeConfig,
    out: Queue,
    run: Annotated[
        Path | None,
        typer.Option(help="Folder of a judge's grades of these answers, for --flagged.", show_default=False),
    ] = None,
    flagged: Annotated[
        bool, typer.Option("--flagged", help="Only answers without a grade, or with judges who disagree.")
    ] = False,
) -> None:
    """Write a queue of answers for people, without what judges have said of them."""
    from lmlab.judging.answers.rows import GRADES, read_items, read_rows
    from lmlab.judging.people.review import review_queue

    read = read_items(items)
    rows = None
    if run is not None:
        by_hash = {row["content_hash"]: row for row in read_rows(run / GRADES)}
        missing = [each.id for each in read if each.content_hash not in by_hash]
        if missing:
            raise UserError(
                f"'{run}' has no grades of {len(missing)} answers, such as '{missing[0]}'.", "Judge them first."
            )
        rows = [by_hash[each.content_hash] for each in read]
    _export(out, review_queue(read, rows, flagged), asked.rubric)


review_import_help = example("lmlab judge review-import grades.json --run runs/judged --out graded.csv")


@options(AnswerJudgeConfig, "asked", only=("rubric",))
def review_import(
    review: Annotated[Path, typer.Argument(help="The filled CSV, or the file that the page gives.")],
    asked: AnswerJudgeConfig,
    run: Annotated[Path, typer.Option(help="Folder of a judge's grades.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="CSV of both grades.")] = Path("graded.csv"),
    criterion: Annotated[
        str | None, typer.Option(help="By default the headline of the rubric.", show_default=False)
    ] = None,
) -> None:
    """Put people's grades beside the judge's, for `validate`, `calibrate` and `estimate`."""
    from lmlab.judging import GradingRubric
    from lmlab.judging.answers.rows import GRADES, read_rows
    from lmlab.judging.people.review import joined_with_rows, read_review, sample_columns, write_joined

    chosen = GradingRubric.load(asked.rubric)
    found = read_review(review, chosen.names, chosen.grades)
    rows = read_rows(run / GRADES)
    beside = joined_with_rows(found, rows, criterion or chosen.headline)
    known = {each.content_hash for each in found}
    others = [row for row in rows if row["content_hash"] not in known]
    for row in others:
        own = {name: row[name] for name in ("item_id", "system", "group", "answer_length")}
        judged = {"judge": row["grades"].get(criterion or chosen.headline), "human": None, "note": ""}
        beside.append(own | judged | sample_columns(row, criterion or chosen.headline))
    write_joined(out, beside)
    print(f"{out}: {counted(len(found), 'answers')} graded by people, {len(others):,} by the judge alone")


mrbench_help = example("lmlab judge mrbench MRBench_V1.json --judged labels.jsonl")


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
        print(f"{out}: {counted(write_jsonl(out, rows), 'labels')} of {counted(len(responses), 'answers')}")
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


judgebench_help = example(
    "lmlab judge judgebench judgebench.jsonl -j openai:NAME --base-url https://HOST/v1 --key-env KEY --dry-run",
    "lmlab judge judgebench judgebench.jsonl -j exact:models/smollm2 --min-accuracy 0.6",
)


@options(JudgeConfig, flags={"judge": ("--judge", "-j")}, exclude=("orders",))
def judgebench(
    data: Annotated[Path, typer.Argument(help="Pairs in JudgeBench's form: question, response_A, response_B, label.")],
    settings: JudgeConfig,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of verdicts and replies.")] = Path("runs/judgebench"),
    clause: Clause = None,
    min_accuracy: Annotated[
        float | None, typer.Option(help="Exit with 3 where the judge is right less often.", show_default=False)
    ] = None,
    dry_run: OnlyTell = False,
) -> None:
    """How often a judge that compares prefers the right answer: in both orders, by source, and at equal length."""
    from rich.table import Table as RichTable

    from lmlab.files import write_json, write_jsonl
    from lmlab.judging.answers.pairs import answer_criterion, questions_of
    from lmlab.judging.answers.rows import REPLIES
    from lmlab.judging.people.judgebench import read_judgebench, score_pairs

    pairs, criterion = read_judgebench(data), answer_criterion(clause)
    judge = settings.make(out / REPLIES)
    if dry_run:
        asks = getattr(judge, "estimate", None)
        print(f"{counted(len(pairs), 'pairs')}, each in both orders")
        print("Nobody is asked, and it costs nothing." if asks is None else asks(questions_of(criterion, pairs)))
        return
    out.mkdir(parents=True, exist_ok=True)
    found = score_pairs(judge, criterion, pairs)
    rows = ({"id": pair.id, "source": pair.source, "right": right}
            for pair, right in zip(pairs, found.right, strict=True))  # fmt: skip
    write_jsonl(out / "pairs.jsonl", rows)
    equal, orders = found.lengths.controlled, found.orders
    figures = {"accuracy": interval_json(found.accuracy), "at_equal_length": interval_json(equal)}
    counts: dict[str, float] = {"pairs": len(pairs), "missing": found.missing}
    counts |= {"orders_disagree": orders.disagreements, "first_place": orders.first_place}
    by_source = {name: {"pairs": n, "accuracy": interval_json(each)} for name, (each, n) in found.by_source.items()}
    about = {"judge": judge.name, "prompt_hash": criterion.prompt_hash}
    write_json(out / "report.json", {**about, **counts, **figures, "by_source": by_source})
    table = RichTable("pairs of", "pairs", "right")
    for name, (each, count) in [*found.by_source.items(), ("all", (found.accuracy, len(pairs)))]:
        table.add_row(name or "-", f"{count:,}", interval_text(each))
    print_table(table)
    known = "not known, as all lengths differ by the same" if equal is None else interval_text(equal)
    print(f"At equal length: {known}; by {judge.name}")
    print(f"The order changes the winner of {orders.disagreements:.1%}; the first place wins {orders.first_place:.1%}")
    if found.missing:
        print(f"{counted(found.missing, 'pairs')} without a verdict in both orders count as wrong")
    if min_accuracy is not None and not found.accuracy.value >= min_accuracy:
        print(f"The judge does not pass: its accuracy is {found.accuracy.value:.3f}, below {min_accuracy:g}.")
        raise typer.Exit(EXIT_GATE)


def _export(out: Path, items: list[Any], rubric: str) -> None:
    from lmlab.judging import GradingRubric
    from lmlab.judging.people.review import write_review_csv, write_review_page

    chosen = GradingRubric.load(rubric)
    if out.suffix.casefold() in (".html", ".htm"):
        count = write_review_page(out, items, chosen.criteria, chosen.grades)
    else:
        count = write_review_csv(out, items, chosen.names)
    print(f"{out}: {counted(count, 'answers')} to grade by {', '.join(chosen.names)}")
