"""Who answers the requests of a client: an HTTP endpoint, a model in this process, a recording, or a script."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from lmlab.config import Config, validate
from lmlab.endpoints.endpoint import Endpoint
from lmlab.endpoints.protocol import ChatRequest, Choice, Reply, Usage, estimated_tokens, message_text
from lmlab.errors import LmlabError, UserError, missing_extra
from lmlab.files import read_jsonl

EXIT_UNAVAILABLE = 5


class EndpointUnavailable(LmlabError):
    """The endpoint is down, has no credit left, or refuses everything alike: nothing more is asked, and everything that
    came is kept.
    """

    exit_code = EXIT_UNAVAILABLE


class Transient(Exception):
    """An attempt that failed for now.

    Attributes:
        again: another attempt may end otherwise, as it may where a network or others' requests lie between; a model in
            this process fails of the same request again.
        retry_after_s: the shortest wait that the endpoint asks for.
        overloaded: it said that there are too many requests.
        answered: it answered, and so took no money for the attempt.
    """

    def __init__(
        self,
        message: str,
        *,
        retry_after_s: float = 0.0,
        overloaded: bool = False,
        answered: bool = True,
        again: bool = True,
    ) -> None:
        super().__init__(message)
        self.retry_after_s, self.overloaded, self.answered = retry_after_s, overloaded, answered
        self.again = again


class Backend(Protocol):
    """Answers one request at a time; many may be under way.

    Attributes:
        identity: stands for the model in the keys of replies.
    """

    identity: str

    async def send(self, request: ChatRequest) -> Reply:
        """Answer a request, in one attempt.

        Raises:
            Transient: another attempt makes sense.
            UserError, EndpointUnavailable: no request can be answered.
        """

    async def close(self) -> None:
        """Give everything back."""


def make_backend(endpoint: Endpoint) -> Backend:
    """The back end that an endpoint names.

    Raises:
        UserError: it cannot be had.
    """
    if endpoint.backend in ("replay", "mock") and endpoint.replies is None:
        raise UserError(f"The back end {endpoint.backend} needs a file of replies.", "Name it in 'replies'.")
    if endpoint.backend == "replay":
        assert endpoint.replies is not None
        return ReplayBackend(endpoint.model, endpoint.replies)
    if endpoint.backend == "mock":
        assert endpoint.replies is not None
        return MockBackend(read_script(endpoint.replies), endpoint.model)
    if endpoint.backend == "local":
        from lmlab.endpoints.engine.local import LocalBackend

        return LocalBackend.load(Path(endpoint.model), endpoint.precision)
    try:
        from lmlab.endpoints.client.transport import HttpBackend
    except ModuleNotFoundError as error:
        if error.name == "httpx":
            raise missing_extra("httpx", "A client of an HTTP endpoint") from None
        raise
    return HttpBackend(endpoint)


def identity_of(endpoint: Endpoint) -> str:
    """The identity of the back end that an endpoint names, without making it.

    Raises:
        UserError: a local model is not where it should be.
    """
    if endpoint.backend == "mock":
        return f"mock:{endpoint.model}"
    if endpoint.backend == "local":
        from lmlab.endpoints.engine.local import local_identity

        return local_identity(Path(endpoint.model), endpoint.precision)
    return endpoint.model


class ReplayBackend:
    """Repeats recorded replies (`export_replies`), and refuses requests that were not recorded.

    Arguments:
        model: the name of the model that was recorded.
        path: the recording.

    Raises:
        UserError: the file cannot be read, or has nothing of this model.
    """

    def __init__(self, model: str, path: str | Path) -> None:
        path = Path(path)
        self.identity = model
        self._replies: dict[str, Reply] = {}
        models: Counter[str] = Counter()
        for number, row in enumerate(read_jsonl(path), 1):
            try:
                models[row["model"]] += 1
                if row["model"] == model:
                    self._replies[row["key"]] = Reply.from_dict(row["reply"])
            except (KeyError, TypeError) as error:
                raise UserError(
                    f"'{path}', line {number} is no recorded reply ({type(error).__name__}: {error})."
                ) from None
        if not self._replies:
            known = ", ".join(f"'{name}'" for name in sorted(models)) or "none at all"
            raise UserError(f"'{path}' has no replies of the model '{model}'.", f"It has those of: {known}.")

    async def send(self, request: ChatRequest) -> Reply:
        """The recorded reply; `rejected` where there is none."""
        key = request.key(self.identity)
        found = self._replies.get(key)
        return (
            Reply("rejected", error=f"no recorded reply to this request (key {key})")
            if found is None
            else replace(found, attempts=1)
        )

    async def close(self) -> None:
        """Nothing to do."""


class MockBackend:
    """Answers by a function, for rehearsals without a model: nothing is sent anywhere.

    Arguments:
        answer: the text of the answer to a request, or the whole reply.
        name: its replies are kept apart from those of all models.
    """

    def __init__(self, answer: Callable[[ChatRequest], str | Reply], name: str = "mock") -> None:
        self.identity, self._answer = f"mock:{name}", answer

    async def send(self, request: ChatRequest) -> Reply:
        """The answer, as often as it was asked for, with estimated usage."""
        found = self._answer(request)
        if isinstance(found, Reply):
            return found
        tokens = request.n * estimated_tokens(found)
        return Reply(
            "ok", (Choice(found, "stop"),) * request.n, Usage(request.likely_prompt_tokens(), tokens, estimated=True)
        )

    async def close(self) -> None:
        """Nothing to do."""


class ScriptedAnswer(Config):
    """A line of a script: the answer `text` to requests whose last message the regular expression `match` finds
    something in.
    """

    match: str = ""
    text: str


def read_script(path: Path) -> Callable[[ChatRequest], str | Reply]:
    """The function that answers by a script of JSON lines: the first line that matches; a request that none matches is
    rejected.

    Raises:
        UserError: the file is no script.
    """
    rows = _script_rows(path, read_jsonl(path))

    def answer(request: ChatRequest) -> str | Reply:
        said = message_text(request.messages[-1]) if request.messages else ""
        return next(
            (text for pattern, text in rows if pattern.search(said)),
            Reply("rejected", error=f"no line of '{path}' matches"),
        )

    return answer


def _script_rows(path: Path, rows: Iterable[dict[str, Any]]) -> list[tuple[re.Pattern[str], str]]:
    found = []
    for number, row in enumerate(rows, 1):
        line = validate(ScriptedAnswer, row, f"'{path}', line {number}")
        try:
            found.append((re.compile(line.match), line.text))
        except re.error as error:
            raise UserError(f"'{path}', line {number}: '{line.match}' is no regular expression ({error}).") from None
    return found
