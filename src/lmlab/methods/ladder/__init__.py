"""Model ladders: predict a large model's task accuracy from small ones (Bhagia et al. 2024, arXiv 2412.04403).

table = RunTable.from_reference_config(Path("final.json"))
task = TaskRegistry.builtin()["hellaswag"]
prediction = TwoStep("recommended").fit(table, task).predict(n=6.9e9, d=3.9e12, level=0.9)
print(prediction.accuracy, prediction.lo, prediction.hi)
"""

from lmlab.methods.ladder.ablate import Ablation, ablate
from lmlab.methods.ladder.backtest import Split, SplitResult, backtest, mean_logit, score, splits
from lmlab.methods.ladder.chain import Chain, fit_chain
from lmlab.methods.ladder.compare import Difference, compare
from lmlab.methods.ladder.design import NextRun, compute_optimal, next_runs
from lmlab.methods.ladder.forecast import Forecaster, Prediction, TwoStep, bootstrap
from lmlab.methods.ladder.plan import LadderPlan, Rung, flops_per_token, size_of
from lmlab.methods.ladder.points import check, logs, target_values
from lmlab.methods.ladder.read import write_table
from lmlab.methods.ladder.rungs import collect, train_rungs
from lmlab.methods.ladder.settings import PRESETS, EstimatorSettings, TwoStepSettings, preset
from lmlab.methods.ladder.steps import AccuracyLaw, LossLaw
from lmlab.methods.ladder.table import Run, RunTable
from lmlab.methods.ladder.target import TargetError, score_target
from lmlab.methods.ladder.tasks import Task, TaskRegistry
from lmlab.methods.ladder.variance import Noise, variance

__all__ = [
    "PRESETS",
    "Ablation",
    "AccuracyLaw",
    "Chain",
    "Difference",
    "EstimatorSettings",
    "Forecaster",
    "LadderPlan",
    "LossLaw",
    "NextRun",
    "Noise",
    "Prediction",
    "Run",
    "RunTable",
    "Rung",
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
    "fit_chain",
    "flops_per_token",
    "logs",
    "mean_logit",
    "next_runs",
    "preset",
    "score",
    "score_target",
    "size_of",
    "splits",
    "target_values",
    "train_rungs",
    "variance",
    "write_table",
]
