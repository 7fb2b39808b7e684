"""Training retrievers: InfoNCE (van den Oord et al. 2018) over the documents of a batch, hard negatives among them.

Shapes: B queries, N documents of a query (its own first, then hard negatives), T tokens, H width of a vector.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from lmlab.data import Batch
from lmlab.models.pooling import PoolingMode, pool
from lmlab.train.steps.step import StepFunction, StepOutput


@dataclass(frozen=True)
class ContrastiveExample:
    """A query's ids, and those of its documents: one that answers it, then hard negatives. Documents are numbered, so
    that the same one is no negative of a query that it answers.
    """

    query: Sequence[int]
    documents: Sequence[Sequence[int]]
    numbers: Sequence[int]


class ContrastiveRows:
    """Examples as rows of equal shape.

    Arguments:
        examples: all with the same number of documents.

    Raises:
        ValueError: they have not.
    """

    def __init__(self, examples: Sequence[ContrastiveExample], pad_id: int = 0) -> None:
        if len({len(example.documents) for example in examples}) != 1:
            raise ValueError("examples have different numbers of documents")
        self._examples, self._pad = examples, pad_id
        self._query_length = max(len(example.query) for example in examples)
        self._document_length = max(len(ids) for example in examples for ids in example.documents)

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        example = self._examples[index]
        queries, query_mask = self._padded([example.query], self._query_length)
        documents, mask = self._padded(example.documents, self._document_length)
        return {
            "query_ids": queries[0],
            "query_mask": query_mask[0],
            "document_ids": documents,
            "document_mask": mask,
            "document_numbers": np.array(example.numbers, np.int64),
        }

    def _padded(self, rows: Sequence[Sequence[int]], length: int) -> tuple[Any, Any]:
        ids = np.full((len(rows), length), self._pad, np.int64)
        mask = np.zeros((len(rows), length), bool)
        for number, row in enumerate(rows):
            ids[number, : len(row)] = row
            mask[number, : len(row)] = True
        return ids, mask


def contrastive_step(
    pooling: tuple[PoolingMode, ...] = ("mean",),
    temperature: float = 0.05,
    normalize: bool = True,
    skipped: tuple[int, int] = (0, 0),
) -> StepFunction:
    """A step function on `ContrastiveRows`: minus the log-share of each query's own document among all documents of the
    micro-batch; logs how often that is the nearest, as `accuracy`.

    Arguments:
        temperature: similarities are divided by it.
        normalize: compare by cosine.
        skipped: so many first tokens of queries, and of documents, are not pooled (prompts).
    """

    def vectors(model: Any, ids_BT: Tensor, mask_BT: Tensor, skip: int) -> Tensor:
        hidden_BTD = model(ids_BT, attention_mask_BT=mask_BT, logits="none").hidden_BTD
        pooled_BH = pool(hidden_BTD, mask_BT, pooling, skip)
        return F.normalize(pooled_BH, dim=-1) if normalize else pooled_BH

    def step(model: Any, batch: Batch) -> StepOutput:
        queries_BH = vectors(model, batch["query_ids"], batch["query_mask"], skipped[0])
        numbers = batch["document_numbers"]
        ids, mask = batch["document_ids"].flatten(0, 1), batch["document_mask"].flatten(0, 1)
        documents = vectors(model, ids, mask, skipped[1])
        with torch.autocast(queries_BH.device.type, enabled=False):  # in bf16 similar documents would tie
            logits = queries_BH @ documents.T / temperature
        own = torch.arange(len(queries_BH), device=logits.device) * numbers.shape[1]
        same = numbers.flatten()[None] == numbers[:, :1]
        same[torch.arange(len(own), device=logits.device), own] = False
        logits = logits.masked_fill(same, float("-inf"))
        loss = F.cross_entropy(logits, own, reduction="sum")
        count = torch.tensor(len(own), device=logits.device)
        right = (logits.argmax(1) == own).sum()
        return StepOutput(loss, count, {"accuracy": (right, count)})

    return step
