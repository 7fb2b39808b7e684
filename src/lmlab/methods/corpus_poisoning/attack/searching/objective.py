"""What a passage is optimized for, as a function of its vector alone.

- `MeanSimilarity`: the mean similarity with a set of queries. It is linear in the passage's vector, so that the whole
  set is one vector, their mean (exactly, for dot product and cosine), and for unit vectors no passage is above its
  length.
- `Coverage`: the share of queries whose threshold the passage passes, softened.
- `Single` queries are `MeanSimilarity` of one; `Weighed` subtracts what an adaptive attack wants small.

Shapes: B passages, H width of a vector, n queries.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

COVERAGE_TEMPERATURE = 1 / 30  # of cosines: less looks at queries near their threshold alone, more at all alike
_BETA = 40.0  # of the soft maximum over passages


class Objective(Protocol):
    """A differentiable figure of vectors."""

    @property
    def bound(self) -> float | None:
        """What no unit vector exceeds; None where that is not known."""
        ...

    def __call__(self, vectors_BH: Tensor) -> Tensor:
        """The figure of each passage, [B]; higher is better for the attack."""
        ...


@dataclass
class MeanSimilarity:
    """Mean of <u(q), v(a)> over queries: <mu, v(a)>.

    Attributes:
        mu_H: the mean of the queries' vectors.
        unit: passages' vectors have length 1.
    """

    mu_H: Tensor
    unit: bool = True

    @classmethod
    def of(cls, queries_nH: Tensor, unit: bool = True) -> MeanSimilarity:
        """Of queries' vectors; summed in fp64."""
        return cls(queries_nH.double().mean(0).to(queries_nH.dtype), unit)

    @property
    def bound(self) -> float | None:
        """The length of mu."""
        return float(self.mu_H.double().norm()) if self.unit else None

    def __call__(self, vectors_BH: Tensor) -> Tensor:
        """<mu, v>."""
        return vectors_BH @ self.mu_H.to(vectors_BH)


@dataclass
class Coverage:
    """Mean over queries of sigmoid((m(q) - tau(q)) / temperature), m(q) the soft maximum over the passage and others.

    Attributes:
        queries_nH: their vectors.
        tau_n: the score that a passage must pass: the clean score at some rank, or that of the gold passage less a
            margin.
        others_n: the best score of passages that stand already; None for none.
    """

    queries_nH: Tensor
    tau_n: Tensor
    others_n: Tensor | None = None
    temperature: float = COVERAGE_TEMPERATURE

    @property
    def bound(self) -> float | None:
        """None."""
        return None

    def __call__(self, vectors_BH: Tensor) -> Tensor:
        """The soft share of queries, [B]."""
        return self._share(vectors_BH @ self.queries_nH.to(vectors_BH).T)

    def of_all(self, vectors_kH: Tensor) -> Tensor:
        """The soft share of queries that some of several vectors pass the threshold of, a number."""
        scores_kn = vectors_kH @ self.queries_nH.to(vectors_kH).T
        return self._share(torch.logsumexp(scores_kn * _BETA, 0, keepdim=True) / _BETA)[0]

    def _share(self, scores_Bn: Tensor) -> Tensor:
        if self.others_n is not None:
            both = torch.stack([scores_Bn, self.others_n.to(scores_Bn).expand_as(scores_Bn)])
            scores_Bn = torch.logsumexp(both * _BETA, 0) / _BETA
        return torch.sigmoid((scores_Bn - self.tau_n.to(scores_Bn)) / self.temperature).mean(1)


@dataclass
class MaxSim:
    """Mean over queries of the score of late interaction: the sum over a query's tokens of the best similarity with any
    token of the passage. No mean of queries stands for them; their vectors are kept.

    Attributes:
        queries_nTH: vectors of queries' tokens, filled up with zeros.
    """

    queries_nTH: Tensor

    @classmethod
    def of(cls, queries: Sequence[Tensor]) -> MaxSim:
        """Of each query's matrix [T, H]; zeros count 0 with every passage."""
        return cls(torch.nn.utils.rnn.pad_sequence(list(queries), batch_first=True))

    @property
    def bound(self) -> float | None:
        """The mean number of tokens of a query: no similarity is above 1."""
        return float((self.queries_nTH.norm(dim=-1) > 0).sum(1).double().mean())

    def __call__(self, vectors_BTH: Tensor) -> Tensor:
        """The mean score, [B], of passages' token vectors [B, T, H]."""
        queries = self.queries_nTH.to(vectors_BTH)
        flat_SH = queries.flatten(0, 1)
        best_BS = (vectors_BTH @ flat_SH.T).amax(1)
        return best_BS.sum(1) / len(queries)


@dataclass
class NormCapped:
    """An objective less what a check of lengths sees: how far a vector is longer than a cap. It is for retrievers by
    dot product, of which length alone ranks a passage higher.
    """

    objective: Objective
    cap: float
    weight: float = 10.0  # one percent too long costs a tenth of the value

    @property
    def bound(self) -> float | None:
        """None."""
        return None

    def __call__(self, vectors_BH: Tensor) -> Tensor:
        """The objective less the weighed excess of length, in shares of the cap and of the objective's size."""
        value_B = self.objective(vectors_BH)
        excess_B = (vectors_BH.norm(dim=-1) / self.cap - 1).clamp(min=0)
        # a value near 0 would set the price of length to nothing
        return value_B - self.weight * excess_B * value_B.detach().abs().clamp(min=1e-3)


@dataclass
class HubCapped:
    """An objective less what a hubness gate sees: how far the mean similarity to the attacker's own guess of the
    sentinels is above a cap.
    """

    objective: Objective
    sentinels_nH: Tensor
    cap: float
    weight: float = 4.0  # 0.01 above the cap costs 0.04 of the objective

    @property
    def bound(self) -> float | None:
        """That of the objective itself."""
        return None

    def __call__(self, vectors_BH: Tensor) -> Tensor:
        """The objective less the weighed excess."""
        mean_B = (vectors_BH @ self.sentinels_nH.to(vectors_BH).T).mean(1)
        return self.objective(vectors_BH) - self.weight * (mean_B - self.cap).clamp(min=0)
