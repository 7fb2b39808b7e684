"""The description of a network by its features, with exact counts of parameters and arithmetic."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from lmlab.config import Config
from lmlab.errors import did_you_mean
from lmlab.models.moe.config import MoEConfig

NormPosition = Literal["pre", "post", "reordered"]


class RopeScaling(Config):
    """How rotary frequencies are changed to reach further than the pretraining length.

    - `linear`: every position is divided by `factor` (Chen et al. 2023).
    - `dynamic`: theta grows with the length of the input once that exceeds `original_max_seq_len` (NTK-aware, dynamic).
    - `yarn`: low frequencies are divided by `factor`, high ones kept, a ramp between; attention is sharpened (Peng et
      al. 2023).
    - `llama3`: the same idea with bounds in wavelengths (Llama 3.1).

    Attributes:
        original_max_seq_len: the length of pretraining.
        beta_fast, beta_slow: YaRN: rotations over the original length above which a frequency is kept, and below which
            it is divided.
        attention_factor: YaRN: what cosines and sines are multiplied by; 0.1 ln(factor) + 1 by default.
        truncate: YaRN: round the ends of the ramp to whole dimensions.
        low_freq_factor, high_freq_factor: llama3: the original length over these gives the bounds of the ramp.
    """

    type: Literal["linear", "dynamic", "yarn", "llama3"]
    factor: PositiveFloat
    original_max_seq_len: PositiveInt | None = None
    beta_fast: PositiveFloat = 32.0
    beta_slow: PositiveFloat = 1.0
    attention_factor: NonNegativeFloat | None = None
    truncate: bool = True
    low_freq_factor: PositiveFloat = 1.0
    high_freq_factor: PositiveFloat = 4.0

    @model_validator(mode="after")
    def _check(self) -> RopeScaling:
        if self.type != "linear" and self.original_max_seq_len is None:
            raise ValueError(f"rope_scaling of type {self.type} needs original_max_seq_len.")
        if self.type == "llama3" and self.low_freq_factor >= self.high_freq_factor:
            raise ValueError("rope_scaling of type llama3 needs low_freq_factor < high_freq_factor.")
        return self


class ModelConfig(Config):
    """A transformer, described by features and not by family name.

    Sizes left out take the usual defaults: `num_kv_heads = num_heads`, `head_dim = d_model / num_heads`, and `d_ff` of
    4 `d_model`, or 8/3 `d_model` rounded up to a multiple of 64 for a gated feed-forward network, or that of an expert
    where all layers have experts. `preset: NAME` starts from a published shape (`lmlab.models.PRESETS`); other fields,
    and those of `moe`, then replace its own.

    Attributes:
        vocab_multiple: rows of the embedding and the head are rounded up to a multiple of this; the added ones never
            get probability.
        norm_position: `pre`: x + f(norm(x)); `post`: norm(x + f(x)), without a final norm; `reordered`: x + norm(f(x))
            (OLMo 2).
        norm_weight: norms scale what they normalise; without, LayerNorm is non-parametric (OLMo 1).
        qk_norm: normalise the queries and keys of each `head`, or the `full` projection before it is split.
        causal: a token sees itself and those before it; without, all tokens of its text.
        token_types: rows of a table that is added by the type of each token, as BERT tells two texts apart; 0 for none.
        embedding_norm: normalise the sum of all embeddings before the first layer (BERT).
        lm_head: next-token logits; without, hidden states alone, as encoders have.
        pooler: a layer with tanh on the hidden state of each row's first token (BERT).
        position_offset: rows at the start of a learned table that no position uses (2 in OPT).
        ffn: the kind of every layer, or one kind for each layer.
        num_labels: k scalars at the last real token in place of the language-model head.
        init: distribution of the matrices, with `init_std`; `truncated_normal` is cut at 3 standard deviations;
            `mitchell` is so too, with the standard deviation 1/sqrt(d), d the inputs of the matrix, and for those that
            write to the residual stream in layer l (from 0) 1/sqrt(2 d (l + 1)), in place of `init_std` and
            `output_init` (OLMo 1, Groeneveld et al. 2024).
        output_init: the matrices that write to the residual stream: as the others (`same`), scaled by 1/sqrt(2
            num_layers) (`depth_scaled`, Radford et al. 2019, section 2.3), or `zero`.
    """

    vocab_size: PositiveInt
    vocab_multiple: PositiveInt = 1
    num_layers: PositiveInt
    d_model: PositiveInt
    num_heads: PositiveInt
    num_kv_heads: PositiveInt
    head_dim: PositiveInt
    d_ff: PositiveInt
    max_seq_len: PositiveInt = 2048
    norm: Literal["rmsnorm", "layernorm", "none"] = "rmsnorm"
    norm_position: NormPosition = "pre"
    norm_eps: PositiveFloat = 1e-5
    norm_bias: bool = False
    norm_weight: bool = True
    qk_norm: Literal["none", "head", "full"] = "none"
    positions: Literal["rotary", "learned", "none"] = "rotary"
    position_offset: NonNegativeInt = 0
    rope_theta: PositiveFloat = 10_000.0
    rope_scaling: RopeScaling | None = None
    causal: bool = True
    token_types: NonNegativeInt = 0
    embedding_norm: bool = False
    lm_head: bool = True
    pooler: bool = False
    activation: Literal["silu", "gelu", "gelu_tanh", "gelu_quick", "relu"] = "silu"
    gated: bool = True
    ffn: Literal["dense", "moe"] | tuple[Literal["dense", "moe"], ...] = "dense"
    moe: MoEConfig | None = None
    qkv_bias: bool = False
    attention_output_bias: bool = False
    ffn_bias: bool = False
    tie_embeddings: bool = True
    num_labels: PositiveInt | None = None
    init: Literal["normal", "truncated_normal", "mitchell"] = "normal"
    output_init: Literal["same", "depth_scaled", "zero"] = "depth_scaled"
    init_std: PositiveFloat = Field(default=0.02, le=1.0)

    @model_validator(mode="before")
    @classmethod
    def _fill_sizes(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        data = dict(data)
        if (name := data.pop("preset", None)) is not None:
            preset = _preset(name)
            if isinstance(data.get("moe"), dict):
                data["moe"] = {**preset.get("moe", {}), **data["moe"]}
            data = {**preset, **data}
        width, heads = data.get("d_model"), data.get("num_heads")
        if isinstance(heads, int) and data.get("num_kv_heads") is None:
            data["num_kv_heads"] = heads
        if isinstance(width, int) and isinstance(heads, int) and heads > 0 and data.get("head_dim") is None:
            if width % heads:
                raise ValueError(
                    f"d_model {width} is not a multiple of num_heads {heads}; give head_dim to choose another width of"
                    " a head."
                )
            data["head_dim"] = width // heads
        if data.get("d_ff") is None and data.get("ffn") == "moe" and isinstance(data.get("moe"), dict):
            data["d_ff"] = data["moe"].get("expert_hidden_size")
        if isinstance(width, int) and data.get("d_ff") is None:
            data["d_ff"] = -(-8 * width // 3 // 64) * 64 if data.get("gated", True) else 4 * width
        return data

    @model_validator(mode="after")
    def _check(self) -> ModelConfig:
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"num_heads {self.num_heads} is not a multiple of num_kv_heads {self.num_kv_heads}.")
        if self.positions == "rotary" and self.head_dim % 2:
            raise ValueError(f"rotary positions need an even head_dim, got {self.head_dim}.")
        if self.positions != "rotary" and self.rope_scaling is not None:
            raise ValueError(f"rope_scaling needs rotary positions, not {self.positions}.")
        if self.norm == "none" and (self.norm_bias or self.qk_norm != "none"):
            raise ValueError("norm: none has no bias and no qk_norm.")
        if self.norm == "rmsnorm" and self.norm_bias:
            raise ValueError("rmsnorm has no bias; set norm_bias to false, or norm to layernorm.")
        if not self.norm_weight and (self.norm != "layernorm" or self.norm_bias):
            raise ValueError("norm_weight: false needs norm: layernorm and norm_bias: false.")
        if isinstance(self.ffn, tuple) and len(self.ffn) != self.num_layers:
            raise ValueError(f"ffn lists {len(self.ffn)} kinds for {self.num_layers} layers.")
        if "moe" in self.ffn_kinds and (self.moe is None or not self.gated or self.ffn_bias):
            raise ValueError("ffn: moe needs the section moe, gated: true and ffn_bias: false.")
        return self

    @property
    def ffn_kinds(self) -> tuple[Literal["dense", "moe"], ...]:
        """The kind of each layer's feed-forward network."""
        return self.ffn if isinstance(self.ffn, tuple) else (self.ffn,) * self.num_layers

    @property
    def padded_vocab_size(self) -> int:
        """Rows of the embedding and the head."""
        return -(-self.vocab_size // self.vocab_multiple) * self.vocab_multiple

    def num_parameters(self, embedding: bool = True, active: bool = False) -> int:
        """The number of parameters.

        Arguments:
            embedding: False leaves out the tables of tokens, positions and types (and a tied head with them).
            active: count only the experts that one token uses.
        """
        d, attention, kv = self.d_model, self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        norm = d * (self.norm_weight + self.norm_bias) if self.norm != "none" else 0
        layer = (
            2 * norm + self._attention_matrices + (attention + 2 * kv) * self.qkv_bias + d * self.attention_output_bias
        )
        layer += {"none": 0, "head": 2 * self.head_dim, "full": attention + kv}[self.qk_norm] * (
            self.norm_weight + self.norm_bias
        )
        dense_bias = (self.d_ff * (2 if self.gated else 1) + d) * self.ffn_bias
        total = sum(
            layer + self._ffn_matrices(kind, active) + (dense_bias if kind == "dense" else 0) for kind in self.ffn_kinds
        )
        if (
            self.moe is not None and self.moe.share_across_layers and not active
        ):  # one set of experts was counted for every layer
            total -= max(0, self.ffn_kinds.count("moe") - 1) * self._experts(self.moe.num_experts)
        total += norm if self.norm_position != "post" else 0
        total += norm if self.embedding_norm else 0
        total += d * d + d if self.pooler else 0
        if self.num_labels is not None:
            total += self.num_labels * d
        elif self.has_own_head:
            total += self.padded_vocab_size * d
        if embedding:
            positions = self.max_seq_len + self.position_offset if self.positions == "learned" else 0
            total += (self.padded_vocab_size + positions + self.token_types) * d
        return total

    @property
    def has_own_head(self) -> bool:
        """Whether next-token logits come from a matrix that is not the table of tokens."""
        return self.lm_head and not self.tie_embeddings and self.num_labels is None

    def flops_per_token(self, seq_len: int, backward: bool = True) -> float:
        """Floating-point operations of one token in a sequence of `seq_len`: matrix products and attention, the head
        included.

        A multiplication and an addition count as two; the backward pass costs twice the forward one (Kaplan et al.
        2020, table 1, with the attention term halved in causal order, where a query meets half the keys). Of experts
        only those that a token uses count.
        """
        matrices = sum(self._attention_matrices + self._ffn_matrices(kind, active=True) for kind in self.ffn_kinds)
        matrices += self.d_model * (self.num_labels or self.padded_vocab_size * self.lm_head)
        keys = seq_len / 2 if self.causal else seq_len
        forward = 2 * matrices + 4 * self.num_layers * self.num_heads * self.head_dim * keys
        return float(forward * (3 if backward else 1))

    @property
    def _attention_matrices(self) -> int:
        return self.d_model * (2 * self.num_heads + 2 * self.num_kv_heads) * self.head_dim

    def _ffn_matrices(self, kind: str, active: bool) -> int:
        if kind == "moe" and self.moe is not None:
            routed = self.moe.top_k if active else self.moe.num_experts
            return self._experts(routed + self.moe.num_shared_experts) + self.d_model * self.moe.num_experts
        return (3 if self.gated else 2) * self.d_model * self.d_ff

    def _experts(self, count: int) -> int:
        return 3 * self.d_model * self.moe.expert_hidden_size * count if self.moe is not None else 0


_LLAMA = {"norm": "rmsnorm", "positions": "rotary", "activation": "silu", "gated": True}
_GPT = {
    "norm": "layernorm",
    "norm_bias": True,
    "positions": "learned",
    "gated": False,
    "qkv_bias": True,
    "attention_output_bias": True,
    "ffn_bias": True,
    "num_layers": 12,
    "d_model": 768,
    "num_heads": 12,
    "d_ff": 3072,
}

_OLMOE = {
    **_LLAMA,
    "vocab_size": 50_304,
    "num_layers": 16,
    "d_model": 2048,
    "num_heads": 16,
    "max_seq_len": 4096,
    "qk_norm": "full",
    "tie_embeddings": False,
    "init": "truncated_normal",
    "output_init": "same",
}
_OLMOE_TINY = {**_OLMOE, "vocab_size": 264, "num_layers": 4, "d_model": 128, "num_heads": 4, "max_seq_len": 512}

PRESETS: dict[str, dict[str, Any]] = {
    "gpt2": {**_GPT, "vocab_size": 50_257, "max_seq_len": 1024, "activation": "gelu_tanh"},
    "opt-125m": {**_GPT, "vocab_size": 50_272, "max_seq_len": 2048, "position_offset": 2, "activation": "relu"},
    "SmolLM2-135M": {
        **_LLAMA,
        "vocab_size": 49_152,
        "num_layers": 30,
        "d_model": 576,
        "num_heads": 9,
        "num_kv_heads": 3,
        "d_ff": 1536,
        "max_seq_len": 8192,
        "rope_theta": 100_000.0,
    },
    "Llama-3.2-1B": {
        **_LLAMA,
        "vocab_size": 128_256,
        "num_layers": 16,
        "d_model": 2048,
        "num_heads": 32,
        "num_kv_heads": 8,
        "head_dim": 64,
        "d_ff": 8192,
        "max_seq_len": 131_072,
        "rope_theta": 500_000.0,
        "rope_scaling": {
            "type": "llama3",
            "factor": 32.0,
            "original_max_seq_len": 8192,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
        },
    },
    "Qwen3-0.6B": {
        **_LLAMA,
        "vocab_size": 151_936,
        "num_layers": 28,
        "d_model": 1024,
        "num_heads": 16,
        "num_kv_heads": 8,
        "head_dim": 128,
        "d_ff": 3072,
        "max_seq_len": 40_960,
        "rope_theta": 1_000_000.0,
        "norm_eps": 1e-6,
        "qk_norm": "head",
    },
    "OLMo-2-1B": {
        **_LLAMA,
        "vocab_size": 100_352,
        "num_layers": 16,
        "d_model": 2048,
        "num_heads": 16,
        "d_ff": 8192,
        "max_seq_len": 4096,
        "rope_theta": 500_000.0,
        "norm_eps": 1e-6,
        "norm_position": "reordered",
        "qk_norm": "full",
        "tie_embeddings": False,
    },
    "OLMoE-1B-7B": {
        **_OLMOE,
        "ffn": "moe",
        "moe": {
            "num_experts": 64,
            "top_k": 8,
            "expert_hidden_size": 1024,
            "load_balancing_loss": {"coef": 0.01, "granularity": "micro_batch", "convention": "olmoe"},
            "router_z_loss": {"coef": 0.001, "divide_by_top_k": True},
        },
    },
    "OLMo-1B-dense-twin": {**_OLMOE, "d_ff": 8192},
    "OLMoE-tiny": {**_OLMOE_TINY, "ffn": "moe", "moe": {"num_experts": 16, "top_k": 4, "expert_hidden_size": 64}},
    "OLMoE-tiny-dense-twin": {**_OLMOE_TINY, "d_ff": 256},
}
"""Published shapes, by the names of their checkpoints; a dense twin has the active width of its sparse model.
Those called tiny read bytes.
"""


def _preset(name: Any) -> dict[str, Any]:
    if name not in PRESETS:
        raise ValueError(f"there is no preset '{name}'. {did_you_mean(str(name), PRESETS)}")
    return PRESETS[name]
