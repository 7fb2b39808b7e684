"""Networks: one transformer, described by features."""

from lmlab.models.cache import KVCache
from lmlab.models.config import PRESETS, ModelConfig, RopeScaling
from lmlab.models.convert import Conversion, convert
from lmlab.models.decoding import Continuation, Decoding, PromptScores
from lmlab.models.families import family_of
from lmlab.models.generate import Completion, GrowingText, generate, stream
from lmlab.models.generation_config import DecodingConfig, GenerationConfig
from lmlab.models.hf import (
    compare_with_transformers,
    end_token_ids,
    from_pretrained,
    read_config,
    read_settings,
    save_pretrained,
)
from lmlab.models.lora import LoRAConfig, add_lora, merge_lora, remove_lora, unmerge_lora
from lmlab.models.loss import (
    IGNORE,
    Targets,
    TokenLoss,
    TokenScores,
    fused_cross_entropy,
    score_targets,
    token_log_probs,
)
from lmlab.models.moe import MoE
from lmlab.models.moe_config import LoadBalancingConfig, MoEConfig, RouterZConfig
from lmlab.models.peft_layout import load_lora, save_lora
from lmlab.models.router import RouterOutput
from lmlab.models.router_losses import RouterLosses, load_balancing_loss, router_z_loss
from lmlab.models.transformer import Transformer, TransformerOutput, named_tensors

__all__ = [
    "IGNORE",
    "PRESETS",
    "Completion",
    "Continuation",
    "Conversion",
    "Decoding",
    "DecodingConfig",
    "GenerationConfig",
    "GrowingText",
    "KVCache",
    "LoRAConfig",
    "LoadBalancingConfig",
    "MoE",
    "MoEConfig",
    "ModelConfig",
    "PromptScores",
    "RopeScaling",
    "RouterLosses",
    "RouterOutput",
    "RouterZConfig",
    "Targets",
    "TokenLoss",
    "TokenScores",
    "Transformer",
    "TransformerOutput",
    "add_lora",
    "compare_with_transformers",
    "convert",
    "end_token_ids",
    "family_of",
    "from_pretrained",
    "fused_cross_entropy",
    "generate",
    "load_balancing_loss",
    "load_lora",
    "merge_lora",
    "named_tensors",
    "read_config",
    "read_settings",
    "remove_lora",
    "router_z_loss",
    "save_lora",
    "save_pretrained",
    "score_targets",
    "stream",
    "token_log_probs",
    "unmerge_lora",
]
