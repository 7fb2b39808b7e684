"""The one loop for everything that learns."""

from lmlab.train.checkpoint import (
    Checkpoints,
    best_of,
    checkpoints,
    load_checkpoint,
    load_weights,
    verify_checkpoint,
    whole_tensors,
)
from lmlab.train.config import TrainerConfig
from lmlab.train.estimate import Estimate, estimate
from lmlab.train.language_model import language_model_step, language_model_step_by_domain
from lmlab.train.metrics import read_metrics
from lmlab.train.optimizer import OptimizerConfig, Optimizers, ParameterGroup
from lmlab.train.parallel import ParallelConfig, parallelize
from lmlab.train.preference import DPOConfig, KTOConfig, SimPOConfig, dpo_step, kto_step, sequence_log_probs, simpo_step
from lmlab.train.reference import reference_log_probs, weights_fingerprint
from lmlab.train.routing import RoutedStep, normalized_entropy, routed, with_saturation
from lmlab.train.schedule import ScheduleConfig, learning_rate_factor
from lmlab.train.step import Evaluation, FollowedStep, StepFunction, StepOutput
from lmlab.train.trainer import Trainer

__all__ = [
    "Checkpoints",
    "DPOConfig",
    "Estimate",
    "Evaluation",
    "FollowedStep",
    "KTOConfig",
    "OptimizerConfig",
    "Optimizers",
    "ParallelConfig",
    "ParameterGroup",
    "RoutedStep",
    "ScheduleConfig",
    "SimPOConfig",
    "StepFunction",
    "StepOutput",
    "Trainer",
    "TrainerConfig",
    "best_of",
    "checkpoints",
    "dpo_step",
    "estimate",
    "kto_step",
    "language_model_step",
    "language_model_step_by_domain",
    "learning_rate_factor",
    "load_checkpoint",
    "load_weights",
    "normalized_entropy",
    "parallelize",
    "read_metrics",
    "reference_log_probs",
    "routed",
    "sequence_log_probs",
    "simpo_step",
    "verify_checkpoint",
    "weights_fingerprint",
    "whole_tensors",
    "with_saturation",
]
