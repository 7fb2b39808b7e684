"""Passages against retrievers of late interaction: what stands for a query's vector, and the objective.

A query is a vector for each token, and no mean of queries stands for them (`MaxSim`). Clusters, and the order of
questions in the start, are those of the mean of a query's vectors.

Shapes: n queries, H width of a vector.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from lmlab.errors import UserError
from lmlab.methods.corpus_poisoning.attack.searching.objective import MaxSim
from lmlab.methods.corpus_poisoning.config import CraftConfig
from lmlab.retrieval import LateEncoder
from lmlab.retrieval.config import Precision

_MOST_QUERIES = 256  # of a cluster, drawn once: each candidate is compared with all tokens of all of them


def check_late(config: CraftConfig) -> None:
    """Refuse what needs one vector for a text.

    Raises:
        UserError: with the setting's name.
    """
    asked = {
        "objective coverage": config.objective == "coverage",
        "optimizer decode": config.optimizer == "decode",
        "known_gate": config.known_gate is not None,
        "norm_cap": config.norm_cap is not None,
        "target_asr": config.target_asr is not None,
    }
    if given := [name for name, is_asked in asked.items() if is_asked]:
        raise UserError(
            f"A retriever of late interaction has no one vector for a text, which {given[0]} needs.", "Leave it out."
        )


def late_means(encoder: LateEncoder, texts: Sequence[str], precision: Precision = "fp32") -> NDArray[np.float32]:
    """The mean of each query's vectors, at length 1, [n, H]."""
    found = np.array([each.mean(0) for each in encoder.encode_text(list(texts), "query", precision)], np.float32)
    lengths: NDArray[np.float32] = np.linalg.norm(found, axis=1, keepdims=True)
    return (found / np.maximum(lengths, 1e-12)).astype(np.float32)


def late_objective(encoder: LateEncoder, texts: Sequence[str], seed: int) -> MaxSim:
    """The mean score with a cluster's queries, or with some of them, drawn by the seed."""
    rows = np.sort(np.random.default_rng(seed).permutation(len(texts))[:_MOST_QUERIES])
    vectors = encoder.encode_text([texts[row] for row in rows.tolist()], "query")
    return MaxSim.of([torch.from_numpy(each).to(encoder.device) for each in vectors])
