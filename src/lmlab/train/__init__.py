"""The one loop for everything that learns."""

from lmlab.train.checkpoint import Checkpoints, checkpoints, load_checkpoint, load_weights, unique_tensors, verify_checkpoint, whole_tensors
from lmlab.train.estimate import Estimate, estimate
from lmlab.train.language_model import language_model_step, language_model_step_by_domain
from lmlab.train.metrics import read_metrics
from lmlab.train.optimizer import OptimizerConfig, Optimizers, ParameterGroup
from lmlab.train.parallel import ParallelConfig, parallelize
from lmlab.train.schedule import ScheduleConfig, learning_rate_factor
from lmlab.train.trainer import Evaluation, StepFunction, StepOutput, Trainer, TrainerConfig

__all__ = [
    "Checkpoints",
    "Estimate",
    "Evaluation",
    "OptimizerConfig",
    "Optimizers",
    "ParallelConfig",
    "ParameterGroup",
    "ScheduleConfig",
    "StepFunction",
    "StepOutput",
    "Trainer",
    "TrainerConfig",
    "checkpoints",
    "estimate",
    "language_model_step",
    "language_model_step_by_domain",
    "learning_rate_factor",
    "load_checkpoint",
    "load_weights",
    "parallelize",
    "read_metrics",
    "unique_tensors",
    "verify_checkpoint",
    "whole_tensors",
]
