"""Faults of tables that nobody would see in a forecast: each is refused, or told with the forecast."""

from __future__ import annotations

import csv
import json
from dataclasses import replace

import numpy as np
import pytest

from lmlab.errors import UserError
from lmlab.methods.ladder import RunTable, Task, TwoStep, TwoStepSettings, check, collect, follow, write_table
from lmlab.methods.ladder.analysis.follow import checked_run, cut_off, schedule_doubt, without_run
from lmlab.methods.ladder.checking.checks import warnings
from lmlab.methods.ladder.checking.same import consistent
from lmlab.methods.ladder.checking.slips import oddities
from lmlab.methods.ladder.checking.values import unmeasured
from lmlab.methods.ladder.config import LadderPlan
from lmlab.methods.ladder.fitting.points import collect_points
from lmlab.methods.ladder.presenting.noise import variance_table
from lmlab.methods.ladder.presenting.predictions import runs_sentence
from lmlab.methods.ladder.rungs.plan import fit_budget
from lmlab.methods.ladder.tables.table import C4
from lmlab.methods.ladder.tables.target import score_target, target_point
from lmlab.methods.ladder.tables.tasks import TaskRegistry

FAST = TwoStepSettings(delta=None)


@pytest.fixture(scope="module")
def ladder(synthetic):
    """Runs with learning rates that decay to a tenth."""
    table, tasks = synthetic(count=2, noise=0.003, checkpoints=20)
    runs = [replace(run, lr=np.linspace(1.0, 0.1, 20), lr_peak=1.0) for run in table]
    return RunTable(tuple(runs)), tasks


def with_metric(run, key, place, value):
    values = run.metrics[key].copy()
    values[place] = value
    return replace(run, metrics={**run.metrics, key: values})


def swapped(table, run):
    """The table with another run in place of the one of the same name."""
    return replace(table, runs=tuple(run if each.name == run.name else each for each in table))


# ---- a run under way


def test_an_empty_rate_does_not_switch_the_check_of_schedules_off(ladder):
    table, tasks = ladder
    name = table.runs[-1].name
    forecaster = TwoStep(FAST, 5).fit(without_run(table, name), tasks, calibrated=False)
    run = cut_off(table[name], 0.6)
    constant = np.ones(len(run))
    constant[-2] = np.nan
    for rates, peak in ((constant, 1.0), (constant, None)):
        with pytest.raises(UserError, match="their schedules differ"):
            follow(forecaster, replace(run, lr=rates, lr_peak=peak), table[name].final_tokens)
    gaps = run.lr.copy()
    gaps[-1] = np.nan
    assert follow(forecaster, replace(run, lr=gaps), table[name].final_tokens)[0].own_curve is not None
    assert schedule_doubt(forecaster, replace(run, lr=gaps), 0.6) is None
    assert "is not known" in schedule_doubt(forecaster, replace(run, lr=np.full(len(run), np.nan)), 0.6)
    assert "is not known" in schedule_doubt(forecaster, replace(run, lr=None), 0.6)


@pytest.mark.parametrize("value", [np.nan, np.inf, -1.0, 1e300])
def test_a_run_under_way_is_checked_as_those_of_the_ladder(ladder, value):
    table, tasks = ladder
    name = table.runs[-1].name
    forecaster = TwoStep(FAST, 5).fit(without_run(table, name), tasks, calibrated=False)
    run = with_metric(cut_off(table[name], 0.6), "loss0", 10, value)
    for read in (lambda: follow(forecaster, run, table[name].final_tokens), lambda: checked_run(forecaster, run)):
        with pytest.raises(UserError, match="'loss0' is"):
            read()
    kept = checked_run(forecaster, run, drop_bad_rows=True)
    assert len(kept) == len(run) - 1
    assert np.isfinite(follow(forecaster, kept, table[name].final_tokens)[0].accuracy)


def test_a_run_under_way_in_another_unit_or_context_is_told(ladder, capsys):
    table, tasks = ladder
    name = table.runs[-1].name
    known = RunTable(tuple(replace(run, metadata={"context": 2048}) for run in table))
    forecaster = TwoStep(FAST, 0).fit(without_run(known, name), tasks, calibrated=False)
    run = cut_off(known[name], 0.6)
    checked_run(forecaster, run)
    assert "Warning" not in capsys.readouterr().err
    checked_run(forecaster, replace(run, n=run.n / 1e9, metadata={"context": 4096}))
    said = capsys.readouterr().err
    assert "in millions or billions" in said and "differ in context" in said


