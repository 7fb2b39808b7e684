"""Clusters of queries, one passage for each: fitted once, stored, and refused for another encoder."""

from __future__ import annotations

import io
import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from lmlab.config import differences
from lmlab.errors import UserError, reads
from lmlab.files import atomic_file, parse_json
from lmlab.methods.corpus_poisoning.attack.searching.objective import Coverage
from lmlab.words import counted

_MINI_BATCH_ABOVE = 200_000  # queries: Lloyd's algorithm goes through all of them in every round
_MOST_COVERED = 50_000  # queries that vectors are fitted on: more change them little
_STEPS, _STEP = 60, 0.01  # of Adam; on ten vectors of 384 dimensions nothing is gained after 40
_LEAST = 2  # queries of a cluster; smaller ones join their nearest


@dataclass(frozen=True)
class Clusters:
    """A partition of queries.

    Attributes:
        labels_n: the cluster of each query; clusters are numbered by size, largest first.
        centroids_kH: mean of each cluster's vectors.
        inertia: summed squared distances.
        merged: how many clusters were too small and joined others.
        about: what they were fitted on.
    """

    labels_n: NDArray[np.int64]
    centroids_kH: NDArray[np.float32]
    inertia: float
    merged: int
    about: dict[str, Any]

    def __len__(self) -> int:
        return len(self.centroids_kH)

    @property
    def sizes(self) -> list[int]:
        """Queries of each cluster."""
        return np.bincount(self.labels_n, minlength=len(self)).tolist()

    @property
    def perfect_kH(self) -> NDArray[np.float32]:
        """The centroids with length 1, as if they were passages: the ceiling of attacks by mean similarity."""
        return self.centroids_kH / np.maximum(np.linalg.norm(self.centroids_kH, axis=1, keepdims=True), 1e-12)

    def save(self, path: str | Path) -> None:
        """Write it; no pickle."""
        path = Path(path)
        buffer = io.BytesIO()
        np.savez(
            buffer,
            labels=self.labels_n,
            centroids=self.centroids_kH,
            inertia=np.float64(self.inertia),
            merged=np.int64(self.merged),
            about=np.frombuffer(json.dumps(self.about, sort_keys=True).encode(), np.uint8),
        )
        with atomic_file(path) as file:
            file.write(buffer.getvalue())

    @classmethod
    @reads("a file of clusters")
    def load(cls, path: str | Path, about: dict[str, Any] | None = None) -> Clusters:
        """Read it.

        Arguments:
            about: what it must be of.

        Raises:
            UserError: it is of something else; the message says in which fields.
        """
        path = Path(path)
        with np.load(path, allow_pickle=False) as file:
            found = cls(
                file["labels"],
                file["centroids"],
                float(file["inertia"]),
                int(file["merged"]),
                parse_json(file["about"].tobytes(), f"'{path}'"),
            )
        if about is not None and (told := differences(found.about, about)):
            raise UserError(f"The clusters '{path}' belong to something else: {told}.", "Choose another folder.")
        return found


def require_distinct(vectors_nH: NDArray[np.float32], k: int) -> None:
    """Refuse more clusters than there are distinct queries.

    Raises:
        UserError: k is above their number.
    """
    distinct = len(np.unique(vectors_nH, axis=0))
    if k > distinct:
        raise UserError(
            f"{counted(k, 'clusters')} of {counted(distinct, 'distinct queries')} cannot be made.", "Lower k."
        )


