"""The description of a network by its features, with exact counts of parameters and arithmetic."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, model_validator

from lmlab.config import Config
from lmlab.errors import did_you_mean
from lmlab.models.moe.config import MoEConfig
from lmlab.models.presets import PRESETS
from lmlab.words import counted

Width = Annotated[int, Field(gt=0, le=2**20)]
"""Of a layer: sizes beyond these are mistakes, and would take all memory before anything else is looked at."""
_Layers = Annotated[int, Field(gt=0, le=4096)]
_Heads = Annotated[int, Field(gt=0, le=2**14)]
_Vocabulary = Annotated[int, Field(gt=0, le=2**26)]
_Length = Annotated[int, Field(gt=0, le=2**31)]
_Fraction = Annotated[float, Field(gt=0, le=1)]
_MOST_PARAMETERS = 10**14  # sizes within each bound can still multiply to more than exists
_MOST_EXPERTS = 2**18  # over all layers

NormPosition = Literal["pre", "post", "reordered", "both"]


class RopeScaling(Config):
    """How rotary frequencies are changed to reach further than the pretraining length.

    - `linear`: every position is divided by `factor` (Chen et al. 2023).
    - `dynamic`: theta grows with the length of the input once that exceeds `original_max_seq_len` (NTK-aware, dynamic).
    - `yarn`: low frequencies are divided by `factor`, high ones kept, a ramp between; attention is sharpened (Peng et
      al. 2023).
    - `llama3`: the same idea with bounds in wavelengths (Llama 3.1).
    - `longrope`: each frequency is divided by a number of its own, one list for texts up to `original_max_seq_len` and
      one for longer ones (Ding et al. 2024).

    `dynamic` and `longrope` depend on the length of a text: on that of its own row or packed document, whatever stands
    beside it.

    Attributes:
        original_max_seq_len: the length of pretraining.
        short_factor, long_factor: longrope: the divisors, one for each pair of rotated dimensions.
        beta_fast, beta_slow: YaRN: rotations over the original length above which a frequency is kept, and below which
            it is divided.
        attention_factor: YaRN and longrope: what cosines and sines are multiplied by; by default 0.1 ln(factor) + 1,
            and sqrt(1 + ln(factor) / ln(original_max_seq_len)).
        truncate: YaRN: round the ends of the ramp to whole dimensions.
        low_freq_factor, high_freq_factor: llama3: the original length over these gives the bounds of the ramp.
    """

    type: Literal["linear", "dynamic", "yarn", "llama3", "longrope"]
    factor: PositiveFloat
    original_max_seq_len: _Length | None = None
    beta_fast: PositiveFloat = 32.0
    beta_slow: PositiveFloat = 1.0
    attention_factor: NonNegativeFloat | None = None
    truncate: bool = True
    low_freq_factor: PositiveFloat = 1.0
    high_freq_factor: PositiveFloat = 4.0
    short_factor: tuple[PositiveFloat, ...] | None = None
    long_factor: tuple[PositiveFloat, ...] | None = None

    @model_validator(mode="after")
    def _check(self) -> RopeScaling:
        if self.type != "linear" and self.original_max_seq_len is None:
            raise ValueError(f"rope_scaling of type {self.type} needs original_max_seq_len.")
        if self.type == "llama3" and self.low_freq_factor >= self.high_freq_factor:
            raise ValueError("rope_scaling of type llama3 needs low_freq_factor < high_freq_factor.")
        if (self.type == "longrope") != (self.short_factor is not None) or (self.short_factor is None) != (
            self.long_factor is None
        ):
            raise ValueError(
                "short_factor and long_factor go together, with rope_scaling of type longrope and no other."
            )
        return self

    @property
    def depends_on_length(self) -> bool:
        """Whether the rotation of a token depends on how long its text is."""
        return self.type in ("dynamic", "longrope")


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
            (OLMo 2); `both`: x + norm(f(norm(x))), with a norm of its own each time (Gemma 2).
        norm_weight: norms scale what they normalize; without, LayerNorm is non-parametric (OLMo 1).
        norm_offset: norms multiply by 1 + weight (Gemma).
        qk_norm: normalize the queries and keys of each `head`, or the `full` projection before it is split.
        rotary_layers: for each layer whether it rotates queries and keys (SmolLM3 does not in every fourth); by default
            all do.
        partial_rotary_factor: the part of each head that is rotated.
        attention: the kind of every layer, or one for each: `full`, or `sliding`, where a token sees itself and the
            `sliding_window` - 1 tokens before it.
        sliding_rope_theta: base of the rotary frequencies of sliding layers, which are not scaled then (Gemma 3, OLMo
            3); by default they are those of all layers.
        attention_scale: what scores are multiplied by, 1 / sqrt(head_dim) by default.
        attention_soft_cap, logit_soft_cap: c: scores, or logits, x become c tanh(x / c) (Gemma 2).
        clip_qkv: queries, keys and values are cut to this absolute value, after a norm over the full projection.
        parallel_residual: x + attention(norm(x)) + ffn(norm'(x)) (GPT-NeoX).
        shared_norm: of parallel residuals, norm' is norm (Phi-2).
        embedding_scale, residual_multiplier, logit_scale: factors of what the table of tokens gives, of what each
            sub-layer adds, and of the final hidden states of a language model (Gemma, Granite).
        causal: a token sees itself and those before it; without, all tokens of its text.
        token_types: rows of a table that is added by the type of each token, as BERT tells two texts apart; 0 for none.
        embedding_norm: normalize the sum of all embeddings before the first layer (BERT).
        head_bias: a bias on next-token logits, before a cap (Phi-2).
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

    vocab_size: _Vocabulary
    vocab_multiple: Width = 1
    num_layers: _Layers
    d_model: Width
    num_heads: _Heads
    num_kv_heads: _Heads
    head_dim: _Heads
    d_ff: Width
    max_seq_len: _Length = 2048
    norm: Literal["rmsnorm", "layernorm", "none"] = "rmsnorm"
    norm_position: NormPosition = "pre"
    norm_eps: PositiveFloat = 1e-5
    norm_bias: bool = False
    norm_weight: bool = True
    norm_offset: bool = False
    qk_norm: Literal["none", "head", "full"] = "none"
    positions: Literal["rotary", "learned", "none"] = "rotary"
    position_offset: int = Field(default=0, ge=0, le=2**20)
    rope_theta: PositiveFloat = 10_000.0
    rope_scaling: RopeScaling | None = None
    rotary_layers: tuple[bool, ...] | None = None
    partial_rotary_factor: _Fraction = 1.0
    causal: bool = True
    token_types: int = Field(default=0, ge=0, le=2**20)
    embedding_norm: bool = False
    lm_head: bool = True
    pooler: bool = False
    activation: Literal["silu", "gelu", "gelu_tanh", "gelu_quick", "relu"] = "silu"
    attention: Literal["full", "sliding"] | tuple[Literal["full", "sliding"], ...] = "full"
    sliding_window: _Length | None = None
    sliding_rope_theta: PositiveFloat | None = None
    attention_scale: PositiveFloat | None = None
    attention_soft_cap: PositiveFloat | None = None
    clip_qkv: PositiveFloat | None = None
    parallel_residual: bool = False
    shared_norm: bool = False
    gated: bool = True
    ffn: Literal["dense", "moe"] | tuple[Literal["dense", "moe"], ...] = "dense"
    moe: MoEConfig | None = None
    qkv_bias: bool = False
    attention_output_bias: bool = False
    ffn_bias: bool = False
    head_bias: bool = False
    tie_embeddings: bool = True
    embedding_scale: PositiveFloat = 1.0
    residual_multiplier: PositiveFloat = 1.0
    logit_scale: PositiveFloat = 1.0
    logit_soft_cap: PositiveFloat | None = None
    num_labels: Width | None = None
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
            # as many weights with a gate as 4 * width without (Shazeer 2020), in whole tiles
            data["d_ff"] = -(-8 * width // 3 // 64) * 64 if data.get("gated", True) else 4 * width
        return data

    @model_validator(mode="after")
    def _check(self) -> ModelConfig:
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"num_heads {self.num_heads} is not a multiple of num_kv_heads {self.num_kv_heads}.")
        self._check_rotary()
        self._check_attention()
        if self.norm == "none" and (self.norm_bias or self.qk_norm != "none"):
            raise ValueError("norm: none has no bias and no qk_norm.")
        if self.norm == "rmsnorm" and self.norm_bias:
            raise ValueError("rmsnorm has no bias; set norm_bias to false, or norm to layernorm.")
        if not self.norm_weight and (self.norm != "layernorm" or self.norm_bias):
            raise ValueError("norm_weight: false needs norm: layernorm and norm_bias: false.")
        if self.norm_offset and self.norm != "rmsnorm":
            raise ValueError("norm_offset needs norm: rmsnorm.")
        if self.parallel_residual and self.norm_position != "pre":
            raise ValueError(f"parallel_residual needs norm_position pre, not {self.norm_position}.")
        if self.shared_norm and not self.parallel_residual:
            raise ValueError("shared_norm needs parallel_residual: true.")
        if self.head_bias and not self.lm_head:
            raise ValueError("head_bias needs lm_head: true.")
        if isinstance(self.ffn, tuple) and len(self.ffn) != self.num_layers:
            raise ValueError(f"ffn lists {counted(len(self.ffn), 'kinds')} for {counted(self.num_layers, 'layers')}.")
        if "moe" in self.ffn_kinds and (self.moe is None or not self.gated or self.ffn_bias):
            raise ValueError("ffn: moe needs the section moe, gated: true and ffn_bias: false.")
        if self.moe is not None and self.num_layers * self.moe.num_experts > _MOST_EXPERTS:
            raise ValueError(f"{self.num_layers} layers of {self.moe.num_experts} experts are too many to build.")
        if (count := self.num_parameters()) > _MOST_PARAMETERS:
            raise ValueError(f"the model would have {count:.1e} parameters, more than any machine holds.")
        return self

    def _check_rotary(self) -> None:
        scaling = self.rope_scaling
        if self.positions != "rotary":
            for name in ("rope_scaling", "rotary_layers", "sliding_rope_theta"):
                if getattr(self, name) is not None:
                    raise ValueError(f"{name} needs rotary positions, not {self.positions}.")
            if self.partial_rotary_factor != 1:
                raise ValueError(f"partial_rotary_factor needs rotary positions, not {self.positions}.")
            return
        if self.rotary_dim % 2 or not self.rotary_dim:
            part = (
                "" if self.partial_rotary_factor == 1 else f" times partial_rotary_factor {self.partial_rotary_factor}"
            )
            raise ValueError(f"rotary positions need an even head_dim, got {self.head_dim}{part}.")
        if self.rotary_layers is not None and len(self.rotary_layers) != self.num_layers:
            entries, layers = counted(len(self.rotary_layers), "entries"), counted(self.num_layers, "layers")
            raise ValueError(f"rotary_layers has {entries} for {layers}.")
        if scaling is not None and scaling.type == "yarn" and self.rope_theta <= 1:
            raise ValueError(f"rope_scaling of type yarn needs rope_theta above 1, got {self.rope_theta}.")
        if scaling is not None and scaling.type == "dynamic" and self.rotary_dim < 4:
            raise ValueError("rope_scaling of type dynamic needs more than one pair of rotated dimensions.")
        if scaling is not None and scaling.short_factor is not None and scaling.long_factor is not None:
            pairs = self.rotary_dim // 2
            for name, given in (("short_factor", scaling.short_factor), ("long_factor", scaling.long_factor)):
                if len(given) != pairs:
                    raise ValueError(f"rope_scaling: {name} has {len(given)} numbers for {pairs} pairs of dimensions.")

    def _check_attention(self) -> None:
        if isinstance(self.attention, tuple) and len(self.attention) != self.num_layers:
            kinds, layers = counted(len(self.attention), "kinds"), counted(self.num_layers, "layers")
            raise ValueError(f"attention lists {kinds} for {layers}.")
        if "sliding" in self.attention_kinds:
            if self.sliding_window is None:
                raise ValueError("attention: sliding needs sliding_window.")
            if not self.causal:
                raise ValueError("attention: sliding needs causal: true.")

    @property
    def rotary_dim(self) -> int:
        """How many dimensions of a head are rotated."""
        return int(self.head_dim * self.partial_rotary_factor)

    @property
    def attention_kinds(self) -> tuple[Literal["full", "sliding"], ...]:
        """The kind of each layer's attention."""
        return self.attention if isinstance(self.attention, tuple) else (self.attention,) * self.num_layers

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
            (4 if self.norm_position == "both" else 1 if self.shared_norm else 2) * norm
            + self._attention_matrices
            + (attention + 2 * kv) * self.qkv_bias
            + d * self.attention_output_bias
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
        else:
            total += self.padded_vocab_size * (d * self.has_own_head + self.has_head_bias)
        if embedding:
            positions = self.max_seq_len + self.position_offset if self.positions == "learned" else 0
            total += (self.padded_vocab_size + positions + self.token_types) * d
        return total

    @property
    def has_own_head(self) -> bool:
        """Whether next-token logits come from a matrix that is not the table of tokens."""
        return self.lm_head and not self.tie_embeddings and self.num_labels is None

    @property
    def has_head_bias(self) -> bool:
        """Whether next-token logits have a bias."""
        return self.head_bias and self.num_labels is None

    def flops_per_token(self, seq_len: int, backward: bool = True) -> float:
        """Floating-point operations of one token in a sequence of `seq_len`: matrix products and attention, the head
        included.

        A multiplication and an addition count as two; the backward pass costs twice the forward one (Kaplan et al.
        2020, table 1, with the attention term halved in causal order, where a query meets half the keys). Of experts
        only those that a token uses count.
        """
        window = min(seq_len, self.sliding_window or seq_len)
        seen = {
            "full": seq_len / 2 if self.causal else seq_len,
            "sliding": window - window**2 / (2 * max(seq_len, 1)),  # 0 asks for the matrices alone
        }  # keys of a query, on average
        forward = 2 * self.active_matrices + 4 * self.num_heads * self.head_dim * sum(
            seen[kind] for kind in self.attention_kinds
        )
        return float(forward * (3 if backward else 1))

    @property
    def active_matrices(self) -> int:
        """The numbers in all matrices that a token is multiplied with, the head included; of experts only those that it
        uses.
        """
        blocks = sum(self._attention_matrices + self._ffn_matrices(kind, active=True) for kind in self.ffn_kinds)
        return blocks + self.d_model * (self.num_labels or self.padded_vocab_size * self.lm_head)

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


def _preset(name: Any) -> dict[str, Any]:
    if not isinstance(name, str) or name not in PRESETS:
        raise ValueError(f"there is no preset '{name}'. {did_you_mean(str(name), PRESETS)}")
    return PRESETS[name]
