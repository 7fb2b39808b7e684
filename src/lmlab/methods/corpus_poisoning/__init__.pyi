from .attack.clusters import Clusters, cluster_queries
from .attack.craft import Craft, EncoderSpec, craft
from .attack.crafted import AdversarialSet, Passage
from .attack.objective import Coverage, HubCapped, MeanSimilarity
from .attack.optimizers import OPTIMIZERS, optimize
from .attack.problem import Budget, Problem
from .config import CraftConfig
from .measure.evaluate import AttackReport, evaluate_attack, passage_scores, smallest_k
from .measure.thresholds import CleanHits, clean_hits, stored_hits

__all__ = [
    "OPTIMIZERS",
    "AdversarialSet",
    "AttackReport",
    "Budget",
    "CleanHits",
    "Clusters",
    "Coverage",
    "Craft",
    "CraftConfig",
    "EncoderSpec",
    "HubCapped",
    "MeanSimilarity",
    "Passage",
    "Problem",
    "clean_hits",
    "cluster_queries",
    "craft",
    "evaluate_attack",
    "optimize",
    "passage_scores",
    "smallest_k",
    "stored_hits",
]
