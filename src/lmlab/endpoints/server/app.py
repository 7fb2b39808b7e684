"""The routes of the server: what comes in is checked, what goes out is in the protocol's form, and no error shows more
than a sentence.
"""

from __future__ import annotations

import asyncio
import hmac
import time
from collections.abc import AsyncIterator, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from lmlab.data import Tokenizer
from lmlab.endpoints.engine.engine import Busy, EngineFailed, Job
from lmlab.endpoints.engine.guides import MakeGuide
from lmlab.endpoints.engine.served import ServedModel
from lmlab.endpoints.engine.tools import MOST_CALLS, call_schema
from lmlab.endpoints.server.answering import events, whole
from lmlab.endpoints.server.bodies import B, ChatBody, CompletionBody, ToolChoice, parse
from lmlab.endpoints.server.connections import OnlyHosts
from lmlab.endpoints.server.errors import ApiError, json_response
from lmlab.endpoints.server.forms import ChatForm, CompletionForm, Form
from lmlab.errors import UserError
from lmlab.models import DecodingConfig

_RETRY_AFTER_S = 1  # a place is free as soon as one answer ends, and clients wait longer at each try
_OF_OTHER_SERVERS = {
    "/v1/embeddings": "encoder; lmlab serve DIRECTORY --embeddings starts one that has",
    "/v1/chat/completions": "language model, but an encoder",
    "/v1/completions": "language model, but an encoder",
}
_DEFAULT_COMPLETION_TOKENS = 16  # OpenAI's default of `/v1/completions`
_HANGUP = 499  # nginx's status for a client that has gone; nobody reads it but logs
T = TypeVar("T")


@dataclass(frozen=True)
class ServerConfig:
    """What the server demands and bears.

    Attributes:
        secret: the key that requests must bring; None for none.
        hosts: names by which the server may be called (the header Host); None for any. So a page in a browser cannot
            reach it by a name of its own.
        max_body_bytes: longest body.
        body_timeout_s: longest time for a body to come.
    """

    secret: str | None = None
    hosts: tuple[str, ...] | None = None
    max_body_bytes: int = 8 << 20
    body_timeout_s: float = 60.0

    def __repr__(self) -> str:
        return f"ServerConfig(secret={'***' if self.secret else None}, hosts={self.hosts})"


def create_app(model: ServedModel, config: ServerConfig | None = None) -> Starlette:
    """An ASGI application that serves a model."""
    server = _Server(model, config or ServerConfig())
    routes = [
        Route("/v1/chat/completions", server.chat, methods=["POST"]),
        Route("/v1/completions", server.completions, methods=["POST"]),
    ]
    return application(server, routes)


def _refused(request: Request, error: HTTPException) -> Response:
    """What is not here is told with what would have it."""
    missing = _OF_OTHER_SERVERS.get(request.url.path) if error.status_code == 404 else None
    told = f"{error.detail}." if missing is None else f"this server has no {missing}."
    return ApiError(error.status_code, f"{request.method} {request.url.path}: {told}").response()


def application(server: Service, routes: Sequence[Route]) -> Starlette:
    """An ASGI application with what every server has, and further routes."""
    hosts = server.config.hosts
    handlers: dict[Any, Any] = {
        ApiError: lambda request, error: error.response(),
        UserError: lambda request, error: ApiError(400, " ".join(str(error).split())).response(),
        Busy: _busy,
        EngineFailed: lambda request, error: ApiError(500, str(error)).response(),
        HTTPException: _refused,
        ClientDisconnect: lambda request, error: Response(status_code=_HANGUP),
        Exception: lambda request, error: ApiError(500, "The server failed on this request.").response(),
    }
    return Starlette(
        routes=[
            Route("/health", server.health),
            Route("/v1/models", server.models),
            Route("/v1/models/{name:path}", server.one_model),
            *routes,
        ],
        exception_handlers=handlers,
        middleware=[] if hosts is None else [Middleware(OnlyHosts, hosts=hosts)],
    )


class Served(Protocol):
    """What is served has a name and a longest input."""

    name: str

    @property
    def max_seq_len(self) -> int:
        """In tokens."""
        ...


