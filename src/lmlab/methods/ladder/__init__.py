"""Model ladders: predict a large model's task accuracy from small ones (Bhagia et al. 2024, arXiv 2412.04403)."""

from lmlab.methods.ladder.backtest import Split, SplitResult, backtest, mean_logit, score, splits
from lmlab.methods.ladder.chain import Chain, fit_chain
from lmlab.methods.ladder.points import logs, target_values
from lmlab.methods.ladder.settings import PRESETS, EstimatorSettings, TwoStepSettings, preset
from lmlab.methods.ladder.table import Run, RunTable
from lmlab.methods.ladder.tasks import Task, TaskRegistry

__all__ = [
    "PRESETS",
    "Chain",
    "EstimatorSettings",
    "Run",
    "RunTable",
    "Split",
    "SplitResult",
    "Task",
    "TaskRegistry",
    "TwoStepSettings",
    "backtest",
    "fit_chain",
    "logs",
    "mean_logit",
    "preset",
    "score",
    "splits",
    "target_values",
]
