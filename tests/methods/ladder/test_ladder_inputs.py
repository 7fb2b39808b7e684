"""Forms of tables, exports, and runs that are not what they are called."""

from __future__ import annotations

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
from known_laws import SIZES, true_loss

from lmlab.errors import UserError
from lmlab.methods.ladder import RunTable, TwoStep, TwoStepSettings, check, collect, fit_chain, write_table
from lmlab.methods.ladder.checking.lengths import cut_short
from lmlab.methods.ladder.checking.same import consistent
from lmlab.methods.ladder.checking.slips import oddities
from lmlab.methods.ladder.checking.values import unmeasured
from lmlab.methods.ladder.tables.csv_runs import read_csv_run
from lmlab.methods.ladder.tables.table import worth_of

FAST = TwoStepSettings(delta=None)


@pytest.fixture(scope="module")
def ladder(synthetic):
    return synthetic(checkpoints=10)


def _rows(path):
    with open(path, encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_table_is_the_same_as_csv_tsv_json_lines_and_data_frame(ladder, tmp_path):
    import pandas

    table, _ = ladder
    path = write_table(table, tmp_path / "runs.csv")
    rows = _rows(path)
    texts = ("run", "size", "mode")
    numbers = [{key: value if key in texts else _value(value) for key, value in row.items()} for row in rows]
    (tmp_path / "runs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in numbers), "utf-8")
    (tmp_path / "runs.tsv").write_text(path.read_text("utf-8").replace(",", "\t"), "utf-8")
    expected = RunTable.read(path).digest
    assert RunTable.read(tmp_path / "runs.jsonl").digest == expected
    assert RunTable.read(tmp_path / "runs.tsv").digest == expected
    assert RunTable.from_frame(pandas.read_csv(path)).digest == expected
    with pytest.raises(UserError, match="a file or a data frame, not list"):
        RunTable.from_frame([1, 2])


def _value(text):
    return None if text == "" else float(text)


def test_a_column_that_is_there_twice_and_a_nested_row_are_refused(tmp_path):
    (tmp_path / "twice.csv").write_text("run,n,tokens,acc0,acc0\na,1,2,0.3,0.4\n", "utf-8")
    with pytest.raises(UserError, match="column 'acc0' is there twice"):
        RunTable.read(tmp_path / "twice.csv")
    (tmp_path / "nested.jsonl").write_text('{"run": "a", "n": 1, "tokens": {"a": 2}}\n', "utf-8")
    with pytest.raises(UserError, match=r"row 1: a row is one object"):
        RunTable.read(tmp_path / "nested.jsonl")


def test_histories_and_charts_of_weights_and_biases_are_collected(ladder, tmp_path):
    table, tasks = ladder
    paths = []
    for run in table.runs[:2]:  # histories: steps, and rows of training between those of evaluation
        path = tmp_path / f"{run.name}.csv"
        lines = ["_step,train/loss,loss0,acc0"]
        for place, tokens in enumerate(run.tokens):
            step = round(tokens / 1e6)
            lines.append(f"{step},3.1,,")
            lines.append(f"{step},,{run.metrics['loss0'][place]!r},{run.metrics['acc0'][place]!r}")
        path.write_text("\n".join(lines).replace("np.float64(", "").replace(")", "") + "\n", "utf-8")
        paths.append(path)
    rest = table.runs[2:]
    for metric in ("loss0", "acc0"):  # one chart each, with the bounds that its page draws
        names = [f"{run.name} - {metric}{end}" for run in rest for end in ("", "__MIN", "__MAX")]
        lines = [",".join(["Step", *(f'"{name}"' for name in names)])]
        for run in rest:
            for place, tokens in enumerate(run.tokens):
                cells = [str(round(tokens / 1e6))]
                for other in rest:
                    value = repr(float(run.metrics[metric][place])) if other is run else ""
                    cells += [value] * 3
                lines.append(",".join(cells))
        paths.append(tmp_path / f"chart-{metric}.csv")
        paths[-1].write_text("\n".join(lines) + "\n", "utf-8")
    sizes = {f"{n / 1e6:.0f}M": n for n in SIZES}
    batches = dict.fromkeys(sizes, 1e6)
    with pytest.raises(UserError, match=r"--size 190M=N"):
        collect(paths, batches=batches)
    with pytest.raises(UserError, match=r"--batch"):
        collect(paths, sizes=sizes)
    found = check(collect(paths, sizes=sizes, batches=batches), tasks)
    assert len(found) == len(table)
    # Tokens are rounded to whole steps, which moves them by half a million at most.
    x = np.log([[6.9e9], [3.9e12], [6 * 6.9e9 * 3.9e12]])
    wanted = fit_chain(table, tasks, FAST).loss(x)
    assert fit_chain(found, tasks, FAST).loss(x) == pytest.approx(wanted, rel=0.05)


@pytest.mark.parametrize("share", [0.5, 0.9, 0.97])
def test_a_run_that_ends_before_the_length_in_its_name_is_left_out(ladder, capsys, share):
    table, tasks = ladder
    run = table["759M-5xC"] if "759M-5xC" in [each.name for each in table] else table["758M-5xC"]
    cut = replace(run, tokens=run.tokens * share)
    changed = replace(table, runs=tuple(cut if each is run else each for each in table))
    forecaster = TwoStep(FAST, 0).fit(changed, tasks, calibrated=False)
    assert run.name not in forecaster.fitted_runs
    said = " ".join(capsys.readouterr().err.split())
    assert f"'{run.name}' is left out: it ends at {share:.0%} of the length in its name" in said
    kept = TwoStep(FAST, 0).fit(changed, tasks, calibrated=False, allow_unfinished=True)
    assert run.name in kept.fitted_runs


def test_names_that_mean_something_else_cut_no_run_short(ladder):
    table, _ = ladder
    all_half = replace(table, runs=tuple(replace(run, tokens=run.tokens / 2) for run in table))
    assert cut_short(all_half) == {}  # N or D is counted in another way
    assert any("counted in another way" in each for each in oddities(all_half))


def test_a_rate_that_has_not_decayed_is_seen_without_its_peak(ladder):
    table, _ = ladder
    rates = np.linspace(1, 0.1, 10)
    runs = [replace(run, lr=rates) for run in table]
    runs[3] = replace(runs[3], lr=np.linspace(1, 0.6, 10))
    assert list(cut_short(RunTable(tuple(runs)))) == [runs[3].name]
    constant = RunTable(tuple(replace(run, lr=np.ones(10)) for run in table))
    assert cut_short(constant) == {}  # that is how these runs are trained


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"n": lambda run: run.n / 1e9}, "in millions or billions"),
        ({"tokens": lambda run: run.tokens / 1e9}, "in millions or billions"),
        ({"n": lambda run: run.n / 1e6, "tokens": lambda run: run.tokens / 1e9}, "in millions or billions"),
        ({"n": lambda run: run.n / 1e9, "tokens": lambda run: run.tokens / 1e9}, "in millions or billions"),
        ({"flops_per_token": lambda run: 6 * run.n / 1e9}, "another unit"),
    ],
)
def test_every_slip_of_units_is_told(ladder, change, said):
    table, _ = ladder
    run = table.runs[5]
    slipped = replace(run, **{key: new(run) for key, new in change.items()})
    found = oddities(replace(table, runs=tuple(slipped if each is run else each for each in table)))
    assert any(run.name in each and said in each for each in found)
    assert oddities(table) == []
    if said == "in millions or billions":
        mixed = replace(table, runs=tuple(slipped if each is run else each for each in table))
        with pytest.raises(UserError, match=f"'{run.name}' has [ND] = .*, 1e-[0-9]+ times those of the other runs"):
            TwoStep(FAST, 0).fit(mixed, ladder[1], calibrated=False)


