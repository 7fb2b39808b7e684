"""What a router does, from counts that are added up stream-wise: saturation, co-activation, domain and vocabulary
specialization, load.

Section numbers are those of Muennighoff et al. 2024, where these measurements are defined. Counts are kept apart for
groups of sequences, so that every figure has a confidence interval by the jackknife over groups: the figure is computed
again without each group in turn.

Shapes: G groups, D domains, L layers, E experts, k experts for each token, V token ids.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lmlab.errors import UserError
from lmlab.methods.olmoe.routing.trace import Ints, RoutingTrace, same_tokens
from lmlab.stats import Interval, jackknife, normal_quantile, standard_error

Array = NDArray[Any]
Tokens = Literal["input", "predicted", "target"]
_CHUNK = 64  # sequences that are counted at once


class RoutingStatistics:
    """Counts of any number of sequences; parts that were counted apart are added with `merge`.

    Arguments:
        groups: sequences are dealt to so many groups for confidence intervals.
        vocabulary: also count which token ids went to which expert.

    Attributes:
        expert_counts: {1, k} -> [G, D, L, E], tokens that have an expert among their first, or all.
        pair_counts: "all" and "adjacent_rank" -> [G, L, E, E].
        tokens_GD: how many tokens there were.
    """

    def __init__(
        self,
        num_experts: int,
        top_k: int,
        layers: tuple[int, ...],
        domains: tuple[str, ...],
        vocab_size: int = 0,
        groups: int = 20,
    ) -> None:
        self.num_experts, self.top_k, self.layers, self.domains = num_experts, top_k, layers, domains
        self.groups, self.vocab_size = groups, vocab_size
        self.ks = tuple(sorted({1, top_k}))
        shape = (groups, len(domains), len(layers), num_experts)
        self.tokens_GD = np.zeros(shape[:2], np.int64)
        self.expert_counts = {k: np.zeros(shape, np.int64) for k in self.ks}
        self.pair_counts = {
            name: np.zeros((groups, len(layers), num_experts, num_experts), np.int64)
            for name in ("all", "adjacent_rank")
        }
        self.token_counts: dict[tuple[Tokens, int], Array] = {}
        self.occurrences: dict[Tokens, Array] = {}
        self._sequences = 0

    @classmethod
    def of(cls, trace: RoutingTrace, groups: int = 20, vocabulary: bool = True) -> RoutingStatistics:
        """The counts of a trace."""
        highest = max(
            int(trace.input_ids_ST.max(initial=0)),
            -1 if trace.predicted_ids_ST is None else int(trace.predicted_ids_ST.max(initial=0)),
        )
        found = cls(
            trace.num_experts, trace.top_k, trace.layers, trace.domains, highest + 1 if vocabulary else 0, groups
        )
        for start in range(0, len(trace.input_ids_ST), _CHUNK):
            part = slice(start, start + _CHUNK)
            predicted = None if trace.predicted_ids_ST is None else trace.predicted_ids_ST[part]
            found.update(trace.input_ids_ST[part], trace.expert_ids_STLk[part], trace.domain_S[part], predicted)
        return found

    def update(
        self, input_ids_ST: Ints, expert_ids_STLk: Ints, domain_S: Ints, predicted_ids_ST: Ints | None = None
    ) -> None:
        """Count some sequences."""
        group_S = (self._sequences + np.arange(len(input_ids_ST))) % self.groups
        self._sequences += len(input_ids_ST)
        length = input_ids_ST.shape[1]
        np.add.at(self.tokens_GD, (group_S, domain_S), length)
        for place in range(len(self.layers)):
            experts_STk = expert_ids_STLk[:, :, place].astype(np.int64)
            for k in self.ks:
                np.add.at(
                    self.expert_counts[k][:, :, place],
                    (group_S[:, None, None], domain_S[:, None, None], experts_STk[..., :k]),
                    1,
                )
            self._count_pairs(place, group_S, experts_STk)
        if self.vocab_size:
            self._count_tokens(input_ids_ST, expert_ids_STLk, predicted_ids_ST)

    def _count_pairs(self, place: int, group_S: Array, experts_STk: Array) -> None:
        for group in np.unique(group_S):
            chosen = experts_STk[group_S == group].reshape(-1, self.top_k)
            one_hot = np.zeros((len(chosen), self.num_experts), np.float32)
            np.put_along_axis(one_hot, chosen, 1.0, 1)
            self.pair_counts["all"][group, place] += (one_hot.T @ one_hot).astype(np.int64)
            adjacent = self.pair_counts["adjacent_rank"][group, place]
            for rank in range(self.top_k - 1):
                np.add.at(adjacent, (chosen[:, rank], chosen[:, rank + 1]), 1)
                np.add.at(adjacent, (chosen[:, rank + 1], chosen[:, rank]), 1)

    def _count_tokens(self, input_ids_ST: Ints, expert_ids_STLk: Ints, predicted_ids_ST: Ints | None) -> None:
        kinds: dict[Tokens, tuple[Ints, Ints]] = {
            "input": (input_ids_ST, expert_ids_STLk),
            "target": (input_ids_ST[:, 1:], expert_ids_STLk[:, :-1]),  # the last place of a sequence has none
        }
        if predicted_ids_ST is not None:
            kinds["predicted"] = (predicted_ids_ST, expert_ids_STLk)
        for kind, (ids, experts) in kinds.items():
            if kind not in self.occurrences:
                self.occurrences[kind] = np.zeros(self.vocab_size, np.int64)
                for k in self.ks:
                    self.token_counts[kind, k] = np.zeros(
                        (len(self.layers), self.vocab_size, self.num_experts), np.int32
                    )
            flat = ids.reshape(-1).astype(np.int64)
            self.occurrences[kind] += np.bincount(flat, minlength=self.vocab_size)
            for place in range(len(self.layers)):
                chosen = experts[:, :, place].reshape(len(flat), self.top_k).astype(np.int64)
                for k in self.ks:
                    codes = (flat[:, None] * self.num_experts + chosen[:, :k]).reshape(-1)
                    counted = np.bincount(codes, minlength=self.vocab_size * self.num_experts)
                    self.token_counts[kind, k][place] += counted.reshape(self.vocab_size, self.num_experts).astype(
                        np.int32
                    )

    def merge(self, other: RoutingStatistics) -> None:
        """Add counts of other sequences of the same model; the domains must be the same."""
        mine, theirs = (
            (each.num_experts, each.top_k, each.layers, each.domains, each.vocab_size, each.groups)
            for each in (self, other)
        )
        if mine != theirs:
            raise UserError("Counts of different models, layers, domains or vocabularies cannot be added.")
        self.tokens_GD += other.tokens_GD
        for own, added in ((self.expert_counts, other.expert_counts), (self.pair_counts, other.pair_counts)):
            for key in own:
                own[key] += added[key]  # type: ignore[index]
        for pair, counts in other.token_counts.items():
            self.token_counts[pair] = self.token_counts[pair] + counts if pair in self.token_counts else counts.copy()
        for kind, counts in other.occurrences.items():
            self.occurrences[kind] = self.occurrences[kind] + counts if kind in self.occurrences else counts.copy()
        self._sequences += other._sequences

    def coactivation(self, layer: int, pairs: Literal["all", "adjacent_rank"] = "all") -> Interval[Array]:
        """CA(i, j) = N_ij / N_i: of the tokens that chose expert i, the share that chose j too, [E, E], 0 on the
        diagonal (section 5.2).

        Arguments:
            pairs: `adjacent_rank` counts only experts that follow each other in rank, as the published heat maps do.
        """
        place = self.layers.index(layer)
        single = np.diagonal(self.pair_counts["all"][:, place], axis1=1, axis2=2)
        both = np.concatenate((self.pair_counts[pairs][:, place], single[:, None]), 1)

        def rate(counts: Array) -> Array:
            shares = counts[:-1] / np.maximum(counts[-1], 1)[:, None]
            np.fill_diagonal(shares, 0.0)
            return shares

        return jackknife(rate, both)

    def domain_specialization(self, k: int) -> Interval[Array]:
        """DS(i, D) = N_iD / N_D: the share of a domain's tokens that have expert i among their first k, [D, L, E]
        (section 5.3).
        """
        experts = _of_k(self.expert_counts, k)
        counts = np.concatenate(
            (experts, np.broadcast_to(self.tokens_GD[:, :, None, None], (*experts.shape[:3], 1))), 3
        )

        def share(total: Array) -> Array:
            return np.asarray(total[..., :-1] / np.maximum(total[..., -1:], 1))

        # each domain by the groups that have it: one that lies in a few of many is known no better than by those
        found = [jackknife(share, counts[:, domain]) for domain in range(counts.shape[1])]
        value, low, high = (np.stack([getattr(each, name) for each in found]) for name in ("value", "low", "high"))
        return Interval(value, low, high, found[0].level, np.stack([np.asarray(each.standard_error) for each in found]))

    def load(self, k: int, by_domain: bool = False) -> dict[str, Interval[Array]]:
        """`load_summary` of each layer, [L], or of each domain and layer, [D, L]."""
        counts = _of_k(self.expert_counts, k)
        counts = counts if by_domain else counts.sum(1)

        def one(name: str) -> Interval[Array]:
            return jackknife(lambda total: load_summary(total)[name], counts)

        return {name: one(name) for name in load_summary(counts[0])}

    def vocab_specialization(self, k: int, tokens: Tokens = "input", min_count: int = 1) -> dict[str, Array]:
        """`vocab_summary` of each layer, [L]."""
        if tokens not in self.occurrences:
            raise UserError(
                f"The trace has no {tokens} tokens.",
                "Collect it with predicted tokens." if tokens == "predicted" else None,
            )
        counts = self.token_counts[tokens, k if k in self.ks else _unknown(k, self.ks)]
        layers = [vocab_summary(layer, self.occurrences[tokens], min_count) for layer in counts]
        return {name: np.array([each[name] for each in layers]) for name in layers[0]}

    def information(self, k: int) -> dict[str, Array]:
        """Mutual information in bits of expert and domain, and of expert and input token, of each layer, [L]; and the
        Jensen-Shannon divergence between the experts of each two domains, [L, D, D]."""
        by_domain = _of_k(self.expert_counts, k).sum(0).transpose(1, 0, 2)
        found = {"domain": np.array([mutual_information(layer) for layer in by_domain])}
        if ("input", k) in self.token_counts:
            found["token"] = np.array([mutual_information(layer) for layer in self.token_counts["input", k]])
        found["divergence"] = np.array([[[jensen_shannon(a, b) for b in layer] for a in layer] for layer in by_domain])
        return found


def router_saturation(trace: RoutingTrace, final: RoutingTrace, k: int, groups: int = 20) -> Interval[Array]:
    """RS(t, k): the mean over tokens of |S_t(k) and S_T(k)| / k, with S the first k experts of the trace and of the
    final one, [L] (section 5.1).

    Raises:
        UserError: the traces are not of the same tokens.
    """
    same_tokens(trace, final)
    if not 1 <= k <= min(trace.top_k, final.top_k):
        raise UserError(
            f"Saturation of k = {k} needs traces with as many experts for each token; they have {trace.top_k} and"
            f" {final.top_k}."
        )
    counts = np.zeros((groups, len(trace.layers) + 1))
    for number, (mine, theirs) in enumerate(zip(trace.expert_ids_STLk, final.expert_ids_STLk, strict=True)):
        both = (mine[..., :k, None] == theirs[..., None, :k]).any(-1).sum((0, 2))
        counts[number % groups, :-1] += both
        counts[number % groups, -1] += len(mine)
    return jackknife(lambda total: total[:-1] / (k * max(total[-1], 1)), counts)


def expert_coactivation(trace: RoutingTrace, layer: int, pairs: Literal["all", "adjacent_rank"] = "all") -> Array:
    """`RoutingStatistics.coactivation` of a trace, without intervals."""
    trace.layer_index(layer)
    return RoutingStatistics.of(trace, 1, vocabulary=False).coactivation(layer, pairs).value


def domain_specialization(trace: RoutingTrace, k: int) -> Array:
    """`RoutingStatistics.domain_specialization` of a trace, without intervals."""
    return RoutingStatistics.of(trace, 1, vocabulary=False).domain_specialization(k).value


def vocab_specialization(trace: RoutingTrace, k: int, tokens: Tokens = "input", min_count: int = 1) -> dict[str, Array]:
    """`RoutingStatistics.vocab_specialization` of a trace."""
    return RoutingStatistics.of(trace, 1).vocab_specialization(k, tokens, min_count)


def cross_layer_routing(trace: RoutingTrace, first: int, second: int) -> Array:
    """How many tokens have expert i first in one layer and j first in another, [E, E]."""
    a, b = (
        trace.expert_ids_STLk[:, :, trace.layer_index(layer), 0].reshape(-1).astype(np.int64)
        for layer in (first, second)
    )
    counts = np.bincount(a * trace.num_experts + b, minlength=trace.num_experts**2)
    return counts.reshape(trace.num_experts, trace.num_experts)


def token_probabilities(
    trace: RoutingTrace, layer: int, domain: str, k: int | None = None, min_count: int = 8
) -> tuple[Ints, Array]:
    """How a layer routes the token ids of a domain: the share of each expert among the choices for the id, whose rows
    sum to 1.

    Histograms of these shares by domain show whether tokens have experts of their own (close to 0 and 1) or are spread
    (close to 1 / E).

    Arguments:
        k: count the first k experts of each token; by default all.
        min_count: ids with fewer choices are left out.

    Returns:
        The token ids, [N], and the shares, [N, E].
    """
    if domain not in trace.domains:
        raise UserError(f"The trace has no domain '{domain}', but {', '.join(trace.domains)}.")
    k = trace.top_k if k is None else k
    if not 1 <= k <= trace.top_k:
        raise UserError(f"The trace has {trace.top_k} experts for each token, not {k}.")
    rows = trace.domain_S == trace.domains.index(domain)
    ids, place_N = np.unique(trace.input_ids_ST[rows].reshape(-1), return_inverse=True)
    chosen_Nk = trace.expert_ids_STLk[rows, :, trace.layer_index(layer), :k].reshape(-1, k).astype(np.int64)
    codes = place_N.reshape(-1, 1) * trace.num_experts + chosen_Nk
    counts = np.bincount(codes.reshape(-1), minlength=len(ids) * trace.num_experts).reshape(len(ids), trace.num_experts)
    often = counts.sum(1) >= max(1, min_count)
    return ids[often], counts[often] / counts[often].sum(1, keepdims=True)


def load_summary(counts: Array) -> dict[str, Array]:
    """How evenly experts are used, from counts [..., E].

    Returns:
        `max_over_mean`, `min_over_mean`, `normalized_entropy` (of loads, over that of equal ones), `n_experts_over_2x`
        and `n_experts_under_half` (experts beyond twice, and below half of the mean), and `n_experts_dead` (without a
        token), each [...].
    """
    counts = np.asarray(counts, float)
    loads = counts / np.maximum(counts.mean(-1, keepdims=True), 1e-12)
    shares = counts / np.maximum(counts.sum(-1, keepdims=True), 1e-12)
    with np.errstate(divide="ignore", invalid="ignore"):
        entropy = -np.where(shares > 0, shares * np.log(shares), 0.0).sum(-1)
    return {
        "max_over_mean": loads.max(-1),
        "min_over_mean": loads.min(-1),
        "normalized_entropy": entropy / max(math.log(counts.shape[-1]), 1e-12),
        "n_experts_over_2x": (loads > 2).sum(-1).astype(float),
        "n_experts_under_half": (loads < 0.5).sum(-1).astype(float),
        "n_experts_dead": (counts == 0).sum(-1).astype(float),
    }


def vocab_summary(counts_VE: Array, occurrences_V: Array, min_count: int = 1) -> dict[str, float]:
    """v(x) = max_i N_xi / N_x: the share of a token id's occurrences that went to its most frequent expert (section
    5.4).

    Ids that occur once score 1 at k = 1, which lifts the plain mean: read it together with the other two.

    Returns:
        `macro`, the mean over token ids with at least `min_count` occurrences (the paper's figure, with 1), and
        `macro_half_width`, that of its 95 % interval over ids; `macro_min10`, over those with 10; `micro`, weighted by
        occurrences; `ids`, `ids_min10`: how many there are.
    """
    most_V = counts_VE.max(1)
    seen, often = occurrences_V >= max(1, min_count), occurrences_V >= 10
    shares = most_V[seen] / occurrences_V[seen]
    error = standard_error(shares)
    return {
        "macro": float(shares.mean()) if len(shares) else math.nan,
        "macro_half_width": math.nan if error is None else normal_quantile(0.95) * error,
        "macro_min10": float((most_V[often] / occurrences_V[often]).mean()) if often.any() else math.nan,
        "micro": float(most_V.sum() / max(1, occurrences_V.sum())),
        "ids": int(seen.sum()),
        "ids_min10": int(often.sum()),
    }


def vocab_by_expert(counts_VE: Array, occurrences_V: Array, min_count: int = 10) -> list[list[tuple[int, float]]]:
    """For each expert the token ids whose most frequent expert it is, with their shares, the highest first."""
    often = np.flatnonzero(occurrences_V >= min_count)
    best, shares = counts_VE[often].argmax(1), counts_VE[often].max(1) / occurrences_V[often]
    lists: list[list[tuple[int, float]]] = [[] for _ in range(counts_VE.shape[1])]
    for place in np.lexsort((often, -shares)):
        lists[int(best[place])].append((int(often[place]), float(shares[place])))
    return lists


def mutual_information(counts: Array) -> float:
    """Of rows and columns of a table of counts, in bits."""
    joint = np.asarray(counts, float) / max(1.0, float(np.sum(counts)))
    product = joint.sum(1, keepdims=True) * joint.sum(0, keepdims=True)
    where = joint > 0
    return float((joint[where] * np.log2(joint[where] / product[where])).sum())


def jensen_shannon(first: Array, second: Array) -> float:
    """The divergence of two distributions given by counts, in bits: 0 where they are equal, 1 where they share
    nothing.
    """
    p, q = (np.asarray(each, float) / max(1.0, float(np.sum(each))) for each in (first, second))
    return mutual_information(np.stack((p, q)) / 2) if p.sum() and q.sum() else math.nan


def most_coactivated(coactivation: Array, count: int = 16) -> list[int]:
    """The experts that are met first when pairs are listed by descending co-activation: those of the paper's
    heat maps.
    """
    order = np.argsort(-coactivation, axis=None, kind="stable")
    found: dict[int, None] = {}
    for i, j in zip(*np.unravel_index(order, coactivation.shape), strict=True):
        if i != j:
            found.setdefault(int(i))
            found.setdefault(int(j))
        if len(found) >= count:
            break
    return list(found)[:count]


def _of_k(by_k: dict[int, Array], k: int) -> Array:
    return by_k[k] if k in by_k else by_k[_unknown(k, tuple(by_k))]


def _unknown(k: int, ks: tuple[int, ...]) -> int:
    raise UserError(f"Counts are kept for k = {' and '.join(map(str, ks))}, not for {k}.")
