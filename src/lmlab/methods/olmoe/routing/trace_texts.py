"""The routing of a model on texts, from places to a trace."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lmlab.methods.olmoe.routing.collect import batches_of, collect, load_routed
from lmlab.methods.olmoe.routing.texts import cut_texts
from lmlab.methods.olmoe.routing.trace import RoutingTrace


def trace_texts(
    model: str | Path,
    texts: str,
    tokenizer: str | Path | None = None,
    length: int = 2048,
    sequences: int = 102,
    layers: Sequence[int] | None = None,
    batch_size: int = 4,
    text_field: str = "text",
    domain_field: str | None = None,
) -> RoutingTrace:
    """Which experts a model's routers choose for each token of texts.

    Arguments:
        texts: files, a glob, a folder or a URL.
        tokenizer: a directory, by default the model's; `bytes` for a model of raw bytes.
        length: tokens of a sequence; texts of a domain are joined and cut, the rest is dropped.
        sequences: the most of a domain.

    Raises:
        UserError: the model has no routers, or the texts do not fill a sequence.
    """
    routed = load_routed(model)
    found = cut_texts(texts, str(tokenizer or model), length, sequences, text_field, domain_field)
    return collect(
        routed,
        batches_of(found.ids_ST, batch_size),
        layers,
        domains=found.domains,
        domain_S=found.domain_S.tolist(),
        total=len(found.ids_ST),
        about={"model": str(model), "texts": texts},
    )