def test_repeated_data_of_a_run_under_way_count_as_what_they_are_worth(ladder):
    table, tasks = ladder
    name = table.runs[-1].name
    forecaster = TwoStep(FAST, 5).fit(without_run(table, name), tasks, calibrated=False)
    run = table[name]
    repeated = cut_off(replace(run, metadata={"epochs": 40}), 0.6)
    assert repeated.epochs == pytest.approx(40 * repeated.final_tokens / run.final_tokens)
    plain, many = (follow(forecaster, each, run.final_tokens)[0] for each in (cut_off(run, 0.6), repeated))
    assert many.ladder_accuracy < plain.ladder_accuracy - 0.01
    with pytest.raises(UserError, match="no number of epochs"):
        follow(forecaster, replace(repeated, metadata={"epochs": "inf"}), run.final_tokens)


# ---- columns


def test_no_warning_is_longer_than_its_line_whatever_the_number(ladder):
    table, tasks = ladder
    run = with_metric(table.runs[3], "loss1", -1, 1e300)
    with pytest.raises(UserError, match="'loss1' is 1e\\+300, but a loss lies between 1e-06 and 1000"):
        check(swapped(table, run), tasks)
    odd = replace(run, metrics={**run.metrics, "eval/x/CrossEntropyLoss": run.metrics["loss1"]})
    for each in oddities(swapped(table, odd), tasks[:1]):
        assert len(each) < 200, each
    assert any("times its lowest" in each for each in oddities(swapped(table, odd), tasks[:1]))


def test_the_end_of_a_task_is_looked_at_whatever_its_column_is_called(ladder):
    table, tasks = ladder
    run = replace(
        table.runs[3],
        metrics={k: v * np.r_[np.ones(19), 1.5] if "loss" in k else v for k, v in table.runs[3].metrics.items()},
    )
    assert any("ends badly" in each for each in oddities(swapped(table, run), tasks))


def test_validation_sets_that_one_run_lacks_are_left_out_of_the_mean_and_told(ladder):
    table, tasks = ladder

    def with_sets(run, sets):
        return replace(
            run,
            metrics={**run.metrics, **{f"eval/{key}/CrossEntropyLoss": run.metrics["loss0"] * k for k, key in sets}},
        )

    sets = [(1, "a"), (2, "b"), (3, "c4_en-validation")]
    runs = [with_sets(run, sets) for run in table]
    runs[4] = with_sets(table.runs[4], sets[:2])
    found = consistent(RunTable(tuple(runs)), [TwoStepSettings(x="validation")])
    for run, plain in zip(found, table, strict=True):
        assert np.allclose(run.intermediate(tasks[0], "validation"), 1.5 * plain.metrics["loss0"])
    (said,) = found.notes
    assert C4 in said and runs[4].name in said and said in warnings(found)
    assert consistent(RunTable(tuple(runs)), [TwoStepSettings(x="c4")]).runs[0].metrics[C4] is not None
    target = replace(with_sets(table.runs[-1], sets[:1]), mode="eval")
    lacking = consistent(RunTable((*runs[:-1], target)), [TwoStepSettings(x="validation")])
    assert not any(key.startswith("eval/") for key in lacking.runs[-1].metrics)  # its mean would be another quantity


def test_what_a_target_was_measured_on_does_not_change_its_forecast(ladder):
    table, tasks = ladder
    sized = [each.model_copy(update={"n_instances": 100 * (k + 1)}) for k, each in enumerate(tasks)]
    pooled = sized[0].model_copy(update={"pool": (sized[1],)})
    target = replace(table.runs[-1], mode="eval", name="t")
    bare = replace(target, metrics={key: target.metrics[key] for key in ("loss0", "acc0")})
    settings = FAST.model_copy(update={"pool": True, "runs": "all"})
    one, other = (
        collect_points(RunTable((*table.runs[:-1], each)), [pooled], settings).y_TR for each in (target, bare)
    )
    assert np.array_equal(one, other)
    lacking = replace(table.runs[2], metrics=bare.metrics)
    assert any("fitted without its questions" in each for each in warnings(swapped(table, lacking), [pooled]))


