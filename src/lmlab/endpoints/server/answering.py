"""Jobs of the engine to the body of an answer, or to the events of a stream."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import Any

from lmlab.endpoints.client.token_log import TokenLog
from lmlab.endpoints.engine.engine import EngineFailed, Growth, Job
from lmlab.endpoints.engine.served import ServedModel
from lmlab.endpoints.server.answers import usage
from lmlab.endpoints.server.errors import ApiError
from lmlab.endpoints.server.forms import Form
from lmlab.models import Completion


async def whole(model: ServedModel, jobs: Sequence[Job], form: Form) -> dict[str, Any]:
    """The answer when all of it is there.

    Raises:
        EngineFailed: the model failed.
    """
    found = await _all(jobs)
    choices: list[dict[str, Any]] = []
    generated = 0
    for done in (Completion.of(row, model.tokenizer.decode) for rows in found for row in rows):
        index = len(choices)
        text, tokens = form.before(index, done.prompt_scores)
        if form.log_probs:
            tokens = tokens + TokenLog(model.tokenizer).grow(
                done.text or "", done.ids, done.log_probs, done.top, done=True
            )
        choices.append(form.choice(index, text + (done.text or ""), tokens, done.finish_reason))
        generated += len(done.ids)
    return {**_head(model, form, form.whole), "choices": choices, "usage": usage(jobs, generated)}


async def events(model: ServedModel, jobs: Sequence[Job], form: Form, with_usage: bool) -> AsyncGenerator[bytes]:
    """The answer as server-sent events.

    A failure within the stream is an event too, and then the end is not announced.
    """
    head, generated = _head(model, form, form.chunk), 0
    samples = jobs[0].config.num_samples
    logs = [TokenLog(model.tokenizer) for _ in range(len(jobs) * samples)]
    begun: set[int] = set()
    for index in range(len(logs)):
        if (opening := form.opening(index)) is not None:
            yield _event(head | {"choices": [opening]})
    try:
        async for number, growth in _merged(jobs):
            index = number * samples + growth.sample
            text, tokens = ("", []) if index in begun else form.before(index, growth.prompt_scores)
            begun.add(index)
            if form.log_probs:
                tokens = tokens + logs[index].grow(
                    growth.text, growth.ids, growth.log_probs, growth.top, growth.finish_reason is not None
                )
            generated += len(growth.ids)
            for part in form.piece(index, text + growth.text, tokens, growth.finish_reason):
                yield _event(head | {"choices": [part]})
    except EngineFailed as error:
        yield _event(ApiError(500, str(error)).body())
        return
    if with_usage:
        yield _event(head | {"choices": [], "usage": usage(jobs, generated)})
    yield b"data: [DONE]\n\n"


async def _all(jobs: Sequence[Job]) -> list[Any]:
    tasks = [asyncio.create_task(job.rows()) for job in jobs]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


async def _merged(jobs: Sequence[Job]) -> AsyncIterator[tuple[int, Growth]]:
    """What comes of any job, with the number of the job."""
    sources = [job.growth() for job in jobs]
    tasks: dict[asyncio.Task[list[Growth] | None], int] = {
        asyncio.create_task(_next(source)): number for number, source in enumerate(sources)
    }
    try:
        while tasks:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                number, news = tasks.pop(task), task.result()
                if news is not None:
                    tasks[asyncio.create_task(_next(sources[number]))] = number
                    for each in news:
                        yield number, each
    finally:
        for task in tasks:
            task.cancel()


async def _next(source: AsyncIterator[list[Growth]]) -> list[Growth] | None:
    return await anext(source, None)


def _head(model: ServedModel, form: Form, kind: str) -> dict[str, Any]:
    return {"id": form.id, "object": kind, "created": int(time.time()), "model": model.name}


def _event(body: dict[str, Any]) -> bytes:
    return (
        b"data: "
        + json.dumps(body, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode("utf-8", "replace")
        + b"\n\n"
    )
