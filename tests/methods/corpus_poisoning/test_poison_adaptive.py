"""An attacker who knows a gate: passages pay for what it sees, and their figures stay those of the passages."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lmlab.errors import UserError
from lmlab.methods.corpus_poisoning import AdmissionGate, CraftConfig, DetectorContext, MeanSimilarity, Passages, craft

FAST = {"length": 10, "evaluations": 400, "candidates": 12, "precision": "fp32", "k": 2}


@pytest.fixture(scope="module")
def clean(target):
    return Passages(target.data.corpus.texts, target.documents)


def gate_of(target, clean, names, place):
    context = DetectorContext(
        target.retriever.encoder, target.index, list(target.data.queries.texts[20:]), target.queries()[20:]
    )
    rows = range(len(clean))
    gate = AdmissionGate.fit(names, context, clean.part(rows[::2]), clean.part(rows[1::2]), 0.05)
    gate.save(place)
    return gate


def crafted(target, out, **changes):
    config = CraftConfig(**{**FAST, **changes})
    return craft(target.retriever.spec, target.data.queries.texts[:20], target.queries()[:20], config, out)


def test_a_known_gate_sees_less_and_what_is_reported_is_the_similarity(target, clean, tmp_path):
    gate = gate_of(target, clean, ["similarity", "questions"], tmp_path / "gate")
    encoder = target.retriever.encoder
    plain = crafted(target, tmp_path / "plain")
    aware = crafted(target, tmp_path / "aware", known_gate=tmp_path / "gate", gate_weight=0.5)
    seen = [gate.excess(Passages.of(each.passages.texts, encoder)).sum() for each in (plain, aware)]
    assert seen[1] < 0.5 * seen[0] and plain.run != aware.run
    for number, passage in enumerate(aware.passages.passages):
        own = target.queries()[:20][aware.clusters.labels_n == number]
        value = float(
            MeanSimilarity.of(torch.from_numpy(own))(torch.from_numpy(encoder.encode_text([passage.text])))[0]
        )
        assert passage.objective_text == pytest.approx(value, abs=1e-5)
    # a gate of other contents is another run, one that was only moved is the same
    (tmp_path / "moved").mkdir()
    for path in (tmp_path / "gate").iterdir():
        (tmp_path / "moved" / "gate").mkdir(exist_ok=True)
        (tmp_path / "moved" / "gate" / path.name).write_bytes(path.read_bytes())
    again = crafted(target, tmp_path / "again", known_gate=tmp_path / "moved" / "gate", gate_weight=0.5)
    assert again.run == aware.run and again.passages.texts == aware.passages.texts


def test_a_detector_with_a_network_of_its_own_is_asked_about_the_best_only(target, clean, tmp_path):
    gate = gate_of(target, clean, ["norm"], tmp_path / "gate")
    asked = []
    score = gate.detectors["norm"].score
    gate.detectors["norm"].score = lambda passages: asked.append(len(passages)) or score(passages)  # type: ignore[method-assign]
    from lmlab.methods.corpus_poisoning.attack.adaptive import GateKnown

    known = GateKnown(gate, lambda ids: " ".join(map(str, ids)), 1.0)
    vectors = target.documents[:20]
    values = np.linspace(0, 1, 20)
    left = values - known(np.ones((20, 4), np.int64), vectors, values)
    assert asked == [8] and left[:12].max() <= left[12:].min() + 1e-12


def test_gates_that_cannot_be_known_are_refused(target, clean, tmp_path):
    gate_of(target, clean, ["near_duplicate"], tmp_path / "pairs")
    with pytest.raises(UserError, match="near_duplicate, which one passage at a time says nothing of"):
        crafted(target, tmp_path / "out", known_gate=tmp_path / "pairs")
    with pytest.raises(UserError, match="holds no gate"):
        crafted(target, tmp_path / "out", known_gate=tmp_path / "nothing")
    assert not (tmp_path / "out").exists()
