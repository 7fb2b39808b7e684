"""Laws of groups of questions."""

from __future__ import annotations

import json

import numpy as np
import pytest

from lmlab.errors import UserError
from lmlab.evals import ranked_figures
from lmlab.methods.ladder import Run, RunTable, forecast_by_difficulty, read_answers, write_table
from lmlab.methods.ladder.analysis.questions import by_difficulty

N = (1e8, 2e8, 4e8)
MULTIPLES = (1.0, 2.0, 5.0)
TARGET = (2e9, 2e9 * 40)
COUNT = 400


def _rows(n: float, d: float, seed: int) -> list[dict]:
    """Answers of a model: each question is learned where a power of compute passes its difficulty."""
    rng = np.random.default_rng(seed)
    hard = np.random.default_rng(99).uniform(0.5, 3.5, COUNT)
    skill = 3.2 - (1e8 / n) ** 0.3 - (2e9 / d) ** 0.3
    rows = []
    for number in range(COUNT):
        scores = 0.3 * rng.standard_normal(4)
        scores[number % 4] += 2 * (skill - hard[number])
        log_probs = (10 * (scores - np.logaddexp.reduce(scores))).tolist()
        rows.append({"id": f"q{number}", "gold": number % 4, "log_probs": log_probs, "bytes": [10] * 4})
    return rows


@pytest.fixture(scope="module")
def answered(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rows")
    runs = []
    places = [(n, 20 * n * m, f"{n:.0e}-{m:g}xC", "train") for n in N for m in MULTIPLES]
    for seed, (n, d, name, mode) in enumerate([*places, (*TARGET, "target", "eval")]):
        rows = _rows(n, d, seed)
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
        metrics = {"eval/x-validation/CrossEntropyLoss": np.array([2 + (1e8 / n) ** 0.3 + (2e9 / d) ** 0.3])}
        runs.append(Run(name, n, None, np.array([d]), metrics, mode=mode))
    table = RunTable(tuple(runs))
    write_table(table, folder / "runs.csv")
    return table, folder


def test_groups_hold_all_questions_and_add_up_to_the_benchmark(answered):
    table, folder = answered
    answers = read_answers(folder, [run.name for run in table])
    grouped, tasks, whole = by_difficulty(table, answers, 4)
    assert [task.n_instances for task in tasks] == [100] * 4
    for run in grouped:
        parts = [run.accuracy(task)[-1] for task in tasks]
        assert np.mean(parts) == pytest.approx(run.accuracy(whole)[-1])
        figures = ranked_figures(answers[run.name], "bytes")
        for key in ("accuracy", "bits_per_byte", "soft", "log_soft"):
            assert run.metrics[f"all/{key}"][-1] == pytest.approx(figures[key].value)
    largest = max(grouped.ladder, key=lambda run: run.flops)
    accuracies = [largest.accuracy(task)[-1] for task in tasks]
    assert accuracies[0] > accuracies[-1] + 0.2  # the easiest first


def test_the_sum_of_groups_is_forecast_beside_one_law(lmlab, answered):
    table, folder = answered
    answers = read_answers(folder, [run.name for run in table])
    rows = forecast_by_difficulty(table, answers, *TARGET, groups=3, target="target")
    *groups, whole, single = rows
    sizes = np.array([each.questions for each in groups])
    assert whole.accuracy == pytest.approx(sizes @ [each.accuracy for each in groups] / sizes.sum())
    assert abs(whole.accuracy - whole.measured) < 0.06
    assert whole.lo <= whole.measured <= whole.hi
    assert single.measured == whole.measured
    shown = lmlab("ladder", "questions", folder / "runs.csv", "--rows", folder, "-t", "target", "--groups", 3)
    assert shown.code == 0 and "all, by groups" in shown.out


def test_answers_that_are_missing_or_of_other_questions_are_refused(answered, tmp_path):
    table, folder = answered
    with pytest.raises(UserError, match="no file with the answers of the run"):
        read_answers(tmp_path, ["a"])
    (tmp_path / "b.jsonl").write_text('{"id": "x", "text": "no question"}\n', "utf-8")
    with pytest.raises(UserError, match="'x' is no question with options"):
        read_answers(tmp_path, ["b"])
    answers = dict(read_answers(folder, [run.name for run in table]))
    with pytest.raises(UserError, match="400 questions are too few for 20 groups"):
        by_difficulty(table, answers, 20)
    name = table.runs[0].name
    with pytest.raises(UserError, match="answered different questions"):
        by_difficulty(table, answers | {name: answers[name][1:]}, 4)
    with pytest.raises(UserError, match="no run to fit"):
        by_difficulty(RunTable(()), {}, 1)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"gold": 3}, "differ in the right answers"),
        ({"log_probs": [-1.0, -2.0]}, "differ in the options"),
        ({"bytes": None}, "whether options have their bytes"),
    ],
)
def test_runs_that_were_asked_in_another_way_are_refused(answered, change, said):
    table, folder = answered
    answers = dict(read_answers(folder, [run.name for run in table]))
    name = table.runs[1].name
    rows = [dict(row) | change for row in answers[name]]
    if "log_probs" in change:
        rows = [row | {"bytes": row["bytes"][:2], "gold": 0} for row in rows]
    rows = [{key: value for key, value in row.items() if value is not None} for row in rows]
    with pytest.raises(UserError, match=said):
        by_difficulty(table, answers | {name: rows}, 4)


@pytest.mark.parametrize("sizes", [["x"] * 4, [0] * 4, [float("nan")] * 4, [None] * 4])
def test_bytes_that_are_no_numbers_make_no_question(tmp_path, sizes):
    row = {"id": "x", "gold": 0, "log_probs": [-1.0] * 4, "bytes": sizes}
    (tmp_path / "a.jsonl").write_text(json.dumps(row) + "\n", "utf-8")
    with pytest.raises(UserError, match="'x' is no question with options"):
        read_answers(tmp_path, ["a"])


def test_answers_are_read_from_their_folder_alone(tmp_path):
    (tmp_path / "rows").mkdir()
    row = {"id": "x", "gold": 0, "log_probs": [-1.0, -2.0]}
    (tmp_path / "a.jsonl").write_text(json.dumps(row) + "\n", "utf-8")
    with pytest.raises(UserError, match="leads out of"):
        read_answers(tmp_path / "rows", ["../a"])


def test_a_group_at_chance_has_no_accuracy_and_no_sum(answered, lmlab):
    """The hardest of four groups is never answered: what a law through its luck says is not told."""
    table, folder = answered
    rows = forecast_by_difficulty(table, read_answers(folder, [run.name for run in table]), *TARGET, target="target")
    untold = [each for each in rows if each.accuracy is None]
    for each in untold:
        assert each.largest < 0.34 or each.name == "all, by groups"
        assert each.lo < each.hi
    assert {"group 3", "all, by groups"} <= {each.name for each in untold}
    shown = lmlab("ladder", "questions", folder / "runs.csv", "--rows", folder, "-t", "target")
    assert shown.code == 0 and "No accuracy can be forecast for group 3" in shown.out