def test_a_target_in_another_unit_is_refused_or_told(ladder):
    table, tasks = ladder
    forecaster = TwoStep(FAST, 0).fit(table, tasks, calibrated=False)
    with pytest.raises(UserError, match="same unit"):
        forecaster.predict_all(6.9, 3.9e12)


def test_flops_that_some_runs_do_not_tell_are_counted_as_those_of_the_others(ladder):
    table, _ = ladder
    known = RunTable(tuple(replace(run, flops_per_token=9 * run.n) for run in table))
    gap = replace(known, runs=tuple(replace(r, flops_per_token=None) if k == 4 else r for k, r in enumerate(known)))
    assert consistent(gap).runs[4].flops_per_token == pytest.approx(9 * table.runs[4].n)


def test_repeated_data_count_as_what_they_are_worth(ladder):
    assert worth_of(4e9, 1) == 4e9
    assert worth_of(4e9, 4) == pytest.approx(1e9 * (1 + 15.387756 * (1 - np.exp(-3 / 15.387756))))
    table, tasks = ladder
    # Runs whose losses are those of the worth of their tokens: with epochs told the law is recovered, else it bends.
    runs = []
    for run in table:
        epochs = 8.0 if run.multiple >= 5 else 1.0
        share = np.array([worth_of(each, epochs) for each in run.tokens])
        loss = true_loss(run.n, share)
        runs.append(replace(run, metrics=run.metrics | {"loss0": loss}, metadata={"epochs": epochs}))
    told = fit_chain(RunTable(tuple(runs)), tasks, FAST.model_copy(update={"last": 1}))
    blind = RunTable(tuple(replace(run, metadata={}) for run in runs))
    untold = fit_chain(blind, tasks, FAST.model_copy(update={"last": 1}))
    x = np.log([[6.9e9], [3.9e12], [6 * 6.9e9 * 3.9e12]])
    truth = true_loss(6.9e9, 3.9e12)
    assert told.loss(x)[0, 0, 0] == pytest.approx(truth, rel=1e-3)
    assert abs(untold.loss(x)[0, 0, 0] / truth - 1) > 0.01
    with pytest.raises(UserError, match="no number of epochs"):
        fit_chain(RunTable(tuple(replace(run, metadata={"epochs": "many"}) for run in runs)), tasks, FAST)