def cluster_queries(
    vectors_nH: NDArray[np.float32], k: int, seed: int = 0, spherical: bool = False, about: dict[str, Any] | None = None
) -> Clusters:
    """k-means (k-means++ starts) on vectors of length 1.

    Arguments:
        spherical: give centroids length 1 after the fit and assign queries to them anew.

    Raises:
        UserError: k is above the number of distinct queries.
    """
    require_distinct(vectors_nH, k)
    from sklearn.cluster import KMeans, MiniBatchKMeans
    from sklearn.exceptions import ConvergenceWarning

    unit = vectors_nH / np.maximum(np.linalg.norm(vectors_nH, axis=1, keepdims=True), 1e-12)
    if k == 1:
        labels = np.zeros(len(unit), np.int64)
    else:
        kind = MiniBatchKMeans if len(unit) > _MINI_BATCH_ABOVE else KMeans
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            fitted = kind(k, init="k-means++", n_init=1, random_state=seed).fit(unit)
        labels = fitted.labels_.astype(np.int64)
        if spherical:
            centers = fitted.cluster_centers_ / np.linalg.norm(fitted.cluster_centers_, axis=1, keepdims=True)
            labels = (unit @ centers.T).argmax(1)
    labels, merged = _merge_small(unit, labels, k)
    order = np.argsort(-np.bincount(labels), kind="stable")
    labels = np.argsort(order)[labels]
    count = int(labels.max()) + 1
    centroids = np.stack([vectors_nH[labels == number].astype(np.float64).mean(0) for number in range(count)])
    means = np.stack([unit[labels == number].mean(0) for number in range(count)])
    inertia = float(((unit - means[labels]) ** 2).sum())
    return Clusters(labels, centroids.astype(np.float32), inertia, merged, about or {})


def cover_queries(
    clusters: Clusters, vectors_nH: NDArray[np.float32], tau_n: NDArray[np.float32], seed: int = 0
) -> Clusters:
    """Vectors of length 1 that together cover as many queries as they can, found from clusters' centroids: the coverage
    objective over all queries, the soft maximum over all vectors. A query then belongs to the vector nearest to it, and
    vectors of fewer than two queries are given up. What passages aim at is so known before the network is asked at all.

    Arguments:
        vectors_nH: of length 1.
        tau_n: what a passage must pass for each query.
    """
    rows = np.sort(np.random.default_rng(seed).permutation(len(vectors_nH))[:_MOST_COVERED])
    objective = Coverage(torch.from_numpy(vectors_nH[rows]).double(), torch.from_numpy(tau_n[rows]).double())
    free_kH = torch.from_numpy(clusters.perfect_kH.copy()).double().requires_grad_()
    optimizer = torch.optim.Adam([free_kH], lr=_STEP)
    with torch.enable_grad():
        for _ in range(_STEPS):
            optimizer.zero_grad()
            (-objective.of_all(F.normalize(free_kH, dim=1))).backward()
            optimizer.step()
    found: NDArray[np.float32] = F.normalize(free_kH.detach(), dim=1).float().numpy()
    sizes = np.bincount((vectors_nH @ found.T).argmax(1), minlength=len(found))
    found = found[sizes >= min(_LEAST, int(sizes.max()))]
    labels = (vectors_nH @ found.T).argmax(1)
    order = np.argsort(-np.bincount(labels, minlength=len(found)), kind="stable")
    labels, found = np.argsort(order)[labels], found[order]
    inertia = float(((vectors_nH - found[labels]) ** 2).sum())
    given_up = len(clusters) - len(found)
    return Clusters(labels.astype(np.int64), found, inertia, clusters.merged + given_up, clusters.about)


def _merge_small(unit_nH: NDArray[np.float32], labels: NDArray[np.int64], k: int) -> tuple[NDArray[np.int64], int]:
    """Join clusters of fewer than two queries to their nearest; number the rest anew."""
    sizes = np.bincount(labels, minlength=k)
    kept = np.flatnonzero(sizes >= _LEAST)
    if len(kept) == 0 or len(kept) == k:
        return np.unique(labels, return_inverse=True)[1], k - len(np.unique(labels))
    means = np.stack([unit_nH[labels == number].mean(0) for number in kept])
    place = {int(number): row for row, number in enumerate(kept)}
    joined = np.array(
        [
            place[int(label)] if int(label) in place else int((means @ unit_nH[row]).argmax())
            for row, label in enumerate(labels)
        ],
        np.int64,
    )
    return joined, k - len(kept)
