"""The commands on the published ladder, with the reference's configuration and flags."""

from __future__ import annotations

import csv
import json
import re

import pytest
import yaml


@pytest.fixture
def config(folder, tmp_path):
    """The reference's configuration, with entries in an order of no meaning."""
    models = json.loads((folder / "models.json").read_text())
    entries = {
        "7B-4T": {
            "paths": [str(folder / "runs" / "peteish7_eval_anneal.csv")],
            "mode": "eval",
            "label": "7B-4T",
            "color": "red",
            "use_last_n_percentage": 100,
        },
    }
    for size in ("1B", "190M", "760M", "370M"):
        paths = [str(folder / "runs" / f"{size}-{length}xC.csv") for length in (1, 2, 5, 10)]
        entries[size] = {"paths": paths, "mode": "train"}
    for size, entry in entries.items():
        model = models[size.split("-")[0]]
        entry |= {"n": model["n_non_embedding"], "flops": model["flops_per_token"]}
    path = tmp_path / "final.json"
    path.write_text(json.dumps(entries))
    return path


def test_the_flags_of_the_reference_give_the_papers_predictions(lmlab, config, folder, results, tmp_path):
    out = tmp_path / "out.json"
    shown = lmlab(
        "ladder",
        "predict",
        "-c",
        config,
        "--root",
        folder,
        "-t",
        "7B-4T",
        "--preset",
        "paper",
        "-k",
        "hellaswag,csqa",
        "-x",
        "bpb",
        "-y",
        "rc_acc",
        "--moving_avg",
        "5",
        "--skip_perc",
        "0.1",
        "--last_n_points",
        "5",
        "-o",
        out,
    )
    assert shown.code == 0, shown.err
    found = {row["task"]: row for row in json.loads(out.read_text())}
    for row in results("target_7B-4T"):
        if row["variant"] == "main" and row["task"] in found:
            assert found[row["task"]]["accuracy"] == pytest.approx(float(row["acc_pred"]), abs=5e-4)
            assert found[row["task"]]["lo"] < found[row["task"]]["accuracy"] < found[row["task"]]["hi"]
    assert "573 tokens a parameter (20 to 200 in the ladder)" in shown.out
    assert "E is at its bound 0" in shown.out


def test_predictions_are_written_in_every_format_and_an_unknown_one_is_refused(lmlab, config, folder, tmp_path):
    common = (
        "ladder",
        "predict",
        config,
        "--root",
        folder,
        "-n",
        "7e9",
        "-d",
        "4T",
        "--preset",
        "flops",
        "-k",
        "piqa_val_5shot",
    )
    for suffix in ("csv", "md", "tex"):
        assert lmlab(*common, "-o", tmp_path / f"x.{suffix}").code == 0
        assert "PIQA" in (tmp_path / f"x.{suffix}").read_text()
    refused = lmlab(*common, "-o", tmp_path / "x.pdf")
    assert refused.code == 2
    assert ".csv, .md, .tex or .json" in refused.err


