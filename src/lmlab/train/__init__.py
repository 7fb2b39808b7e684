"""The one loop for everything that learns."""

from lmlab.train.checkpoint import checkpoints, load_checkpoint, load_weights, save_checkpoint, unique_tensors
from lmlab.train.language_model import language_model_step
from lmlab.train.metrics import read_metrics
from lmlab.train.optimizer import OptimizerConfig, Optimizers
from lmlab.train.preference import DPOConfig, KTOConfig, SimPOConfig, dpo_step, kto_step, sequence_log_probs, simpo_step
from lmlab.train.reference import reference_log_probs, weights_fingerprint
from lmlab.train.schedule import ScheduleConfig, learning_rate_factor
from lmlab.train.trainer import Evaluation, StepOutput, Trainer, TrainerConfig

__all__ = [
    "DPOConfig",
    "Evaluation",
    "KTOConfig",
    "OptimizerConfig",
    "Optimizers",
    "ScheduleConfig",
    "SimPOConfig",
    "StepOutput",
    "Trainer",
    "TrainerConfig",
    "checkpoints",
    "dpo_step",
    "kto_step",
    "language_model_step",
    "learning_rate_factor",
    "load_checkpoint",
    "load_weights",
    "read_metrics",
    "reference_log_probs",
    "save_checkpoint",
    "sequence_log_probs",
    "simpo_step",
    "unique_tensors",
    "weights_fingerprint",
]
