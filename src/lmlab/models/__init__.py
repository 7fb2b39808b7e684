"""Networks: one transformer, described by features."""

from lmlab.models.cache import KVCache
from lmlab.models.config import ModelConfig
from lmlab.models.generate import generate
from lmlab.models.hf import family_of, load_pretrained, save_pretrained
from lmlab.models.loss import IGNORE, TokenLoss, fused_cross_entropy, token_log_likelihoods
from lmlab.models.transformer import Transformer, TransformerOutput

__all__ = [
    "IGNORE",
    "KVCache",
    "ModelConfig",
    "TokenLoss",
    "Transformer",
    "TransformerOutput",
    "family_of",
    "fused_cross_entropy",
    "generate",
    "load_pretrained",
    "save_pretrained",
    "token_log_likelihoods",
]
