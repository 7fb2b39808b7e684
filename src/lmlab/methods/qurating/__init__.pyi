from .analysis.fit_weights import FittedWeights, fit_weights, propose_weights
from .config import ExcerptConfig, PairConfig, RaterConfig
from .rating.criteria import DEFAULT_CRITERIA, criterion
from .rating.excerpting import Excerpt, excerpt, excerpts, group_length
from .rating.judgment_rows import JudgmentRows, encode_groups
from .rating.loss import bt_loss, pair_loss
from .rating.metrics import pair_metrics
from .rating.offline import offline_judge
from .rating.pairs import make_groups
from .rating.rater import Rater
from .rating.train_rater import TrainedRater, measure, rater_step, train_rater
from .selecting.drawing.inclusion import exact_inclusion, inclusion_probability
from .selecting.drawing.keys import keyed_gumbel, keyed_uniform
from .selecting.moments import Moments, exact_moments
from .selecting.selection import Manifest, select, select_mixture
from .selecting.settings import SelectionConfig

__all__ = [
    "DEFAULT_CRITERIA",
    "Excerpt",
    "ExcerptConfig",
    "FittedWeights",
    "JudgmentRows",
    "Manifest",
    "Moments",
    "PairConfig",
    "Rater",
    "RaterConfig",
    "SelectionConfig",
    "TrainedRater",
    "bt_loss",
    "criterion",
    "encode_groups",
    "exact_inclusion",
    "exact_moments",
    "excerpt",
    "excerpts",
    "fit_weights",
    "group_length",
    "inclusion_probability",
    "keyed_gumbel",
    "keyed_uniform",
    "make_groups",
    "measure",
    "offline_judge",
    "pair_loss",
    "pair_metrics",
    "propose_weights",
    "rater_step",
    "select",
    "select_mixture",
    "train_rater",
]
