"""One model, many requests: a thread that runs the model, whose batch requests join and leave between steps."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

import torch

from lmlab.endpoints.engine.prefixes import Prefixes, shares, worth_sharing
from lmlab.errors import LmlabError, UserError
from lmlab.hardware import memory_bytes
from lmlab.models import (
    Continuation,
    Decoding,
    DecodingConfig,
    GrowingText,
    KVCache,
    PromptScores,
    SoftPrompt,
    Transformer,
)
from lmlab.models.generation.checks import check_prompts
from lmlab.models.generation.continuation import Decode, FinishReason, TopTokens

_log = logging.getLogger(__name__)
_MAX_ROWS = {"cpu": 16, "cuda": 128}  # texts that grow together: more serve more at once, and make each slower
_MAX_READ = {
    "cpu": 512,
    "cuda": 8192,
}  # tokens of prompts that are read between two steps, so that others do not wait for long
_PATIENCE_S = 1.0  # with a step under way when the engine is closed
_SHARE_OF_MEMORY = 0.25  # for keys and values (of a GPU's free memory twice that); the rest is for weights and passes


class Busy(Exception):
    """So many requests wait that no more are taken."""


class EngineFailed(Exception):
    """The model failed while it worked on a request."""


@dataclass(frozen=True)
class Growth:
    """What a step has added to one continuation of a request: text that is certain, and tokens with what is known of
    them.
    """

    sample: int
    text: str
    ids: list[int]
    log_probs: list[float]
    top: list[TopTokens]
    finish_reason: FinishReason | None
    prompt_scores: PromptScores | None


class Job:
    """A request under way. It is iterated, or waited for, within the event loop that submitted it.

    Attributes:
        context: vectors before the prompt, if there are any; such a job is read by itself.
        canceled: nobody waits for it any more.
        cached_tokens: how much of the prompt did not have to be read.
    """

    def __init__(
        self, prompt: Sequence[int], config: DecodingConfig, stream: bool, context: SoftPrompt | None = None
    ) -> None:
        self.prompt, self.config, self.stream, self.context = prompt, config, stream, context
        self.canceled = False
        self.cached_tokens = 0
        self._loop = asyncio.get_running_loop()
        self._news: asyncio.Queue[list[Growth] | list[Continuation] | EngineFailed] = asyncio.Queue()

    async def rows(self) -> list[Continuation]:
        """All continuations once they are done.

        Raises:
            EngineFailed: the model failed.
        """
        try:
            news = await self._next()
        except asyncio.CancelledError:
            self.canceled = True
            raise
        return [each for each in news if isinstance(each, Continuation)]

    async def growth(self) -> AsyncIterator[list[Growth]]:
        """What every step has added, until all continuations are done; for a job that was submitted as a stream.

        Raises:
            EngineFailed: the model failed.
        """
        left = self.config.num_samples
        try:
            while left:
                news = [each for each in await self._next() if isinstance(each, Growth)]
                left -= sum(each.finish_reason is not None for each in news)
                yield news
        finally:
            self.canceled = left > 0

    async def _next(self) -> list[Growth] | list[Continuation]:
        news = await self._news.get()
        if isinstance(news, EngineFailed):
            raise news
        return news

    def tell(self, news: list[Growth] | list[Continuation] | EngineFailed) -> None:
        """Called by the engine's thread."""
        try:
            self._loop.call_soon_threadsafe(self._news.put_nowait, news)
        except RuntimeError:  # the loop has ended, and with it whoever waited
            self.canceled = True


class _Running:
    """A job in the batch: its rows, the text of each, and how much of each was told."""

    def __init__(self, job: Job, rows: list[Continuation], decode: Decode) -> None:
        self.job, self.rows = job, rows
        self._texts = [GrowingText(row, decode) for row in rows]
        self._told = [0] * len(rows)

    @property
    def done(self) -> bool:
        """Whether all rows are done."""
        return all(row.done for row in self.rows)

    @property
    def failure(self) -> LmlabError | None:
        """Why a row, and with it the job, cannot go on."""
        return next((row.failure for row in self.rows if row.failure is not None), None)

    def drop(self) -> None:
        """Let its rows leave the batch."""
        for row in self.rows:
            row.dropped = True

    def report(self) -> None:
        """Tell of what is new."""
        if self.job.stream:
            news = []
            for number, row in enumerate(self.rows):
                first, size = self._told[number], len(row.ids) + row.done  # the end of a row counts as a token
                if size > first:
                    text, self._told[number] = self._texts[number].grow(), size
                    tokens = row.ids[first:], row.log_probs[first:], row.top[first:]
                    news.append(Growth(number, text, *tokens, row.finish_reason, row.prompt_scores))
            if news:
                self.job.tell(news)
        elif self.done:
            self.job.tell(self.rows)


