"""Fluent passages: a beam search of a causal language model towards what a passage is optimized for. They are likely
text by construction, the honest foe of gates that look for gibberish.

At each step the tokens are considered that the language model likes and whose words alone are near to the queries;
the retriever scores the texts that they make, and beams pay for surprise above a bound.

Shapes: R beams, V tokens of the language model, H width of a vector.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lmlab.errors import UserError
from lmlab.files import sha256_json
from lmlab.methods.corpus_poisoning.attack.searching.objective import Coverage, MeanSimilarity, NormCapped, Objective
from lmlab.methods.corpus_poisoning.attack.searching.problem import Budget, Penalty
from lmlab.models import GenerationConfig, KVCache, generate, weights_fingerprint
from lmlab.models.generation.decoding import evaluating
from lmlab.retrieval import AnyEncoder
from lmlab.retrieval.config import Precision

_PULL = 2.0  # nats that a word one standard deviation nearer to the queries may be less likely
_FINE = 0.1  # of the objective, for each nat above the bound
_WINDOW, _WINDOW_SHARE = 16, 1.5  # the worst stretch may be this much above the bound
_BEAMS, _FEW = 4, 2  # with many evaluations, and with few, which more beams would spread thin
_MANY_EVALUATIONS = 2000  # from which more beams pay
_LIKELY = 0.9  # of the probability of the next token, from which continuations are drawn
_TIMES = 3  # that a token may come


@dataclass(frozen=True)
class _Beam:
    ids: tuple[int, ...] = ()
    losses: tuple[float, ...] = ()
    text: str = ""


@dataclass(frozen=True)
class Decoded:
    """What the search found.

    Attributes:
        value: the objective of the text in fp32.
        surprise: nats a token of the language model, on its own tokens.
    """

    text: str
    value: float
    surprise: float


class FluentSearch:
    """A language model whose texts a retriever scores.

    Arguments:
        model, tokenizer: of our own class (`lmlab.runs.Model`).
        bound: mean surprise, in nats a token, above which text pays.
    """

    def __init__(self, model: Any, tokenizer: Any, encoder: AnyEncoder, bound: float) -> None:
        self.model, self.tokenizer, self.encoder, self.bound = model, tokenizer, encoder, bound
        self._texts = [tokenizer.decode([id]) for id in range(tokenizer.vocab_size)]
        uncased = encoder.tokenizer.inner(["Test A"]) == encoder.tokenizer.inner(["test a"])
        self._allowed_V = np.array([_is_text(text) and (not uncased or text == text.lower()) for text in self._texts])
        if not self._allowed_V.any():
            raise UserError("The language model has no token that is a word or a mark.")
        self._words = np.flatnonzero(self._allowed_V & np.array([_is_word(text) for text in self._texts]))
        # a text begins without a space, and reads very differently with one: its first word is one that stands so
        numbers = {text: id for id, text in enumerate(self._texts)}
        spaced = {id: numbers.get(f" {text}") for id, text in enumerate(self._texts) if text.isalpha()}
        self._first = {id: twin for id, twin in spaced.items() if twin is not None and self._allowed_V[id]}

    @functools.cached_property
    def _vectors(self) -> NDArray[np.float32]:
        """Of words alone, as an indexer would read them."""
        return self.encoder.encode_text([self._texts[id].strip() for id in self._words], precision="bf16")

    def run(
        self,
        objective: Objective,
        frame: Callable[[str], str],
        length: int,
        budget: Budget,
        precision: Precision = "fp32",
        penalty: Penalty | None = None,
    ) -> Decoded:
        """Search.

        Arguments:
            frame: puts the payload beside a text.
            length: longest passage in the retriever's tokens.

        Raises:
            UserError: the language model reads less than that.
        """
        liking_V = self._liking(objective)
        beams, best = [_Beam()], (-np.inf, "", 0.0)
        leads = bool(self._first) and all(frame(first).startswith(first) for first in "ab")  # no payload stands before
        count = _BEAMS if budget.limit >= _MANY_EVALUATIONS else _FEW
        each = max(4, budget.limit // (count * length))
        with evaluating(self.model), torch.inference_mode():
            weight = self.model.embedding.weight
            steps = min(2 * length, self.model.config.max_seq_len - 1)
            cache = KVCache(self.model.config, 1, steps + 1, weight.dtype, weight.device)
            rows = [[int(self.tokenizer.bos_id)]]
            for step in range(steps):
                ids_RT = torch.tensor(rows, device=weight.device)
                logits_RV = self.model(ids_RT, cache=cache, logits="last").logits_BTV[:, -1]
                log_probs_RV = logits_RV.double().log_softmax(-1).cpu().numpy()[:, : len(liking_V)]
                liked_V = self._liking_first(liking_V) if step == 0 and leads else liking_V
                grown = self._grown(beams, log_probs_RV, liked_V, each, first=step == 0)
                kept = [(row, beam) for row, beam in grown if self._length(frame(beam.text)) <= length]
                if not kept or budget.left < 1:
                    break
                kept = kept[: budget.left]
                values = self._values([frame(beam.text) for _, beam in kept], objective, budget, precision, penalty)
                paid = values - [self._fine(beam) for _, beam in kept]
                order = np.argsort(-paid, kind="stable")[:count]
                beams = [kept[number][1] for number in order]
                for number in order:
                    beam = kept[number][1]
                    if paid[number] > best[0] and _is_whole(beam.text):
                        best = (float(paid[number]), beam.text, float(np.mean(beam.losses)))
                cache.select([kept[number][0] for number in order])
                rows = [[beam.ids[-1]] for beam in beams]
        text = frame(best[1])
        value = float(objective(torch.from_numpy(self.encoder.encode_text([text])))[0])
        return Decoded(text, value, best[2])

    def _liking(self, objective: Objective) -> NDArray[np.float64]:
        """How near each token's word is to the queries, in standard deviations; 0 for what is no word, [V]."""
        found = np.zeros(len(self._texts))
        near = self._vectors @ direction(objective).cpu().numpy()
        found[self._words] = (near - near.mean()) / (near.std() or 1.0)
        return found

    def _liking_first(self, liking_V: NDArray[np.float64]) -> NDArray[np.float64]:
        """The same of words that begin a text, -inf of all other tokens, [V]."""
        found = np.full(len(liking_V), -np.inf)
        found[list(self._first)] = liking_V[list(self._first.values())]
        return found

    def _grown(
        self,
        beams: Sequence[_Beam],
        log_probs_RV: NDArray[np.float64],
        liking_V: NDArray[np.float64],
        each: int,
        first: bool,
    ) -> list[tuple[int, _Beam]]:
        """Each beam with each of its best next tokens."""
        found = []
        for row, beam in enumerate(beams):
            wanted = log_probs_RV[row] + _PULL * liking_V
            wanted[~self._allowed_V] = -np.inf
            spent = [id for id in set(beam.ids) if beam.ids.count(id) >= _TIMES]
            wanted[[*spent, *beam.ids[-1:]]] = -np.inf
            for id in np.argsort(-wanted, kind="stable")[: each * (2 if first else 1)].tolist():
                if np.isfinite(wanted[id]):
                    ids = (*beam.ids, id)
                    losses = (*beam.losses, -float(log_probs_RV[row, id]))
                    found.append((row, _Beam(ids, losses, self.tokenizer.decode(list(ids)).strip())))
        return found

    def _fine(self, beam: _Beam) -> float:
        mean, stretch = float(np.mean(beam.losses)), float(np.mean(beam.losses[-_WINDOW:]))
        return _FINE * (max(0.0, mean - self.bound) + max(0.0, stretch - _WINDOW_SHARE * self.bound))

    def _length(self, text: str) -> int:
        return len(self.encoder.tokenizer.inner([text])[0])

    def _values(
        self, texts: list[str], objective: Objective, budget: Budget, precision: Precision, penalty: Penalty | None
    ) -> NDArray[np.float64]:
        budget.spend(len(texts))
        vectors = self.encoder.encode_text(texts, precision=precision)
        values: NDArray[np.float64] = objective(torch.from_numpy(vectors)).double().numpy()
        if penalty is None:
            return values
        ids = [np.array(each, np.int64) for each in self.encoder.tokenizer.inner(texts)]
        return values - penalty(ids, vectors, values)


