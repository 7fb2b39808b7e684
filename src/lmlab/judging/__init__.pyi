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
from .summary import summarize
from .votes import MISSING, parse_vote, preference, soft_labels
from .wording import Criterion, Wording, load_wording, make_criterion

__all__ = [
    "MISSING",
    "Agreement",
    "BadJudgment",
    "Calibration",
    "Criterion",
    "Disconnected",
    "EndpointJudge",
    "Graded",
    "Grader",
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
    "RuleJudge",
    "SingleGrade",
    "Text",
    "Verdict",
    "Wording",
    "cohen_kappa",
    "components",
    "cross_calibrated",
    "fit_bradley_terry",
    "fit_calibration",
    "flat_rows",
    "grade",
    "grade_agreement",
    "krippendorff_alpha",
    "label_agreement",
    "load_wording",
    "make_criterion",
    "make_judge",
    "order_effects",
    "parse_vote",
    "preference",
    "read_judgments",
    "require_verdicts",
    "soft_labels",
    "summarize",
    "wins_of",
    "write_judgments",
]
