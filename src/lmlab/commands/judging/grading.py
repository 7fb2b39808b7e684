"""`lmlab judge run`, `parse`, `rubrics`: grades of answers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from lmlab.commandline.from_config import options
from lmlab.commandline.options import NewRun, OnlyTell, example
from lmlab.judging.answers.config import AnswerJudgeConfig
from lmlab.judging.config import PriceTable
from lmlab.terminal import printable
from lmlab.words import counted

EXIT_UNGRADED = 3
_MOST_UNGRADED = 0.02  # the default of `scores.max_ungraded`: a mean over the rest may then be off by 0.02 of the scale

Items = Annotated[Path, typer.Argument(help="Answers: JSON lines, Parquet or CSV with question, answer, key_points.")]

run_help = example(
    "lmlab judge run answers.jsonl --judge coverage --out runs/judged",
    "lmlab judge run answers.jsonl -j openai:NAME --base-url https://HOST/v1 --key-env KEY --prices prices.yaml"
    " --dry-run",
)


@options(AnswerJudgeConfig)
@options(PriceTable, "table")
def run(
    items: Items,
    settings: AnswerJudgeConfig,
    table: PriceTable,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of grades and replies.")] = Path("runs/judge"),
    dry_run: OnlyTell = False,
    new_run: NewRun = False,
) -> None:
    """Grade answers. What was graded is not graded again; an answer without a readable grade is not a bad one."""
    from lmlab.judging.answers.find import make_answer_judge
    from lmlab.judging.answers.rows import REPLIES, counted, read_items, run_judge
    from lmlab.progress import progress

    settings = _with_price(settings, table.prices)
    asked = read_items(items)
    judge = make_answer_judge(settings, out / REPLIES)
    if dry_run:
        _tell_cost(judge, asked)
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


cost_help = example(
    "lmlab judge cost answers.jsonl -j openai:NAME --base-url https://HOST/v1 --key-env KEY --prices prices.yaml"
)


@options(AnswerJudgeConfig)
@options(PriceTable, "table")
def cost(
    items: Items,
    settings: AnswerJudgeConfig,
    table: PriceTable,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder whose replies are paid already; it need not be there.")
    ] = Path("runs/judge"),
) -> None:
    """Say how many requests, tokens and dollars a grading takes at most; nothing is sent or written."""
    from tempfile import TemporaryDirectory

    from lmlab.judging.answers.find import make_answer_judge
    from lmlab.judging.answers.rows import REPLIES, read_items

    asked = read_items(items)
    with TemporaryDirectory(prefix="lmlab-cost-") as nowhere:
        replies = out / REPLIES if (out / REPLIES).exists() else Path(nowhere) / REPLIES
        _tell_cost(make_answer_judge(_with_price(settings, table.prices), replies), asked)


def _tell_cost(judge: Any, asked: list[Any]) -> None:
    found = judge.estimate([item for item in asked if item.answer.strip()])
    print(f"{counted(len(asked), 'answers')}; {found if found is not None else 'no requests: the judge is offline.'}")


parse_help = example("lmlab judge parse replies.jsonl", "lmlab judge parse replies.jsonl --compat-reference")


@options(AnswerJudgeConfig, "asked", only=("rubric",))
def parse(
    replies: Annotated[Path, typer.Argument(help="JSON lines with 'reply' (or 'raw'), or plain text for one reply.")],
    asked: AnswerJudgeConfig,
    compat_reference: Annotated[
        bool, typer.Option("--compat-reference", help="Read as the reference implementation does, zeros included.")
    ] = False,
) -> None:
    """Read the grades of replies, one line of JSON each: to see what a judge's reply gives."""
    import json

    from lmlab.files import read_jsonl
    from lmlab.judging import GradingRubric, parse_like_reference

    chosen = GradingRubric.load(asked.rubric)
    rows: Any = (
        read_jsonl(replies) if replies.suffix == ".jsonl" else [{"reply": replies.read_text("utf-8", "replace")}]
    )
    for row in rows:
        reply = row.get("reply", row.get("raw"))
        marks = parse_like_reference(reply) if compat_reference else chosen.parse(reply)
        grades = dict(zip(chosen.names, marks.grades, strict=False))
        id = {"id": row["id"]} if "id" in row else {}
        print(json.dumps({**id, **grades, "status": marks.status, "flags": list(marks.flags)}))


rubrics_help = example("lmlab judge rubrics")


def rubrics() -> None:
    """The rubrics that come with lmlab, with the hash of their words."""
    from lmlab.judging import GradingRubric, known_rubrics

    for name in known_rubrics():
        found = GradingRubric.load(name)
        scale = f"{found.scale.minimum:g} to {found.scale.maximum:g}"
        print(f"{name}  {', '.join(found.names)}  {scale}  {found.prompt_hash[:12]}")


cache_stats_help = example("lmlab judge cache-stats runs/judged", "lmlab judge cache-stats replies.jsonl.cache")


def cache_stats(
    place: Annotated[Path, typer.Argument(help="A file of replies, or a folder with such files (replies.sqlite).")],
) -> None:
    """Say what is kept of a run's replies: what a second run neither sends nor pays. Nothing is sent or changed."""
    from lmlab.endpoints.client.cache import kept_in
    from lmlab.errors import UserError

    files = sorted(place.rglob("*.sqlite")) if place.is_dir() else [place]
    if not files:
        raise UserError(f"'{place}' holds no file of replies.", "A run by a judge that asks nobody keeps none.")
    for file in files:
        found = kept_in(file)
        print(f"{file}: {counted(sum(sum(each.replies.values()) for each in found), 'replies')}")
        for each in found:
            _tell_kept(each)


def _tell_kept(found: Any) -> None:
    from datetime import UTC, datetime

    statuses = ", ".join(f"{count:,} {status}" for status, count in found.replies.items()) or "none"
    cost = "cost unknown" if found.cost_usd is None else f"${found.cost_usd:.4f}"
    cost += f" ({found.unpriced:,} without a price)" if found.cost_usd is not None and found.unpriced else ""
    about = f", {found.estimated:,} of them estimated" if found.estimated else ""
    print(
        f"  {printable(found.model)}: {statuses}; {found.prompt:,} tokens of prompts ({found.cached:,} the endpoint had"
        f" kept), {found.completion:,} of answers{about}; {cost}, which a second run saves"
    )
    if found.unusable:
        told = ", ".join(f"{count:,} {status}" for status, count in found.unusable.items())
        print(f"    paid and of no use, so asked for again: {told}; ${found.unusable_usd:.4f}")
    first, last = (datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M") for at in (found.first, found.last))
    print(f"    from {first} to {last} UTC, {found.num_bytes / 1024:,.1f} KiB")


def _with_price(settings: AnswerJudgeConfig, prices: Path | None) -> AnswerJudgeConfig:
    if prices is None:
        return settings
    from lmlab.endpoints import load_price

    model = settings.judge[0].partition(":")[2]
    return settings.model_copy(update={"price": load_price(prices, model)})
