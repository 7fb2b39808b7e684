"""`lmlab tutor generate`, `grade`, `report`, `compare`, `import`, `export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lmlab.commandline.from_config import options
from lmlab.commandline.options import Clause, OnlyTell, example
from lmlab.errors import UserError
from lmlab.judging import AnswerJudgeConfig
from lmlab.judging.config import JudgeConfig, PriceTable
from lmlab.methods.tutor.config import AnswerConfig, EndpointConfig, ScoreConfig, StudentConfig
from lmlab.words import counted

generate_help = example(
    "lmlab tutor generate --model models/smollm2 --data tutoreval.parquet --book open --out runs/tutor",
    "lmlab tutor generate --model openai:gpt-4o-mini --base-url https://api.openai.com/v1 --key-env OPENAI_API_KEY"
    " --data tutoreval.parquet --out runs/api --dry-run",
)
grade_help = example(
    "lmlab tutor grade runs/tutor --judge coverage",
    "lmlab tutor grade runs/tutor --judge openai:gpt-4o --key-env OPENAI_API_KEY --base-url https://api.openai.com/v1"
    " --rpm 500 --prices prices.yaml --max-cost-usd 20",
)
report_help = example("lmlab tutor report runs/tutor --out tutor.html")
compare_help = example(
    "lmlab tutor compare runs/base runs/tuned",
    "lmlab tutor compare runs/base runs/tuned --judge openai:gpt-4o --sequential",
)
rank_help = example(
    "lmlab tutor rank runs/base runs/tuned runs/api --judge openai:gpt-4o --base-url https://api.openai.com/v1"
    " --key-env OPENAI_API_KEY --out runs/ranked --dry-run",
)
dialogue_help = example(
    "lmlab tutor dialogue-eval --tutor local:models/mine --student openai:gpt-4o-mini --judge openai:gpt-4o"
    " --base-url https://api.openai.com/v1 --key-env OPENAI_API_KEY --data tutoreval.parquet --limit 40 --out"
    " runs/talk",
)
import_help = example("lmlab tutor import generations/openbook/MODEL.json --out runs/imported")
export_help = example("lmlab tutor export runs/tutor --out generations")

Run = Annotated[Path, typer.Argument(help="Folder of answers, as `generate` writes it.")]
NewRun = Annotated[bool, typer.Option("--new-run", help="Move what another model or wording left there aside.")]


@options(AnswerConfig)
@options(EndpointConfig, into="endpoint")
def generate(
    model: Annotated[
        str,
        typer.Option("--model", "-m", help="A model's directory, GGUF file, checkpoint, stage or run; or openai:NAME."),
    ],
    data: Annotated[str, typer.Option("--data", help="Questions: TutorEval, or JSON lines with the same columns.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the answers.")],
    settings: AnswerConfig,
    endpoint: EndpointConfig,
    new_run: NewRun = False,
    dry_run: OnlyTell = False,
) -> None:
    """Let a tutor answer questions about chapters. The same command after a kill goes on with what is missing."""
    from lmlab.distributed import joined, world
    from lmlab.methods.tutor.answering.run import (
        ANSWERS,
        answer_by_endpoint,
        answer_locally,
        estimate_answers,
        move_aside,
    )
    from lmlab.methods.tutor.endpoints import endpoint_of, is_endpoint
    from lmlab.methods.tutor.items.item import load_items
    from lmlab.methods.tutor.scoring.grade import keep_items

    items = load_items(data, settings.book)[: settings.limit]
    if dry_run:
        words = sum(item.chapter_words for item in items) if settings.book == "open" else 0
        chapters = counted(len({item.cluster for item in items}), "chapters")
        print(f"{counted(len(items), 'questions')} about {chapters}, {counted(words, 'words')}.")
        if is_endpoint(model):
            print(estimate_answers(endpoint_of(model, endpoint), items, settings, out, endpoint.redact))
        return
    with joined():
        if new_run and world().is_main:
            move_aside(out)
        if world().is_main:
            keep_items(items, out)
        if is_endpoint(model):
            rows = answer_by_endpoint(endpoint_of(model, endpoint), items, settings, out, redact=endpoint.redact)
        else:
            rows = answer_locally(model, items, settings, out)
        if world().is_main:
            bad = sum(row["answer_status"] != "ok" for row in rows)
            print(
                counted(len(rows), "questions") + (f", {bad:,} without an answer" if bad else "") + f": {out / ANSWERS}"
            )


@options(AnswerJudgeConfig)
@options(ScoreConfig, into="scores")
@options(PriceTable, "table")
def grade(
    run: Run,
    settings: AnswerJudgeConfig,
    scores: ScoreConfig,
    table: PriceTable,
    new_run: Annotated[bool, typer.Option("--new-run", help="Let another judge grade beside the first.")] = False,
    dry_run: OnlyTell = False,
) -> None:
    """Grade a tutor's answers by the key points of experts. What is graded is not graded again."""
    from lmlab.methods.tutor.scoring.grade import estimate_grading, grade_run
    from lmlab.methods.tutor.scoring.judges import flag_of, judge_of

    made = judge_of(settings, run, table.prices)
    if dry_run:
        print(estimate_grading(run, made))
        return
    rows, path = grade_run(run, made, new_run, flag=flag_of(settings.judge, run))
    print(f"Grades: {path}")
    _tell(run, rows, scores)


