"""In which order searches go through the examples."""

from __future__ import annotations

import time
from itertools import chain, pairwise

from lmlab.methods.edge_pruning.masking.numbers import loader_of


def _numbers(loader) -> list[list[int]]:
    return [batch["example"].tolist() for batch in loader]


def _flat(batches) -> list[int]:
    return list(chain.from_iterable(batches))


def test_every_epoch_has_all_examples_in_an_order_of_its_own():
    batches = _numbers(loader_of(12, 9, 4, seed=3))
    assert len(batches) == 9 and batches == _numbers(loader_of(12, 9, 4, seed=3))
    epochs = [_flat(batches[first : first + 3]) for first in (0, 3, 6)]
    assert all(sorted(epoch) == list(range(12)) for epoch in epochs)
    assert all(one != other for one, other in pairwise([*epochs, _flat(_numbers(loader_of(12, 3, 4, seed=4)))]))


def test_a_loader_goes_on_with_the_rest_and_processes_share_its_batches():
    whole, first = _numbers(loader_of(5, 7, 4, seed=0)), loader_of(5, 7, 4, seed=0)
    begun = iter(first)
    begun_batches = [next(begun)["example"].tolist() for _ in range(3)]
    again = loader_of(5, 7, 4, seed=0)
    again.restore(first.state())
    assert begun_batches + _numbers(again) == whole
    shares = [_numbers(loader_of(5, 7, 4, 0, rank, 2)) for rank in range(2)]
    assert [[a, c, b, d] for (a, b), (c, d) in zip(*shares, strict=True)] == whole


def test_the_order_of_few_examples_costs_far_less_than_a_step():
    begin = time.process_time()
    _numbers(loader_of(48, 300, 32, seed=0))
    assert time.process_time() - begin < 1.5  # the loader's own shuffle takes 8 s for them
