"""Data selection by perceived quality (Wettig et al. 2024): judge pairs of texts, train a rater, rate a corpus, sample
from it by rating.
"""

from lmlab.methods.qurating.bradley_terry import fit_bradley_terry, wins_of
from lmlab.methods.qurating.excerpting import Excerpt, ExcerptConfig, excerpt, excerpts, group_length
from lmlab.methods.qurating.fit_weights import FittedWeights, fit_weights, propose_weights
from lmlab.methods.qurating.inclusion import exact_inclusion, inclusion_probability
from lmlab.methods.qurating.judge import (
    EndpointJudge,
    Judged,
    JudgePairs,
    LocalJudge,
    OfflineJudge,
    Question,
    Verdict,
    grade,
    make_judge,
)
from lmlab.methods.qurating.judgment_rows import JudgmentRows, encode_groups
from lmlab.methods.qurating.judgments import Judgment, read_judgments, write_judgments
from lmlab.methods.qurating.keys import keyed_gumbel, keyed_uniform
from lmlab.methods.qurating.loss import bt_loss, pair_loss
from lmlab.methods.qurating.metrics import pair_metrics
from lmlab.methods.qurating.moments import Moments, exact_moments
from lmlab.methods.qurating.pairs import PairConfig, components, make_groups
from lmlab.methods.qurating.prompts import DEFAULT_CRITERIA, Criterion, criterion, load_wording
from lmlab.methods.qurating.rater import Rater
from lmlab.methods.qurating.selection import Manifest, select, select_mixture
from lmlab.methods.qurating.settings import SelectionConfig
from lmlab.methods.qurating.train_rater import RaterConfig, TrainedRater, measure, rater_step, train_rater
from lmlab.methods.qurating.votes import order_effects, parse_vote, preference, soft_labels

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