def test_targets_are_looked_at_in_the_columns_that_are_forecast(ladder):
    table, _ = ladder
    task = Task(
        name="x",
        loss_keys=("loss0",),
        accuracy_keys=("acc0",),
        soft_keys=("soft",),
        soft_log_keys=("log",),
        chance=0.25,
    )
    target = replace(table.runs[-1], mode="eval", metrics={"acc0": np.ones(20), "soft": np.ones(20)})
    told = unmeasured(RunTable((target,)), [task], [TwoStepSettings(x="taskce", accuracy_law="soft", anchor=False)])
    assert len(told) == 1 and "'log'" in told[0]
    (loss,) = unmeasured(RunTable((target,)), [task])
    assert "'loss0'" in loss and "'acc0'" not in loss


def test_a_bad_value_of_another_family_is_refused_too(ladder):
    table, tasks = ladder
    runs = [replace(run, metadata={"family": "ab"[k % 2]}) for k, run in enumerate(table)]
    lender = next(k for k, run in enumerate(runs) if run.metadata["family"] == "b")
    runs[lender] = with_metric(runs[lender], "loss0", 3, np.nan)
    with pytest.raises(UserError, match="'loss0' is empty or not a number"):
        TwoStep(FAST, 0).fit(RunTable(tuple(runs)).of_family("a"), tasks, calibrated=False)


# ---- which runs are fitted


def test_every_run_that_is_not_fitted_has_its_own_reason(ladder):
    table, tasks = ladder
    first = table.runs[0]
    short = [replace(run, name=f"short-{run.size}", tokens=run.tokens / 2) for run in table if run.multiple == 1]
    again = replace(table.runs[1], name="again", tokens=table.runs[1].tokens * 1.001)
    stopped = replace(table.runs[5], planned_tokens=table.runs[5].final_tokens * 2)
    full = RunTable((*[each for each in table if each.name != stopped.name], *short, again, stopped))
    for settings, said in (
        (FAST.model_copy(update={"runs": "all", "short_weight": 0.0}), ("which backtests give no weight",)),
        (FAST, ("which this estimator leaves out", "not again: repeated")),
    ):
        sentence = runs_sentence(TwoStep(settings, 0).fit(full, tasks, calibrated=False))
        assert f"of {len(full)} runs are fitted" in sentence
        assert f"not {stopped.name}: it has seen" in sentence
        assert all(each in sentence for each in said), sentence
        assert first.name not in sentence
    alone = RunTable(tuple(replace(run, name=f"{run.name}-rerun") if run is first else run for run in table))
    assert f"{first.name}-rerun" in [run.name for run in alone.paper]  # of nothing that is there


# ---- reading


def written(tmp_path, table, name="runs.csv"):
    return write_table(table, tmp_path / name)


def changed(path, row, column, value):
    """The CSV file with another cell; rows count from 1, the header's."""
    lines = [line.split(",") for line in path.read_text("utf-8").splitlines()]
    lines[row - 1][lines[0].index(column)] = value
    path.write_text("\n".join(",".join(line) for line in lines) + "\n", "utf-8")
    return path


@pytest.mark.parametrize(
    ("column", "value", "said"),
    [
        ("n", "inf", "has no positive n"),
        ("n", "-5", "has no positive n"),
        ("flops_per_token", "6e9x", "flops_per_token is '6e9x', which is no number"),
        ("flops_per_token", "-6e9", "flops_per_token is -6e"),
        ("planned_tokens", "inf", "planned_tokens is 'inf'"),
        ("planned_tokens", "-1", "planned_tokens is -1, but it is a positive number"),
        ("seed", "inf", "seed is 'inf'"),
        ("lr", "fast", "row 2: lr is 'fast', which is no learning rate"),
        ("lr_peak", "-1", "row 2: lr_peak is '-1'"),
        ("mode", "eval", "several values of 'mode'"),
        ("size", "big", "several values of .size.: 190M, big"),
        ("run", " ", "row 2: the column 'run' is empty"),
    ],
)
def test_facts_of_runs_that_cannot_be_are_refused(ladder, tmp_path, column, value, said):
    table, tasks = ladder
    path = written(
        tmp_path, RunTable((replace(table.runs[0], flops_per_token=1e9, planned_tokens=1e9, seed=1), *table.runs[1:]))
    )
    rows = 1 if column in ("lr", "lr_peak", "mode", "size", "run") else len(table.runs[0])
    for row in range(2, 2 + rows):
        changed(path, row, column, value)
    with pytest.raises(UserError, match=said):
        check(RunTable.read(path), tasks)


@pytest.mark.parametrize("epochs", ["0", "-2", "inf", "twice"])
def test_epochs_that_cannot_be_are_refused(ladder, epochs):
    table, tasks = ladder
    with pytest.raises(UserError, match="no number of epochs"):
        check(swapped(table, replace(table.runs[0], metadata={"epochs": epochs})), tasks)


