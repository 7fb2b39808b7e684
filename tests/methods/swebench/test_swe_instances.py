"""Instances and predictions are read in every published layout."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lmlab.errors import UserError
from lmlab.methods.swebench.config import InstancesConfig
from lmlab.methods.swebench.instances.instance import Instance
from lmlab.methods.swebench.instances.load import load_chosen, load_instances, write_instances
from lmlab.methods.swebench.instances.predictions import by_model, load_predictions
from lmlab.methods.swebench.instances.task_repository import check_instance, image_name, write_task_repository


def _row(number: int = 1, **columns: Any) -> dict[str, Any]:
    return {
        "instance_id": f"o__r-{number}",
        "repo": "o/r",
        "patch": "diff --git a/a b/a\r\n",
        "test_patch": "diff --git a/t b/t\n",
        "problem_statement": "It fails.",
        "FAIL_TO_PASS": ["t.py::a[x, y]"],
        "PASS_TO_PASS": [],
        **columns,
    }


@pytest.mark.parametrize(
    "columns",
    [
        {"FAIL_TO_PASS": '["t.py::a[x, y]"]'},
        {"FAIL_TO_PASS": "['t.py::a[x, y]']"},
        {"FAIL_TO_PASS": None, "fail_to_pass": '["t.py::a[x, y]"]'},
        {"FAIL_TO_PASS": ("t.py::a[x, y]",)},
    ],
)
def test_lists_of_tests_come_as_lists_json_and_python(columns: dict[str, Any]) -> None:
    row = {key: value for key, value in (_row() | columns).items() if value is not None}
    assert Instance.from_row(row).fail_to_pass == ("t.py::a[x, y]",)


def test_a_list_that_is_none_names_its_place() -> None:
    with pytest.raises(UserError, match=r"column 'FAIL_TO_PASS': neither JSON nor the text of a Python list: '\[1,'"):
        Instance.from_row(_row(FAIL_TO_PASS="[1,"))


def test_rows_of_before_2026_get_the_parser_of_their_repository() -> None:
    assert Instance.from_row(_row(repo="django/django")).log_parser == "parse_log_django"
    assert Instance.from_row(_row()).log_parser == "parse_log_pytest"


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.parquet", "data/test.parquet", "saved/test", "tasks"])
def test_every_layout_gives_the_same_instances(name: str, tmp_path: Path) -> None:
    instances = [Instance.from_row(_row(number, hints_text="" if number == 1 else "hint")) for number in (1, 2)]
    path = tmp_path / name
    source = path
    if name.startswith("saved"):
        datasets = pytest.importorskip("datasets", reason="datasets is not installed")
        datasets.Dataset.from_list([each.to_row("json") for each in instances]).save_to_disk(str(path))
        source = path.parent
    elif name == "tasks":
        write_task_repository(path, instances, "mine")
    else:
        write_instances(path, instances)
        source = path.parent if name.startswith("data") else path
    found = load_instances(source)
    assert [(each.instance_id, each.fail_to_pass, each.patch) for each in found] == [
        (each.instance_id, each.fail_to_pass, each.patch) for each in instances
    ]
    assert [each.hints_text for each in found] == ["", "hint"]


def test_unknown_ids_are_an_error_and_never_a_smaller_set(tmp_path: Path) -> None:
    write_instances(tmp_path / "a.jsonl", [Instance.from_row(_row())])
    with pytest.raises(UserError, match="has no instances o__r-9"):
        load_instances(tmp_path / "a.jsonl", ids=["o__r-1", "o__r-9"])


def test_a_digest_counts_what_decides_a_verdict() -> None:
    one = Instance.from_row(_row())
    assert one.digest == Instance.from_row(_row(hints_text="x", validated_at="now")).digest
    assert one.digest != Instance.from_row(_row(PASS_TO_PASS=["b"])).digest


def test_checks_find_what_a_task_lacks() -> None:
    assert check_instance(Instance.from_row(_row())) == []
    broken = Instance.from_row(_row(FAIL_TO_PASS=[], patch="x", problem_statement=" ", eval_script="echo"))
    assert check_instance(broken) == [
        "FAIL_TO_PASS is empty",
        "patch is no diff of git",
        "problem_statement is empty",
        "eval_script lacks the mark '>>>>> Start Test Output'",
        "eval_script lacks the mark '>>>>> End Test Output'",
    ]


def test_the_published_instances_name_their_images_and_marks(lite: dict[str, Instance]) -> None:
    assert all(each.image == image_name(each.instance_id) for each in lite.values())
    assert len(lite) == 312


_ONE = {"instance_id": "o__r-1", "model_name_or_path": "m", "model_patch": "x"}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("p.jsonl", json.dumps(_ONE) + "\n\n"),
        ("p.json", json.dumps([_ONE])),
        ("preds.json", json.dumps({"o__r-1": {"model_name_or_path": "m", "model_patch": "x"}})),
    ],
)
def test_predictions_come_in_three_forms(name: str, content: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text(content)
    (found,) = load_predictions(path, [Instance.from_row(_row())])
    assert (found.model, found.patch, found.empty) == ("m", "x", False)


def test_gold_is_a_prediction_and_live_ones_have_no_model(tmp_path: Path) -> None:
    instances = [Instance.from_row(_row())]
    assert load_predictions("gold", instances)[0].patch == instances[0].patch
    (tmp_path / "p.json").write_text(json.dumps({"o__r-1": {"model_patch": None}}))
    (found,) = load_predictions(tmp_path / "p.json", instances)
    assert found.empty and by_model([found]) == {"None": {"o__r-1": found}}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([_ONE, _ONE | {"model_patch": "y"}], "a second, different patch of 'm' for 'o__r-1'"),
        ([_ONE | {"instance_id": "z"}], "the dataset has not: z"),
        ([{"model_patch": "x"}], "has no 'instance_id'"),
        ([_ONE | {"model_patch": 3}], "'model_patch' is text"),
        ([], "has no predictions"),
    ],
)
def test_predictions_that_fit_nothing_are_refused(rows: list[Any], message: str, tmp_path: Path) -> None:
    (tmp_path / "p.json").write_text(json.dumps(rows))
    with pytest.raises(UserError, match=message):
        load_predictions(tmp_path / "p.json", [Instance.from_row(_row())])
    (tmp_path / "q.json").write_text(json.dumps([_ONE, _ONE]))
    assert len(load_predictions(tmp_path / "q.json", [Instance.from_row(_row())])) == 1


def test_a_folder_of_logs_is_graded_again(lmlab: Callable[..., Any], tmp_path: Path) -> None:
    write_instances(
        tmp_path / "i.jsonl", [Instance.from_row(_row(number, FAIL_TO_PASS=["t.py::a"])) for number in (1, 2, 3)]
    )
    for number, word in ((1, "PASSED"), (2, "FAILED")):
        folder = tmp_path / "logs" / "m" / f"o__r-{number}"
        folder.mkdir(parents=True)
        body = f">>>>> Start Test Output\n{word} t.py::a\n>>>>> End Test Output\n"
        (folder / "test_output.txt").write_text(body)
    done = lmlab("swe", "report", tmp_path / "logs", "-i", tmp_path / "i.jsonl", "--write", "-o", tmp_path / "run.json")
    assert done.code == 0, done.err
    assert "50.0 % (9.5 to 90.5)" in done.out
    found = json.loads((tmp_path / "run.json").read_text())
    assert (found["resolved_ids"], found["unresolved_ids"], found["incomplete_ids"]) == (
        ["o__r-1"],
        ["o__r-2"],
        ["o__r-3"],
    )
    report = json.loads((tmp_path / "logs" / "m" / "o__r-1" / "report.json").read_text())
    assert report["o__r-1"]["resolved"] is True
    one = lmlab("swe", "grade", tmp_path / "logs" / "m" / "o__r-2" / "test_output.txt", "-i", tmp_path / "i.jsonl")
    assert "o__r-2: not resolved (NO)" in one.out and "t.py::a" in one.out
    missing = lmlab("swe", "report", tmp_path / "nowhere", "-i", tmp_path / "i.jsonl")
    assert missing.code == 2 and "has no logs of these instances" in missing.err


def test_instances_are_chosen_by_their_dates(tmp_path: Path) -> None:
    dates = {"a": "2023-12-31T23:30:00-02:00", "b": "2024-06-01T00:00:00Z", "c": "2025-01-01"}
    rows = [{"instance_id": name, "repo": "o/r", "created_at": date} for name, date in dates.items()]
    path = tmp_path / "i.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def chosen(**options: str) -> list[str]:
        return [each.instance_id for each in load_chosen(InstancesConfig(instances=str(path), **options))]

    # The first is of 2024 where clocks show UTC
    assert chosen(created_since="2024-01-01") == ["a", "b", "c"] and chosen(created_before="2024-06-01") == ["a"]
    assert chosen(created_since="2024-06-01", created_before="2025-01-01") == ["b"] and len(chosen()) == 3
    for options, said in (
        ({"created_since": "soon"}, "no date"),
        ({"created_since": "2030-01-01"}, "None of 3 instances"),
    ):
        with pytest.raises(UserError, match=said):
            chosen(**options)
    with pytest.raises(UserError, match="'later' is no date"):
        chosen(created_since="2024-01-01", created_before="later")
    path.write_text(json.dumps({"instance_id": "a", "repo": "o/r"}) + "\n")
    with pytest.raises(UserError, match="Instances have no date: a"):
        chosen(created_since="2024-01-01")
