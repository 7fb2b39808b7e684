from .config import OptimizerConfig, ParallelConfig, ParameterGroup, TrainerConfig
from .cost import Estimate, estimate, flops_per_token
from .metrics import read_metrics
from .optimization.optimizer import Optimizers
from .optimization.plan import Plan, go_on
from .optimization.schedule import ScheduleConfig, learning_rate_factor
from .parallelism.parallel import parallelize
from .parallelism.sequence import way_of
from .saving.checkpoint import (
    Checkpoints,
    best_of,
    checkpoints,
    load_checkpoint,
    load_weights,
    verify_checkpoint,
    whole_tensors,
)
from .steps.language_model import language_model_step, language_model_step_by_domain
from .steps.long_ce import long_ce_step
from .steps.routing import RoutedStep, normalized_entropy, routed, with_saturation
from .steps.step import Evaluation, FollowedStep, StepFunction, StepOutput, WrappedStep
from .trainer import Trainer
from .tuning.preference import DPOConfig, KTOConfig, SimPOConfig, dpo_step, kto_step, sequence_log_probs, simpo_step
from .tuning.reference import reference_log_probs

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
    "Plan",
    "RoutedStep",
    "ScheduleConfig",
    "SimPOConfig",
    "StepFunction",
    "StepOutput",
    "Trainer",
    "TrainerConfig",
    "WrappedStep",
    "best_of",
    "checkpoints",
    "dpo_step",
    "estimate",
    "flops_per_token",
    "go_on",
    "kto_step",
    "language_model_step",
    "language_model_step_by_domain",
    "learning_rate_factor",
    "load_checkpoint",
    "load_weights",
    "long_ce_step",
    "normalized_entropy",
    "parallelize",
    "read_metrics",
    "reference_log_probs",
    "routed",
    "sequence_log_probs",
    "simpo_step",
    "verify_checkpoint",
    "way_of",
    "whole_tensors",
    "with_saturation",
]