def test_collect_writes_one_table_that_all_commands_read(lmlab, config, folder, tmp_path):
    table = tmp_path / "runs.csv"
    exports = sorted((folder / "runs").glob("190M-*xC.csv"))
    lost = lmlab("ladder", "collect", *exports, "-o", table)
    assert lost.code == 2 and "does not tell N" in lost.err and "--size 190M=N" in lost.err and not table.exists()
    wrong = lmlab("ladder", "collect", *exports, "--size", "190M=large", "-o", table)
    assert wrong.code == 2 and "--size 190M=large" in wrong.err
    assert lmlab("ladder", "collect", *exports, "--size", "190M=190354176", "-o", table).code == 0
    with open(table, encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert {row["run"] for row in rows} == {f"190M-{m}xC" for m in ("0.5", "1", "2", "5", "10")}
    assert {float(row["n"]) for row in rows} == {190354176}
    assert {float(row["flops_per_token"]) for row in rows} == {1903391232}  # by what the exports count


def test_fit_prints_the_formula_with_units_and_a_worked_number(lmlab, config, folder):
    shown = lmlab("ladder", "fit", config, "--root", folder, "--preset", "paper", "-k", "piqa_val_5shot")
    assert shown.code == 0, shown.err
    text = " ".join(shown.out.split())
    assert "L(N, D) = A / N^alpha + B / D^beta + E" in text
    assert "alpha = 0.3978" in text
    assert (
        "N in parameters without the input embedding, D in tokens; at N = 1.279e+09, D = 2.559e+11 it gives 0.9996 bits"
        " per byte" in text
    )


def test_backtest_variance_and_ablate_show_their_tables(lmlab, config, folder, tmp_path):
    for command, options in (("backtest", ["--preset", "paper", "-k", "main"]), ("variance", []), ("ablate", [])):
        done = lmlab("ladder", command, config, "--root", folder, *options, "-o", tmp_path / f"{command[0]}.csv")
        assert done.code == 0, done.err
    rows = list(csv.DictReader((tmp_path / "b.csv").read_text().splitlines()))
    assert rows[-1]["split"] == "mean"
    assert float(rows[-1]["mean error, points"]) == pytest.approx(1.6, abs=0.1)
    ablation = {
        row["runs"]: float(row["error, points"])
        for row in csv.DictReader((tmp_path / "a.csv").read_text().splitlines())
    }
    assert ablation["16 cheapest"] == pytest.approx(3.82, abs=0.01)
    assert ablation["N <= 760M"] == pytest.approx(7.53, abs=0.01)
    assert ablation["xC <= 2"] == pytest.approx(4.62, abs=0.01)


def test_the_report_shows_forecast_doubts_cards_and_the_next_run(lmlab, config, folder, tmp_path):
    out = tmp_path / "page.html"
    done = lmlab(
        "ladder",
        "report",
        config,
        "--root",
        folder,
        "-t",
        "7B-4T",
        "-k",
        "piqa_val_5shot,csqa,arc_easy_test_5shot",
        "-o",
        out,
    )
    assert done.code == 0, done.err
    page = out.read_text("utf-8")
    for text in (
        "Which run to add",
        "Which benchmarks can be predicted",
        "How far to trust it",
        "of 3",
        "Extrapolation: 75.4 x the compute",
        "90% interval of the loss",
        "Direct law of accuracy, PIQA",
        "it gives 0.7563 (accuracy).",
    ):
        assert text in page
    assert page.count("bits per byte.") == 1  # of the task loss alone: an accuracy has no such unit
    assert out.with_suffix(".csv").exists()
    assert r"\toprule" in out.with_suffix(".tex").read_text()


def test_two_recipes_are_compared_and_the_better_one_is_named(lmlab, synthetic, tmp_path):
    from dataclasses import replace

    from lmlab.methods.ladder import RunTable, write_table

    table, _ = synthetic(1, 0.003, seed=1)
    better, _ = synthetic(1, 0.003, seed=2)
    better = RunTable(
        tuple(
            replace(run, metrics={"loss0": run.metrics["loss0"] - 0.05, "acc0": run.metrics["acc0"] + 0.05})
            for run in better
        )
    )
    write_table(table, tmp_path / "a.csv")
    write_table(better, tmp_path / "b.csv")
    (tmp_path / "tasks.toml").write_text('[one]\nloss_keys = ["loss0"]\naccuracy_keys = ["acc0"]\nchance = 0.25\n')
    out = tmp_path / "c.json"
    target = ("-n", "3e9", "-d", "20xC", "--task-file", tmp_path / "tasks.toml")
    done = lmlab("ladder", "compare", tmp_path / "a.csv", tmp_path / "b.csv", *target, "--preset", "paper", "-o", out)
    assert done.code == 0, done.err
    assert json.loads(out.read_text())[0]["probability that B is better"] > 0.9
    same = lmlab("ladder", "compare", tmp_path / "a.csv", tmp_path / "a.csv", *target)
    assert same.code == 2
    assert "A run table is named twice" in same.err
    write_table(table, tmp_path / "copy.csv")
    same = lmlab("ladder", "compare", tmp_path / "a.csv", tmp_path / "copy.csv", *target)
    assert same.code == 2
    assert f"The ladders '{tmp_path / 'a.csv'}' and '{tmp_path / 'copy.csv'}' are the same" in same.err


def test_what_needs_no_fit_is_refused_before_one(lmlab, synthetic, tmp_path, monkeypatch):
    from lmlab.methods.ladder import RunTable, TwoStep, write_table

    table, _ = synthetic(1, 0.003, seed=1)
    smallest = min(run.n for run in table.ladder)
    write_table(table, tmp_path / "a.csv")
    write_table(table, tmp_path / "copy.csv")
    write_table(RunTable(tuple(run for run in table if run.n == smallest)), tmp_path / "one-size.csv")
    (tmp_path / "tasks.toml").write_text('[one]\nloss_keys = ["loss0"]\naccuracy_keys = ["acc0"]\nchance = 0.25\n')
    common = ("--task-file", tmp_path / "tasks.toml", "--preset", "paper")
    target = ("-n", "3e9", "-d", "20xC", *common)
    done = lmlab("ladder", "compare", tmp_path / "a.csv", tmp_path / "one-size.csv", *target)
    assert done.code == 2 and "one-size.csv': " in done.err, done.err  # which of the two it is
    monkeypatch.setattr(TwoStep, "fit", lambda *_, **__: pytest.fail("it was fitted"))
    for wrong, message in (
        (("compare", tmp_path / "a.csv", tmp_path / "copy.csv", *target), "copy.csv' are the same"),
        (("decide", tmp_path / "a.csv", *common), "There is no scenario"),
        (("decide", tmp_path / "a.csv", "-s", "7e9:4T", "--at-least", "one=65", *common), "0.65 for 65 %"),
        (("decide", tmp_path / "a.csv", "-s", "7e9:4T", "--at-least", "two=0.5", *common), "no task 'two'"),
    ):
        done = lmlab("ladder", *wrong)
        assert done.code == 2 and message in done.err, done.err


def test_the_published_sizes_have_the_published_figures(lmlab, folder):
    for size, model in json.loads((folder / "models.json").read_text()).items():
        assert lmlab("ladder", "size", size).out.strip() == f"{model['n_non_embedding']:,}"
        assert lmlab("ladder", "flops", size).out.startswith(f"{model['flops_per_token']:,} a token")


def test_plans_follow_the_papers_rules_and_keep_to_a_budget(lmlab, tmp_path):
    path = tmp_path / "plan.yaml"
    shown = lmlab("ladder", "plan", "--output", path)
    assert "16 runs, 6.99e+21 FLOPs; hours of a device that computes 400 TFLOP/s" in shown.out
    slow = lmlab("ladder", "plan", path, "--flops-per-second", "2e11").out
    assert "hours of a device that computes 200 GFLOP/s" in slow
    for text in ("524,288", "786,432", "1,310,720", "1,572,864", "0.0009727"):
        assert text in shown.out
    for budget in (1.2e21, 3.2e21, 5e21):
        shown = lmlab("ladder", "plan", path, "--budget", str(budget)).out
        runs, spent = re.search(r"(\d+) runs, ([\d.e+]+) FLOPs", shown).groups()
        assert 0.8 * budget < float(spent) <= budget and int(runs) >= 9
    poor = lmlab("ladder", "plan", path, "--budget", "1e18")
    assert poor.code == 2
    assert "does not pay for three sizes and three lengths" in " ".join(poor.err.split())
    wrong = lmlab("ladder", "plan", "--sizes", "190M,200M")
    assert wrong.code == 2
    assert "sizes.200M has no shape" in wrong.err


def test_jobs_of_slurm_and_torchrun_are_written_for_one_rung(lmlab, tmp_path):
    plan = tmp_path / "plan.yaml"
    lmlab("ladder", "plan", "--output", plan)
    done = lmlab(
        "ladder", "run", plan, "--launcher", "slurm", "--rung", "190M-1xC", "--gpus", "8", "--out", tmp_path / "out"
    )
    assert done.out.startswith("sbatch ")
    recipe = yaml.safe_load((tmp_path / "out" / "recipes" / "190M-1xC.yaml").read_text())
    trainer = recipe["stages"]["model"]["trainer"]
    assert trainer["schedule"]["warmup_tokens"] == 190_354_176
    assert trainer["optimizer"]["learning_rate"] == pytest.approx(9.727e-4, rel=1e-3)
    assert (
        "torchrun --nproc-per-node 4"
        in lmlab(
            "ladder", "run", plan, "--launcher", "torchrun", "--rung", "190M-1xC", "--gpus", "4", "--out", tmp_path
        ).out
    )
    unknown = lmlab("ladder", "run", plan, "--rung", "1M-1xC", "--out", tmp_path)
    assert unknown.code == 2
    assert "The plan has no run '1M-1xC'" in unknown.err


@pytest.mark.parametrize(
    "verb",
    [
        "plan",
        "run",
        "collect",
        "fit",
        "predict",
        "backtest",
        "variance",
        "ablate",
        "compare",
        "report",
        "size",
        "flops",
    ],
)
def test_every_help_shows_an_example(lmlab, verb):
    shown = lmlab("ladder", verb, "--help")
    assert shown.code == 0
    assert f"lmlab ladder {verb}" in shown.out.split("Example")[1]


def test_what_is_asked_for_must_be_said(lmlab, config, folder):
    assert "Name one run table" in lmlab("ladder", "predict").err
    assert "Give both -n and -d" in lmlab("ladder", "predict", config, "--root", folder, "-n", "7e9").err
    assert "is not a length" in lmlab("ladder", "predict", config, "--root", folder, "-n", "7e9", "-d", "many").err
    assert "no task 'helaswag'" in lmlab("ladder", "fit", config, "--root", folder, "-k", "helaswag").err


def test_scenarios_recipes_and_a_run_under_way_from_the_command_line(lmlab, synthetic, tmp_path):
    from lmlab.methods.ladder import write_table

    (tmp_path / "tasks.toml").write_text('[one]\nloss_keys = ["loss0"]\naccuracy_keys = ["acc0"]\nchance = 0.25\n')
    for seed in range(3):
        write_table(synthetic(1, 0.003, seed=seed)[0], tmp_path / f"{seed}.csv")
    common = ("--task-file", tmp_path / "tasks.toml", "--preset", "paper")
    scenarios = ("-s", "3e9:20xC", "-s", "7e9:4T", "--at-least", "one=0.6", "--at-least", "mean=0.6", "--price", "2")
    done = lmlab("ladder", "decide", tmp_path / "0.csv", *scenarios, *common, "-o", tmp_path / "d.json")
    assert done.code == 0, done.err
    assert "The cheapest that reaches what is wanted" in done.out
    decision = json.loads((tmp_path / "d.json").read_text())
    assert len(decision["scenarios"]) == 2 and set(decision["scenarios"][0]["reaches"]) == {"one", "mean"}
    assert "price" in done.out
    three = [tmp_path / f"{seed}.csv" for seed in range(3)]
    done = lmlab("ladder", "compare", *three, "-n", "3e9", "-d", "20xC", *common)
    assert done.code == 0, done.err
    assert "Probability of each order" in done.out
    done = lmlab("ladder", "follow", tmp_path / "0.csv", "--run", "1279M-10xC", "--at", "0.6", *common)
    assert done.code == 0, done.err
    assert "after 60% of its tokens" in done.out and "is not known" in done.out
    for wrong, message in (
        (("decide", tmp_path / "0.csv", *common), "There is no scenario"),
        (("decide", tmp_path / "0.csv", "-s", "7e9", *common), "Write N:D"),
        (("decide", tmp_path / "0.csv", "-s", "7e9:4T", "--at-least", "one", *common), "TASK=ACCURACY"),
        (("compare", tmp_path / "0.csv", "-n", "3e9", "-d", "1T", *common), "two run tables or more"),
        (("compare", three[0], three[0], three[1], "-n", "3e9", "-d", "1T", *common), "named twice"),
        (("follow", tmp_path / "0.csv", "--run", "nope", *common), "no run 'nope'"),
    ):
        done = lmlab("ladder", *wrong)
        assert done.code == 2 and message in done.err, done.err
