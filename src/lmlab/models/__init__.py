"""Networks: one transformer, described by features."""

from lmlab.models.cache import KVCache
from lmlab.models.config import PRESETS, ModelConfig, MoEConfig, RopeScaling
from lmlab.models.convert import Conversion, convert
from lmlab.models.families import family_of
from lmlab.models.generate import Completion, GenerationConfig, generate, stream
from lmlab.models.hf import compare_with_transformers, from_pretrained, read_config, save_pretrained
from lmlab.models.lora import LoRAConfig, add_lora, merge_lora, remove_lora, unmerge_lora
from lmlab.models.loss import IGNORE, Targets, TokenLoss, TokenScores, fused_cross_entropy, score_targets, token_log_probs
from lmlab.models.peft_layout import load_lora, save_lora
from lmlab.models.transformer import Transformer, TransformerOutput

__all__ = [
    "IGNORE",
    "PRESETS",
    "Completion",
    "Conversion",
    "GenerationConfig",
    "KVCache",
    "LoRAConfig",
    "MoEConfig",
    "ModelConfig",
    "RopeScaling",
    "Targets",
    "TokenLoss",
    "TokenScores",
    "Transformer",
    "TransformerOutput",
    "add_lora",
    "compare_with_transformers",
    "convert",
    "family_of",
    "from_pretrained",
    "fused_cross_entropy",
    "generate",
    "load_lora",
    "merge_lora",
    "read_config",
    "remove_lora",
    "save_lora",
    "save_pretrained",
    "score_targets",
    "stream",
    "token_log_probs",
    "unmerge_lora",
]
