"""The description of a mixture-of-experts layer."""

from __future__ import annotations

import warnings
from typing import Any, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from lmlab.config import Config


class LoadBalancingConfig(Config):
    """The load-balancing loss (Muennighoff et al. 2024, section 2; `lmlab.models.load_balancing_loss`).

    Attributes:
        coef: its weight in what is learned.
        granularity: over what loads are counted: a `micro_batch` of one process (as OLMoE was trained), the
            `global_batch` (all processes and the micro-batches of the step so far), or each `sequence`: in packed
            rows each document.
        convention: `olmoe` is 1 when loads are equal; `transformers` is top_k then, and pools all layers before it
            multiplies.
    """

    coef: NonNegativeFloat = 0.01
    granularity: Literal["micro_batch", "global_batch", "sequence"] = "global_batch"
    convention: Literal["olmoe", "transformers"] = "olmoe"

    @model_validator(mode="after")
    def _check(self) -> LoadBalancingConfig:
        if self.convention == "transformers" and self.granularity != "micro_batch":
            raise ValueError(
                f"convention transformers counts over the micro_batch, not over the {self.granularity}; set"
                " granularity: micro_batch."
            )
        return self


class RouterZConfig(Config):
    """The router z-loss (Zoph et al. 2022, eq. 5).

    Attributes:
        coef: its weight in what is learned.
        divide_by_top_k: also divide by the number of experts for each token, as OLMoE's training code did.
    """

    coef: NonNegativeFloat = 0.001
    divide_by_top_k: bool = False


class MoEConfig(Config):
    """The mixture-of-experts feed-forward network of a layer (Muennighoff et al. 2024, section 2).

    Attributes:
        num_experts: number of experts E that the router chooses from.
        top_k: experts for each token k.
        expert_hidden_size: inner width of an expert.
        norm_topk_prob: divide the chosen probabilities by their sum.
        num_shared_experts: further experts, of the same width, that every token uses.
        shared_expert_combine: `add` their output to that of the routed ones, or take the `weighted_mean`: 1/(k+1)
            shared, k/(k+1) routed.
        share_across_layers: one set of experts serves all layers; each layer has a router of its own.
        router: tokens choose their experts, or experts choose their tokens (Zhou et al. 2022): k T / E of each
            sequence, or of the whole batch. Experts that choose look at later tokens, so such a model cannot generate.
        expert_choice_over: what experts choose from.
        capacity_factor: an expert takes at most capacity_factor k T / E of the T tokens of a batch, the most probable;
            by default all of them.
        load_balancing_loss, router_z_loss: losses beside that of the task, while the model is trained; null for none.
        bias_update_rate: balance loads without a loss: by how much the bias of each expert's score, which counts in the
            choice alone, moves after a step (Wang et al. 2024, algorithm 1); about 0.001.
        experts_backend: how experts are computed; all give the same within rounding. `auto` takes the fastest for the
            device.
    """

    num_experts: int = Field(gt=0, le=2**14)
    top_k: PositiveInt
    expert_hidden_size: int = Field(gt=0, le=2**20)
    norm_topk_prob: bool = False
    num_shared_experts: int = Field(default=0, ge=0, le=2**10)
    shared_expert_combine: Literal["add", "weighted_mean"] = "add"
    share_across_layers: bool = False
    router: Literal["token_choice", "expert_choice"] = "token_choice"
    expert_choice_over: Literal["sequence", "batch"] = "sequence"
    capacity_factor: PositiveFloat | None = None
    load_balancing_loss: LoadBalancingConfig | None = LoadBalancingConfig()
    router_z_loss: RouterZConfig | None = RouterZConfig()
    bias_update_rate: PositiveFloat | None = Field(default=None, le=1)
    experts_backend: Literal["auto", "grouped_mm", "batched", "loop", "reference"] = "auto"

    @model_validator(mode="before")
    @classmethod
    def _no_balancing_for_expert_choice(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("router") == "expert_choice":
            return {"load_balancing_loss": None, **data}
        return data

    @model_validator(mode="after")
    def _check(self) -> MoEConfig:
        if self.top_k > self.num_experts:
            raise ValueError(f"top_k {self.top_k} exceeds num_experts {self.num_experts}; lower top_k.")
        if self.norm_topk_prob and self.top_k == 1:
            raise ValueError(
                "norm_topk_prob with top_k 1 makes every weight 1, so the router would learn nothing; set"
                " norm_topk_prob: false."
            )
        if self.router == "expert_choice":
            self._check_expert_choice()
        if self.num_experts < 2 and self.load_balancing_loss is not None:
            warnings.warn("num_experts 1 leaves nothing to balance; load_balancing_loss is constant.", stacklevel=2)
        return self

    def _check_expert_choice(self) -> None:
        """Experts that choose take equal numbers of tokens, so nothing that limits or balances loads applies."""
        for name, value in (
            ("capacity_factor", self.capacity_factor),
            ("load_balancing_loss", self.load_balancing_loss),
            ("bias_update_rate", self.bias_update_rate),
        ):
            if value is not None:
                raise ValueError(
                    f"{name} {value} does not go with router expert_choice, whose loads are equal; set {name}: null."
                )
        if self.norm_topk_prob:
            raise ValueError("norm_topk_prob true does not go with router expert_choice; set norm_topk_prob: false.")

    @property
    def shared_hidden_size(self) -> int:
        """Inner width of all shared experts together."""
        return self.num_shared_experts * self.expert_hidden_size
