"""The command `lmlab ask`: a file of requests to a model, and its replies to a file."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import typer

from lmlab.commandline.from_config import changes, options
from lmlab.commandline.options import OnlyTell, example
from lmlab.endpoints.client.request_files import RequestRow, read_requests
from lmlab.endpoints.settings import EndpointSettings
from lmlab.errors import LmlabError, UserError
from lmlab.judging.config import PriceTable

app = typer.Typer()
_OF_LINES = {"max_tokens": "Where a line does not say; 256 by default.", "temperature": "Where a line does not say."}
NOT_ASKED, NOT_ANSWERED = "not_asked", "not_answered"


@app.command(
    epilog=example(
        "lmlab ask questions.jsonl --endpoint local:models/smollm2 --out answers.jsonl",
        "lmlab ask questions.jsonl --endpoint openai:NAME --base-url https://HOST/v1 --key-env JUDGE_KEY --prices"
        " prices.yaml --dry-run",
    )
)
@options(EndpointSettings)
@options(PriceTable, "table")
@changes(RequestRow, ("max_tokens", "temperature"), "defaults", _OF_LINES)
def ask(
    requests: Annotated[
        Path,
        typer.Argument(help="JSON lines with 'prompt' or 'messages', and settings of a request where they differ."),
    ],
    settings: EndpointSettings,
    table: PriceTable,
    defaults: dict[str, Any],
    endpoint: Annotated[str, typer.Option(help="Who answers: openai:MODEL, local:DIRECTORY, replay:MODEL, mock:NAME.")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="File of the replies.", show_default=False)] = None,
    cache: Annotated[
        Path | None, typer.Option(help="File that keeps replies \\[default: OUT.cache].", show_default=False)
    ] = None,
    batch: Annotated[
        bool, typer.Option("--batch", help="Hand everything in by the provider's batch interface, wait, and collect.")
    ] = False,
    no_wait: Annotated[
        bool, typer.Option("--no-wait", help="With --batch: hand in or collect, and do not wait.")
    ] = False,
    poll_s: Annotated[float, typer.Option(min=0.01, help="With --batch: seconds between two looks.")] = 60.0,
    dry_run: OnlyTell = False,
    write_batch: Annotated[
        Path | None,
        typer.Option(help="Write what has no reply for a provider's batch interface, and stop.", show_default=False),
    ] = None,
    read_batch: Annotated[
        Path | None, typer.Option(help="First read the file that a batch has come back with.", show_default=False)
    ] = None,
) -> None:
    """Ask a model many things, each paid for once: a run that was cut off goes on where it was."""
    from lmlab import endpoints

    asked = list(read_requests(requests, defaults))
    place = endpoints.Endpoint.named(endpoint, **settings.endpoint_options())
    if table.prices is not None:
        place = place.model_copy(update={"price": endpoints.load_price(table.prices, place.model)})
    if out is None and not dry_run and write_batch is None:
        raise UserError("There is no file for the replies.", "Name it with --out, or say --dry-run.")
    kept = cache or (out.with_name(out.name + ".cache") if out is not None else None)
    questions = [place.shaped(request) for _, request in asked]
    if read_batch is not None:
        if kept is None:
            raise UserError(
                "What a batch has brought needs a cache to be kept in.",
                "Name it with --cache, or the replies' file with --out.",
            )
        counts = endpoints.read_batch(read_batch, place.model, questions, kept, place.price)
        print(f"{read_batch}: {_counted(counts)}")
    if write_batch is not None:
        print(f"{write_batch}: {endpoints.write_batch(write_batch, place.model, questions, kept):,} requests")
    elif dry_run:
        print(endpoints.estimate(place, questions, kept))
    elif batch:
        assert out is not None and kept is not None
        _by_batch(place, asked, out, kept, poll_s, not no_wait)
    else:
        assert out is not None
        _run(place, asked, out, kept)


def _run(place: Any, asked: list[tuple[Any, Any]], out: Path, kept: Path | None) -> None:
    from lmlab import endpoints
    from lmlab.endpoints.client.request_files import reply_row
    from lmlab.files import write_jsonl
    from lmlab.progress import progress

    rows: list[dict[str, Any]] = [{} for _ in asked]
    counts: Counter[str] = Counter()
    try:
        with progress("ask", len(asked), "requests") as advance:

            def take(number: int, reply: endpoints.Reply) -> None:
                rows[number] = reply_row(asked[number][0], reply)
                counts["cached" if reply.cached else reply.status] += 1
                advance()

            endpoints.answer(place, [request for _, request in asked], take, kept)
    finally:  # also when the run ends early: what has come was paid for
        if not all(rows) and kept is not None and kept.exists():
            _recall(rows, asked, place, kept)
        if any(rows):
            told = (
                row or {"id": id, "status": NOT_ASKED, "texts": []} for row, (id, _) in zip(rows, asked, strict=True)
            )
            write_jsonl(out, told)
            paid = [row["cost_usd"] for row in rows if row and row["cost_usd"] is not None]
            if unasked := sum(not row for row in rows):
                counts[NOT_ASKED] = unasked
            print(f"{out}: {_counted(counts)}" + (f"; ${sum(paid):.4f}" if paid else ""))
    if asked and not any(row["status"] == "ok" or row.get("tool_calls") for row in rows):
        first = next((row["error"] for row in rows if "error" in row), "no text").rstrip(".")
        # What every request is refused for was given by the user; other failures are the endpoint's
        kind = UserError if all(row["status"] == "rejected" for row in rows) else LmlabError
        raise kind(f"No request was answered; the first: {first}.", f"'{out}' says why of each.")


def _by_batch(place: Any, asked: list[tuple[Any, Any]], out: Path, kept: Path, poll_s: float, wait: bool) -> None:
    """Ask by the batch interface, and write what has come."""
    from lmlab.endpoints.client.batch_jobs import BatchJobs
    from lmlab.files import write_jsonl

    with BatchJobs(place, out.with_name(out.name + ".batches"), kept) as jobs:
        counts = jobs.run([request for _, request in asked], poll_s, wait)
    if counts["under_way"]:
        print(f"{counts['under_way']:,} batches are under way; the same command collects them.")
        return
    rows: list[dict[str, Any]] = [{} for _ in asked]
    _recall(rows, asked, place, kept)
    write_jsonl(
        out, (row or {"id": id, "status": NOT_ANSWERED, "texts": []} for row, (id, _) in zip(rows, asked, strict=True))
    )
    missing = sum(not row for row in rows)
    print(f"{out}: {len(rows) - missing:,} answered, {missing:,} not. This time came: {_counted(counts)}")
    if asked and missing == len(rows):
        raise LmlabError("No request was answered.", f"See the error files in '{out}.batches'.")


def _recall(rows: list[dict[str, Any]], asked: list[tuple[Any, Any]], place: Any, kept: Path) -> None:
    """Fill rows with replies that came while the run was ending."""
    from lmlab.endpoints import ReplyCache
    from lmlab.endpoints.backends import identity_of
    from lmlab.endpoints.client.request_files import reply_row

    cache, identity = ReplyCache(kept), identity_of(place)
    try:
        for number, (id, request) in enumerate(asked):
            if not rows[number] and (reply := cache.get(place.shaped(request).key(identity))) is not None:
                rows[number] = reply_row(id, reply)
    finally:
        cache.close()


def _counted(counts: Any) -> str:
    return ", ".join(f"{count:,} {status}" for status, count in sorted(counts.items())) or "nothing"
