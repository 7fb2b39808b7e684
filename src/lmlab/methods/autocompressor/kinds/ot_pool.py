"""Compression by explicit transport (ComprExIT, 2026): the base is frozen; hidden states of all layers are fused for
each token, and an optimal transport plan carries them to slots.

Shapes: B texts, T tokens of a text, W tokens of a window, M slots, L layers and the embedding, D model width.
"""

from __future__ import annotations

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from lmlab.data import Tokenizer
from lmlab.methods.autocompressor.kinds.base import register, slots_for
from lmlab.methods.autocompressor.kinds.config import KindConfig
from lmlab.methods.autocompressor.kinds.meanpool import means_of
from lmlab.methods.autocompressor.kinds.trained import Trained, TrainedConfig
from lmlab.models import Memory, Piece, Transformer
from lmlab.models.internals.taps import Recorder


class TransportConfig(TrainedConfig):
    """How much is kept, what learns, and what is learned.

    Attributes:
        window: tokens that share slots.
        temperature: of the attention over layers.
        distance: weight of the squared distance of token and slot, beside 1 of what they say.
        epsilon: how soft the plan is.
        rounds: of Sinkhorn's algorithm.
    """

    window: PositiveInt = 128
    temperature: float = Field(default=0.7, gt=0)
    distance: float = Field(default=0.2, ge=0)
    epsilon: float = Field(default=0.1, gt=0)
    rounds: PositiveInt = 30


@register("ot_pool")
class TransportPool(Trained):
    """Each token's fused state is an attention over its states in all layers; within windows a plan from tokens, by a
    learned mass, to slots, evenly, says how much of each token goes into each slot.
    """

    Config = TransportConfig

    def __init__(self, model: Transformer, config: KindConfig, tokenizer: Tokenizer | None = None) -> None:
        super().__init__(model, config, tokenizer)
        width, device = model.config.d_model, model.embedding.weight.device
        self.layer_LD = self.fresh(model.config.num_layers + 1, width)
        self.mass_D = nn.Parameter(torch.zeros(width, device=device))
        self.out = nn.Linear(width, width, bias=False, device=device)
        with torch.no_grad():
            self.out.weight.copy_(torch.eye(width))

    def encode(self, ids_BT: Tensor, ratio: float) -> Memory:
        assert isinstance(self.config, TransportConfig)
        seen = Recorder("embedding", "blocks.*.output")
        self.model(ids_BT, taps=seen, logits="none")
        states_BTLD = torch.stack([seen[name] for name in ("embedding", *self._outputs())], 2)
        fused_BTD = self._fuse(states_BTLD)
        pooled = [self._pool(part, ratio) for part in fused_BTD.split(self.config.window, 1)]
        vectors_BMD = self.out(torch.cat(pooled, 1))
        # of the size of the model's own embeddings, which is what it reads
        size = self.model.embedding.weight.detach().float().square().mean().sqrt() * self.model.config.embedding_scale
        scale = vectors_BMD.square().mean(-1, keepdim=True).clamp(min=1e-12).rsqrt() * size
        return Memory(pieces=(Piece(vectors_BMD * scale),))

    def _outputs(self) -> list[str]:
        return [f"blocks.{layer}.output" for layer in range(self.model.config.num_layers)]

    def _fuse(self, states_BTLD: Tensor) -> Tensor:
        """Step 1: attention over layers, for each token."""
        assert isinstance(self.config, TransportConfig)
        level = nn.functional.rms_norm(states_BTLD.float(), (states_BTLD.shape[-1],))
        scores_BTL = (level * self.layer_LD).sum(-1) / self.config.temperature
        return (scores_BTL.softmax(-1)[..., None] * level).sum(2)

    def _pool(self, fused_BWD: Tensor, ratio: float) -> Tensor:
        """Step 2: from the tokens of a window to its slots."""
        assert isinstance(self.config, TransportConfig)
        config, length = self.config, fused_BWD.shape[1]
        slots_BMD = means_of(fused_BWD, ratio)
        slots = slots_for(length, ratio)
        mass_BW = (fused_BWD @ self.mass_D).softmax(-1)
        cost = transport_cost(fused_BWD, slots_BMD, config.window, config.distance)
        even_BM = fused_BWD.new_full((len(fused_BWD), slots), 1 / slots)
        plan_BWM = sinkhorn(cost, mass_BW, even_BM, config.epsilon, config.rounds)
        return plan_BWM.transpose(1, 2) @ fused_BWD / plan_BWM.sum(1)[..., None]


def transport_cost(tokens_BWD: Tensor, slots_BMD: Tensor, window: int, distance: float) -> Tensor:
    """(1 - cosine) + distance (i - c_j)^2 / window^2, [B, W, M], with the slots' centers c_j spread evenly."""
    length, slots = tokens_BWD.shape[1], slots_BMD.shape[1]
    tokens, targets = (nn.functional.normalize(each, dim=-1) for each in (tokens_BWD, slots_BMD))
    places_W = torch.arange(length, device=tokens.device, dtype=tokens.dtype)
    centers_M = (torch.arange(slots, device=tokens.device, dtype=tokens.dtype) + 0.5) * length / slots - 0.5
    far_WM = (places_W[:, None] - centers_M).square() / window**2
    return 1 - tokens @ targets.transpose(1, 2) + distance * far_WM


def sinkhorn(cost_BWM: Tensor, from_BW: Tensor, to_BM: Tensor, epsilon: float, rounds: int) -> Tensor:
    """The plan [B, W, M] of least cost with so much entropy, whose rows sum to `from_BW` and whose columns to `to_BM`
    (Cuturi 2013), in logarithms so that nothing underflows. The last round sets the columns.
    """
    kernel = -cost_BWM / epsilon
    log_from, log_to = from_BW.clamp(min=1e-30).log(), to_BM.clamp(min=1e-30).log()
    right = torch.zeros_like(log_to)
    left = torch.zeros_like(log_from)
    for _ in range(rounds):
        left = log_from - (kernel + right[:, None]).logsumexp(2)
        right = log_to - (kernel + left[:, :, None]).logsumexp(1)
    return (kernel + left[:, :, None] + right[:, None]).exp()