class Engine:
    """Runs a model in a thread of its own.

    Arguments:
        decode: ids to text.
        max_rows: most continuations that are computed at once; a request for more runs alone.
        max_waiting: most requests that wait for a place.

    Attributes:
        max_slots: tokens for whose keys and values there is memory.
        served: requests that are done.
        generated: tokens that were made.
    """

    def __init__(self, model: Transformer, decode: Decode, max_rows: int | None = None, max_waiting: int = 128) -> None:
        device = model.embedding.weight.device.type
        self.model, self._decode = model, decode
        self.max_rows, self.max_waiting = max_rows or _MAX_ROWS.get(device, 16), max_waiting
        self._max_read, self.max_slots = _MAX_READ.get(device, 4096), _slots_that_fit(model)
        scaling = model.config.rope_scaling
        self._piecewise = scaling is None or not scaling.depends_on_length
        self._waiting: deque[Job] = deque()
        self._changed = threading.Condition()
        self._closing = self._left = False
        self._prefixes = Prefixes(self.max_slots // 8)  # tokens; the rest is for answers under way
        self._decoding, self._running = self._new_batch(), list[_Running]()
        self._reading: list[Job] = []  # whose prompts are being read, with what has been read of a single one
        self._begun: KVCache | None = None
        self.served = self.generated = 0
        self._thread = threading.Thread(target=self._work, name="lmlab-engine", daemon=True)
        self._thread.start()

    @property
    def running(self) -> int:
        """Requests in the batch."""
        return len(self._running) + len(self._reading)

    @property
    def waiting(self) -> int:
        """Requests that wait for a place."""
        return len(self._waiting)

    def submit(
        self,
        prompts: Sequence[Sequence[int]],
        config: DecodingConfig,
        stream: bool = False,
        context: SoftPrompt | None = None,
    ) -> list[Job]:
        """Ask for the continuations of prompts, within an event loop. They may run at different times.

        Arguments:
            context: vectors before each prompt.

        Raises:
            Busy: too many requests wait.
            EngineFailed: the engine is closed.
            UserError: a prompt is empty, or exceeds the model's `max_seq_len` or the memory with its continuations.
        """
        check_prompts(self.model, [(prompt, config) for prompt in prompts], self._decode, context)
        before = 0 if context is None else context.length
        needed = config.num_samples * (before + max(map(len, prompts)) + config.max_new_tokens)
        if needed > self.max_slots:
            raise UserError(
                f"The request needs room for {needed} tokens, and there is memory for {self.max_slots}.",
                "Lower the number of samples or of new tokens.",
            )
        jobs = [Job(prompt, config, stream, context) for prompt in prompts]
        with self._changed:
            if self._closing:
                raise EngineFailed("the server is stopping")
            if len(self._waiting) >= self.max_waiting:
                raise Busy
            self._waiting.extend(jobs)
            self._changed.notify()
        return jobs

    def close(self) -> None:
        """End the thread; jobs that are not done fail. A step that is under way is waited for only briefly: of a long
        prompt on a CPU it takes many seconds, in which whoever stops a command would wait for nothing.
        """
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(_PATIENCE_S)
        self._left = self._thread.is_alive()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closing or self._waiting or self._running or self._reading)
                if self._closing:
                    break
                self._drop_cancelled()
                admitted = [] if self._reading else self._admit()
            try:
                self._advance(admitted)
            except Exception as error:  # whatever it is, the server lives on without these requests
                if self._left:
                    return  # nobody is there to be told
                _log.exception("the model failed")
                self._fail(admitted, EngineFailed(f"the model failed ({type(error).__name__})"))
        if not self._left:
            self._fail(list(self._waiting), EngineFailed("the server is stopping"))

    def _advance(self, admitted: list[Job]) -> None:
        """Read on in the prompts of new jobs, take a step, and tell of both."""
        if admitted:
            self._reading, self._begun = admitted, self._beginning(admitted[0])
        if self._reading:
            self._read()
        self._decoding.step()
        self._report()

    def _beginning(self, job: Job) -> KVCache | None:
        """Keys and values with which the prompt of a job begins; for a long one a cache to read it into piece
        by piece.
        """
        begun = None
        if job.context is not None:  # keys behind vectors do not belong to the ids alone
            return None
        if not self._piecewise:  # the rotation of the first tokens depends on how many follow
            return None
        if self._shared(job):
            begun = self._prefixes.find(job.prompt, job.config.max_new_tokens)
            job.cached_tokens = 0 if begun is None else begun.length
        elif len(job.prompt) > self._max_read and not job.config.score_prompt:
            weight = self.model.embedding.weight
            begun = KVCache(
                self.model.config, 1, len(job.prompt) + job.config.max_new_tokens, weight.dtype, weight.device
            )
        return begun

    def _read(self) -> None:
        """Read a piece of a long prompt, or the last of it, or all of several prompts; those that are read join the
        batch.
        """
        jobs, begun = self._reading, self._begun
        if begun is not None and len(jobs[0].prompt) - begun.length > self._max_read:
            self._decoding.read(jobs[0].prompt[begun.length : begun.length + self._max_read], begun)
            return
        asked = [(job.prompt, job.config) for job in jobs]
        for job, rows in zip(jobs, self._decoding.add(asked, begun, jobs[0].context), strict=True):
            self._running.append(_Running(job, rows, self._decode))
        self._reading, self._begun = [], None
        self._report()

    def _report(self) -> None:
        for each in self._running:
            if each.failure is not None:
                _log.error("a request failed: %s", each.failure)
                each.drop()
                each.job.tell(EngineFailed(f"the model failed: {each.failure.message}"))
        self._running = [each for each in self._running if each.failure is None]
        done = [each for each in self._running if each.done]
        self.served += len(done)  # before the clients can know of it
        self.generated += sum(len(row.ids) for each in done for row in each.rows)
        for each in self._running:
            each.report()
        self._running = [each for each in self._running if each not in done]

    def _drop_cancelled(self) -> None:
        for each in self._running:
            if each.job.canceled:
                each.drop()
        self._running = [each for each in self._running if not each.job.canceled]
        if all(job.canceled for job in self._reading):
            self._reading, self._begun = [], None

    def _admit(self) -> list[Job]:
        """The jobs whose turn has come, in the order in which they came, as many as there is room for."""
        admitted: list[Job] = []
        live = self._decoding.live
        rows, length, room, longest = (
            len(live),
            self._decoding.length,
            max((row.remaining for row in live), default=0),
            0,
        )
        while self._waiting:
            job = self._waiting[0]
            if job.canceled:
                self._waiting.popleft()
                continue
            rows, room, longest = (
                rows + job.config.num_samples,
                max(room, job.config.max_new_tokens),
                max(longest, len(job.prompt) + (0 if job.context is None else job.context.length)),
            )
            too_many = rows > self.max_rows or rows * (max(length, longest) + room) > self.max_slots
            too_long = (len(admitted) + 1) * longest > self._max_read
            if (too_many and (live or admitted)) or (admitted and (too_long or self._better_alone(job, admitted))):
                break
            admitted.append(self._waiting.popleft())
            if job.context is not None or self._shared(job):
                break
        return admitted

    def _shared(self, job: Job) -> int:
        """How many tokens of a job's prompt need not be read, because an earlier one began with them."""
        alone = job.config.score_prompt or not self._piecewise or job.context is not None
        return 0 if alone else self._prefixes.shared(job.prompt)

    def _better_alone(self, job: Job, admitted: list[Job]) -> bool:
        """Whether a job has, or will have after these, a beginning that need not be read; such a job is read on its
        own.
        """
        if job.context is not None:
            return True
        if job.config.score_prompt:
            return False
        return bool(self._shared(job)) or any(
            worth_sharing(shares(each.prompt, job.prompt), job.prompt) for each in admitted
        )

    def _fail(self, admitted: list[Job], error: EngineFailed) -> None:
        for job in {*admitted, *self._reading, *(each.job for each in self._running)}:
            job.tell(error)
        self._reading, self._begun = [], None
        self._decoding, self._running = self._new_batch(), []

    def _new_batch(self) -> Decoding:
        return Decoding(self.model, self._decode, self._prefixes.keep, raises=False)


def _slots_that_fit(model: Transformer) -> int:
    """Tokens whose keys and values fit a share of the memory."""
    config, weight = model.config, model.embedding.weight
    token = 2 * config.num_layers * config.num_kv_heads * config.head_dim * weight.element_size()
    free = torch.cuda.mem_get_info(weight.device)[0] * 2 if weight.device.type == "cuda" else memory_bytes() or 8 << 30
    return int(free * _SHARE_OF_MEMORY) // token
