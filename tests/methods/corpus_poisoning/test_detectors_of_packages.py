"""Another package adds a detector by an entry point, and a gate asks it."""

from __future__ import annotations

import numpy as np
import pytest

from lmlab import plugins
from lmlab.errors import UserError
from lmlab.methods.corpus_poisoning import DetectorContext, Passages, make_detector

PLUGIN = """
import numpy as np

class Longer:
    def fit(self, clean):
        self.mean = np.mean([len(text) for text in clean.texts])
    def score(self, passages):
        return np.array([len(text) / self.mean for text in passages.texts])
    def state(self):
        return {"mean": float(self.mean)}
    def restore(self, state):
        self.mean = state["mean"]

def make(context):
    return Longer()

def make_nothing(context):
    return object()

def make_other(text):
    return text.partition(":")
"""


@pytest.fixture(autouse=True)
def _installed(tmp_path, monkeypatch):
    (tmp_path / "longer_plugin.py").write_text(PLUGIN)
    info = tmp_path / "longer_plugin-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Name: longer-plugin\nVersion: 1\n")
    points = "longer = longer_plugin:make\nnothing = longer_plugin:make_nothing\nother = longer_plugin:make_other\n"
    (info / "entry_points.txt").write_text(f"[lmlab.detectors]\n{points}")
    monkeypatch.syspath_prepend(str(tmp_path))
    plugins.places.cache_clear()
    yield
    monkeypatch.undo()
    plugins.places.cache_clear()


def test_a_detector_is_found_by_its_name_beside_those_of_the_method():
    detector = make_detector("longer", DetectorContext(None))
    vectors = np.ones((2, 3), np.float32)
    detector.fit(Passages(["aaaa", "bb"], vectors))
    assert detector.score(Passages(["c" * 6, "d"], vectors)).tolist() == [2.0, pytest.approx(1 / 3)]
    assert {"hubness", "longer"} <= set(plugins.known("detectors"))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("longr", "unknown detector 'longr'. Did you mean 'longer'?"),
        ("nothing", "'longer_plugin:make_nothing' makes no detector: it lacks fit, score, state, restore."),
        ("other", "'longer_plugin:make_other' makes no detector of what it is given (AttributeError: 'Detector"),
    ],
)
def test_what_is_no_detector_is_one_sentence(name, message):
    with pytest.raises(UserError) as caught:
        make_detector(name, DetectorContext(None))
    assert message in caught.value.message
