"""The routing of a model on texts, from places to a trace."""

from __future__ import annotations

from pathlib import Path

from lmlab.methods.olmoe.config import TraceConfig
from lmlab.methods.olmoe.routing.collect import batches_of, collect, load_routed
from lmlab.methods.olmoe.routing.texts import cut_texts
from lmlab.methods.olmoe.routing.trace import RoutingTrace
from lmlab.runs import Model


def trace_texts(model: str | Path, texts: str, config: TraceConfig | None = None) -> RoutingTrace:
    """Which experts a model's routers choose for each token of texts.

    Arguments:
        texts: files, a glob, a folder or a URL.

    Raises:
        UserError: the model has no routers, or the texts do not fill a sequence.
    """
    config = config or TraceConfig()
    routed = load_routed(model)
    tokenizer, fields = (
        config.tokenizer or str(Model.find(model).source),
        (config.text_field, config.domain_field, config.split),
    )
    found = cut_texts(texts, tokenizer, config.length, config.sequences, *fields)
    return collect(
        routed,
        batches_of(found.ids_ST, config.batch_size),
        config.layers or None,
        domains=found.domains,
        domain_S=found.domain_S.tolist(),
        total=len(found.ids_ST),
        about={"model": str(model), "texts": texts},
    )
