"""What a run says of the time that is left."""

import pytest

from lmlab.progress import Pace


def test_a_slow_first_step_foretells_nothing(monkeypatch):
    """A minute of loading before steps of a second: "100 min left" would be wrong by a hundred."""
    monkeypatch.setattr("time.monotonic", lambda: 0.0)
    pace = Pace()
    foretold = []
    for step in range(100):
        pace.advance(1, 60.0 + step)
        foretold.append(pace.left(100))
    assert foretold[:5] == [None] * 5
    assert foretold[5:] == pytest.approx([94.0 - step for step in range(95)])


def test_a_resumed_run_counts_what_is_done_now(monkeypatch):
    monkeypatch.setattr("time.monotonic", lambda: 0.0)
    pace = Pace(900)
    for step in range(20):
        pace.advance(1, 2.0 * (step + 1))
    assert pace.rate == pytest.approx(0.5) and pace.left(1000) == pytest.approx(160)
    assert pace.left(None) is None and Pace().left(5) is None
