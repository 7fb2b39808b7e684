"""Answers to a set of questions in a folder, resumable to the row."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lmlab.distributed import from_all, wait_for_all, world
from lmlab.endpoints import Backend, ChatRequest, Endpoint, Estimate, Reply, answer, estimate, make_backend
from lmlab.errors import UserError
from lmlab.evals.rows import Row, RowFile
from lmlab.files import read_mapping, sha256_json, write_json
from lmlab.methods.tutor.answering.local import Answer, LocalTutor
from lmlab.methods.tutor.answering.prompts import STOPS, endpoint_messages, endpoint_prompt_hash, user_message
from lmlab.methods.tutor.answering.window import prompts_for
from lmlab.methods.tutor.config import AnswerConfig
from lmlab.methods.tutor.endpoints import without_private
from lmlab.methods.tutor.items.item import TutorItem
from lmlab.models import weights_fingerprint
from lmlab.progress import progress

ANSWERS, RUN, REPLIES = "answers.jsonl", "run.json", "replies.sqlite"
STATUSES = {"content_filter": "content_filter", "context_length_exceeded": "context_length"}


def answer_locally(place: str, items: Sequence[TutorItem], config: AnswerConfig, directory: str | Path) -> list[Row]:
    """Let a model of lmlab answer; rows that are there are kept.

    Of several processes each takes every so-many-th chapter, so that the questions about one stay together.

    Raises:
        UserError: the folder holds the answers of another model, or to other prompts; or as `LocalTutor`.
        ContextOverflow: before any answer.
    """
    directory = Path(directory)
    tutor = LocalTutor.load(place, config)
    identity = weights_fingerprint(tutor.model)
    prompts = prompts_for(tutor.asking, items, config.book, tutor.limit, config.max_new_tokens, config.overflow)
    begin_run(directory, place, identity, tutor.asking.prompt_hash, config, items)
    about = told_of(tutor, identity)
    rows = RowFile(directory / ANSWERS, part=world().rank)
    done = _done(rows)
    chapters = list(dict.fromkeys(item.cluster for item in items))
    own = set(chapters[world().rank :: world().size])
    left = list(
        {each.item.id: each for each in prompts if each.item.cluster in own and each.item.id not in done}.values()
    )
    left.sort(key=lambda each: chapters.index(each.item.cluster))
    with progress("answer", len(left), "questions") as advance:
        for prompt in left:
            if not prompt.ids:
                rows.append(answer_row(prompt.item, about, None, "skipped"))
                advance(1)
        for prompt, found in tutor.answer(left):
            rows.append(answer_row(prompt.item, about, found, "ok", prompt.cut))
            advance(1)
    return _finished(rows, items)


def answer_by_endpoint(
    endpoint: Endpoint,
    items: Sequence[TutorItem],
    config: AnswerConfig,
    directory: str | Path,
    backend: Backend | None = None,
    redact: tuple[str, ...] = (),
) -> list[Row]:
    """Let a model behind an endpoint answer; what was paid for is not asked again.

    Arguments:
        redact: what these regular expressions find is not sent.

    Raises:
        UserError: the folder holds the answers of another model, or to other prompts.
        BudgetExceeded, EndpointUnavailable, Interrupted: as `lmlab.endpoints.answer`; everything that came is kept.
    """
    directory = Path(directory)
    made = backend or (make_backend(endpoint) if endpoint.backend == "local" else None)
    name = f"{endpoint.backend}:{endpoint.model}"
    begin_run(directory, name, endpoint.model, endpoint_prompt_hash(), config, items)
    about = {"model": name, "revision": "", "format": "messages", "prompt_hash": endpoint_prompt_hash()}
    rows = RowFile(directory / ANSWERS)
    done = _done(rows)
    left = list({item.id: item for item in items if item.id not in done}.values())
    with progress("answer", len(left), "questions") as advance:

        def take(number: int, reply: Reply) -> None:
            rows.append(_reply_row(left[number], about, reply))
            advance(1)

        requests = [_request(item, config, redact) for item in left]
        answer(endpoint, requests, take, directory / REPLIES, made)
    return _finished(rows, items)


def estimate_answers(
    endpoint: Endpoint,
    items: Sequence[TutorItem],
    config: AnswerConfig,
    directory: Path,
    redact: tuple[str, ...] = (),
) -> Estimate:
    """What asking an endpoint will cost, without asking."""
    return estimate(endpoint, (_request(item, config, redact) for item in items), directory / REPLIES)


def begin_run(
    directory: Path, model: str, identity: str, prompt_hash: str, config: AnswerConfig, items: Sequence[TutorItem]
) -> None:
    """Say in a folder whose answers it holds.

    Raises:
        UserError: it holds others.
    """
    asked: dict[str, Any] = {"book": config.book, "format": config.format, "max_new_tokens": config.max_new_tokens}
    asked |= {"overflow": config.overflow, "window": config.window, "rope_theta": config.rope_theta}
    found = {
        "model": model,
        "identity": identity,
        "prompt_hash": prompt_hash,
        "asked": asked,
        "items": sha256_json([[item.id, item.chapter, list(item.key_points)] for item in items]),
    }
    path = directory / RUN
    if path.exists():
        before = read_mapping(path)
        changed = [name for name, value in found.items() if name != "model" and before.get(name) != value]
        if changed:
            told = {
                "identity": "another model",
                "items": "other questions",
                "prompt_hash": "prompts of another wording",
            }
            raise UserError(
                f"'{directory}' holds answers of '{before.get('model')}' with"
                f" {', '.join(told.get(each, 'other settings') for each in changed)}.",
                "Name another folder, or begin anew with --new-run, which moves these aside.",
            )
    if world().is_main:
        write_json(path, found)


def move_aside(directory: Path, mark: str = RUN) -> None:
    """Make room in a folder of answers: what is there goes into a folder beside it.

    Arguments:
        mark: the file that tells that there are some.
    """
    if not (directory / mark).exists():
        return
    number = 1
    while (target := directory.with_name(f"{directory.name}.before-{number}")).exists():
        number += 1
    directory.rename(target)


def _request(item: TutorItem, config: AnswerConfig, redact: tuple[str, ...] = ()) -> ChatRequest:
    messages = endpoint_messages(user_message(item, config.book))
    return without_private(ChatRequest(messages, max_tokens=config.max_new_tokens, temperature=0.0, stop=STOPS), redact)


def _done(rows: RowFile) -> dict[str, Row]:
    """The rows that need not be asked for again: all but those that an endpoint failed."""
    return {id: row for id, row in rows.done().items() if row["answer_status"] != "endpoint_error"}


def told_of(tutor: LocalTutor, identity: str) -> dict[str, Any]:
    """What each row of an answer says of who wrote it.

    Arguments:
        identity: stands for its weights.
    """
    return {
        "model": tutor.place,
        "revision": identity[:16],
        "format": tutor.config.format,
        "prompt_hash": tutor.asking.prompt_hash,
    }


def answer_row(item: TutorItem, about: dict[str, Any], found: Answer | None, status: str, cut: int = 0) -> Row:
    """The row of an answer: the question's columns, `tutor` and `answer_status`."""
    tutor = {**about, "output": "" if found is None else found.output}
    if found is not None:
        tutor |= {
            "finish_reason": found.finish_reason,
            "prompt_tokens": found.prompt_tokens,
            "completion_tokens": found.completion_tokens,
            "seconds": round(found.seconds, 4),
        }
    tutor |= {"tokens_cut": cut} if cut else {}
    return {"id": item.id, **item.about(), "tutor": tutor, "answer_status": status}


def _reply_row(item: TutorItem, about: dict[str, Any], reply: Reply) -> Row:
    if reply.status != "ok" or reply.text is None:
        row = answer_row(item, about, None, STATUSES.get(reply.status, "endpoint_error"))
        row["tutor"]["error"] = reply.error
        return row
    usage = reply.usage
    row = answer_row(
        item,
        about,
        Answer(reply.text, str(reply.choices[0].finish_reason), usage.prompt, usage.completion, reply.seconds),
        "ok",
    )
    row["tutor"] |= {"cost_usd": reply.paid_usd, "usage_estimated": usage.estimated}
    return row


def _finished(rows: RowFile, items: Sequence[TutorItem]) -> list[Row]:
    """All rows in the order of the questions, once every process is done."""
    rows.close()
    wait_for_all()
    return from_all(rows.finish(item.id for item in items) if world().is_main else None)[0] or []