@options(ScoreConfig, into="scores")
def report(
    run: Run,
    scores: ScoreConfig,
    judge: Annotated[str | None, typer.Option(help="Of several judges this one.", show_default=False)] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="The page.", show_default=False)] = None,
) -> None:
    """Say a tutor's score with its interval over chapters, and where it comes from; write report.json and a page."""
    from lmlab.methods.tutor.scoring.grade import graded_rows

    _tell(run, graded_rows(run, judge), scores, out)


@options(AnswerJudgeConfig, exclude=("judge",))
@options(ScoreConfig, into="scores")
@options(PriceTable, "table")
def compare(
    first: Annotated[Path, typer.Argument(help="Folder of answers of the tutor that is compared with.")],
    second: Annotated[Path, typer.Argument(help="Folder of answers of the other one.")],
    settings: AnswerJudgeConfig,
    scores: ScoreConfig,
    table: PriceTable,
    judge: Annotated[
        list[str] | None,
        typer.Option("--judge", "-j", help="Grade what is not graded yet by this judge.", show_default=False),
    ] = None,
    sequential: Annotated[
        bool, typer.Option("--sequential", help="Chapter by chapter, until the paired interval leaves 0 out.")
    ] = False,
    looks: Annotated[int, typer.Option(min=1, help="With --sequential: looks at the interval, at most.")] = 5,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="A page.", show_default=False)] = None,
) -> None:
    """Compare two tutors on the questions that both were asked, paired, by chapters; with a judge, what is not graded
    yet is.
    """
    from lmlab.files import write_json
    from lmlab.methods.tutor.report import comparison_section
    from lmlab.methods.tutor.scoring.compare import compare_rows, compare_until_known, equal_length_verdict, verdict
    from lmlab.methods.tutor.scoring.grade import grader_of, shared_chapters
    from lmlab.methods.tutor.scoring.judges import flag_of, judge_of
    from lmlab.methods.tutor.scoring.score import SELF_JUDGED
    from lmlab.progress import console
    from lmlab.reports import Page

    chapters = shared_chapters(first, second)
    if not chapters:
        raise UserError(f"'{first}' and '{second}' share no question.", "Ask both tutors the same set.")
    named = settings.model_copy(update={"judge": tuple(judge or ())})
    judges = [judge_of(named, place, table.prices) if judge else None for place in (first, second)]
    flags = [flag_of(named.judge, place) for place in (first, second)]
    sides = zip((first, second), judges, flags, strict=True)
    graders = [grader_of(place, made, flag) for place, made, flag in sides]
    if sequential:
        found = compare_until_known(graders[0], graders[1], chapters, scores, looks)
    else:
        ids = [id for each in chapters.values() for id in each]
        found = compare_rows(graders[0](ids), graders[1](ids), scores)
    print(f"{found['first']}: {found['first_score']:.1f} %\n{found['second']}: {found['second_score']:.1f} %")
    print(f"{verdict(found)}\n{equal_length_verdict(found)}")
    if any(flags):
        console.print(f"warning: {SELF_JUDGED}", style="yellow", markup=False)
    if out is not None:
        write_json(out.with_suffix(".json"), found)
        print(f"Page: {Page('Two tutors', sections=[comparison_section(found)]).write(out)}")


