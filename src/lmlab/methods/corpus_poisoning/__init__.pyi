from .attack.clusters import Clusters, cluster_queries
from .attack.craft import Craft, EncoderSpec, craft
from .attack.crafted import AdversarialSet, Passage
from .attack.searching.objective import Coverage, HubCapped, MaxSim, MeanSimilarity
from .attack.searching.optimizers import OPTIMIZERS, optimize
from .attack.searching.problem import Budget, Problem
from .config import CraftConfig
from .defend.detector import Detector, DetectorContext, Passages, Threshold, make_detector
from .defend.gate import AdmissionGate, Verdict
from .defend.measure import DefenseRow, measure_defenses, measure_fusion
from .measure.evaluate import AttackReport, evaluate_attack, passage_scores, smallest_k
from .measure.thresholds import CleanHits, clean_hits, stored_hits

__all__ = [
    "OPTIMIZERS",
    "AdmissionGate",
    "AdversarialSet",
    "AttackReport",
    "Budget",
    "CleanHits",
    "Clusters",
    "Coverage",
    "Craft",
    "CraftConfig",
    "DefenseRow",
    "Detector",
    "DetectorContext",
    "EncoderSpec",
    "HubCapped",
    "MaxSim",
    "MeanSimilarity",
    "Passage",
    "Passages",
    "Problem",
    "Threshold",
    "Verdict",
    "clean_hits",
    "cluster_queries",
    "craft",
    "evaluate_attack",
    "make_detector",
    "measure_defenses",
    "measure_fusion",
    "optimize",
    "passage_scores",
    "smallest_k",
    "stored_hits",
]
