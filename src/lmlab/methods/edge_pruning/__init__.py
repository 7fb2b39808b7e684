"""Edge Pruning (Bhaskar et al. 2024): circuits of transformers, found by training a gate for every edge; with its
baselines, measures and tasks.
"""

from lmlab.methods.edge_pruning.activations import Activations, capture
from lmlab.methods.edge_pruning.baselines import acdc, attribute, exact_effects, random_scores
from lmlab.methods.edge_pruning.circuit import Circuit
from lmlab.methods.edge_pruning.clean import clean, writes_constants
from lmlab.methods.edge_pruning.counterfactuals import Counterfactuals
from lmlab.methods.edge_pruning.examples import Examples, make_examples, read_examples
from lmlab.methods.edge_pruning.find import METHODS, FindConfig, find_circuit, ranking, search
from lmlab.methods.edge_pruning.graph import CircuitGraph, GraphOptions
from lmlab.methods.edge_pruning.masked import Inputs, MaskedModel
from lmlab.methods.edge_pruning.measures import (
    Ends,
    areas,
    auroc,
    completeness,
    curve,
    measure,
    minimality,
    overlap,
    stability,
    top_edges,
)
from lmlab.methods.edge_pruning.plan import Plan, plan
from lmlab.methods.edge_pruning.prune import EdgePruningConfig, Found, find_by_pruning, polish
from lmlab.methods.edge_pruning.tasks import TASKS, generate
from lmlab.methods.edge_pruning.tracr import TracrProgram, is_tracr, load_tracr

__all__ = [
    "METHODS",
    "TASKS",
    "Activations",
    "Circuit",
    "CircuitGraph",
    "Counterfactuals",
    "EdgePruningConfig",
    "Ends",
    "Examples",
    "FindConfig",
    "Found",
    "GraphOptions",
    "Inputs",
    "MaskedModel",
    "Plan",
    "TracrProgram",
    "acdc",
    "areas",
    "attribute",
    "auroc",
    "capture",
    "clean",
    "completeness",
    "curve",
    "exact_effects",
    "find_by_pruning",
    "find_circuit",
    "generate",
    "is_tracr",
    "load_tracr",
    "make_examples",
    "measure",
    "minimality",
    "overlap",
    "plan",
    "polish",
    "random_scores",
    "ranking",
    "read_examples",
    "search",
    "stability",
    "top_edges",
    "writes_constants",
]
