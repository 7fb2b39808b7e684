"""A model in this process behind the client's interface: its requests share one running batch, as in `lmlab serve`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lmlab.endpoints.backends import Transient
from lmlab.endpoints.client.token_log import TokenLog, spelling
from lmlab.endpoints.engine.engine import Busy, EngineFailed
from lmlab.endpoints.engine.guides import MakeGuide
from lmlab.endpoints.engine.served import ServedModel
from lmlab.endpoints.protocol import ChatRequest, Choice, Reply, TokenLogProb, Usage, message_text
from lmlab.errors import UserError
from lmlab.files import sha256_file, sha256_json
from lmlab.models import Completion
from lmlab.runs import Model

_WEIGHTS_AND_SETTINGS = (".json", ".safetensors", ".jinja")


class LocalBackend:
    """Answers by a model of lmlab.

    Arguments:
        model: which `close` ends too.
        identity: stands for its weights in the keys of replies.
    """

    def __init__(self, model: ServedModel, identity: str) -> None:
        self.model, self.identity = model, identity

    @classmethod
    def load(cls, place: str | Path, precision: str = "fp32") -> LocalBackend:
        """Read a model's directory; replies are kept under the hash of its files, wherever it lies.

        Raises:
            UserError: there is no model that can be read.
        """
        return cls(ServedModel.load(place, precision), local_identity(place, precision))

    async def send(self, request: ChatRequest) -> Reply:
        """Answer a request.

        Raises:
            Transient: too many requests wait, or the model failed.
        """
        started = time.perf_counter()
        if set(request.extra or {}) - {"temperature", "n", "top_p", "max_tokens"}:
            return Reply("rejected", error=f"a local model has no field {', '.join(request.extra or {})}")
        try:
            ids = self.model.chat_ids([{"role": m["role"], "content": message_text(m)} for m in request.messages])
        except UserError as error:
            return Reply("rejected", error=" ".join(str(error).split()))
        if len(ids) + request.max_tokens > self.model.max_seq_len:
            said = (
                f"the prompt has {len(ids)} tokens; with {request.max_tokens} new ones it exceeds the model's"
                f" {self.model.max_seq_len}"
            )
            return Reply("context_length_exceeded", error=said)
        try:
            guide = await asyncio.to_thread(_guide, self.model, request.response_format)
        except UserError as error:
            return Reply("rejected", error=" ".join(str(error).split()))
        config = self.model.config(
            max_new_tokens=request.max_tokens,
            temperature=request.temperature,
            top_p=request.top_p,
            num_samples=request.n,
            stop=request.stop,
            seed=request.seed,
            top_log_probs=request.top_logprobs or 0,
            logit_bias=request.logit_bias,
        ).model_copy(update={"guide": guide})
        try:
            (job,) = self.model.engine.submit([ids], config)
            done = [Completion.of(row, self.model.tokenizer.decode) for row in await job.rows()]
        except Busy:
            raise Transient("too many requests wait", overloaded=True) from None
        except EngineFailed as error:
            raise Transient(str(error), again=False) from None
        choices = tuple(Choice(each.text or "", each.finish_reason, self._log_probs(each, request)) for each in done)
        return Reply(
            "ok",
            choices,
            Usage(len(ids), sum(len(each.ids) for each in done), job.cached_tokens),
            seconds=time.perf_counter() - started,
        )

    async def close(self) -> None:
        """End the engine."""
        self.model.close()

    def _log_probs(self, done: Completion, request: ChatRequest) -> tuple[TokenLogProb, ...] | None:
        if request.top_logprobs is None:
            return None
        tokenizer = self.model.tokenizer
        tokens = TokenLog(tokenizer).grow(done.text or "", done.ids, done.log_probs, done.top, done=True)

        def spelled(top: Sequence[tuple[int, float]]) -> tuple[tuple[str, float], ...]:
            return tuple((spelling(tokenizer, id), log_prob) for id, log_prob in top)

        return tuple(
            TokenLogProb(spelling(tokenizer, token.id), token.log_prob or 0.0, spelled(token.top)) for token in tokens
        )


def _guide(model: ServedModel, form: dict[str, Any] | None) -> MakeGuide | None:
    """What the answer has to be, by the protocol's `response_format`."""
    kind = (form or {}).get("type", "text")
    if kind == "text":
        return None
    if kind not in ("json_object", "json_schema"):
        raise UserError(f"There is no response_format '{kind}'.")
    return model.guides.json(((form or {}).get("json_schema") or {}).get("schema"))


def local_identity(place: str | Path, precision: str) -> str:
    """The precision and the hash of a model's files.

    Raises:
        UserError: there is no model.
    """
    path = Model.find(place).path
    files = [path] if path.is_file() else [each for each in path.iterdir() if each.suffix in _WEIGHTS_AND_SETTINGS]
    return f"local:{precision}:{sha256_json({each.name: sha256_file(each) for each in sorted(files)})}"
