from .analysis.fit_weights import FittedWeights, fit_weights, propose_weights
from .bradley_terry import fit_bradley_terry, wins_of
from .judge import EndpointJudge, Judged, JudgePairs, LocalJudge, OfflineJudge, Question, Verdict, grade, make_judge
from .judgments import Judgment, read_judgments, write_judgments
from .prompts import DEFAULT_CRITERIA, Criterion, criterion, load_wording
from .rating.excerpting import Excerpt, ExcerptConfig, excerpt, excerpts, group_length
from .rating.judgment_rows import JudgmentRows, encode_groups
from .rating.loss import bt_loss, pair_loss
from .rating.metrics import pair_metrics
from .rating.pairs import PairConfig, components, make_groups
from .rating.rater import Rater
from .rating.train_rater import RaterConfig, TrainedRater, measure, rater_step, train_rater
from .selecting.inclusion import exact_inclusion, inclusion_probability
from .selecting.keys import keyed_gumbel, keyed_uniform
from .selecting.moments import Moments, exact_moments
from .selecting.selection import Manifest, select, select_mixture
from .selecting.settings import SelectionConfig
from .votes import order_effects, parse_vote, preference, soft_labels

__all__ = [
    "DEFAULT_CRITERIA",
    "Criterion",
    "EndpointJudge",
    "Excerpt",
    "ExcerptConfig",
    "FittedWeights",
    "JudgePairs",
    "Judged",
    "Judgment",
    "JudgmentRows",
    "LocalJudge",
    "Manifest",
    "Moments",
    "OfflineJudge",
    "PairConfig",
    "Question",
    "Rater",
    "RaterConfig",
    "SelectionConfig",
    "TrainedRater",
    "Verdict",
    "bt_loss",
    "components",
    "criterion",
    "encode_groups",
    "exact_inclusion",
    "exact_moments",
    "excerpt",
    "excerpts",
    "fit_bradley_terry",
    "fit_weights",
    "grade",
    "group_length",
    "inclusion_probability",
    "keyed_gumbel",
    "keyed_uniform",
    "load_wording",
    "make_groups",
    "make_judge",
    "measure",
    "order_effects",
    "pair_loss",
    "pair_metrics",
    "parse_vote",
    "preference",
    "propose_weights",
    "rater_step",
    "read_judgments",
    "select",
    "select_mixture",
    "soft_labels",
    "train_rater",
    "wins_of",
    "write_judgments",
]