class Service:
    """What every server does: check requests, and tell what it serves."""

    def __init__(self, served: Served, config: ServerConfig) -> None:
        self.served, self.config = served, config
        self._created = int(time.time())

    def counts(self) -> dict[str, int]:
        """What the server has to do."""
        return {}

    async def health(self, request: Request) -> Response:
        """Whether the server lives, and what it has to do."""
        return json_response({"status": "ok", "model": self.served.name} | self.counts())

    async def models(self, request: Request) -> Response:
        """What is served."""
        self._authorize(request)
        return json_response({"object": "list", "data": [self._described()]})

    async def one_model(self, request: Request) -> Response:
        """The same by its name."""
        self._authorize(request)
        self._check_name(request.path_params["name"])
        return json_response(self._described())

    async def read(self, request: Request, kind: type[B]) -> B:
        self._authorize(request)
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise ApiError(415, "The body must be JSON, with the header 'Content-Type: application/json'.")
        content = bytearray()
        try:
            async with asyncio.timeout(self.config.body_timeout_s):
                async for chunk in request.stream():
                    content += chunk
                    if len(content) > self.config.max_body_bytes:
                        raise ApiError(
                            413,
                            f"The body is longer than {self.config.max_body_bytes:,} bytes.",
                            headers={"Connection": "close"},
                        )
        except TimeoutError:
            raise ApiError(408, "The body did not come in time.", headers={"Connection": "close"}) from None
        body = parse(kind, bytes(content))
        self._check_name(body.model)
        return body

    def _authorize(self, request: Request) -> None:
        if self.config.secret is None:
            return
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), self.config.secret.encode()):
            raise ApiError(
                401, "The API key is missing or wrong.", "invalid_api_key", headers={"WWW-Authenticate": "Bearer"}
            )

    def _check_name(self, name: str) -> None:
        if name != self.served.name:
            raise ApiError(
                404,
                f"There is no model '{name}' here; this server has '{self.served.name}'.",
                "model_not_found",
                "model",
            )

    def _described(self) -> dict[str, Any]:
        return {
            "id": self.served.name,
            "object": "model",
            "created": self._created,
            "owned_by": "lmlab",
            "max_model_len": self.served.max_seq_len,
        }


