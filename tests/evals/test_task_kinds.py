"""Another package adds a kind of tasks by an entry point, and everything that the evaluator does works for it."""

from __future__ import annotations

import json

import pytest
import yaml

from lmlab import plugins
from lmlab.errors import UserError
from lmlab.evals import find_kind, find_tasks, known_tasks, make_task, own_texts
from lmlab.files import read_json, read_jsonl
from lmlab.train import read_metrics

PLUGIN = '''
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from lmlab.errors import UserError
from lmlab.evals import Asked, Metric, Task, Window, mean
from lmlab.files import read_jsonl
from lmlab.reports import Note


@dataclass(frozen=True)
class Ending:
    id: str
    text: str
    last: str


class Endings(Task):
    """How surprising the last word of a text is.

    Attributes:
        unit: of the surprise.
    """

    kind: Literal["endings"] = "endings"
    unit: Literal["bits", "nats"] = "bits"
    metrics: ClassVar[Mapping[str, Metric]] = {
        "surprise": Metric("surprise at the end", is_share=False, lower_is_better=True),
        "expected": Metric("expected endings"),
    }
    figure_fields: ClassVar[tuple[str, ...]] = ("unit",)

    def items(self):
        return [Ending(**row) for row in read_jsonl(Path(self.requests))]

    def rows(self, evaluator, items, settings):
        tokenizer = evaluator.tokenizer
        windows = []
        for item in items:
            before, last = tokenizer.encode(item.text), tokenizer.encode(" " + item.last)
            windows.append(Window([*tokenizer.begin_ids, *before, *last], len(last)))
        for number, score in evaluator.scorer.score(windows):
            yield {"id": items[number].id, "domain": "words", "log_prob": score.log_prob}

    def figures(self, rows):
        return {name: mean(self.values(rows, name)) for name in self.metrics}

    def values(self, rows, metric):
        if metric == "expected":
            return [float(row["log_prob"] > -20) for row in rows]
        return [-row["log_prob"] / (math.log(2) if self.unit == "bits" else 1) for row in rows]

    def asked(self):
        return [Asked(item.id, "words", [item.text], [f"{item.text} {item.last}"]) for item in self.items()]

    def further(self, rows):
        return {"worst": max(rows, key=lambda row: -row["log_prob"])["id"]}

    @classmethod
    def blocks(cls, found):
        return [Note(f"The most surprising ending is {found['further']['worst']}.", "info")]

    @classmethod
    def catalog(cls):
        requests = Path(__file__).with_name("endings.jsonl")
        return [{"name": "famous_endings", "kind": "endings", "requests": str(requests)}]

    @classmethod
    def groups(cls):
        return {"famous": ["famous_endings"]}


class Half(Task):
    kind: Literal["half"] = "half"


def nothing():
    pass
'''
TEXT = "the quick brown fox jumps over the lazy dog while eleven grey geese look on from the"
WORDS = ("bank", "river", "hill")
ITEMS = [{"id": str(n), "text": f"{TEXT} {word}", "last": word[::-1]} for n, word in enumerate(WORDS)]


