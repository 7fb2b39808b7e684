"""What runs, files and figures may be called and hold: no name is a path, and no figure so far off that it rules."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from lmlab.errors import UserError
from lmlab.methods.ladder import RunTable, TwoStep, TwoStepSettings, check, write_table
from lmlab.methods.ladder.report import _interval_figure


@pytest.fixture(scope="module")
def ladder(synthetic):
    return synthetic(count=1, noise=0.003, checkpoints=20)


def swapped(table, run):
    """The table with another run in place of the one of the same name."""
    return replace(table, runs=tuple(run if each.name == run.name else each for each in table))


def test_a_run_may_have_any_name(lmlab, ladder, tmp_path):
    """A name that is longer than a path can be is no path."""
    table, _ = ladder
    names = ["L" * 5000, "../../other.csv", "two\nlines", "\x1b[31m", "<b>"]
    runs = [replace(run, name=name) for run, name in zip(table, names, strict=False)]
    path = write_table(RunTable((*runs, *table.runs[len(names) :])), tmp_path / "runs.csv")
    tasks_of_table = tmp_path / "tasks.toml"
    tasks_of_table.write_text('[task0]\nloss_keys = ["loss0"]\naccuracy_keys = ["acc0"]\nchance = 0.25\n')
    done = lmlab("ladder", "variance", path, "--task-file", tasks_of_table, "-o", tmp_path / "noise.csv")
    assert done.code == 0, done.err
    assert "\x1b[31m" not in done.out


def test_two_runs_of_one_name_are_refused(ladder):
    table, _ = ladder
    with pytest.raises(UserError, match="Two runs are called '190M-1xC'"):
        RunTable((*table.runs, replace(table.runs[3], name=table.runs[0].name)))


def exports_in(folder, count):
    """A run of the reference's format in a folder of its own."""
    folder.mkdir(parents=True)
    rows = "".join(f"{1e9 * k},{1.5 - 0.01 * k},{0.3 + 0.01 * k}\n" for k in range(1, count))
    (folder / "run.csv").write_text("throughput/total_tokens,loss0,acc0\n" + rows)
    (folder / "model.json").write_text('{"loss0": 0.9, "acc0": 0.5}')
    return folder


def listed(tmp_path):
    """A configuration with files of the same names, in folders of the same name."""
    for count, place in enumerate(("a/x", "b/x", "b/y"), 5):
        exports_in(tmp_path / place, count)
    entry = {"paths": ["*/*/run.csv"], "n": 1e6, "flops": 6e6}
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"1M": entry, "external": ["*/*/model.json"]}))
    return path


def test_files_of_one_name_in_folders_of_one_name_are_told_apart(tmp_path):
    table = RunTable.read(listed(tmp_path))
    assert sorted(run.name for run in table) == ["a/x/run", "b/x/run", "y/run"]
    assert sorted(table.external) == ["a/x/model", "b/x/model", "y/model"]
    assert len(table["b/x/run"]) == len(table["a/x/run"]) + 1


@pytest.mark.parametrize("file", ["a/x/run.csv", "b/y/model.json"])
def test_no_file_that_a_configuration_lists_is_written_over(lmlab, tmp_path, file):
    config, kept = listed(tmp_path), tmp_path / file
    before = kept.read_bytes()
    command = ("collect", config) if kept.suffix == ".csv" else ("fit", config)
    done = lmlab("ladder", *command, "-o", kept)
    assert done.code == 2 and "would be written over" in " ".join(done.err.split()), done.err
    assert kept.read_bytes() == before


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"flops_per_token": 1e20}, "FLOPs a token over 6 N = 8.76e\\+10, 1e11 times those of the other runs"),
        ({"metadata": {"epochs": 1e9}}, "D, as its repeated data count, = 62.4, 1e-9 times"),
    ],
)
def test_what_a_law_reads_of_a_run_is_not_far_off_that_of_the_others(ladder, changes, said):
    table, tasks = ladder
    with pytest.raises(UserError, match=said):
        check(swapped(table, replace(table.runs[0], **changes)), tasks)
    alike = [replace(run, flops_per_token=1e308) for run in table]
    with pytest.raises(UserError, match="more in all than numbers reach"):
        check(RunTable(tuple(alike)), tasks)


def test_a_rate_far_above_its_peak_is_told_in_few_digits(ladder):
    run = ladder[0].runs[0]
    run = replace(run, lr=np.full(len(run), 0.1), lr_peak=1e-308)
    assert run.unfinished == "its learning rate ends above the peak, at 1e+307 times of it"


def test_runs_of_one_length_tell_nothing_of_a_longer_training(synthetic):
    table, tasks = synthetic(sizes=[2.0**k * 5e7 for k in range(6)], multiples=(1.0,), noise=0.003)
    forecaster = TwoStep(replicates=20).fit(table, tasks)
    near, far = (forecaster.predict(7e9, 20 * 7e9 * multiple) for multiple in (1, 20))
    for each in (near, far):
        assert any("one length, 20 tokens a parameter" in flag for flag in each.diagnostics["flags"])
    assert near.hi - near.lo < (far.hi - far.lo) / 2


def test_a_figure_draws_the_name_of_a_task_as_text(synthetic):
    table, tasks = synthetic(noise=0.003, checkpoints=20)
    named = tasks[0].model_copy(update={"display_name": "<b>bold & <a href='https://example.org'>link"})
    forecaster = TwoStep(TwoStepSettings(delta=None), 20).fit(table, named, calibrated=False)
    figure = _interval_figure(forecaster, forecaster.predict_all(7e9, 4e12), None)
    assert list(figure.data[0].y) == ["&lt;b&gt;bold &amp; &lt;a href='https://example.org'&gt;link"]