def test_rows_are_named_by_their_line_in_every_format(ladder, tmp_path):
    table, tasks = ladder
    path = changed(written(tmp_path, RunTable(table.runs[:2])), 5, "loss0", "x")
    lines = path.read_text("utf-8").splitlines()
    with pytest.raises(UserError, match="row 5: 'loss0'"):
        check(RunTable.read(path), tasks)
    path.write_text(
        "\n".join([*lines[:3], "", ",,", *lines[3:]]).replace("\n,,\n", "\n" + "," * lines[0].count(",") + "\n")
    )
    with pytest.raises(UserError, match="row 7: 'loss0'"):
        check(RunTable.read(path), tasks)
    rows = [dict(zip(lines[0].split(","), line.split(","), strict=True)) for line in lines[1:]]
    (tmp_path / "runs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    with pytest.raises(UserError, match="row 4: 'loss0'"):
        check(RunTable.read(tmp_path / "runs.jsonl"), tasks)


def test_one_name_in_two_spellings_is_one_run(ladder, tmp_path):
    table, _ = ladder
    path = written(tmp_path, RunTable((replace(table.runs[0], name="caf\u00e9-1xC"),)))
    text = path.read_text("utf-8").split("\n")
    text[3] = text[3].replace("caf\u00e9", "cafe\u0301")
    text[4] = text[4].replace("caf\u00e9-1xC", " caf\u00e9-1xC ")
    path.write_text("\n".join(text), "utf-8")
    assert [run.name for run in RunTable.read(path)] == ["caf\u00e9-1xC"]


def test_damaged_tables_are_refused_by_name(tmp_path):
    import pyarrow
    import pyarrow.parquet as parquet

    columns = [pyarrow.array([1.0])] * 3 + [pyarrow.array(["a"])]
    parquet.write_table(pyarrow.table(columns, names=["n", "tokens", "tokens", "run"]), tmp_path / "twice.parquet")
    with pytest.raises(UserError, match="twice.parquet' is not a readable Parquet file"):
        RunTable.read(tmp_path / "twice.parquet")
    (tmp_path / "long.csv").write_text(f'run,n,tokens\na,1,"{"9" * 200_000}"\n', "utf-8")
    before = csv.field_size_limit()
    try:
        for limit in (131_072, 1_000_000):  # one for the whole process, which readers of texts raise
            csv.field_size_limit(limit)
            with pytest.raises(UserError, match=r"long\.csv.*row 2"):
                RunTable.read(tmp_path / "long.csv")
    finally:
        csv.field_size_limit(before)


def test_weights_of_a_task_are_shares():
    with pytest.raises(ValueError, match="add up to 1"):
        Task(name="x", loss_keys=("a", "b"), accuracy_keys=("c", "d"), weights=(0.9, 0.9), chance=0.25)


# ---- collecting


def test_what_is_given_for_a_run_that_is_not_there_is_refused(ladder, tmp_path):
    path = written(tmp_path, ladder[0])
    with pytest.raises(UserError, match="--target 190M-1C: there is no such run. Did you mean"):
        collect([path], target=["190M-1C"])
    with pytest.raises(UserError, match="--size 191M"):
        collect([path], sizes={"191M": 1e6})


def chart(path, lines):
    path.write_text("\n".join(lines) + "\n", "utf-8")
    return path


def test_charts_that_contradict_each_other_and_steps_that_are_none_are_refused(tmp_path):
    sizes, batches = {"olmo-190M": 1.9e8, "olmo-370M": 3.7e8}, {"olmo": 1e6}
    header = 'Step,"olmo-190M-1xC - loss0","olmo-370M-1xC - loss0"'
    good = chart(tmp_path / "a.csv", [header, "100,3.1,3.0", "200,2.9,"])
    found = collect([good], sizes=sizes, batches=batches)
    assert {run.name: run.n for run in found} == {"olmo-190M-1xC": 1.9e8, "olmo-370M-1xC": 3.7e8}
    other = chart(tmp_path / "b.csv", [header, "100,3.2,"])
    with pytest.raises(UserError, match="two values of 'loss0' of the run 'olmo-190M-1xC' there, 3.1 and 3.2"):
        collect([good, other], sizes=sizes, batches=batches)
    for step in ("", "x", "-5", "inf"):
        with pytest.raises(UserError, match=r"row 3: 'Step' is empty, not a number, or negative"):
            collect([chart(tmp_path / "c.csv", [header, "100,3.1,", f"{step},2.9,"])], sizes=sizes, batches=batches)


def test_the_order_of_columns_does_not_choose_what_a_step_is(tmp_path, capsys):
    rows = [{"_step": k, "trainer/global_step": 50 * k, "loss0": 3 - 0.1 * k, "acc0": 0.3} for k in range(1, 7)]
    for name, keys in (("a-1xC", [*rows[0]]), ("b-1xC", [*rows[0]][::-1])):
        chart(tmp_path / f"{name}.csv", [",".join(keys), *(",".join(str(row[key]) for key in keys) for row in rows)])
    found = collect(sorted(tmp_path.glob("*.csv")), sizes={"a": 1e6, "b": 1e6}, batches={"a": 10, "b": 10})
    assert [run.final_tokens for run in found] == [3000, 3000]
    assert "steps are those of 'trainer/global_step'" in capsys.readouterr().err


# ---- plans


@pytest.mark.parametrize("share", [0.16, 0.2, 0.35, 0.5, 0.77, 0.9, 0.99])
def test_a_budget_is_spent_on_a_ladder_that_a_law_of_both_can_be_fitted_to(synthetic, share):
    plan = LadderPlan(sizes=dict.fromkeys(["190M", "370M", "760M", "1B"]))
    total = sum(rung.flops for rung in plan.rungs())
    found = fit_budget(plan, share * total)
    rungs = found.rungs()
    spent = sum(rung.flops for rung in rungs)
    assert 0.93 * share * total <= spent <= share * total
    again = LadderPlan.model_validate(found.model_dump())  # as a file of it would be read
    assert [rung.name for rung in again.rungs()] == [rung.name for rung in rungs]
    table, tasks = synthetic(noise=0.003, checkpoints=6)
    wanted = {(f"{rung.n / 1e6:.0f}M", rung.length) for rung in rungs}
    part = table.where(names=[run.name for run in table if tuple(run.name.split("-")) in wanted])
    assert len(part) == len(rungs)
    flags = TwoStep(FAST, 0).fit(part, tasks, calibrated=False).step_reports()[0][0].flags
    assert not any("identifiable" in flag or "not determined" in flag for flag in flags)


def test_a_plan_with_many_lengths_is_cut_at_once_and_twice_the_same_is_refused():
    plan = LadderPlan(sizes=dict.fromkeys(["190M", "370M", "760M", "1B"]), multiples=tuple(range(1, 31)))
    total = sum(rung.flops for rung in plan.rungs())
    assert sum(rung.flops for rung in fit_budget(plan, total / 3).rungs()) > 0.99 * total / 3
    with pytest.raises(ValueError, match="multiples: 2 is there twice"):
        LadderPlan(sizes={"190M": None}, multiples=(1, 2, 2))
    with pytest.raises(UserError, match="the plan has no run '190M-3xC'"):
        LadderPlan(sizes={"190M": None}, without=("190M-3xC",)).rungs()


# ---- targets


def test_a_target_without_some_figures_is_compared_in_the_others(ladder):
    table, tasks = ladder
    last = table.runs[-1]
    target = replace(last, mode="eval", name="t", metrics={"acc1": last.metrics["acc1"]})
    full = RunTable((*table.runs[:-1], target))
    (row,) = score_target(full, tasks, FAST, target)
    assert (row.task, row.step_1, row.step_2) == ("task1", None, None)
    assert row.absolute < 5
    _, rows, _ = variance_table(full, tasks, None, 5)
    assert len(rows) == 2
    with pytest.raises(UserError, match="measured on none of the tasks"):
        score_target(full, tasks, FAST, replace(target, metrics={}))
    two = RunTable((*full.runs, replace(target, name="u")))
    assert len(variance_table(two, tasks, None, 5)[1]) == 2  # which of them, nobody said


def test_a_target_is_what_it_is_called(ladder):
    table, _ = ladder
    target = replace(table.runs[-1], mode="eval", name="t")
    full = RunTable((*table.runs[:-1], target))
    assert target_point(full, "t", None, None)[:2] == (target.n, target.final_tokens)
    assert target_point(full, "t", target.n, "10xC")[3] is target
    with pytest.raises(UserError, match="-n is 7e\\+09, but the target 't' was measured at 1.279e\\+09"):
        target_point(full, "t", 7e9, "10xC")
    with pytest.raises(UserError, match="is fitted, so that its forecast would be none"):
        target_point(full, table.runs[0].name, None, None)


def test_the_order_of_tasks_moves_no_interval(ladder):
    table, tasks = ladder
    found = [
        {each.task: each for each in TwoStep(FAST, 20).fit(table, order, calibrated=False).predict_all(7e9, 4e12)}
        for order in (tasks, tasks[::-1])
    ]
    for task in tasks:
        one, other = (each[task.name] for each in found)
        assert (one.lo, one.hi, one.loss_hi) == pytest.approx((other.lo, other.hi, other.loss_hi), rel=1e-9)


# ---- commands


@pytest.mark.parametrize(
    "command",
    [
        ("fit", "{}", "-o", "{}"),
        ("predict", "{}", "-n", "7e9", "-d", "4T", "-o", "{}"),
        ("report", "{}", "-n", "7e9", "-d", "4T", "-o", "{html}"),
        ("backtest", "{}", "-o", "{}"),
        ("variance", "{}", "-o", "{}"),
        ("decide", "{}", "-s", "7e9:4T", "-o", "{}"),
        ("compare", "{}", "{other}", "-n", "7e9", "-d", "4T", "-o", "{other}"),
        ("follow", "{}", "--run", "190M-1xC", "-o", "{}"),
        ("collect", "{}", "-o", "{}"),
    ],
)
def test_no_command_writes_over_what_it_reads(lmlab, ladder, tmp_path, command):
    path, other = written(tmp_path, ladder[0]), written(tmp_path, ladder[0], "other.csv")
    before = path.read_bytes(), other.read_bytes()
    names = {"other": other, "html": path.with_suffix(".html")}
    done = lmlab("ladder", *(part.format(path, **names) for part in command))
    assert done.code == 2 and "would be written over" in " ".join(done.err.split()), done.err
    assert (path.read_bytes(), other.read_bytes()) == before


def test_builtin_tasks_keep_their_order_for_draws():
    from lmlab.methods.ladder.tables.tasks import places_of

    tasks = TaskRegistry.builtin().select("main")
    assert places_of(tasks) == list(range(8))
    assert places_of(tasks[::-1]) == list(range(8))[::-1]


@pytest.mark.parametrize(("key", "value"), [("loss0", 12.0), ("acc1", 0.0), ("loss1", 0.05)])
@pytest.mark.parametrize("place", [-1, -3, 9])
def test_a_single_value_far_off_its_neighbors_is_told(ladder, key, value, place):
    table, tasks = ladder
    assert oddities(table, tasks) == []
    run = with_metric(table.runs[3], key, place, value)
    said = " ".join(oddities(swapped(table, run), tasks))
    assert f"'{run.name}' has {value:.4g} in '{key}', checkpoint {place % 20 + 1}, where its neighbors have" in said


def test_nothing_is_odd_about_the_published_ladder(published):
    assert warnings(published, TaskRegistry.builtin().select("main")) == []


@pytest.mark.parametrize("cell", ["1_0", "\uff11\uff12", "0x1", "1,5"])
def test_what_is_no_number_in_a_table_is_refused(ladder, tmp_path, cell):
    path = written(tmp_path, RunTable(ladder[0].runs[:1]))
    path = changed(path, 6, "loss0", f'"{cell}"')
    with pytest.raises(UserError, match="row 6: 'loss0' is empty or not a number"):
        check(RunTable.read(path), ladder[1])


def test_a_target_far_below_the_ladder_is_beyond_its_backtests_too(ladder):
    table, tasks = ladder
    forecaster = TwoStep(FAST, 20).fit(table, tasks)
    below, inside, above = (forecaster.beyond(forecaster.target(n, 20 * n)) for n in (1e5, 5e8, 1e13))
    assert inside == 1.0 and below > 1.5 and above > 1.5


@pytest.mark.parametrize("budget", [np.nan, np.inf, 0.0, -1e21])
def test_a_budget_is_positive(budget):
    with pytest.raises(UserError, match="A budget is a positive number"):
        fit_budget(LadderPlan(sizes=dict.fromkeys(["190M", "370M", "760M"])), budget)


@pytest.mark.parametrize(("value", "said"), [(1e300, "1e291 times those"), (1e-9, "1e-18 times those")])
def test_a_size_that_is_far_off_is_told_in_few_digits(ladder, value, said):
    table, tasks = ladder
    with pytest.raises(UserError, match=said):
        check(swapped(table, replace(table.runs[0], n=value)), tasks)
