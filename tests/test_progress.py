"""What a run says of the time that is left."""

import time

import pytest

from lmlab.progress import Pace, progress, short, with_unit


def test_work_whose_first_piece_takes_long_says_that_it_goes_on(monkeypatch, capsys):
    monkeypatch.setattr("lmlab.progress._LINE_INTERVAL_S", 0.1)
    monkeypatch.setattr("lmlab.progress._SILENCE_S", 60.0)
    with progress("infer", 2, "answers") as advance:
        time.sleep(0.4)
        advance()
    said = capsys.readouterr().err.splitlines()
    assert said[0].startswith("  infer: 0/2 answers after 0.") and not any("0/2" in line for line in said[1:])


def test_work_that_is_quick_or_has_ended_says_nothing_more(monkeypatch, capsys):
    monkeypatch.setattr("lmlab.progress._LINE_INTERVAL_S", 0.1)
    with pytest.raises(ValueError, match="broken"), progress("infer", 2, "answers"):
        raise ValueError("broken")
    time.sleep(0.3)
    assert capsys.readouterr().err == ""


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


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (950, "950"),
        (999.4, "999"),
        (999.6, "1k"),
        (999_499, "999k"),
        (999_900, "1M"),
        (-2500, "-2.5k"),
        (7.1e21, "7.1e+21"),
        (float("inf"), "inf"),
    ],
)
def test_a_short_number_has_three_digits_and_one_unit(value, written):
    """Rounding may reach the next unit, and what is beyond all units has an exponent in place of one."""
    assert short(value) == written


def test_the_unit_of_a_quantity_stands_apart_with_its_prefix():
    assert with_unit(1.82e11, "FLOP/s") == "182 GFLOP/s" and with_unit(7e21, "FLOP") == "7e+21 FLOP"
