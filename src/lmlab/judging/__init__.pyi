from .answers.asking import Asking, RubricJudge
from .answers.config import AnswerJudgeConfig
from .answers.find import make_answer_judge
from .answers.grades import AnswerGrades, AnswerJudge, judge_answers
from .answers.item import AnswerItem, key_points_of
from .answers.panel import PanelJudge
from .answers.rows import counted, read_items, run_judge
from .config import JudgeConfig
from .grading import Graded, SingleGrade, grade
from .judge import Grader, Judge, Marks, Question, Rubric, Verdict
from .judges.endpoint import EndpointJudge
from .judges.find import JudgeMaker, JudgeOptions, make_judge
from .judges.local import LocalJudge
from .judges.rule import RuleJudge
from .judgments import BadJudgment, Judgment, flat_rows, read_judgments, write_judgments
from .measures.agreement import Agreement, cohen_kappa, grade_agreement, krippendorff_alpha, label_agreement
from .measures.bradley_terry import Disconnected, components, fit_bradley_terry, wins_of
from .measures.calibration import Calibration, cross_calibrated, fit_calibration, read_calibration, write_calibration
from .measures.conformal import Conformal, fit_conformal
from .measures.length import (
    AtEqualLength,
    BothOrders,
    LengthControlled,
    at_equal_length,
    both_orders,
    length_controlled,
    length_effect,
)
from .measures.position_bias import OrderEffects, order_effects
from .measures.prediction_powered import Estimated, draw_labels, estimate_mean, rogan_gladen
from .measures.validation import Validation, validate_judge
from .offline.coverage import Coverage
from .offline.likelihood import Contrast, Likelihood, LocalModel
from .offline.negation import contraries
from .offline.nli import OnnxNli
from .offline.scorers import PointJudge, PointScorer, comparable_scores
from .pairs import Judged, JudgePairs, NoVerdicts, PlainText, Text, require_verdicts
from .people.judgebench import read_judgebench, score_pairs
from .people.mrbench import dimension_table, macro_f1, read_mrbench
from .people.review import read_review, review_queue, write_review_csv, write_review_page
from .people.tables import GradeTable
from .rubrics.compat import parse_like_reference
from .rubrics.hidden import fenced, visible
from .rubrics.numbers import Scale
from .rubrics.parser import parse_grades
from .rubrics.points import parse_verdict, points_grade
from .rubrics.rubric import GradingRubric, known_rubrics
from .summary import summarize
from .votes import MISSING, parse_vote, preference, soft_labels
from .wording import Criterion, Wording, load_wording, make_criterion

__all__ = [
    "MISSING",
    "Agreement",
    "AnswerGrades",
    "AnswerItem",
    "AnswerJudge",
    "AnswerJudgeConfig",
    "Asking",
    "AtEqualLength",
    "BadJudgment",
    "BothOrders",
    "Calibration",
    "Conformal",
    "Contrast",
    "Coverage",
    "Criterion",
    "Disconnected",
    "EndpointJudge",
    "Estimated",
    "GradeTable",
    "Graded",
    "Grader",
    "GradingRubric",
    "Judge",
    "JudgeConfig",
    "JudgeMaker",
    "JudgeOptions",
    "JudgePairs",
    "Judged",
    "Judgment",
    "LengthControlled",
    "Likelihood",
    "LocalJudge",
    "LocalModel",
    "Marks",
    "NoVerdicts",
    "OnnxNli",
    "OrderEffects",
    "PanelJudge",
    "PlainText",
    "PointJudge",
    "PointScorer",
    "Question",
    "Rubric",
    "RubricJudge",
    "RuleJudge",
    "Scale",
    "SingleGrade",
    "Text",
    "Validation",
    "Verdict",
    "Wording",
    "at_equal_length",
    "both_orders",
    "cohen_kappa",
    "comparable_scores",
    "components",
    "contraries",
    "counted",
    "cross_calibrated",
    "dimension_table",
    "draw_labels",
    "estimate_mean",
    "fenced",
    "fit_bradley_terry",
    "fit_calibration",
    "fit_conformal",
    "flat_rows",
    "grade",
    "grade_agreement",
    "judge_answers",
    "key_points_of",
    "known_rubrics",
    "krippendorff_alpha",
    "label_agreement",
    "length_controlled",
    "length_effect",
    "load_wording",
    "macro_f1",
    "make_answer_judge",
    "make_criterion",
    "make_judge",
    "order_effects",
    "parse_grades",
    "parse_like_reference",
    "parse_verdict",
    "parse_vote",
    "points_grade",
    "preference",
    "read_calibration",
    "read_items",
    "read_judgebench",
    "read_judgments",
    "read_mrbench",
    "read_review",
    "require_verdicts",
    "review_queue",
    "rogan_gladen",
    "run_judge",
    "score_pairs",
    "soft_labels",
    "summarize",
    "validate_judge",
    "visible",
    "wins_of",
    "write_calibration",
    "write_judgments",
    "write_review_csv",
    "write_review_page",
]