class _Server(Service):
    def __init__(self, model: ServedModel, config: ServerConfig) -> None:
        super().__init__(model, config)
        self.model = model

    def counts(self) -> dict[str, int]:
        """What the engine has to do."""
        engine = self.model.engine
        return {
            "running": engine.running,
            "waiting": engine.waiting,
            "served": engine.served,
            "generated_tokens": engine.generated,
        }

    async def chat(self, request: Request) -> Response:
        """An answer to a conversation; as long as the context has room for if no length is given."""
        body = await self.read(request, ChatBody)
        self._check_context(body)
        tools = [] if body.tool_choice == "none" else [tool.model_dump(exclude_none=True) for tool in body.tools or ()]
        guide = await asyncio.to_thread(self._guide, body, tools)
        turns = [message.plain() for message in body.messages]
        ids = await asyncio.to_thread(self.model.chat_ids, turns, tools, body.several_calls)
        given = body.max_completion_tokens or body.max_tokens
        taken = len(ids) + self.model.positions_before(body.context)
        if body.top_logprobs and not body.logprobs:
            raise ApiError(400, "'top_logprobs' needs 'logprobs': true.", "invalid_value", "top_logprobs")
        config = self._settings(
            body, [ids], given or self.model.most_new_tokens(taken, body.n or 1), body.top_logprobs or 0
        )
        config = config.model_copy(update={"guide": guide})
        names = [tool["function"]["name"] for tool in tools]
        form = ChatForm(self.model.tokenizer, bool(body.logprobs), names, MOST_CALLS if body.several_calls else 1)
        return await self._answer(request, body, [ids], config, form)

    def _guide(self, body: ChatBody, tools: Sequence[dict[str, Any]]) -> MakeGuide | None:
        """What the answer has to be: JSON, the call of a tool, or either that or a text."""
        form, choice = body.response_format, body.tool_choice
        if tools and form is not None and form.type != "text":
            raise ApiError(400, "'response_format' and 'tools' cannot both be asked for.", "invalid_value", "tools")
        if tools:
            if isinstance(choice, ToolChoice):
                name = choice.function.name
                if name not in [tool["function"]["name"] for tool in tools]:
                    raise ApiError(400, f"There is no tool '{name}'.", "invalid_value", "tool_choice")
                return self.model.guides.json(call_schema(tools, name))
            most = MOST_CALLS if body.several_calls else 1
            return self.model.guides.calls(call_schema(tools), most, or_text=choice != "required")
        if choice not in (None, "none", "auto"):
            raise ApiError(400, "'tool_choice' needs 'tools'.", "invalid_value", "tool_choice")
        if form is None or form.type == "text":
            return None
        return self.model.guides.json(None if form.json_schema is None else form.json_schema.schema_)

    async def completions(self, request: Request) -> Response:
        """Texts that go on, or with `echo` also the log-probabilities of the prompts themselves."""
        body = await self.read(request, CompletionBody)
        self._check_context(body)
        if body.best_of not in (None, body.n or 1):
            raise ApiError(400, "'best_of' is not supported by this server.", "unsupported_parameter", "best_of")
        tokenizer = self.model.tokenizer
        prompts = await asyncio.to_thread(_encoded, tokenizer, body.prompts())
        vocab_size = self.model.network.config.vocab_size
        if any(id >= vocab_size for _, ids in prompts for id in ids):
            raise ApiError(400, f"'prompt' has a token id that is not below {vocab_size}.", "invalid_value", "prompt")
        most = _DEFAULT_COMPLETION_TOKENS if body.max_tokens is None else body.max_tokens
        config = self._settings(body, [ids for _, ids in prompts], most, body.logprobs or 0)
        config = config.model_copy(update={"score_prompt": bool(body.echo) and body.logprobs is not None})
        echoed = (
            [(tokenizer.decode(ids) if text is None else text, ids) for text, ids in prompts] if body.echo else None
        )
        form = CompletionForm(tokenizer, body.logprobs, echoed, body.n or 1)
        return await self._answer(request, body, [ids for _, ids in prompts], config, form)

    def _check_context(self, body: ChatBody | CompletionBody) -> None:
        if body.context is not None and body.context not in self.model.contexts:
            known = ", ".join(f"'{name}'" for name in self.model.contexts) or "none"
            raise ApiError(
                404, f"There is no context '{body.context}' here; there are: {known}.", "context_not_found", "context"
            )

    async def _answer(
        self,
        request: Request,
        body: ChatBody | CompletionBody,
        prompts: Sequence[list[int]],
        config: DecodingConfig,
        form: Form,
    ) -> Response:
        before = None if body.context is None else self.model.contexts[body.context]
        jobs = self.model.engine.submit(prompts, config, bool(body.stream), before)
        if not body.stream:
            return json_response(await _unless_gone(request, whole(self.model, jobs, form), jobs))
        with_usage = body.stream_options is not None and body.stream_options.include_usage
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        return _Stream(events(self.model, jobs, form, with_usage), jobs, headers)

    def _settings(
        self, body: ChatBody | CompletionBody, prompts: Sequence[list[int]], max_new_tokens: int, top: int
    ) -> DecodingConfig:
        longest = max(map(len, prompts))
        limit = self.model.max_seq_len - self.model.positions_before(body.context)
        if longest == 0:
            raise ApiError(400, "The prompt is empty.", "invalid_value", "prompt")
        if longest + max_new_tokens > limit:
            raise ApiError(
                400,
                f"This model's maximum context length is {limit} tokens; the prompt has {longest}, and up to"
                f" {max_new_tokens} new ones were asked for. Shorten the prompt or lower max_tokens.",
                "context_length_exceeded",
                "messages" if isinstance(body, ChatBody) else "prompt",
            )
        vocab_size = self.model.network.config.vocab_size
        for token in body.logit_bias or ():
            if not token.isascii() or not token.isdigit() or int(token) >= vocab_size:
                raise ApiError(
                    400,
                    f"'logit_bias' has '{token}', which is no token id below {vocab_size}.",
                    "invalid_value",
                    "logit_bias",
                )
        return self.model.config(
            max_new_tokens=max_new_tokens,
            temperature=body.temperature,
            top_p=body.top_p,
            top_k=body.top_k,
            min_p=body.min_p,
            repetition_penalty=body.repetition_penalty,
            num_samples=body.n or 1,
            seed=body.seed,
            stop=body.stops,
            top_log_probs=top,
            logit_bias=body.logit_bias,
        )


class _Stream(StreamingResponse):
    """Server-sent events; however the stream ends, also before its first event, its jobs end with it."""

    def __init__(self, content: AsyncIterator[bytes], jobs: Sequence[Job], headers: dict[str, str]) -> None:
        super().__init__(content, media_type="text/event-stream", headers=headers)
        self._jobs = jobs

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            _give_up(self._jobs)


def _give_up(jobs: Sequence[Job]) -> None:
    """End jobs; that means nothing to those that are done."""
    for job in jobs:
        job.canceled = True


def _encoded(tokenizer: Tokenizer, prompts: Sequence[str | list[int]]) -> list[tuple[str | None, list[int]]]:
    """Prompts as text, where they are given as such, and as ids."""
    return [(given, tokenizer.encode_prompt(given)) if isinstance(given, str) else (None, given) for given in prompts]


async def _unless_gone(request: Request, work: Coroutine[Any, Any, T], jobs: Sequence[Job]) -> T:
    """The result of work, which ends when the client hangs up.

    Raises:
        ClientDisconnect: it did.
    """
    task, gone = asyncio.create_task(work), asyncio.create_task(_disconnected(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        for each in (task, gone):
            each.cancel()
        _give_up(jobs)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _busy(request: Request, error: Exception) -> Response:
    message = "Too many requests wait for the model. Try again a little later."
    return ApiError(429, message, "rate_limit_exceeded", headers={"Retry-After": str(_RETRY_AFTER_S)}).response()
