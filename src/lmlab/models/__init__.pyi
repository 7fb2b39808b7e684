from .attention.cache import KVCache
from .attention.rope import rotary_frequencies
from .config import ModelConfig, RopeScaling
from .fingerprint import known_fingerprint, weights_fingerprint, weights_state
from .formats.adapters.peft import load_lora, save_lora
from .formats.convert import Conversion, convert
from .formats.hf import (
    compare_with_transformers,
    from_pretrained,
    from_pretrained_with,
    read_config,
    read_settings,
    save_pretrained,
)
from .formats.settings import family_of, why_no_family
from .forward.output import TransformerOutput
from .generation.beams import Beam, beam_search
from .generation.config import DecodingConfig, GenerationConfig
from .generation.continuation import Continuation, PromptScores
from .generation.decoding import Decoding
from .generation.defaults import end_token_ids, generation_defaults
from .generation.generate import Completion, GrowingText, generate, stream
from .generation.shared import common_beginning, continue_shared
from .generation.steps.packing import lay_out, pack_weights
from .lora.adapt import add_lora, merge_lora, remove_lora, unmerge_lora
from .lora.config import LoRAConfig
from .loss import IGNORE, Targets, TokenLoss, TokenScores, fused_cross_entropy, score_targets, token_log_probs
from .memory.files import load_memory, save_memory, stored_tensors
from .memory.finding import find_context
from .memory.memory import Memory, Piece, hash_of_ids
from .memory.reading import kernel_of, read_rows
from .memory.rows import KVRows
from .moe.config import LoadBalancingConfig, MoEConfig, RouterZConfig
from .moe.layer import MoE
from .moe.losses import RouterLosses, load_balancing_loss, router_z_loss
from .moe.router import RouterOutput
from .presets import PRESETS
from .prompts.prompt_tuning import PromptTuned
from .prompts.segments import Segment, SegmentError, segment_forward
from .prompts.soft_prompt import SoftPrompt, load_soft_prompt, save_soft_prompt
from .prompts.store import SummaryStore, find_soft_prompt
from .prompts.store_rows import RowType, StoreMeta, StoreRow
from .reach import label_log_probs, long_short_difference, near_log_probs
from .transformer import Transformer, named_tensors, with_scalar_head
from .window import WITHOUT_WEIGHTS, WindowConfig, extended_theta, window_notice, with_window

__all__ = [
    "IGNORE",
    "PRESETS",
    "WITHOUT_WEIGHTS",
    "Beam",
    "Completion",
    "Continuation",
    "Conversion",
    "Decoding",
    "DecodingConfig",
    "GenerationConfig",
    "GrowingText",
    "KVCache",
    "KVRows",
    "LoRAConfig",
    "LoadBalancingConfig",
    "Memory",
    "MoE",
    "MoEConfig",
    "ModelConfig",
    "Piece",
    "PromptScores",
    "PromptTuned",
    "RopeScaling",
    "RouterLosses",
    "RouterOutput",
    "RouterZConfig",
    "RowType",
    "Segment",
    "SegmentError",
    "SoftPrompt",
    "StoreMeta",
    "StoreRow",
    "SummaryStore",
    "Targets",
    "TokenLoss",
    "TokenScores",
    "Transformer",
    "TransformerOutput",
    "WindowConfig",
    "add_lora",
    "beam_search",
    "common_beginning",
    "compare_with_transformers",
    "continue_shared",
    "convert",
    "end_token_ids",
    "extended_theta",
    "family_of",
    "find_context",
    "find_soft_prompt",
    "from_pretrained",
    "from_pretrained_with",
    "fused_cross_entropy",
    "generate",
    "generation_defaults",
    "hash_of_ids",
    "kernel_of",
    "known_fingerprint",
    "label_log_probs",
    "lay_out",
    "load_balancing_loss",
    "load_lora",
    "load_memory",
    "load_soft_prompt",
    "long_short_difference",
    "merge_lora",
    "named_tensors",
    "near_log_probs",
    "pack_weights",
    "read_config",
    "read_rows",
    "read_settings",
    "remove_lora",
    "rotary_frequencies",
    "router_z_loss",
    "save_lora",
    "save_memory",
    "save_pretrained",
    "save_soft_prompt",
    "score_targets",
    "segment_forward",
    "stored_tensors",
    "stream",
    "token_log_probs",
    "unmerge_lora",
    "weights_fingerprint",
    "weights_state",
    "why_no_family",
    "window_notice",
    "with_scalar_head",
    "with_window",
]
