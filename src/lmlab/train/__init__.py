"""The one loop for everything that learns."""

from lmlab.train.checkpoint import checkpoints, load_checkpoint, load_weights, save_checkpoint, unique_tensors
from lmlab.train.language_model import language_model_step
from lmlab.train.metrics import read_metrics
from lmlab.train.optimizer import OptimizerConfig, Optimizers
from lmlab.train.schedule import ScheduleConfig, learning_rate_factor
from lmlab.train.trainer import Evaluation, StepOutput, Trainer, TrainerConfig

__all__ = [
    "Evaluation",
    "OptimizerConfig",
    "Optimizers",
    "ScheduleConfig",
    "StepOutput",
    "Trainer",
    "TrainerConfig",
    "checkpoints",
    "language_model_step",
    "learning_rate_factor",
    "load_checkpoint",
    "load_weights",
    "read_metrics",
    "save_checkpoint",
    "unique_tensors",
]
