"""OLMoE (Muennighoff et al. 2024): what routers do, measured; dense models upcycled to mixtures of experts; design
choices compared at toy scale.
"""

from lmlab.methods.olmoe.ablation import AblationConfig, Choice, compare, run_ablation, train_variant
from lmlab.methods.olmoe.collect import collect, load_routed, watch
from lmlab.methods.olmoe.counters import read_counters
from lmlab.methods.olmoe.layouts import read_olmo, write_olmo
from lmlab.methods.olmoe.report import routing_page
from lmlab.methods.olmoe.statistics import (
    RoutingStatistics,
    cross_layer_routing,
    domain_specialization,
    expert_coactivation,
    jensen_shannon,
    load_summary,
    most_coactivated,
    mutual_information,
    router_saturation,
    token_probabilities,
    vocab_by_expert,
    vocab_specialization,
    vocab_summary,
)
from lmlab.methods.olmoe.trace import RoutingTrace, concatenate, same_tokens
from lmlab.methods.olmoe.upcycle import UpcycleConfig, upcycle

__all__ = [
    "AblationConfig",
    "Choice",
    "RoutingStatistics",
    "RoutingTrace",
    "UpcycleConfig",
    "collect",
    "compare",
    "concatenate",
    "cross_layer_routing",
    "domain_specialization",
    "expert_coactivation",
    "jensen_shannon",
    "load_routed",
    "load_summary",
    "most_coactivated",
    "mutual_information",
    "read_counters",
    "read_olmo",
    "router_saturation",
    "routing_page",
    "run_ablation",
    "same_tokens",
    "token_probabilities",
    "train_variant",
    "upcycle",
    "vocab_by_expert",
    "vocab_specialization",
    "vocab_summary",
    "watch",
    "write_olmo",
]