@options(JudgeConfig, flags={"judge": ("--judge", "-j")}, exclude=("orders",))
@options(ScoreConfig, into="scores", exclude=("max_ungraded",))
@options(AnswerJudgeConfig, "shown", only=("redact",))
def rank(
    runs: Annotated[list[Path], typer.Argument(help="Folders of answers of two tutors or more.")],
    settings: JudgeConfig,
    scores: ScoreConfig,
    shown: AnswerJudgeConfig,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of verdicts, replies and the page.")],
    clause: Clause = None,
    dry_run: OnlyTell = False,
) -> None:
    """Put tutors in an order by a judge that is shown two answers at a time, in both orders. Replies are kept: the same
    command goes on where it was cut off.
    """
    from lmlab.files import write_json, write_jsonl
    from lmlab.judging.answers.pairs import questions_of
    from lmlab.judging.answers.rows import REPLIES
    from lmlab.methods.tutor.endpoints import refuse_secrets
    from lmlab.methods.tutor.report import ranking_section
    from lmlab.methods.tutor.scoring.grade import read_answers
    from lmlab.methods.tutor.scoring.judges import flag_of
    from lmlab.methods.tutor.scoring.rank import criterion_of, pairs_of
    from lmlab.methods.tutor.scoring.rank import rank as put_in_order
    from lmlab.methods.tutor.scoring.score import SELF_JUDGED
    from lmlab.progress import console
    from lmlab.reports import Page

    names = [str(run) for run in runs]
    if len(set(names)) < max(2, len(names)):
        raise UserError("A ranking needs the folders of two tutors or more, each once.", "Name them: runs/a runs/b.")
    refuse_secrets(settings.base_url)
    tutors = {name: read_answers(run) for name, run in zip(names, runs, strict=True)}
    criterion, judge = criterion_of(clause), settings.make(out / REPLIES)
    if dry_run:
        met = [each for several in pairs_of(tutors, shown.redact).values() for each in several]
        asked = [each.pair for each in met if each.settled is None]
        print(f"{counted(len(asked), 'pairs')} of answers, each in both orders")
        asks = getattr(judge, "estimate", None)
        print("Nobody is asked, and it costs nothing." if asks is None else asks(questions_of(criterion, asked)))
        return
    out.mkdir(parents=True, exist_ok=True)
    found, rows = put_in_order(judge, criterion, tutors, scores, shown.redact)
    found["self_judged"] = [name for name, run in zip(names, runs, strict=True) if flag_of([settings.judge], run)]
    write_jsonl(out / "pairs.jsonl", rows)
    write_json(out / "report.json", found)
    for number, each in enumerate(found["tutors"], 1):
        score = each["score"]
        inside = "" if score["low"] is None else f" [{score['low']:+.2f}, {score['high']:+.2f}]"
        print(f"{number}. {each['tutor']}: {score['value']:+.2f}{inside} over {counted(each['comparisons'], 'pairs')}")
    if found["missing"]:
        print(f"{counted(found['missing'], 'pairs')} without a verdict in both orders count for nobody")
    if found["self_judged"]:
        console.print(f"warning: {', '.join(found['self_judged'])}: {SELF_JUDGED}", style="yellow", markup=False)
    print(f"Page: {Page('Tutors ranked', sections=[ranking_section(found)]).write(out / 'report.html')}")


