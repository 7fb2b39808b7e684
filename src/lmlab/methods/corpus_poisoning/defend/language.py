"""Detectors that look at language: perplexity, and whether a passage reads like a question rather than a document."""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from lmlab.errors import UserError
from lmlab.methods.corpus_poisoning.defend.detector import DetectorContext, Passages, Scores
from lmlab.models import known_fingerprint
from lmlab.retrieval import AnyEncoder

_WINDOW, _STRIDE = 16, 8  # tokens: the mean of a whole passage hides a short stretch that nothing explains
_MOST_TOKENS = 512  # of a passage: crafted ones are shorter, and time grows with it
_TOKEN = re.compile(r"\w+|[^\w\s]")
_QUESTION_WORDS = 8  # of a window: what a short question has
_SMOOTHING = 0.5  # added to each count: more hides what is rare, none forbids what is new
_ASIDE = 5  # one of so many documents is not counted
_HIGH = 0.99  # a quantile that a few hundred documents tell, and far enough out to compare tails
_SENTENCE = re.compile(r"(?<=[.!?])\s+")
_SENTENCES = 6  # of a document: its first ones say what it is about
_TURNED_WORDS = 10  # as long as people's questions are
_VERBS = "is are was were can has have had will does do did may must should could would"
_AUXILIARIES = frozenset(_VERBS.split())


def is_uncased(encoder: AnyEncoder) -> bool:
    """Whether the retriever does not see case."""
    return encoder.tokenizer.inner(["Test A"]) == encoder.tokenizer.inner(["test a"])


class Perplexity:
    """Mean surprise of a causal language model a token, in nats, or the most of any 16 tokens beyond what their clean
    spread explains, so that a fluent payload cannot hide a tail of gibberish.

    Texts are lower-cased where the retriever is uncased: else case alone would tell clean text from crafted.
    """

    def __init__(self, context: DetectorContext) -> None:
        if context.language_model is None:
            raise UserError("The detector perplexity needs a language model.", "Give --language-model.")
        self._place, self._lower = context.language_model, is_uncased(context.encoder)
        self._model: Any = None
        self._fitted_with = ""
        self._scale = np.array([0.0, 1.0, 0.0, 1.0])

    def fit(self, clean: Passages) -> None:
        """Learn mean and spread of both figures, so that they compare."""
        whole, window = self.surprise(clean.texts)
        self._scale = np.array([whole.mean(), whole.std() or 1.0, window.mean(), window.std() or 1.0])

    def score(self, passages: Passages) -> Scores:
        """The larger of both, in standard deviations above clean text."""
        whole, window = self.surprise(passages.texts)
        mean, spread, other, other_spread = self._scale
        return np.maximum((whole - mean) / spread, (window - other) / other_spread)

    def surprise(self, texts: Sequence[str]) -> tuple[Scores, Scores]:
        """Nats a token of whole texts, and of the window that has most, [N] each."""
        found = [self._losses(text.lower() if self._lower else text) for text in texts]
        whole = np.array([losses.mean() if len(losses) else 0.0 for losses in found])
        return whole, np.array([_worst_window(losses) for losses in found])

    def _losses(self, text: str) -> Scores:
        import torch

        model, tokenizer = self._load()
        ids = [tokenizer.bos_id, *tokenizer.encode(text, "as_text")[:_MOST_TOKENS]]
        if len(ids) < 2:
            return np.zeros(0)
        rows = torch.tensor([ids])
        with torch.inference_mode():
            hidden = model(rows[:, :-1], logits="none").hidden_BTD
            found = model.log_probs_of(hidden, rows[:, 1:])
        losses: Scores = -found[0].double().numpy()
        return losses

    def _load(self) -> Any:
        if self._model is None:
            from lmlab.runs import Model

            found = Model.find(self._place)
            model = found.load()
            require_same_model(model, self._fitted_with, "language model", "perplexity", self._place)
            self._model = (model, found.tokenizer())
        return self._model

    def state(self) -> dict[str, Any]:
        """Where the model is, which it is, and the scale."""
        which = known_fingerprint(self._load()[0])
        return {"language_model": self._place, "weights": which, "scale": self._scale, "lower": self._lower}

    def restore(self, state: dict[str, Any]) -> None:
        """Take it up; the model from where the context has it, which may be elsewhere than it was."""
        self._scale, self._lower = state["scale"], bool(state["lower"])
        self._fitted_with = str(state.get("weights", ""))


def require_same_model(model: Any, fitted_with: str, kind: str, detector: str, place: str) -> None:
    """Refuse a model that a detector's figures are not of.

    Arguments:
        fitted_with: fingerprint of the weights that it was fitted with; empty where none is known.

    Raises:
        UserError: the weights are others.
    """
    if fitted_with and known_fingerprint(model) != fitted_with:
        raise UserError(
            f"The {kind} at '{place}' is not the one that the detector {detector} was fitted with.",
            "Name that one, or fit the gate again: lmlab poison detect fit",
        )


