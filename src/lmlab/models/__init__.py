"""Networks: one transformer, described by features."""

from lmlab.models.cache import KVCache
from lmlab.models.config import PRESETS, ModelConfig, MoEConfig, RopeScaling
from lmlab.models.convert import Conversion, convert
from lmlab.models.families import family_of
from lmlab.models.generate import Completion, GenerationConfig, generate, stream
from lmlab.models.hf import compare_with_transformers, from_pretrained, save_pretrained
from lmlab.models.loss import IGNORE, TokenLoss, fused_cross_entropy, token_log_likelihoods
from lmlab.models.transformer import Transformer, TransformerOutput

__all__ = [
    "IGNORE",
    "PRESETS",
    "Completion",
    "Conversion",
    "GenerationConfig",
    "KVCache",
    "MoEConfig",
    "ModelConfig",
    "RopeScaling",
    "TokenLoss",
    "Transformer",
    "TransformerOutput",
    "compare_with_transformers",
    "convert",
    "family_of",
    "from_pretrained",
    "fused_cross_entropy",
    "generate",
    "save_pretrained",
    "stream",
    "token_log_likelihoods",
]