def test_other_families_lend_their_exponents(synthetic):
    many, tasks = synthetic(noise=0.003, seed=1, checkpoints=10)
    few, _ = synthetic(noise=0.003, seed=2, checkpoints=10, sizes=SIZES[:3], multiples=(1, 2))

    def named(table, family):
        return [replace(run, name=f"{family}-{run.name}", metadata={"family": family}) for run in table]

    both = RunTable((*named(many, "a"), *named(few, "b")))
    x = np.log([[6.9e9], [3.9e12], [6 * 6.9e9 * 3.9e12]])
    truth = true_loss(6.9e9, 3.9e12)
    alone, lent = (
        abs(fit_chain(table, tasks, FAST).loss(x)[0, 0, 0] / truth - 1) for table in (few, both.of_family("b"))
    )
    assert lent < alone
    with pytest.raises(UserError, match="no run of the family 'c'"):
        both.of_family("c")


def test_the_order_of_a_file_moves_no_interval(synthetic, tmp_path):
    table, tasks = synthetic(noise=0.01, checkpoints=4)
    lines = write_table(table, tmp_path / "runs.csv").read_text("utf-8").splitlines(keepends=True)
    (tmp_path / "reversed.csv").write_text(lines[0] + "".join(lines[:0:-1]), "utf-8")
    one, other = (
        TwoStep(FAST, replicates=20).fit(RunTable.read(tmp_path / name), tasks, calibrated=False).predict(7e9, 4e12)
        for name in ("runs.csv", "reversed.csv")
    )
    assert one.to_json() == other.to_json()


def test_a_rate_is_seen_where_the_last_rows_of_a_log_hold_none(ladder, tmp_path):
    run = ladder[0].runs[0]
    rates = np.where(np.arange(10) == 9, 0.6, 1.0)
    lines = ["throughput/total_tokens,optim/learning_rate_group0,learning_rate_peak,loss0"]
    for tokens, rate in zip(run.tokens, rates, strict=True):
        lines += [f"{tokens},{rate},1,", f"{tokens},,1,2.0"]  # training and evaluation write rows of their own
    (tmp_path / "log.csv").write_text("\n".join(lines) + "\n", "utf-8")
    found = read_csv_run(tmp_path / "log.csv", run.n, None)
    assert found.last_rate == 0.6
    assert found.unfinished == "its learning rate has decayed to 60% of the peak only"
    assert replace(run, lr=np.where(np.arange(10) > 4, np.nan, 1.0), lr_peak=1.0).unfinished is None


def test_a_target_that_was_not_measured_on_every_task_is_told(synthetic):
    table, tasks = synthetic(count=2, checkpoints=4)
    last = table.runs[-1]
    lacking = {key: values for key, values in last.metrics.items() if key != "acc1"}
    runs = (*table.runs[:-1], replace(last, mode="eval", metrics=lacking))
    assert unmeasured(table, tasks) == []
    (said,) = unmeasured(RunTable(runs), tasks)
    assert said.startswith(f"the target '{last.name}' has no number in 'acc1'")


def test_a_copy_of_a_run_under_another_name_is_told(ladder):
    table, _ = ladder
    run = table.runs[2]
    copied = RunTable((*table.runs, replace(run, name="again")))
    (said,) = [each for each in oddities(copied) if "copy" in each]
    assert run.name in said and "'again'" in said
    thrice = RunTable((*copied.runs, replace(run, name="more")))
    assert [each for each in oddities(thrice) if "copies" in each] == [
        f"'again' and 'more' hold the figures of '{run.name}': are they copies, which are no repeats of a run?"
    ]
    other = {key: values * 1.001 for key, values in run.metrics.items()}
    assert not [
        each for each in oddities(RunTable((*table.runs, replace(run, name="b", metrics=other)))) if "copy" in each
    ]


def test_a_column_of_texts_is_refused_for_its_values_not_as_missing(ladder, tmp_path):
    table, tasks = ladder
    rows = _rows(write_table(table, tmp_path / "runs.csv"))

    def changed(key, form):
        path = tmp_path / "changed.csv"
        with open(path, "w", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows({**row, key: form(row[key])} for row in rows)
        return path

    with pytest.raises(UserError, match="row 2: 'acc0' is empty or not a number"):
        check(RunTable.read(changed("acc0", lambda cell: f"{100 * float(cell):.1f}%")), tasks)
    with pytest.raises(UserError, match="has no positive n, the number of parameters, but '190M'"):
        RunTable.read(changed("n", lambda cell: f"{float(cell) / 1e6:.0f}M"))


@pytest.mark.parametrize(
    ("multiples", "short"), [((0.5, 1, 2), {0.5}), ((0.25, 0.5, 1.25), set()), ((0.1, 0.2), set())]
)
def test_short_runs_are_left_out_where_the_others_are_a_ladder(synthetic, multiples, short):
    table, tasks = synthetic(noise=0.003, checkpoints=10, multiples=multiples)
    assert {round(run.multiple, 3) for run in table.short_runs} == short
    forecaster = TwoStep("recommended", 0).fit(table, tasks, calibrated=False)
    assert len(forecaster.fitted_runs) == len(SIZES) * (len(multiples) - len(short))
