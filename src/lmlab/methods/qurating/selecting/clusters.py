"""Topics of a corpus: k-means on compressed TF-IDF vectors (QuRating, appendix on topic clusters)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

_TOKEN = re.compile(r"(?u)\b\w\w+\b")
_NUMBER = "#number"


@dataclass(frozen=True)
class Clusters:
    """Topics.

    Attributes:
        labels: number of each text's topic.
        terms: the terms that stand out in each topic, the strongest first.
    """

    labels: NDArray[np.int64]
    terms: list[list[str]]

    def name(self, number: int) -> str:
        """A topic for people."""
        return " ".join(self.terms[number][:4]) or f"topic {number}"


def cluster_texts(
    texts: Sequence[str], clusters: int = 25, dimensions: int = 128, iterations: int = 20, seed: int = 42, top: int = 10
) -> Clusters:
    """Find topics; terms that begin with a digit are one term."""
    from sklearn.cluster import KMeans
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.preprocessing import normalize

    vectorizer = TfidfVectorizer(
        tokenizer=_terms,
        token_pattern=None,
        stop_words="english",
        max_features=50_000,  # terms: rarer ones tell few texts apart, and take memory
        min_df=2 if len(texts) > 50 else 1,  # a term of one text groups nothing
    )
    try:
        vectors = vectorizer.fit_transform(texts)
    except ValueError:  # no terms at all
        return Clusters(np.zeros(len(texts), np.int64), [[]])
    count = max(1, min(clusters, len(texts)))
    size = min(dimensions, vectors.shape[1] - 1, len(texts) - 1)
    if size < 1:
        return Clusters(np.zeros(len(texts), np.int64), [list(vectorizer.get_feature_names_out()[:top])])
    compress = TruncatedSVD(size, random_state=seed)
    points = normalize(compress.fit_transform(vectors))
    means = KMeans(count, max_iter=iterations, n_init=1, random_state=seed).fit(points)
    weights: Any = compress.inverse_transform(means.cluster_centers_)
    names = vectorizer.get_feature_names_out()
    terms = [[str(names[place]) for place in np.argsort(-row)[:top] if row[place] > 0] for row in weights]
    return Clusters(means.labels_.astype(np.int64), terms)


def _terms(text: str) -> list[str]:
    return [_NUMBER if word[0].isdigit() else word for word in _TOKEN.findall(text.lower())]
