"""`/v1/embeddings`: vectors of texts by an encoder, behind the same checks as everything that is served."""

from __future__ import annotations

import asyncio
import base64
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from lmlab.endpoints.server.app import ServerConfig, Service, application
from lmlab.endpoints.server.bodies import EmbeddingBody
from lmlab.endpoints.server.errors import ApiError, json_response
from lmlab.retrieval import AnyEncoder, TextEncoder
from lmlab.retrieval.config import Precision
from lmlab.retrieval.encoders.encoder import Kind


class ServedEncoder:
    """An encoder that answers.

    Arguments:
        name: by which requests ask for it.
        precision: of the network.
    """

    def __init__(self, name: str, encoder: AnyEncoder, precision: Precision = "fp32") -> None:
        self.name, self.encoder, self.precision = name, encoder, precision
        self.served = 0

    @property
    def max_seq_len(self) -> int:
        """The longest input with what stands around it."""
        return self.encoder.max_length

    def embed(self, inputs: Sequence[str | list[int]], kind: Kind) -> tuple[np.ndarray, int]:
        """Vectors [N, H] of texts or ids, and how many tokens they are.

        Raises:
            ApiError: one is longer than the encoder reads, or an id is not in its vocabulary.
        """
        encoder = self.encoder
        side = encoder if isinstance(encoder, TextEncoder) else getattr(encoder, f"{_SIDES[kind]}")
        vocabulary = side.embedding_matrix_VD.shape[0]
        whole = side.variant(max_length=1 << 30)  # no text is cut, so that one that is too long can be refused
        texts = [each for each in inputs if isinstance(each, str)]
        encoded = iter(whole.tokenize(texts, kind))
        rows = [next(encoded) if isinstance(each, str) else side.wrap(each, kind) for each in inputs]
        for number, row in enumerate(rows):
            if len(row) > side.max_length:
                raise ApiError(
                    400,
                    f"This model reads {side.max_length} tokens; input {number} has {len(row)}. Shorten it.",
                    "context_length_exceeded",
                    "input",
                )
            if any(id >= vocabulary for id in row):
                raise ApiError(400, f"'input' has a token id that is not below {vocabulary}.", "invalid_value", "input")
        with torch.inference_mode(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = side.encode_rows(rows, kind, self.precision)
        self.served += len(rows)
        return found, sum(map(len, rows))

    def close(self) -> None:
        """Nothing is to be ended."""


_SIDES = {"query": "queries", "document": "documents"}


def create_embeddings_app(served: ServedEncoder, config: ServerConfig | None = None) -> Starlette:
    """An ASGI application that serves an encoder."""
    server = _EmbeddingServer(served, config or ServerConfig())
    return application(server, [Route("/v1/embeddings", server.embeddings, methods=["POST"])])


class _EmbeddingServer(Service):
    def __init__(self, served: ServedEncoder, config: ServerConfig) -> None:
        super().__init__(served, config)
        self._encoder = served
        self._turn = asyncio.Lock()  # one batch at a time: each takes all cores

    def counts(self) -> dict[str, int]:
        """How many inputs were served."""
        return {"served": self._encoder.served}

    async def embeddings(self, request: Request) -> Response:
        """Vectors of the inputs, in their order."""
        body = await self.read(request, EmbeddingBody)
        dim = self._encoder.encoder.dim
        if body.dimensions is not None and body.dimensions > dim:
            raise ApiError(
                400, f"'dimensions' is {body.dimensions}; the model has {dim}.", "invalid_value", "dimensions"
            )
        async with self._turn:
            vectors, tokens = await asyncio.to_thread(self._encoder.embed, body.inputs(), body.input_type or "document")
        if body.dimensions is not None:
            vectors = vectors[:, : body.dimensions]
            if self._encoder.encoder.similarity == "cosine":
                vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        data = [
            {"object": "embedding", "index": index, "embedding": _written(vector, body.encoding_format)}
            for index, vector in enumerate(vectors)
        ]
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return json_response({"object": "list", "data": data, "model": self._encoder.name, "usage": usage})


def _written(vector: np.ndarray, form: str | None) -> Any:
    """A vector as numbers, or as base64 of its little-endian fp32, which clients ask for to save bytes."""
    if form == "base64":
        return base64.b64encode(np.ascontiguousarray(vector, "<f4").tobytes()).decode()
    return vector.astype(float).tolist()