def _worst_window(losses: Scores) -> float:
    if len(losses) <= _WINDOW:
        return float(losses.mean()) if len(losses) else 0.0
    starts = [*range(0, len(losses) - _WINDOW, _STRIDE), len(losses) - _WINDOW]
    return max(float(losses[start : start + _WINDOW].mean()) for start in starts)


class Questions:
    """Whether a passage reads like questions rather than like a document: the log-ratio of two bigram models, one of
    questions, one of clean documents. It is looked at in the window of 8 words that has most, which tells a copied
    question before a text, and as the mean of the whole passage, which tells query stuffing and what was optimized from
    it. Perplexity takes all of these for clean text. A paraphrase escapes it.

    The model of questions is of sentinels, and of statements of the clean documents turned into questions (`turned`):
    those are of the collection's own words.
    """

    def __init__(self, context: DetectorContext) -> None:
        if not context.sentinels:
            raise UserError("The detector questions needs sentinel questions.", "Give --sentinels.")
        self._sentinels = list(context.sentinels)
        self._ratio: dict[str, float] = {}
        self._unknown = 0.0
        self._scale = np.array([0.0, 1.0, 0.0, 1.0])

    def fit(self, clean: Passages) -> None:
        """Count bigrams on both sides. A share of the documents is not counted, but shows where both figures of clean
        text lie: counted text looks cleaner than it is.
        """
        order = np.random.default_rng(0).permutation(len(clean)).tolist()
        aside = order[: len(order) // _ASIDE] or order
        counted = [clean.texts[row] for row in order[len(order) // _ASIDE :]]
        asked, told = Counter[str](), Counter[str]()
        for counts, texts in ((asked, [*self._sentinels, *turned(counted)]), (told, counted)):
            for text in texts:
                counts.update(_bigrams(text))
        kinds = len(asked.keys() | told.keys())
        one, other = (sum(each.values()) + _SMOOTHING * kinds for each in (asked, told))
        self._unknown = math.log(other / one)
        # a bigram of documents alone is one of many: only what questions have is stored, the rest counts as seen once
        self._ratio = {
            pair: math.log((count + _SMOOTHING) / one) - math.log((told[pair] + _SMOOTHING) / other)
            for pair, count in asked.items()
        }
        self._documents = {
            pair: math.log(_SMOOTHING / one) - math.log((count + _SMOOTHING) / other)
            for pair, count in told.items()
            if pair not in asked
        }
        scale = []
        for values in self._figures([clean.texts[row] for row in aside]).T:
            middle, high = np.quantile(values, (0.5, _HIGH))
            scale += [float(middle), float(high - middle) or 1.0]
        self._scale = np.array(scale)

    def score(self, passages: Passages) -> Scores:
        """The larger of both figures, 0 being usual for clean text and 1 what one in a hundred clean texts exceeds."""
        found = self._figures(passages.texts)
        whole: Scores = ((found - self._scale[[0, 2]]) / self._scale[[1, 3]]).max(1)
        return whole

    def _figures(self, texts: Sequence[str]) -> Scores:
        """The most question-like window of each text, and its mean a bigram, [N, 2]."""
        return np.array([self._figures_of(text) for text in texts]).reshape(len(texts), 2)

    def _figures_of(self, text: str) -> tuple[float, float]:
        values = [self._ratio.get(pair, self._documents.get(pair, 0.0)) for pair in _bigrams(text)]
        if not values:
            return 0.0, 0.0
        sums = np.concatenate([[0.0], np.cumsum(values)])
        width = min(_QUESTION_WORDS, len(values))
        return float((sums[width:] - sums[:-width]).max()), float(np.mean(values))

    def state(self) -> dict[str, Any]:
        """Both models, and where clean text lies."""
        return {"ratio": self._ratio, "documents": self._documents, "unknown": self._unknown, "scale": self._scale}

    def restore(self, state: dict[str, Any]) -> None:
        """Take them up."""
        self._ratio, self._documents = state["ratio"], state["documents"]
        self._unknown, self._scale = float(state["unknown"]), state["scale"]


def turned(texts: Sequence[str]) -> list[str]:
    """Statements turned into questions that are answered by yes or no: the first auxiliary verb before its subject, and
    some words behind ("sea water is salty" -> "is sea water salty").
    """
    found = []
    for text in texts:
        for sentence in _SENTENCE.split(text)[:_SENTENCES]:
            words = [word for word in _TOKEN.findall(sentence.lower()) if word.isalnum()][:_TURNED_WORDS]
            place = next((n for n, word in enumerate(words) if n and word in _AUXILIARIES), 0)
            if place:
                found.append(" ".join([words[place], *words[:place], *words[place + 1 :]]))
    return found


def _bigrams(text: str) -> list[str]:
    words = [word for word in _TOKEN.findall(text.lower()) if word.isalnum()]
    return [f"{first} {second}" for first, second in itertools.pairwise(words)]
