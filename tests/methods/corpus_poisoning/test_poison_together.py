"""Several passages in one batch: the same questions and answers as one after another."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from lmlab.errors import Interrupted, UserError
from lmlab.methods.corpus_poisoning import CraftConfig, MeanSimilarity, craft
from lmlab.methods.corpus_poisoning.attack.searching.problem import NotFiniteError
from lmlab.methods.corpus_poisoning.attack.searching.together import Network, run_together

FAST = {"k": 5, "length": 8, "evaluations": 160, "candidates": 12}


def test_what_each_search_gets_is_its_own(target):
    encoder = target.retriever.encoder
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randint(6, 60, (count, 10), generator=generator) for count in (3, 1, 4)]
    objectives = [MeanSimilarity(torch.randn(32, generator=generator)) for _ in rows]
    alone = Network(encoder)
    found: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def search(number: int):
        def run(network: Network):
            for _ in range(number + 1):  # some end before others
                vectors = network.vectors(rows[number], "fp32")
                (gradient,) = network.gradients([rows[number]], [objectives[number]])
            return vectors, gradient

        return run

    run_together(encoder, [search(number) for number in range(3)], found.__setitem__)
    for number, (vectors, gradient) in found.items():
        assert torch.allclose(vectors, alone.vectors(rows[number], "fp32"), atol=1e-6)
        (expected,) = alone.gradients([rows[number]], [objectives[number]])
        assert torch.allclose(gradient, expected, atol=1e-6)
    assert len(found) == 3


def test_passages_are_the_same_every_time_and_as_good_as_one_by_one(target, tmp_path):
    given = (target.retriever.spec, target.data.queries.texts, target.queries())
    at_once = CraftConfig(**FAST, together=3)  # three, then two
    one, two = (craft(*given, at_once, tmp_path / name) for name in ("one", "two"))
    assert (tmp_path / "one" / "adversarial.jsonl").read_bytes() == (
        tmp_path / "two" / "adversarial.jsonl"
    ).read_bytes()
    alone = craft(*given, CraftConfig(**FAST), tmp_path / "alone")
    assert len(one.passages) == len(alone.passages) == 5 and one.run != alone.run
    values = [[each.objective_text for each in found.passages.passages] for found in (one, alone)]
    assert np.mean(values[0]) == pytest.approx(np.mean(values[1]), abs=0.02)
    assert one.evaluations <= 5 * 170 and two.evaluations == one.evaluations
    with pytest.raises(ValidationError, match="together is for one process"):
        CraftConfig(together=2, workers=2)


def test_a_group_that_was_cut_off_is_made_again_whole_and_the_same(target, tmp_path, monkeypatch):
    given = (target.retriever.spec, target.data.queries.texts, target.queries(), CraftConfig(**FAST, together=3))
    whole = craft(*given, tmp_path)
    written = (tmp_path / "adversarial.jsonl").read_bytes()
    (tmp_path / "clusters" / f"{whole.run}-00001.json").unlink()
    sizes = []

    def counted(encoder, searches, done):
        sizes.append(len(searches))
        run_together(encoder, searches, done)

    monkeypatch.setattr("lmlab.methods.corpus_poisoning.attack.craft.run_together", counted)
    craft(*given, tmp_path)
    assert sizes == [3] and (tmp_path / "adversarial.jsonl").read_bytes() == written


def test_a_search_that_fails_or_is_stopped_ends_all_and_what_is_done_stays(target, tmp_path, monkeypatch):
    encoder = target.retriever.encoder
    rows = torch.randint(6, 60, (2, 10))

    def fails(network):
        network.vectors(rows, "fp32")
        raise UserError("no luck")

    def goes_on(network):
        return [network.vectors(rows, "fp32") for _ in range(3)]

    done = {}
    with pytest.raises(UserError, match="no luck"):
        run_together(encoder, [fails, goes_on], done.__setitem__)
    assert list(done) == [1]
    monkeypatch.setattr(Network, "vectors", lambda self, rows, precision: (_ for _ in ()).throw(NotFiniteError("odd")))
    with pytest.raises(NotFiniteError, match="odd"):  # an error of the batch is told to all who asked
        run_together(encoder, [goes_on, goes_on], done.__setitem__)
    monkeypatch.undo()

    join = threading.Thread.join

    def interrupted(self, timeout=None):
        monkeypatch.setattr(threading.Thread, "join", join)
        raise KeyboardInterrupt

    monkeypatch.setattr(threading.Thread, "join", interrupted)
    config = CraftConfig(**{**FAST, "evaluations": 5000}, together=5)
    before = set(threading.enumerate())  # other tests of the process may have left some
    with pytest.raises(Interrupted, match="Stopped after . of 5 passages"):
        craft(target.retriever.spec, target.data.queries.texts, target.queries(), config, tmp_path)
    assert not set(threading.enumerate()) - before
