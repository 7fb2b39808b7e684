from .config import METHODS, EdgePruningConfig, FindConfig, GraphOptions, TaskOptions, default_price
from .examples.examples import Examples, make_examples, read_examples
from .examples.tasks import TASKS, generate
from .examples.tracr import TracrProgram, is_tracr, load_tracr
from .graph.circuit import Circuit
from .graph.clean import clean, writes_constants
from .graph.graph import CircuitGraph
from .masking.activations import Activations, capture
from .masking.counterfactuals import Counterfactuals
from .masking.masked import Inputs, MaskedModel
from .masking.optimal import learn_constants
from .measures import (
    Ends,
    areas,
    auroc,
    completeness,
    curve,
    measure,
    measure_each,
    minimality,
    overlap,
    stability,
    top_edges,
)
from .search.attribution import attribute
from .search.baselines import acdc, exact_effects, random_scores
from .search.find import best_of, find_circuit, ranking, resampled, search, with_bootstrap
from .search.flow import information_flow
from .search.neurons import attribute_neurons, neuron_curve, top_neurons
from .search.plan import Plan, plan
from .search.prune import Found, find_by_pruning
from .search.trials import Refined, Trials, refine
from .worst import worst_cases

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
    "Refined",
    "TaskOptions",
    "TracrProgram",
    "Trials",
    "acdc",
    "areas",
    "attribute",
    "attribute_neurons",
    "auroc",
    "best_of",
    "capture",
    "clean",
    "completeness",
    "curve",
    "default_price",
    "exact_effects",
    "find_by_pruning",
    "find_circuit",
    "generate",
    "information_flow",
    "is_tracr",
    "learn_constants",
    "load_tracr",
    "make_examples",
    "measure",
    "measure_each",
    "minimality",
    "neuron_curve",
    "overlap",
    "plan",
    "random_scores",
    "ranking",
    "read_examples",
    "refine",
    "resampled",
    "search",
    "stability",
    "top_edges",
    "top_neurons",
    "with_bootstrap",
    "worst_cases",
    "writes_constants",
]
