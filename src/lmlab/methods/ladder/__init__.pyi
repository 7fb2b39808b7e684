from .analysis.ablate import Ablation, ablate
from .analysis.backtest import Split, SplitResult, backtest, score, splits
from .analysis.compare import Difference, compare
from .analysis.decide import Decision, Rank, Ranking, Scenario, decide, rank
from .analysis.design import compute_optimal
from .analysis.follow import Followed, follow
from .analysis.next_run import NextRun, next_runs
from .analysis.questions import GroupForecast, forecast_by_difficulty, read_answers
from .analysis.variance import Noise, variance
from .checking.checks import check
from .config import PRESETS, EstimatorOptions, EstimatorSettings, LadderPlan, RunsOptions, TwoStepSettings, preset
from .fitting.chain import Chain, fit_chain
from .fitting.forecast import Forecaster, Prediction, TwoStep, bootstrap
from .fitting.logits import mean_logit
from .fitting.points import logs, target_values
from .fitting.steps import AccuracyLaw, LossLaw
from .rungs.plan import Rung, flops_per_token, size_of
from .rungs.train import collect, train_rungs
from .tables.own_table import write_table
from .tables.table import Run, RunTable
from .tables.target import TargetError, score_target
from .tables.tasks import Task, TaskRegistry

__all__ = [
    "PRESETS",
    "Ablation",
    "AccuracyLaw",
    "Chain",
    "Decision",
    "Difference",
    "EstimatorOptions",
    "EstimatorSettings",
    "Followed",
    "Forecaster",
    "GroupForecast",
    "LadderPlan",
    "LossLaw",
    "NextRun",
    "Noise",
    "Prediction",
    "Rank",
    "Ranking",
    "Run",
    "RunTable",
    "Rung",
    "RunsOptions",
    "Scenario",
    "Split",
    "SplitResult",
    "TargetError",
    "Task",
    "TaskRegistry",
    "TwoStep",
    "TwoStepSettings",
    "ablate",
    "backtest",
    "bootstrap",
    "check",
    "collect",
    "compare",
    "compute_optimal",
    "decide",
    "fit_chain",
    "flops_per_token",
    "follow",
    "forecast_by_difficulty",
    "logs",
    "mean_logit",
    "next_runs",
    "preset",
    "rank",
    "read_answers",
    "score",
    "score_target",
    "size_of",
    "splits",
    "target_values",
    "train_rungs",
    "variance",
    "write_table",
]
