"""The computational graph of a transformer: writers add to the residual stream, readers read a sum of earlier writers,
edges join them.

Writers, in order: embeddings, then for each layer its heads (or its attention as one) and its feed-forward network (or
each of its experts). Readers: for each layer a query for every head, a key and a value for every key-value head, and
the feed-forward network; last `resid_post`.

Where edges are told apart by the tokens at which they are read, each reader stands once for every span of tokens:
`a0.h3.q@subject`. Writers are the same; of one, as much as is written at a span is a *cell*.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor

from lmlab.errors import UserError
from lmlab.files import sha256_json
from lmlab.hardware import memory_bytes
from lmlab.methods.edge_pruning.config import GraphOptions
from lmlab.models import ModelConfig
from lmlab.progress import with_unit
from lmlab.words import counted

OUTPUT = "resid_post"
_EDGE_BYTES = 17  # the numbers of its writer and its reader, and whether it is kept
_MANY_EDGES = 5_000_000  # GPT-2 has 32,936; a mask, its gradient and its moments have a number for each


@dataclass(frozen=True)
class Group:
    """Readers that read the same writers, and what they make of it.

    Attributes:
        kind: `attention`, `ffn` or `output`.
        readers: their names: queries, keys, values; or one.
        reads: they read the writers 0 to `reads` - 1.
        writes: names of the writers that follow from them; their numbers begin at `first_write`, which is `reads` but
            where sub-layers stand side by side (GPT-NeoX) and the second does not read the first.
        first_edge: number of the first edge; edge (reader r, writer w) is `first_edge + r * reads + w`.
        spans: numbers of the spans at which they read, whose readers come one span after the other.
    """

    kind: Literal["attention", "ffn", "output"]
    layer: int
    readers: tuple[str, ...]
    reads: int
    writes: tuple[str, ...]
    first_edge: int
    first_write: int
    spans: tuple[int, ...] = (0,)

    @property
    def num_edges(self) -> int:
        """Readers times writers."""
        return len(self.readers) * self.reads

    @property
    def parts(self) -> int:
        """Readers of one span."""
        return len(self.readers) // len(self.spans)

    def span(self, number: int) -> int:
        """The span at which a reader reads."""
        return self.spans[number // self.parts]


@dataclass(frozen=True)
class Spans:
    """Spans of tokens that edges are told apart by.

    Attributes:
        names: what they are called.
        answered: numbers of those at which the model answers; only there the output is read.
    """

    names: tuple[str, ...]
    answered: tuple[int, ...]


class CircuitGraph:
    """The graph of a model's shape.

    Arguments:
        config: the model's.
        options: how fine.
        embedding_names: of the embeddings of tokens and of positions, where there are both.
        spans: of the tokens, where the options tell positions apart.

    Attributes:
        writers, readers: names in order.
        groups: readers in groups, in the order in which a forward pass comes to them.
        first_writer: number of writers before the first layer.
        spans: None where all tokens share an edge.
        num_spans: 1 where all tokens share an edge.

    Raises:
        UserError: the residual stream of the model is no sum of outputs, or the options do not fit it.
    """

    def __init__(
        self,
        config: ModelConfig,
        options: GraphOptions | None = None,
        embedding_names: Sequence[str] = ("tok_embeds", "pos_embeds"),
        spans: Spans | None = None,
    ) -> None:
        self.config, self.options = config, options or GraphOptions()
        _check(config, self.options)
        if (spans is None) != (self.options.positions == "shared"):
            raise UserError(
                f"The graph option positions is {self.options.positions}, but "
                f"{'no spans of tokens are known' if spans is None else 'spans of tokens are given'}.",
                "Give examples with spans to positions=spans, or leave it shared.",
            )
        self.spans, self.num_spans = spans, 1 if spans is None else len(spans.names)
        apart = config.positions == "learned" and not self.options.join_embeddings
        embeddings = tuple(embedding_names) if apart else ("embeds",)
        self.embedding_names = embeddings
        writers: list[str] = list(embeddings) if self.options.embedding_nodes else []
        self.first_writer = len(writers)
        groups: list[Group] = []
        edges, memory = 0, memory_bytes()

        def add(kind: Any, layer: int, readers: Sequence[str], writes: Sequence[str]) -> None:
            nonlocal edges
            reads = groups[-1].reads if kind == "ffn" and config.parallel_residual else len(writers)
            at = range(self.num_spans) if spans is None or kind != "output" else spans.answered
            names = [name if spans is None else f"{name}@{spans.names[span]}" for span in at for name in readers]
            groups.append(Group(kind, layer, tuple(names), reads, tuple(writes), edges, len(writers), tuple(at)))
            edges += groups[-1].num_edges
            if memory is not None and edges * _EDGE_BYTES > memory:
                raise UserError(
                    f"A graph of more than {edges:,} edges does not fit into the {with_unit(memory, 'B')} of memory.",
                    "Take a smaller model, or coarser graph options.",
                )
            writers.extend(writes)

        for layer in range(config.num_layers):
            parts = [f"a{layer}.h{head}.q" for head in range(config.num_heads)]
            parts += [f"a{layer}.h{head}.{part}" for part in "kv" for head in range(config.num_kv_heads)]
            add(
                "attention",
                layer,
                parts,
                [f"a{layer}"] if self.one_writer else [f"a{layer}.h{head}" for head in range(config.num_heads)],
            )
            add("ffn", layer, [f"m{layer}"], self._ffn_writers(layer))
        add("output", config.num_layers, [OUTPUT], ())
        self.groups, self.writers, self.num_edges = tuple(groups), tuple(writers), edges
        self.readers = tuple(name for group in groups for name in group.readers)

    @property
    def one_writer(self) -> bool:
        """Whether the attention of a layer is one writer."""
        return _norms_outputs(self.config) and self.options.post_norm == "block"

    @property
    def frozen(self) -> bool:
        """Whether a norm follows the attention whose scale is that of the clean run, so that heads add up."""
        return _norms_outputs(self.config) and not self.one_writer

    def _ffn_writers(self, layer: int) -> list[str]:
        moe = self.config.moe
        if self.options.moe == "block" or self.config.ffn_kinds[layer] != "moe":
            return [f"m{layer}"]
        assert moe is not None
        return [f"m{layer}.e{expert}" for expert in range(moe.num_experts)] + (
            [f"m{layer}.shared"] if moe.num_shared_experts else []
        )

    @cached_property
    def edge_writers(self) -> Tensor:
        """The number of the writer of each edge, [E]."""
        return torch.cat([torch.arange(group.reads).repeat(len(group.readers)) for group in self.groups])

    @cached_property
    def edge_readers(self) -> Tensor:
        """The number of the reader of each edge, [E]."""
        sizes = torch.tensor([group.reads for group in self.groups for _ in group.readers])
        return torch.repeat_interleave(torch.arange(len(self.readers)), sizes)

    @cached_property
    def edge_cells(self) -> Tensor:
        """The cell that each edge carries, its writer at the span where it is read: writer times spans plus span,
        [E].
        """
        spans = torch.tensor([group.span(n) for group in self.groups for n in range(len(group.readers))])
        return self.edge_writers * self.num_spans + spans[self.edge_readers]

    def cells(self, group: Group, number: int) -> list[int]:
        """The cells that depend on a reader: its own span's, and of what other tokens look at those of all spans."""
        writers = self.served(group, number)
        own = group.kind == "ffn" or number % group.parts < self.config.num_heads  # a query looks, keys are looked at
        spans = [group.span(number)] if own else range(self.num_spans)
        return [writer * self.num_spans + span for writer in writers for span in spans]

    def served(self, group: Group, number: int) -> list[int]:
        """The writers that depend on a reader."""
        first_, writes, number = group.first_write, group.writes, number % group.parts
        if group.kind == "attention" and len(writes) > 1:
            heads, kv_heads = self.config.num_heads, self.config.num_kv_heads
            if self.config.qk_norm == "full" and number < heads + kv_heads:
                return list(range(first_, first_ + heads))  # one norm over the queries (keys) of all heads
            if number < heads:
                return [first_ + number]
            share = heads // kv_heads
            first = (number - heads) % kv_heads * share
            return list(range(first_ + first, first_ + first + share))
        return list(range(first_, first_ + len(writes)))

    @cached_property
    def _places(self) -> tuple[dict[str, int], dict[str, tuple[int, int]]]:
        """The number of each writer, and of each reader the number of its first edge and how many it has."""
        writers = {name: number for number, name in enumerate(self.writers)}
        readers = {
            name: (group.first_edge + number * group.reads, group.reads)
            for group in self.groups
            for number, name in enumerate(group.readers)
        }
        return writers, readers

    def _number(self, edge: tuple[Any, ...]) -> int | None:
        """The number of an edge by its names; None if there is none."""
        (writer, reader), (writers, readers) = edge, self._places
        first, reads = readers.get(reader, (0, 0))
        number = writers.get(writer, reads)
        return first + number if number < reads else None

    def edge(self, number: int) -> tuple[str, str]:
        """Writer and reader of an edge."""
        return self.writers[int(self.edge_writers[number])], self.readers[int(self.edge_readers[number])]

    def edges(self, kept_E: Tensor | None = None) -> list[tuple[str, str]]:
        """Writer and reader of all edges, or of those kept."""
        numbers = range(self.num_edges) if kept_E is None else kept_E.nonzero().flatten().tolist()
        return [self.edge(number) for number in numbers]

    def mask(self, edges: Iterable[Sequence[str]], where: str = "the circuit") -> Tensor:
        """True for the edges that are named, [E].

        Raises:
            UserError: an edge is not in the graph; the first five are named.
        """
        pairs = [tuple(edge) for edge in edges]
        numbers = [self._number(edge) for edge in pairs]
        unknown = [edge for edge, number in zip(pairs, numbers, strict=True) if number is None]
        if unknown:
            listed = ", ".join(" -> ".join(map(str, edge)) for edge in unknown[:5])
            raise UserError(
                f"{where} has {counted(len(unknown), 'edges')} that the graph of this model does not:"
                f" {listed}{', ...' if len(unknown) > 5 else ''}.",
                "It was made for another model, or with other graph options.",
            )
        kept_E = torch.zeros(self.num_edges, dtype=torch.bool)
        kept_E[torch.tensor(numbers, dtype=torch.long)] = True
        return kept_E

    def warnings(self) -> list[str]:
        """What the options approximate, in sentences for the user."""
        found = []
        if self.frozen:
            found.append(
                "The norm after the attention is frozen to the clean run's scale, so that heads add up (graph option"
                " post_norm)."
            )
        if self.config.qk_norm == "full":
            found.append("The norm over all queries of a layer couples its heads (joint QK-norm).")
        if self.num_edges > _MANY_EDGES:
            found.append(f"The graph has {counted(self.num_edges, 'edges')}; moe: block has fewer.")
        return found

    def describe(self) -> dict[str, Any]:
        """What identifies the graph, for files."""
        return {
            "options": self.options.model_dump(),
            **({} if self.spans is None else {"spans": self.spans.names, "answered_spans": self.spans.answered}),
            "writers": len(self.writers),
            "readers": len(self.readers),
            "edges": self.num_edges,
            "hash": sha256_json([self.writers, self.readers])[:16],
        }


