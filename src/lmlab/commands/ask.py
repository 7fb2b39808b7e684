"""The command `lmlab ask`: a file of requests to a model, and its replies to a file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lmlab.commandline.from_config import changes, options
from lmlab.commandline.options import OnlyTell, example
from lmlab.endpoints.client.request_files import RequestRow, read_requests
from lmlab.endpoints.settings import EndpointSettings
from lmlab.errors import LmlabError, UserError
from lmlab.judging.config import PriceTable
from lmlab.words import counted

if TYPE_CHECKING:
    from lmlab.endpoints.client.request_files import ReplyRows

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

    asked = Asked(requests, defaults)
    place = endpoints.Endpoint.named(endpoint, **settings.endpoint_options())
    if table.prices is not None:
        place = place.model_copy(update={"price": endpoints.load_price(table.prices, place.model)})
    if out is None and not dry_run and write_batch is None:
        raise UserError("There is no file for the replies.", "Name it with --out, or say --dry-run.")
    kept = cache or (out.with_name(out.name + ".cache") if out is not None else None)
    questions = asked.shaped(place)
    if read_batch is not None:
        if kept is None:
            raise UserError(
                "What a batch has brought needs a cache to be kept in.",
                "Name it with --cache, or the replies' file with --out.",
            )
        counts = endpoints.read_batch(read_batch, place.model, questions, kept, place.price)
        print(f"{read_batch}: {_counted(counts)}")
    if write_batch is not None:
        print(f"{write_batch}: {counted(endpoints.write_batch(write_batch, place.model, questions, kept), 'requests')}")
    elif dry_run:
        print(endpoints.estimate(place, questions, kept))
    elif batch:
        assert out is not None and kept is not None
        _by_batch(place, asked, out, kept, poll_s, not no_wait)
    else:
        assert out is not None
        _run(place, asked, out, kept)


class Asked:
    """The requests of a file, read anew each time: in memory is none but those under way. What can be read only once,
    such as a pipe, is held.

    Arguments:
        path: of the file.
        defaults: fields for lines that lack them.

    Raises:
        UserError: a line is no request; before anything is asked.
    """

    def __init__(self, path: Path, defaults: Mapping[str, Any]) -> None:
        self._path, self._defaults = path, dict(defaults)
        self._held = None if path.is_file() or not path.exists() else list(read_requests(path, defaults))
        self._count = sum(1 for _ in self)

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        return read_requests(self._path, self._defaults) if self._held is None else iter(self._held)

    def shaped(self, place: Any) -> Iterator[Any]:
        """The requests as an endpoint gets them."""
        return (place.shaped(request) for _, request in self)


class _Requests:
    """The requests without their ids, as often as they are gone through."""

    def __init__(self, asked: Asked) -> None:
        self._asked = asked

    def __iter__(self) -> Iterator[Any]:
        return (request for _, request in self._asked)


def _run(place: Any, asked: Asked, out: Path, kept: Path | None) -> None:
    from lmlab import endpoints
    from lmlab.endpoints.client.request_files import ReplyRows, reply_row
    from lmlab.files import require_writable
    from lmlab.progress import progress

    require_writable(out)
    counts: Counter[str] = Counter()
    under_way: dict[int, Any] = {}  # ids of requests, until their replies come
    told = _Written()
    with ReplyRows(out.parent, len(asked)) as rows:
        try:
            with progress("ask", len(asked), "requests") as advance:

                def requests() -> Iterator[Any]:
                    for number, (id, request) in enumerate(asked):
                        under_way[number] = id
                        yield request

                def take(number: int, reply: endpoints.Reply) -> None:
                    rows.put(number, reply_row(under_way.pop(number), reply))
                    counts["cached" if reply.cached else reply.status] += 1
                    advance()

                endpoints.answer(place, requests(), take, kept)
        finally:  # also when the run ends early: what has come was paid for
            if rows.missing and kept is not None and kept.exists():
                _recall(rows, asked, place, kept)
            if rows.missing < len(rows):
                told = _write(rows, asked, out, NOT_ASKED)
                if rows.missing:
                    counts[NOT_ASKED] = rows.missing
                print(f"{out}: {_counted(counts)}" + (f"; ${told.paid:.4f}" if told.paid is not None else ""))
        if len(rows) and not told.answered:
            # What every request is refused for was given by the user; other failures are the endpoint's
            kind = UserError if told.statuses == {"rejected"} else LmlabError
            raise kind(
                f"No request was answered; the first: {told.first_error.rstrip('.')}.", f"'{out}' says why of each."
            )


@dataclass
class _Written:
    """What the lines of a file of replies hold together."""

    answered: int = 0
    paid: float | None = None
    first_error: str = "no text"
    statuses: set[str] = field(default_factory=set)


def _write(rows: ReplyRows, asked: Asked, out: Path, unasked: str) -> _Written:
    """Write the lines in the order of the requests; those without a reply say so by their status."""
    from lmlab.files import write_jsonl

    told = _Written()

    def lines() -> Iterator[dict[str, Any]]:
        for number, (id, _) in enumerate(asked):
            row = rows.get(number)
            if row is None:
                yield {"id": id, "status": unasked, "texts": []}
                continue
            told.answered += row["status"] == "ok" or bool(row.get("tool_calls"))
            told.statuses.add(row["status"])
            if row["cost_usd"] is not None:
                told.paid = (told.paid or 0.0) + row["cost_usd"]
            if "error" in row and told.first_error == "no text":
                told.first_error = row["error"]
            yield row

    write_jsonl(out, lines())
    return told


def _by_batch(place: Any, asked: Asked, out: Path, kept: Path, poll_s: float, wait: bool) -> None:
    """Ask by the batch interface, and write what has come."""
    from lmlab.endpoints.client.batch_jobs import BatchJobs
    from lmlab.endpoints.client.request_files import ReplyRows

    with BatchJobs(place, out.with_name(out.name + ".batches"), kept) as jobs:
        counts = jobs.run(_Requests(asked), poll_s, wait)
    if counts["under_way"]:
        print(f"{counted(counts['under_way'], 'batches are')} under way; the same command collects them.")
        return
    with ReplyRows(out.parent, len(asked)) as rows:
        _recall(rows, asked, place, kept)
        _write(rows, asked, out, NOT_ANSWERED)
        missing = rows.missing
    print(f"{out}: {len(asked) - missing:,} answered, {missing:,} not. This time came: {_counted(counts)}")
    if len(asked) and missing == len(asked):
        raise LmlabError("No request was answered.", f"See the error files in '{out}.batches'.")


def _recall(rows: ReplyRows, asked: Asked, place: Any, kept: Path) -> None:
    """Fill in replies that came while the run was ending."""
    from lmlab.endpoints import ReplyCache
    from lmlab.endpoints.backends import identity_of
    from lmlab.endpoints.client.request_files import reply_row

    cache, identity = ReplyCache(kept), identity_of(place)
    try:
        for number, (id, request) in enumerate(asked):
            if number not in rows and (reply := cache.get(place.shaped(request).key(identity))) is not None:
                rows.put(number, reply_row(id, reply))
    finally:
        cache.close()


def _counted(counts: Any) -> str:
    return ", ".join(f"{count:,} {status}" for status, count in sorted(counts.items())) or "nothing"