@pytest.fixture(autouse=True)
def _installed(tmp_path, monkeypatch):
    (tmp_path / "endings_plugin.py").write_text(PLUGIN)
    (tmp_path / "endings.jsonl").write_text("".join(json.dumps(each) + "\n" for each in ITEMS))
    (tmp_path / "endings_plugin-1.dist-info").mkdir()
    (tmp_path / "endings_plugin-1.dist-info" / "METADATA").write_text("Name: endings-plugin\nVersion: 1\n")
    _register(tmp_path, "endings = endings_plugin:Endings\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    monkeypatch.undo()
    _forget()


def _register(folder, points):
    (folder / "endings_plugin-1.dist-info" / "entry_points.txt").write_text(f"[lmlab.tasks]\n{points}")
    _forget()


def _forget():
    plugins.places.cache_clear()
    find_kind.cache_clear()


@pytest.fixture
def task(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("name: mine\nkind: endings\nrequests: endings.jsonl\n")
    return path


@pytest.mark.slow
def test_it_is_measured_resumed_reported_and_compared(lmlab, recipe, task, tmp_path, monkeypatch):
    def change(data):
        data["stages"]["model"] |= {"tasks": [str(task)]}
        data["stages"]["model"]["trainer"]["evaluate_every"] = 6

    assert lmlab("run", recipe(change, until="model"), "--out", tmp_path / "run").code == 0
    model = tmp_path / "run" / "model"
    arguments = ("eval", "--model", model, "--tasks", task, "--precision", "fp32", "--out")
    done = lmlab(*arguments, tmp_path / "a")
    assert done.code == 0, done.err
    assert "surprise at the end" in done.out
    said = read_json(tmp_path / "a" / "results.json")["evaluation"]["tasks"]["mine"]
    rows = list(read_jsonl(tmp_path / "a" / "evaluation" / "tasks" / "mine.jsonl"))
    assert [row["id"] for row in rows] == ["0", "1", "2"]
    bits = sum(-row["log_prob"] for row in rows) / 3 / 0.6931471805599453
    assert said["figures"]["surprise"]["value"] == pytest.approx(bits) and said["metric"] == "surprise"
    assert said["unit"] == "bits" and said["kind"] == "endings"
    page = (tmp_path / "a" / "report.html").read_text()
    assert f"The most surprising ending is {said['further']['worst']}." in page
    (logged,) = [row["mine/surprise"] for row in read_metrics(model / "metrics.jsonl") if "mine/surprise" in row]
    assert logged == pytest.approx(bits, abs=1e-4)  # the same while it was trained

    assert lmlab(*arguments, tmp_path / "b", "--workers", "2").code == 0  # shared by processes that find the kind too
    assert list(read_jsonl(tmp_path / "b" / "evaluation" / "tasks" / "mine.jsonl")) == rows
    shown = lmlab("eval", "compare", tmp_path / "a", tmp_path / "b", "--out", tmp_path / "compared.html")
    assert shown.code == 0 and "surprise" in shown.out, shown.err


def test_its_texts_are_kept_out_of_training(lmlab, task, tmp_path):
    found = list(own_texts(find_tasks([str(task)])[0]))
    assert ("mine/1", f"{TEXT} river revir") in found
    texts = tmp_path / "texts.jsonl"
    rows = [f"{n} {word} " * 60 for n, word in enumerate(["alpha", "beta", "gamma"] * 9)]
    texts.write_text("".join(json.dumps({"text": text}) + "\n" for text in [*rows, TEXT + " hill. " * 50]))
    documents = {"kind": "collect", "sources": [{"kind": "jsonl", "path": str(texts)}], "decontaminate": [str(task)]}
    (tmp_path / "r.yaml").write_text(yaml.safe_dump({"name": "r", "stages": {"documents": documents}}))
    done = lmlab("run", tmp_path / "r.yaml", "--out", tmp_path / "collected")
    assert done.code == 0, done.err
    dropped = list(read_jsonl(tmp_path / "collected" / "documents" / "dropped.jsonl"))
    (copy,) = [row for row in dropped if "mine/" in json.dumps(row)]
    assert copy["id"].endswith(":28")


def test_its_tasks_have_names_and_groups(tmp_path):
    assert find_tasks(["famous"]) == find_tasks(["famous_endings"])
    assert known_tasks()["famous_endings"].items()[2].last == "llih"


def test_the_fingerprint_changes_with_requests_and_settings(task, tmp_path):
    (before,) = find_tasks([str(task)])
    assert before.model_copy(update={"title": "Mine"}).fingerprint() == before.fingerprint()
    assert before.model_copy(update={"unit": "nats"}).fingerprint() != before.fingerprint()
    digest = before.fingerprint()
    (tmp_path / "endings.jsonl").write_text(json.dumps(ITEMS[0]) + "\n")
    assert before.fingerprint() != digest


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": "endnigs"}, "unknown kind of task 'endnigs'. Did you mean 'endings'?"),
        ({"kind": ["endings"]}, "kind: the name of a kind of task is needed"),
        ({"kind": "endings", "metric": "f1"}, "'f1' does not go with kind 'endings', which has surprise, expected."),
        ({"kind": "endings", "extract": "x"}, "extract belongs to tasks of kind 'generation'"),
    ],
)
def test_a_wrong_field_is_one_sentence(fields, message):
    with pytest.raises(UserError) as caught:
        make_task({"name": "t", "requests": "r", **fields})
    assert message in caught.value.message


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("Half", "is no kind of task: it lacks asked, figures, items, rows, values, metrics"),
        ("nothing", "is no kind of task: it does not derive from lmlab.evals.Task"),
        ("missing", "cannot be loaded"),
    ],
)
def test_a_package_that_offers_something_else_is_named(tmp_path, place, message):
    _register(tmp_path, f"odd = endings_plugin:{place}\n")
    with pytest.raises(UserError) as caught:
        make_task({"name": "t", "requests": "r", "kind": "odd"})
    assert f"'endings_plugin:{place}' {message}" in caught.value.message
