"""A circuit: some edges of a graph, how they were found, and what was measured. Kept as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from pydantic import ConfigDict
from torch import Tensor

from lmlab.config import Config, validate
from lmlab.errors import UserError, reads
from lmlab.files import read_mapping, write_json
from lmlab.methods.edge_pruning.config import Ablation, GraphOptions
from lmlab.methods.edge_pruning.graph.graph import CircuitGraph, Spans
from lmlab.models import ModelConfig

FORMAT, VERSION = "lmlab-circuit", 1


class _Part(Config):
    """A part of a circuit's file, of which more may be known than is read."""

    model_config = ConfigDict(extra="allow")


class _Figures(_Part):
    """What was measured: means of circuit, model and the empty circuit, with what pages and tables show of them."""

    circuit: dict[str, float] = {}
    full: dict[str, float] = {}
    empty: dict[str, float] = {}
    errors: dict[str, float | None] = {}
    intervals: dict[str, tuple[float, float]] = {}
    worst: dict[str, float] = {}
    n: int = 0


class _Stability(_Part):
    seeds: list[int]
    jaccard: float
    node_jaccard: float
    core: list[Any]
    in_any: int


class _Metrics(_Figures):
    held_out: _Figures | None = None
    stability: _Stability | None = None


class _Graph(_Part):
    shape: ModelConfig
    options: GraphOptions
    embedding_names: list[str]
    spans: tuple[str, ...] | None = None
    answered_spans: tuple[int, ...] = ()


class _File(_Part):
    """What a circuit's file must hold."""

    graph: _Graph
    edges: list[tuple[str, str]]
    ablation: Ablation
    scores: list[float] | None = None
    constants: dict[str, list[Any]] | None = None
    metrics: _Metrics = _Metrics()
    warnings: list[str] = []
    method: str = ""
    settings: dict[str, Any] = {}
    prompts: list[str] = []
    model_hash: str | None = None
    tokenizer_hash: str | None = None


@dataclass(frozen=True)
class Circuit:
    """Edges of a graph.

    Attributes:
        kept_E: True for those of the circuit.
        scores_E: by what all edges are ranked, if they are.
        ablation: what pruned edges carry.
        about: what else is known: model and its hash, task and its hash, method, settings, seed, warnings, short hashes
            of the prompts of the search.
        metrics: what was measured.
        constants: of mean and optimal ablation, what pruned edges carry, for a file (`masking.optimal`).
    """

    graph: CircuitGraph
    kept_E: Tensor
    ablation: Ablation
    scores_E: Tensor | None = None
    about: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, Any] = field(default_factory=dict)
    constants: Mapping[str, Any] | None = None

    @property
    def num_edges(self) -> int:
        """Edges of the circuit."""
        return int(self.kept_E.sum())

    @property
    def sparsity(self) -> float:
        """The share of the graph's edges that it does without."""
        return 1 - self.num_edges / self.graph.num_edges

    @property
    def edges(self) -> list[tuple[str, str]]:
        """Writer and reader of each edge."""
        return self.graph.edges(self.kept_E)

    def __and__(self, other: Circuit) -> Circuit:
        return self._with(self.kept_E & self._same_graph(other).kept_E)

    def __or__(self, other: Circuit) -> Circuit:
        return self._with(self.kept_E | self._same_graph(other).kept_E)

    def __sub__(self, other: Circuit) -> Circuit:
        return self._with(self.kept_E & ~self._same_graph(other).kept_E)

    def _with(self, kept_E: Tensor) -> Circuit:
        return replace(self, kept_E=kept_E, metrics={})

    def _same_graph(self, other: Circuit) -> Circuit:
        ours, theirs = (each.graph.describe()["hash"] for each in (self, other))
        if ours != theirs:
            raise UserError(
                f"The circuits belong to different graphs ({ours} and {theirs}), so their edges cannot be compared."
            )
        if self.ablation != other.ablation:
            raise UserError(
                f"The circuits were found under different ablations ({self.ablation} and {other.ablation}), so their"
                " edges do not mean the same."
            )
        return other

    def save(self, path: str | Path) -> None:
        """Write the circuit."""
        path = Path(path)
        scores = None if self.scores_E is None else [float(f"{each:.6g}") for each in self.scores_E.tolist()]
        shape = self.graph.config.model_dump(mode="json", exclude_none=True)
        content = {
            "format": FORMAT,
            "version": VERSION,
            **self.about,
            "ablation": self.ablation,
            "graph": {**self.graph.describe(), "embedding_names": self.graph.embedding_names, "shape": shape},
            "num_edges": self.num_edges,
            "edge_sparsity": self.sparsity,
            "metrics": self.metrics,
            "edges": [list(edge) for edge in self.edges],
            "scores": scores,
            **({} if self.constants is None else {"constants": self.constants}),
        }
        write_json(path, content)

    @staticmethod
    @reads("a circuit")
    def load(path: str | Path) -> Circuit:
        """Read a circuit.

        Raises:
            UserError: the file is not one, or its edges are not those of its graph.
        """
        path = Path(path)
        content = read_mapping(path)
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise UserError(f"'{path}' is not a circuit of lmlab.", "Other formats are read by: lmlab circuits convert")
        if content.get("version") != VERSION:
            raise UserError(f"'{path}' has version {content.get('version')} of the format; this lmlab reads {VERSION}.")
        found = validate(_File, content, f"'{path}'")
        names = found.graph.spans
        spans = None if names is None else Spans(names, found.graph.answered_spans)
        graph = CircuitGraph(found.graph.shape, found.graph.options, list(found.graph.embedding_names), spans)
        scores_E = None if found.scores is None else torch.tensor(found.scores)
        if scores_E is not None and len(scores_E) != graph.num_edges:
            raise UserError(f"'{path}' has scores of {len(scores_E):,} edges; its graph has {graph.num_edges:,}.")
        known = [
            "format",
            "version",
            "ablation",
            "graph",
            "num_edges",
            "edge_sparsity",
            "metrics",
            "edges",
            "scores",
            "constants",
        ]
        about = {key: value for key, value in content.items() if key not in known}
        kept_E = graph.mask(found.edges, f"'{path}'")
        return Circuit(graph, kept_E, found.ablation, scores_E, about, content.get("metrics", {}), found.constants)

    def require(self, **now: str) -> None:
        """See that the circuit was made for the model, the graph and the tokenizer of now, by their hashes.

        Raises:
            UserError: one differs; both hashes are named.
        """
        then = {"graph_hash": self.graph.describe()["hash"], **self.about}
        for key, value in now.items():
            if then.get(key) not in (None, value):
                raise UserError(
                    f"The circuit was made for another {key.removesuffix('_hash')} (hash {then[key]}, now {value})."
                )


def same_graph(a: Circuit, b: Circuit) -> bool:
    """Whether edges of both are of one graph, so that they can be compared one by one."""
    return bool(a.graph.describe()["hash"] == b.graph.describe()["hash"])
