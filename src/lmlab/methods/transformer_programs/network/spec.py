"""What a network is: its vocabulary, its shape, and the names of its variables."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PositiveInt, model_validator

from lmlab.config import Config

_MOST_WEIGHTS = 2 * 10**9  # of predicates: 8 GB for each seed, and more while it is trained
PositionBias = Literal["fixed", "clipped", "none"]


class NetworkSpec(Config):
    """A network, without its weights.

    Attributes:
        vocabulary: tokens in the order of their numbers; `<pad>` first.
        labels: answers in the order of the classifier's columns.
        masked_labels: answers that are never given.
        d_var: values of each categorical variable.
        context: places of the longest sequence, marks included.
        embedding_vars: categories that each token is given; 0 takes the token itself.
        num_vars: numbers at the start: the constant 1, unless `learned_numbers`.
        learned_numbers: the numbers at the start are learned for each token.
        prefix_count: one more number at the start: how often the token has occurred up to its place.
        selector_width: counting heads always sum the constant 1.
        causal_num_heads: of the counting heads of a layer, so many see the places up to their own alone.
        predicates: `table`: each value of a query picks its partner; `families`: a gate chooses between that table and
            rules with few numbers (k = q + s, k = c - q, k = c, and for counting heads k < q and k > q); `sets`: each
            value of a query has any number of partners.
        refuses: the last category of a table's results stands for keys that the table has no row for; the program
            refuses such a place, where the network itself answers something.
        bounded: its program runs on no more than `context` places even where nothing reads positions.
        sampled_tokens: tokens pass through the sampler with logits of 10 and -10, as in the reference, so that they are
            one-hot only under the arg max.
        forbid_positions: nothing reads positions, so that the program runs at any length.
        lower, replace_numbers: how the tokens of its training data were spelled.
        pool_over: with `pool_outputs`, the mean is over the tokens, or over all places of the context.
    """

    vocabulary: tuple[str, ...]
    labels: tuple[str, ...]
    masked_labels: tuple[str, ...] = ()
    d_var: PositiveInt
    context: PositiveInt
    num_layers: PositiveInt
    cat_heads: int = Field(default=2, ge=0)
    num_heads: int = Field(default=2, ge=0)
    cat_mlps: int = Field(default=1, ge=0)
    num_mlps: int = Field(default=1, ge=0)
    d_mlp: PositiveInt = 64
    mlp_vars_in: PositiveInt = 2
    embedding_vars: int = Field(default=0, ge=0)
    num_vars: PositiveInt = 1
    learned_numbers: bool = False
    prefix_count: bool = False
    selector_width: bool = False
    causal_num_heads: int = Field(default=0, ge=0)
    predicates: Literal["table", "families", "sets"] = "table"
    refuses: bool = False
    bounded: bool = False
    forbid_positions: bool = False
    sampled_tokens: bool = False
    position_bias: PositionBias = "fixed"
    autoregressive: bool = False
    pool_outputs: bool = False
    pool_over: Literal["tokens", "context"] = "tokens"
    lower: bool = False
    replace_numbers: bool = False
    bos: str = "<s>"
    eos: str = "</s>"

    @model_validator(mode="after")
    def _check(self) -> NetworkSpec:
        if not self.embedding_vars and self.d_var < len(self.vocabulary):
            raise ValueError(
                f"d_var is {self.d_var} but the vocabulary has {len(self.vocabulary)} tokens; set d_var >="
                f" {len(self.vocabulary)}, or embedding_vars to 1 or more."
            )
        if self.d_var < self.context and not self.forbid_positions:
            raise ValueError(
                f"d_var is {self.d_var} but sequences have up to {self.context} places; set d_var >= {self.context} or"
                " shorten."
            )
        heads = self.num_layers * (self.cat_heads + self.num_heads)
        if heads * self.d_var**2 > _MOST_WEIGHTS:
            raise ValueError(
                f"with d_var {self.d_var:,}, what its {heads} heads look for has {heads * self.d_var**2:,} weights, of"
                f" at most {_MOST_WEIGHTS:,}; keep fewer words or shorter sequences, or take embedding_vars and"
                " forbid positions."
            )
        if self.causal_num_heads > self.num_heads:
            raise ValueError(f"causal_num_heads {self.causal_num_heads} is more than num_heads {self.num_heads}.")
        if self.masked_labels and set(self.masked_labels) >= set(self.labels):
            raise ValueError("every label is masked.")
        return self

    @property
    def cat_inputs(self) -> tuple[str, ...]:
        """The categorical variables at the start."""
        tokens = tuple(f"var{i}_embeddings" for i in range(self.embedding_vars)) or ("tokens",)
        return (*tokens, "positions")

    @property
    def num_inputs(self) -> tuple[str, ...]:
        """The numerical variables at the start."""
        if self.learned_numbers:
            names = tuple(f"num_var{i}_embeddings" for i in range(self.num_vars))
        else:
            names = ("ones", *(f"ones_{i}" for i in range(1, self.num_vars)))
        return (*names, "prefix_count") if self.prefix_count else names

    def cat_names(self, layer: int) -> list[str]:
        """The categorical variables that exist before a layer, in the order of the stream."""
        names = list(self.cat_inputs)
        for number in range(layer):
            names += self.head_names(number) + self.mlp_names(number)
        return names

    def num_names(self, layer: int) -> list[str]:
        """The numerical variables that exist before a layer."""
        counts = [f"num_attn_{number}_{head}_outputs" for number in range(layer) for head in range(self.num_heads)]
        return [*self.num_inputs, *counts]

    def head_names(self, layer: int) -> list[str]:
        """The outputs of a layer's categorical heads."""
        return [f"attn_{layer}_{head}_outputs" for head in range(self.cat_heads)]

    def mlp_names(self, layer: int) -> list[str]:
        """The outputs of a layer's MLPs, the categorical ones first."""
        cats = [f"mlp_{layer}_{number}_outputs" for number in range(self.cat_mlps)]
        return cats + [f"num_mlp_{layer}_{number}_outputs" for number in range(self.num_mlps)]
