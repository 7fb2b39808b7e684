from .answers.asking import Asking, RubricJudge
from .answers.grades import AnswerGrades, AnswerJudge, judge_answers
from .answers.item import AnswerItem, key_points_of
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
from .measures.calibration import Calibration, cross_calibrated, fit_calibration
from .measures.position_bias import OrderEffects, order_effects
from .pairs import Judged, JudgePairs, NoVerdicts, PlainText, Text, require_verdicts
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
    "Asking",
    "BadJudgment",
    "Calibration",
    "Criterion",
    "Disconnected",
    "EndpointJudge",
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
    "LocalJudge",
    "Marks",
    "NoVerdicts",
    "OrderEffects",
    "PlainText",
    "Question",
    "Rubric",
    "RubricJudge",
    "RuleJudge",
    "Scale",
    "SingleGrade",
    "Text",
    "Verdict",
    "Wording",
    "cohen_kappa",
    "components",
    "cross_calibrated",
    "fenced",
    "fit_bradley_terry",
    "fit_calibration",
    "flat_rows",
    "grade",
    "grade_agreement",
    "judge_answers",
    "key_points_of",
    "known_rubrics",
    "krippendorff_alpha",
    "label_agreement",
    "load_wording",
    "make_criterion",
    "make_judge",
    "order_effects",
    "parse_grades",
    "parse_like_reference",
    "parse_verdict",
    "parse_vote",
    "points_grade",
    "preference",
    "read_judgments",
    "require_verdicts",
    "soft_labels",
    "summarize",
    "visible",
    "wins_of",
    "write_judgments",
]
