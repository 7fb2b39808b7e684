"""Another package adds a detector by an entry point; thresholds keep the rate that they promise on clean texts."""

from __future__ import annotations

import numpy as np
import pytest

from lmlab import plugins
from lmlab.data import clean_threshold, make_detector
from lmlab.errors import UserError

PLUGIN = """
import numpy as np
from lmlab.errors import UserError

class Longer:
    name = "longer than clean texts"
    def fit(self, texts):
        self.mean = np.mean([len(text) for text in texts])
    def scores(self, texts):
        return np.array([len(text) / self.mean for text in texts])

def make(text):
    if not text.partition(":")[2]:
        raise UserError("longer: give a unit.", "Write longer:characters.")
    return Longer()

def make_nothing(text):
    return object()

def make_other(context):
    return context.encoder
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


def test_a_detector_is_found_by_its_name():
    detector = make_detector("longer:characters")
    detector.fit(["aaaa", "bb"])
    assert detector.scores(["c" * 6, "d"]).tolist() == [2.0, pytest.approx(1 / 3)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("longr:characters", "unknown detector 'longr'. Did you mean 'longer'?"),
        ("longer", "longer: give a unit."),
        ("nothing", "'longer_plugin:make_nothing' makes no detector: it lacks name, fit, scores."),
        ("other", "'longer_plugin:make_other' makes no detector of what it is given (AttributeError: 'str' object"),
        ("hubness", "makes no detector"),  # one that needs vectors
    ],
)
def test_what_is_no_detector_is_one_sentence(text, message):
    with pytest.raises(UserError) as caught:
        make_detector(text)
    assert message in caught.value.message


@pytest.mark.parametrize(("rate", "threshold"), [(0.0, 99.0), (0.01, 98.0), (0.015, 98.0), (0.05, 94.0), (0.99, 0.0)])
def test_at_most_the_rate_of_clean_texts_lies_above_the_threshold(rate, threshold):
    scores = np.random.default_rng(0).permutation(100).astype(float)
    assert clean_threshold(scores, rate) == threshold
    assert (scores > threshold).mean() <= rate


def test_ties_do_not_raise_the_rate():
    assert clean_threshold(np.array([1.0, 2, 2, 2]), 0.5) == 2.0


@pytest.mark.parametrize(("scores", "rate"), [([], 0.1), ([1.0, float("nan")], 0.1), ([1.0], 1.0), ([1.0], -0.1)])
def test_a_threshold_without_sense_is_refused(scores, rate):
    with pytest.raises(UserError):
        clean_threshold(np.array(scores), rate)