@options(StudentConfig)
@options(AnswerConfig, into="answers", exclude=("format", "share", "batch_tokens", "window", "rope_theta", "overflow"))
@options(EndpointConfig, into="endpoint")
@options(ScoreConfig, into="scores", only=("max_ungraded",))
def dialogue_eval(
    tutor: Annotated[str, typer.Option(help="Who teaches: local:DIRECTORY, openai:MODEL.")],
    student: Annotated[str, typer.Option(help="Who plays the student.")],
    data: Annotated[str, typer.Option("--data", help="Questions, as of `generate`; a column misconception is used.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the conversations.")],
    settings: StudentConfig,
    answers: AnswerConfig,
    endpoint: EndpointConfig,
    scores: ScoreConfig,
    judge: Annotated[str, typer.Option(help="Who grades the conversations: openai:MODEL, local:DIRECTORY.")],
    new_run: NewRun = False,
) -> None:
    """Let a tutor talk with a simulated student who has understood one thing wrongly, and grade the conversations.
    The same command after a kill goes on with what is missing.
    """
    from lmlab.files import write_json, write_jsonl
    from lmlab.judging import RubricJudge
    from lmlab.judging.answers.asking import Asking
    from lmlab.methods.tutor.answering.run import move_aside
    from lmlab.methods.tutor.endpoints import endpoint_of
    from lmlab.methods.tutor.items.item import load_items
    from lmlab.methods.tutor.report import headline
    from lmlab.methods.tutor.scoring.judges import is_same_model
    from lmlab.methods.tutor.scoring.score import EXIT_UNGRADED, SELF_JUDGING, score, too_many_ungraded
    from lmlab.methods.tutor.simulating.converse import ROWS, converse, grade_conversations, rubric
    from lmlab.progress import console

    items = load_items(data, answers.book)[: answers.limit]
    if new_run:
        move_aside(out, ROWS)
    speakers = [endpoint_of(name, endpoint) for name in (tutor, student)]
    rows = converse(items, speakers[0], speakers[1], settings, answers, out, redact=endpoint.redact)
    made = RubricJudge(rubric(), endpoint_of(judge, endpoint), Asking(redact=endpoint.redact), out / "replies.sqlite")
    flags = (SELF_JUDGING,) if is_same_model(judge, tutor) else ()
    graded = grade_conversations(rows, items, made, answers.book, flags)
    write_jsonl(out / "graded.jsonl", graded)
    found = score(graded, scores)
    found["leaks"] = {
        "conversations": sum(bool(row["leaks"]) for row in graded),
        "turns": sum(len(row["leaks"]) for row in graded),
    }
    write_json(out / "report.json", found)
    print(headline(found))
    for name, figure in found["criteria"].items():
        print(f"  {name}: " + ("none" if figure["value"] is None else f"{figure['value']:.1f} %"))
    print(f"The answer was given away before the student tried in {found['leaks']['conversations']:,} conversations.")
    for warning in found["warnings"]:
        console.print(f"warning: {warning}", style="yellow", markup=False)
    print(f"Conversations: {out / 'graded.jsonl'}")
    if too_many_ungraded(found, scores):
        raise typer.Exit(EXIT_UNGRADED)


def import_(
    path: Annotated[Path, typer.Argument(help="A file of the published scripts: openbook/MODEL.json.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the answers.")],
    compat_reference: Annotated[
        bool, typer.Option("--compat-reference", help="Read grades as the published script does, failures as 0.")
    ] = False,
) -> None:
    """Read answers and grades of the published scripts; grades are read again from the judge's replies, strictly."""
    from lmlab.methods.tutor.scoring.reference import import_answers

    rows = import_answers(path, out, compat_reference)
    print(f"{len(rows):,} answers: {out}")


def export(
    run: Run,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder in whose openbook/ or closedbook/ it is written.")],
) -> None:
    """Write answers and grades as the published scripts do; a missing grade is null."""
    from lmlab.files import read_mapping
    from lmlab.methods.tutor.answering.run import RUN
    from lmlab.methods.tutor.scoring.grade import kept_items, latest_rows
    from lmlab.methods.tutor.scoring.reference import export_answers

    book = read_mapping(run / RUN)["asked"]["book"]
    print(f"Answers: {export_answers(latest_rows(run), kept_items(run), out, book)}")


def _tell(run: Path, rows: list[dict[str, object]], scores: ScoreConfig, page: Path | None = None) -> None:
    """Write the report, say the score, and end with code 3 where too many answers lack a grade."""
    from lmlab.files import write_json
    from lmlab.methods.tutor.report import ONLY_ORDERS, headline, sections
    from lmlab.methods.tutor.scoring.score import EXIT_UNGRADED, score, too_many_ungraded
    from lmlab.progress import console
    from lmlab.reports import Page

    found = score(rows, scores)
    write_json(run / "report.json", found)
    print(headline(found))
    if found["only_orders"]:
        print(ONLY_ORDERS)
    for warning in found["warnings"]:
        console.print(f"warning: {warning}", style="yellow", markup=False)
    written = Page(f"A tutor: {found['tutor']['model']}", sections=sections(found, rows)).write(
        page or run / "report.html"
    )
    print(f"Report: {run / 'report.json'}\nPage: {written}")
    if too_many_ungraded(found, scores):
        raise typer.Exit(EXIT_UNGRADED)
