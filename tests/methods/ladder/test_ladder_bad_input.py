"""What goes wrong, and what is said about it."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lmlab.errors import UserError
from lmlab.methods.ladder import Run, RunTable, TaskRegistry, TwoStep, TwoStepSettings, fit_chain, logs
from lmlab.methods.ladder.analysis.diagnose import check_identifiable, distance, report_step
from lmlab.methods.ladder.checking.alike import mismatches
from lmlab.methods.ladder.checking.checks import check
from lmlab.methods.ladder.checking.slips import oddities
from lmlab.methods.ladder.fitting.points import collect_points
from lmlab.methods.ladder.tables.csv_runs import read_csv_run
from lmlab.methods.ladder.tables.own_table import write_table
from lmlab.methods.ladder.tables.read import read_table
from lmlab.methods.ladder.tables.reference_config import read_reference_config
from lmlab.methods.ladder.tables.spreadsheets import write_csv
from lmlab.methods.ladder.tables.write import to_latex

LOSS, ACCURACY = "eval/downstream_bpb/piqa_val_rc_5shot_bpb", "eval/downstream/piqa_val_rc_5shot_len_norm"
PIQA = TaskRegistry.builtin()["piqa_val_5shot"]
FAST = TwoStepSettings(delta=1e-2)


def csv_of(rows, path: Path, header=("_step", "throughput/total_tokens", LOSS, ACCURACY)) -> Path:
    path.write_text("\n".join(",".join(map(str, row)) for row in [header, *rows]) + "\n")
    return path


def good_rows(count=6):
    return [(k, 1000.0 * k, 2.0 - 0.1 * k, 0.5 + 0.01 * k) for k in range(1, count + 1)]


def one_run(path: Path) -> RunTable:
    return RunTable((read_csv_run(path, 1e6, 6e6),))


def test_a_missing_column_is_named_with_its_file_its_task_and_the_nearest(tmp_path):
    header = ("_step", "throughput/total_tokens", "eval/downstream_bpb/piqa_val_rc_5shot_bbp", ACCURACY)
    table = one_run(csv_of(good_rows(), tmp_path / "a.csv", header))
    with pytest.raises(UserError, match=r"a\.csv.*piqa_val_rc_5shot_bpb.*piqa_val_5shot.*piqa_val_rc_5shot_bbp"):
        check(table, [PIQA])


@pytest.mark.parametrize(
    ("value", "column", "said"),
    [
        ("nan", 2, "not a number"),
        ("inf", 2, "not a number"),
        ("", 2, "empty"),
        ("x", 2, "not a number"),
        (-1, 2, "between 1e-06 and 1000"),
        (1.2, 3, "between 0 and 1"),
    ],
)
def test_a_value_that_cannot_be_is_an_error_with_file_and_row_or_is_dropped_and_counted(
    tmp_path, capsys, value, column, said
):
    rows = [list(row) for row in good_rows()]
    rows[3][column] = value
    table = one_run(csv_of(rows, tmp_path / "a.csv"))
    with pytest.raises(UserError, match=rf"a\.csv', row 5: .*{said}") as error:
        check(table, [PIQA])
    assert "--drop-bad-rows" in str(error.value)
    kept = check(table, [PIQA], drop_bad_rows=True)
    assert len(kept.runs[0]) == 5
    assert "1 of 6 rows were dropped" in capsys.readouterr().err


def test_rows_are_sorted_and_exact_duplicates_dropped_with_a_notice(tmp_path, capsys):
    rows = good_rows()
    run = read_csv_run(csv_of([*rows[::-1], rows[2]], tmp_path / "a.csv"), 1e6, 6e6)
    assert run.tokens.tolist() == [1000.0 * k for k in range(1, 7)]
    said = capsys.readouterr().err
    assert "sorted by tokens" in said
    assert "1 repeated rows" in said


def test_two_different_rows_of_one_step_are_an_error(tmp_path):
    rows = good_rows()
    rows.append((3, 3000.0, 9.9, 0.5))
    with pytest.raises(UserError, match=r"two checkpoints of 3000 tokens differ"):
        read_csv_run(csv_of(rows, tmp_path / "a.csv"), 1e6, 6e6)


def test_tokens_come_from_step_and_batch_or_the_missing_column_is_named(tmp_path):
    header = ("_step", "batch_size_in_tokens", LOSS, ACCURACY)
    run = read_csv_run(csv_of([(k, "100.0", 1.0, 0.5) for k in range(1, 4)], tmp_path / "a.csv", header), 1e6, 6e6)
    assert run.tokens.tolist() == [100, 200, 300]
    with pytest.raises(UserError, match=r"throughput/total_tokens' is missing, and so is 'batch_size_in_tokens'"):
        read_csv_run(csv_of([(1, 1.0, 0.5)], tmp_path / "b.csv", ("_step", LOSS, ACCURACY)), 1e6, 6e6)


def test_unfinished_runs_are_left_out_with_a_warning(synthetic, capsys):
    table, tasks = synthetic()
    short = replace(table.runs[0], planned_tokens=table.runs[0].final_tokens / 0.9)
    undecayed = replace(table.runs[1], lr=np.full(len(table.runs[1]), 1.0), lr_peak=1.0)
    changed = RunTable((short, undecayed, *table.runs[2:]))
    assert len(check(changed, tasks)) == 14
    said = capsys.readouterr().err
    assert "planned tokens" in said
    assert "decayed to 100%" in said
    assert len(check(changed, tasks, allow_unfinished=True)) == 16


def test_too_few_runs_or_one_size_or_one_length_are_refused_for_the_law_of_both(synthetic):
    table, tasks = synthetic()
    with pytest.raises(UserError, match=r"4 runs do not determine the 5 parameters") as error:
        TwoStep(FAST, 0).fit(RunTable(table.runs[:4]), tasks)
    assert "--law flops" in str(error.value)
    one_size, _ = synthetic(sizes=(1e8,), multiples=(1, 2, 5, 10, 20))
    with pytest.raises(UserError, match="the same size N, so that alpha"):
        TwoStep(FAST, 0).fit(one_size, tasks)
    runs, _ = synthetic(sizes=(1e8, 2e8, 3e8, 4e8, 5e8), multiples=(1,))
    one_length = RunTable(tuple(replace(run, tokens=np.linspace(1, 2, len(run)) * 1e9) for run in runs))
    with pytest.raises(UserError, match="the same length D, so that beta"):
        TwoStep(FAST, 0).fit(one_length, tasks)
    TwoStep(TwoStepSettings(law="flops", delta=1e-2), 0).fit(RunTable(table.runs[:4]), tasks, calibrated=False)


def test_two_sizes_are_fitted_with_a_warning(synthetic):
    table, tasks = synthetic(sizes=(1e8, 4e8))
    report = report_step(fit_chain(table, tasks, FAST))[0]
    assert any("only 2 sizes N" in flag for flag in report.flags)


def test_starts_that_disagree_and_searches_that_do_not_end_are_told(published, main_tasks):
    part = published.paper.ladder.where(max_n=4e8)
    chain = fit_chain(part, main_tasks, TwoStepSettings())
    far = logs(6.9e9, 4e12, None)[:, None]
    assert any("equally good starts differ" in flag for report in report_step(chain, far) for flag in report.flags)
    stuck = replace(chain, first=replace(chain.first, converged_B=np.zeros(len(main_tasks), dtype=bool)))
    reports = report_step(stuck)
    assert not any(report.converged for report in reports)
    assert all(any("did not converge" in flag for flag in report.flags) for report in reports)


def test_parameters_at_bounds_and_flat_curves_are_flagged(published, main_tasks):
    reports = dict(
        zip(
            [task.title for task in main_tasks],
            report_step(fit_chain(published, main_tasks, TwoStepSettings(starts="paper"))),
            strict=True,
        )
    )
    assert any("E is at its bound 0" in flag for flag in reports["CommonsenseQA"].flags)
    assert not reports["PIQA"].flags
    flat = [replace(run, metrics={**run.metrics, ACCURACY: np.full(len(run), 0.5)}) for run in published.ladder]
    report = report_step(fit_chain(RunTable(tuple(flat)), [PIQA], FAST))[0]
    assert any("no signal" in flag for flag in report.flags)


def test_a_curve_that_ends_below_one_is_flagged(synthetic):
    table, tasks = synthetic()
    low = RunTable(tuple(replace(run, metrics={**run.metrics, "acc0": run.metrics["acc0"] * 0.6}) for run in table))
    report = report_step(fit_chain(low, tasks, TwoStepSettings(anchor=False)))[0]
    assert any("the curve ends at 0.6" in flag for flag in report.flags)


def test_a_law_that_is_not_positive_is_set_to_its_floor_and_counted(synthetic):
    table, tasks = synthetic()
    chain = fit_chain(table, tasks, TwoStepSettings(law="power"))
    negative = chain.first.parameters_BP.copy()
    negative[:, 4] = -5.0
    report = report_step(replace(chain, first=replace(chain.first, parameters_BP=negative)))[0]
    assert any("not positive at 16 runs" in flag for flag in report.flags)
    assert np.isfinite(report.error_1)


def test_predictions_and_intervals_stay_within_0_and_1(synthetic):
    table, tasks = synthetic(1, 0.05)
    for n, d in ((1e5, 1e6), (1e14, 1e18)):
        each = TwoStep(FAST, 50).fit(table, tasks, calibrated=False).predict(n, d, 0.99)
        assert 0 <= each.lo <= each.accuracy <= each.hi <= 1


def test_targets_inside_and_below_the_ladder_are_labelled_and_the_distance_is_told(synthetic):
    table, tasks = synthetic()
    points = collect_points(table, tasks, FAST)
    assert distance(points, logs(5e8, 5e10, None))["kind"] == "interpolation"
    assert distance(points, logs(1e7, 2e8, None))["kind"] == "back-extrapolation"
    away = distance(points, logs(6_887_575_552, 3_945_065_873_408, None))
    assert away["kind"] == "extrapolation"
    assert away["tokens_per_parameter"] == pytest.approx(573, abs=0.5)
    assert away["most_tokens_per_parameter"] == pytest.approx(200)


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"paths": ["a.csv"], "mode": "train", "n": 1e6}, r"x\.flops"),
        ({"paths": ["a.csv"], "mode": "test", "n": 1e6, "flops": 6e6}, "mode"),
        ({"paths": [], "mode": "train", "n": 1e6, "flops": 6e6}, "paths"),
        ({"paths": ["*.tsv"], "mode": "train", "n": 1e6, "flops": 6e6}, r"x\.paths: '\*\.tsv' matches no file"),
        ({"paths": ["a.csv"], "mode": "train", "n": 1e6, "flops": 6e6, "colour": "red"}, "unknown key 'colour'.*color"),
    ],
)
def test_configurations_are_checked_with_the_path_of_the_key(tmp_path, entry, said):
    csv_of(good_rows(), tmp_path / "a.csv")
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"x": entry}))
    with pytest.raises(UserError, match=said):
        read_reference_config(path)


def test_paths_do_not_leave_the_given_folders(tmp_path):
    outside = csv_of(good_rows(), tmp_path / "a.csv")
    inner = tmp_path / "inner"
    inner.mkdir()
    path = inner / "config.json"
    path.write_text(json.dumps({"x": {"paths": [str(outside)], "mode": "train", "n": 1e6, "flops": 6e6}}))
    with pytest.raises(UserError, match="leads out of"):
        read_reference_config(path)
    assert len(read_reference_config(path, [tmp_path])) == 1


def test_a_run_that_is_fitted_and_a_target_is_an_error(tmp_path, synthetic):
    csv_of(good_rows(), tmp_path / "a.csv")
    entry = {"paths": ["a.csv"], "n": 1e6, "flops": 6e6}
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"x": {**entry, "mode": "train"}, "y": {**entry, "mode": "eval"}}))
    with pytest.raises(UserError, match="both as a run that is fitted and as a target"):
        read_reference_config(path)
    table, tasks = synthetic()
    with pytest.raises(UserError, match="is fitted, and is a target too"):
        check(RunTable((*table.runs, replace(table.runs[3], name="copy", mode="eval"))), tasks)


def test_runs_that_do_not_belong_together_and_repeated_data_are_told(synthetic):
    table, _ = synthetic()
    changed = RunTable(
        (
            replace(table.runs[0], metadata={"tokenizer": "a", "epochs": 4}),
            replace(table.runs[1], metadata={"tokenizer": "b"}),
        )
    )
    first, second = mismatches(changed)
    assert "tokenizer" in first
    assert "nats a token cannot" in first
    assert "data are repeated" in second


def test_no_table_holds_nan_where_the_runs_leave_parameters_open(synthetic):
    table, tasks = synthetic(sizes=(1e8, 2e8), multiples=(1, 2, 5))
    flat = RunTable(
        tuple(replace(run, metrics={"loss0": np.full(len(run), 1.0), "acc0": np.full(len(run), 0.3)}) for run in table)
    )
    each = TwoStep(FAST, 20).fit(flat, tasks, calibrated=False).predict(1e9, 1e12)
    values = [each.accuracy, each.lo, each.hi, each.loss, each.loss_lo, each.loss_hi, *each.parts.values()]
    assert np.isfinite(values).all()
    assert each.diagnostics["flags"]


def test_texts_do_not_become_formulas_or_commands(tmp_path):
    path = write_csv(tmp_path / "a.csv", ["=x"], [["=1+1"], ["@cmd"], [-1.5]])
    assert path.read_text().splitlines() == ["'=x", "'=1+1", "'@cmd", "-1.5"]
    assert r"\textbackslash" not in to_latex(["a"], [[r"\input{x}_&"]])
    assert r"/input\{x\}\_\&" in to_latex(["a"], [[r"\input{x}_&"]])


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_table_is_read_back_as_it_was_written(tmp_path, synthetic, suffix):
    table, _ = synthetic(2, 0.003)
    named = RunTable(
        (
            replace(
                table.runs[0], name="=evil", lr=np.linspace(0, 1, 40), lr_peak=1.0, seed=3, metadata={"tokenizer": "t"}
            ),
            *table.runs[1:],
        )
    )
    back = read_table(write_table(named, tmp_path / f"runs{suffix}"))
    assert [run.name for run in back] == [run.name for run in named]
    for one, two in zip(named, back, strict=True):
        assert (one.n, one.flops_per_token, one.seed, one.lr_peak, one.mode) == (
            two.n,
            two.flops_per_token,
            two.seed,
            two.lr_peak,
            two.mode,
        )
        assert np.allclose(one.tokens, two.tokens, rtol=1e-12)
        for key, values in one.metrics.items():
            assert np.allclose(values, two.metrics[key], rtol=1e-12)


def test_broken_files_are_told_with_their_line(tmp_path):
    for name, text, said in (
        ("a.csv", "", "is empty"),
        ("b.csv", "run,n,tokens\n", "no rows"),
        ("c.csv", "run,n,tokens\nx,1\n", "row 2: 2 cells for 3 columns"),
        ("d.csv", "run,tokens\nx,1\n", "column 'n' is missing"),
        ("e.csv", "run,n,tokens\nx,1,1\nx,2,2\n", "several values of 'n'"),
        ("f.json", "{", "not valid JSON"),
        ("g.txt", "", "a run table is"),
    ):
        (tmp_path / name).write_text(text)
        with pytest.raises(UserError, match=said):
            read_table(tmp_path / name)
    with pytest.raises(UserError, match="No such file"):
        read_table(tmp_path / "none.csv")


def test_external_models_are_points_of_the_second_step_only(tmp_path, folder):
    """The loss and accuracy of another model, as one flat object."""
    (tmp_path / "other.json").write_text(json.dumps({LOSS: 1.19, ACCURACY: 0.68}))
    models = json.loads((folder / "models.json").read_text())
    entries = {
        size: {
            "paths": [str(folder / "runs" / f"{size}-*xC.csv")],
            "mode": "train",
            "n": models[size]["n_non_embedding"],
            "flops": 6e9,
        }
        for size in ("190M", "370M")
    }
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"external": ["other.json"], **entries}))
    table = read_reference_config(path, [folder])
    points = collect_points(table, [PIQA], FAST)
    assert points.x_3R.shape[1] == len(table)
    assert (points.loss_TK[0, -1], points.accuracy_TK[0, -1]) == (1.19, 0.68)
    assert points.run_K[-1] == len(table)
    assert np.isfinite(TwoStep(FAST, 20).fit(table.paper, PIQA, calibrated=False).predict(1e9, 1e11).hi)


def test_a_law_is_refused_by_name_not_evaluated():
    with pytest.raises(ValueError, match="law"):
        TwoStepSettings(law="__import__('os')")
    with pytest.raises(UserError, match="no estimator 'papr'.*paper"):
        TwoStep("papr")


def test_check_identifiable_names_the_formula(synthetic):
    table, tasks = synthetic()
    points = collect_points(RunTable(table.runs[:2]), tasks, TwoStepSettings(law="flops"))
    with pytest.raises(UserError, match=r"A / C\^alpha"):
        check_identifiable(points, TwoStepSettings(law="flops"))


def test_a_run_without_checkpoints_columns_says_so():
    run = Run("x", 1e6, None, np.ones(1), {})
    with pytest.raises(UserError, match="'x'"):
        run.column("y")


@pytest.mark.parametrize(
    "column",
    [
        "eval/c4_en-validation/CrossEntropyLoss",
        "eval/downstream_soft_log/piqa_val_rc_5shot_soft_log",
        "eval/downstream_bpb/arc_easy_val_rc_5shot_bpb",
    ],
)
def test_a_value_that_is_no_number_is_refused_in_every_column_that_a_member_reads(published, column):
    run = published.ladder.runs[7]
    values = run.metrics[column].copy()
    values[-2] = np.nan
    broken = replace(
        published,
        runs=tuple(
            replace(each, metrics={**each.metrics, column: values}) if each is run else each for each in published
        ),
    )
    tasks = [TaskRegistry.builtin()[name] for name in ("piqa_val_5shot", "arc_easy_test_5shot")]
    with pytest.raises(UserError, match=f"{re.escape(column)}' is empty or not a number"):
        TwoStep("recommended", 0).fit(broken, tasks, calibrated=False)


def test_slips_of_units_wrong_lengths_and_diverged_ends_are_told(published):
    tasks = TaskRegistry.builtin().select("main")

    def told(**changes):
        run = published["370M-5xC"]
        return oddities(replace(published, runs=(replace(run, **changes),)))

    assert told() == [] and tasks
    assert "in millions or billions" in told(n=0.371262464)[0]
    half = published["370M-5xC"].keep(slice(0, len(published["370M-5xC"]) // 2))
    assert "ends at 2.5xC: is it unfinished" in oddities(replace(published, runs=(half,)))[0]
    key = "eval/c4_en-validation/CrossEntropyLoss"
    values = published["370M-5xC"].metrics[key].copy()
    values[-1] *= 1.5
    assert f"ends badly: '{key}' is 5" in told(metrics={**published["370M-5xC"].metrics, key: values})[0]
    assert oddities(published) == []