def _norms_outputs(config: ModelConfig) -> bool:
    """Whether what a sub-layer gives goes through a norm before it is added (OLMo 2, Gemma 2 and 3)."""
    return config.norm_position in ("reordered", "both")


def _check(config: ModelConfig, options: GraphOptions) -> None:
    if config.norm_position == "post":
        raise UserError(
            "The residual stream of a model with norm_position post is no sum of outputs, so it has no edges to prune."
        )
    if config.num_labels is not None:
        raise UserError("The model gives scalars (num_labels); circuits are found in language models.")
    if _norms_outputs(config) and config.norm != "rmsnorm" and options.post_norm == "frozen":
        raise UserError(
            "A LayerNorm after the attention cannot be frozen for each head.",
            "Set the graph option post_norm to block.",
        )
    if config.moe is not None and (config.moe.router == "expert_choice" or config.moe.capacity_factor is not None):
        raise UserError(
            "The experts of this model choose among the tokens of the whole batch (expert_choice or a capacity), so"
            " examples do not stand alone."
        )
    if options.moe == "expert" and "moe" not in config.ffn_kinds:
        raise UserError("The graph option moe: expert needs a mixture of experts; this model has none.")
    if options.moe == "expert" and _norms_outputs(config):
        raise UserError(
            "A norm after the mixture makes its output no sum over experts.", "Set the graph option moe to block."
        )
