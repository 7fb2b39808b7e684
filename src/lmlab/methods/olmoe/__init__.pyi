from .ablation import compare, run_ablation, train_on_bytes
from .config import AblationConfig, ByteTrainingConfig, Choice, RoutingConfig, TraceConfig, UpcycleConfig
from .layouts import read_olmo, write_olmo
from .report import routing_page
from .routing.collect import collect, load_routed, watch
from .routing.counters import read_counters
from .routing.statistics import (
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
from .routing.trace import RoutingTrace, concatenate, same_tokens
from .routing.trace_texts import trace_texts
from .upcycling import upcycle

__all__ = [
    "AblationConfig",
    "ByteTrainingConfig",
    "Choice",
    "RoutingConfig",
    "RoutingStatistics",
    "RoutingTrace",
    "TraceConfig",
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
    "trace_texts",
    "train_on_bytes",
    "upcycle",
    "vocab_by_expert",
    "vocab_specialization",
    "vocab_summary",
    "watch",
    "write_olmo",
]