def direction(objective: Objective) -> Tensor:
    """The vector that an objective pulls towards, [H]: the mean of its queries."""
    if isinstance(objective, MeanSimilarity):
        return objective.mu_H
    if isinstance(objective, Coverage):
        return objective.queries_nH.mean(0)
    if isinstance(objective, NormCapped):
        return direction(objective.objective)
    raise UserError("The optimizer decode works with the objectives mean and coverage.")


@functools.lru_cache(maxsize=1)
def language_model(place: str, device: str) -> tuple[Any, Any, str]:
    """A causal language model, its tokenizer, and a digest of its weights; the last one stays in memory."""
    from lmlab.runs import Model

    found = Model.find(place)
    model = found.load(device)
    return model, found.tokenizer(), weights_fingerprint(model)


def continuations(place: str, device: str, texts: Sequence[str], tokens: int, seed: int) -> list[str]:
    """What a language model writes after each text, drawn by the seed: at most so many tokens, on one line.

    Raises:
        UserError: a text and its continuation exceed what the model reads, or it writes nothing after any of them.
    """
    model, tokenizer, _ = language_model(place, device)
    prompts = [[tokenizer.bos_id, *tokenizer.encode(text, "as_text")] for text in texts]
    ends = () if tokenizer.eos_id is None else (tokenizer.eos_id,)
    settings = GenerationConfig(max_new_tokens=tokens, seed=seed, top_p=_LIKELY, eos_ids=ends)
    found = [" ".join(tokenizer.decode(each.ids).split()) for (each,) in generate(model, prompts, settings)]
    if not any(found):
        raise UserError("The language model writes nothing after the queries.", "Choose another --start.")
    return found


_searches: dict[str, FluentSearch] = {}


def fluent_search(place: str, encoder: AnyEncoder, bound: float) -> FluentSearch:
    """The search by a language model for an encoder; the last stays in memory, as its vectors of words take time."""
    model, tokenizer, digest = language_model(place, encoder.device)
    key = sha256_json([digest, encoder.fingerprint, bound])
    if key not in _searches:
        _searches.clear()
        _searches[key] = FluentSearch(model, tokenizer, encoder, bound)
    return _searches[key]


def _is_text(token: str) -> bool:
    bare = token.strip(" ")
    return bool(bare) and (bare.isalnum() or bare in ".,?!;:'-") and token.count(" ") <= 1


def _is_word(token: str) -> bool:
    return token.startswith(" ") and token[1:].isalpha() and len(token) > 2


def _is_whole(text: str) -> bool:
    return (bool(text) and text[-1].isalnum()) or text.endswith((".", "?", "!"))
