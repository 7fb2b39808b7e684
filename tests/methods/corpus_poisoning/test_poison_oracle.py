"""The optimizers against a victim whose best passage is nearly known: a static encoder, of which a passage's vector is
the mean of its words' vectors.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lmlab.methods.corpus_poisoning import Budget, MeanSimilarity, Problem, optimize
from lmlab.methods.corpus_poisoning.attack.vocabulary import allowed_ids
from lmlab.retrieval.encoders.directory import static_encoder
from tiny_retriever import wordpiece

LENGTH, WIDTH = 12, 24


@pytest.fixture(scope="module")
def victim():
    from lmlab.retrieval.encoders.words import EncoderTokenizer

    names = {"unk_token": "[UNK]", "sep_token": "[SEP]", "pad_token": "[PAD]", "cls_token": "[CLS]"}
    tokenizer = EncoderTokenizer(wordpiece(), names, add_special=False)
    generator = torch.Generator().manual_seed(0)
    encoder = static_encoder(torch.randn(tokenizer.vocab_size, WIDTH, generator=generator), tokenizer)
    queries = torch.nn.functional.normalize(torch.randn(40, WIDTH, generator=generator) + 0.6, dim=-1)
    return encoder, MeanSimilarity.of(queries)


def greedy_and_swap(table_VD: np.ndarray, mu_H: np.ndarray, length: int) -> float:
    """The best passage that adding the best word, then exchanging single words until nothing gains, finds; by vectors
    alone, every word at every position.
    """

    def values(sums: np.ndarray) -> np.ndarray:
        return sums @ mu_H / np.linalg.norm(sums, axis=-1)

    words: list[int] = []
    for _ in range(length):
        words.append(int(values(table_VD[words].sum(0) + table_VD).argmax()))
    value = float(values(table_VD[words].sum(0)))
    while True:
        rest = table_VD[words].sum(0) - table_VD[words]  # [L, D]
        found = values(rest[:, None] + table_VD[None])
        place, word = np.unravel_index(found.argmax(), found.shape)
        if found[place, word] <= value + 1e-9:
            return value
        words[place], value = int(word), float(found[place, word])


def test_multiflip_comes_near_the_best_that_is_known(victim):
    encoder, objective = victim
    allowed = allowed_ids(encoder.tokenizer)
    table = encoder.embedding_matrix_VD[torch.from_numpy(allowed)].double().numpy()
    best = greedy_and_swap(table, objective.mu_H.double().numpy(), LENGTH)
    bound = objective.bound
    assert bound is not None and 0.5 * bound < best <= bound
    reached = []
    for seed in range(3):
        problem = Problem(encoder, objective, allowed, np.ones(LENGTH, bool), Budget(1300))
        start = np.random.default_rng(seed).choice(allowed, LENGTH)
        reached.append(optimize(problem, start, seed=seed).value)
        assert problem.budget.spent <= 1301
    assert min(reached) >= 0.98 * best and max(reached) <= bound
