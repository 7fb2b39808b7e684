"""Spans of tokens that edges are told apart by: those that examples name, or every token by itself.

Shapes: N examples, T tokens, P positions.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from lmlab.errors import UserError
from lmlab.methods.edge_pruning.examples.examples import Examples
from lmlab.methods.edge_pruning.graph.graph import Spans


def spans_of(examples: Examples, positions: Literal["shared", "spans", "each"]) -> Spans | None:
    """The spans of a graph for these examples.

    Raises:
        UserError: the examples name none, or for `each` differ in length.
    """
    if positions == "shared":
        return None
    if positions == "spans":
        if examples.spans is None:
            raise UserError(
                "The graph option positions is spans, but the examples name none.",
                "Give each line 'spans', such as {\"subject\": [4, 9]}, or set positions to each or shared.",
            )
        names, numbers_NT = examples.span_names, examples.spans
    else:
        names, numbers_NT = tuple(map(str, range(examples.clean.shape[1]))), _each(examples)
    at_NP = numbers_NT.gather(1, examples.positions)[examples.weights > 0]
    return Spans(names, tuple(sorted(set(at_NP.tolist()))))


def aligned(examples: Examples, spans: Spans | None, positions: str) -> Examples:
    """The examples with the numbers that spans have in a graph.

    Raises:
        UserError: they name a span that the graph does not have, or answer where it does not read the output.
    """
    if spans is None:
        return examples
    if positions == "each":
        _each(examples)
        if examples.clean.shape[1] != len(spans.names):
            raise UserError(
                f"The graph tells {len(spans.names)} tokens apart; these examples have {examples.clean.shape[1]}.",
                "Take examples of that length, or spans in place of single tokens.",
            )
        found = replace(examples, spans=_each(examples), span_names=spans.names)
    else:
        if examples.spans is None:
            raise UserError("The graph tells spans of tokens apart, but these examples name none.")
        unknown = [name for name in examples.span_names if name not in spans.names]
        if unknown:
            raise UserError(
                f"These examples have the span '{unknown[0]}', which the graph does not: {', '.join(spans.names)}.",
                "Name the same spans in all examples.",
            )
        numbers = torch.tensor([spans.names.index(name) for name in examples.span_names])
        found = replace(examples, spans=numbers[examples.spans], span_names=spans.names)
    own = spans_of(found, "spans")
    assert own is not None
    if not set(own.answered) <= set(spans.answered):
        raise UserError(
            "These examples answer at another span than those that the graph was made for:"
            f" {', '.join(spans.names[n] for n in own.answered)}."
        )
    return found


def _each(examples: Examples) -> Tensor:
    if not bool(examples.real.all()):
        raise UserError(
            "The graph option positions is each, but the prompts differ in length, so that their tokens have no places"
            " in common.",
            "Take prompts of one length, or spans (positions=spans).",
        )
    count, length = examples.clean.shape
    return torch.arange(length).expand(count, length)
