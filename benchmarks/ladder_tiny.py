"""A real tiny ladder, end to end: nine runs forecast the accuracy and loss of a model of twice the size, which is then
trained.

    python benchmarks/ladder_tiny.py [--out DIR] [--scale 1.0]

The text is the standard library's and generated facts: entities with attributes, seen as often as Zipf's law says, in
several wordings. The questions ask for an attribute, with the values of three other entities as wrong options. Printed:
fit error of the first step, forecast and outcome with the 90 % interval, beside the best run carried forward and a
straight line in log compute; then the same by groups of questions of like difficulty. `--scale` shortens all runs, to
see that it works.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from lmlab.evals import Evaluator, RankedTask, Settings, read_questions, run_task
from lmlab.files import read_json, write_jsonl
from lmlab.methods.ladder import (
    LadderPlan,
    RunTable,
    TwoStep,
    TwoStepSettings,
    collect,
    fit_chain,
    forecast_by_difficulty,
    read_answers,
    train_rungs,
)
from lmlab.methods.ladder.stages import forecast, ladder_task
from lmlab.models import ModelConfig
from lmlab.runs import Recipe, run_recipe

_SIZES = {"16k": 16, "32k": 24, "64k": 40}
_TARGET = ("128k", 64)
_MULTIPLES = (1.0, 2.0, 5.0)
_ATTRIBUTES = {
    "capital": ("The capital of {e} is {v}.", "{v} is the capital of {e}.", "{e} has the capital {v}."),
    "colour": ("The colour of {e} is {v}.", "{e} is {v} in colour.", "Whoever sees {e} sees {v}."),
    "ruler": ("The ruler of {e} is {v}.", "{v} rules {e}.", "{e} is ruled by {v}."),
}
_SYLLABLES = ("ka", "lo", "mi", "ter", "vu", "san", "del", "ro", "fi", "gan", "pe", "nos", "bra", "ul", "tim", "ez")


def facts(folder: Path, entities: int = 300, sentences: int = 60_000, seed: int = 0) -> tuple[Path, Path]:
    """A file of documents, and one of questions about the more frequent half of the entities."""
    rng = np.random.default_rng(seed)

    def name() -> str:
        return "".join(rng.choice(_SYLLABLES, size=3)).capitalize()

    known = {name(): {attribute: name() for attribute in _ATTRIBUTES} for _ in range(entities)}
    names = list(known)
    share = 1 / np.arange(1, len(names) + 1) ** 0.8
    drawn = rng.choice(len(names), size=sentences, p=share / share.sum())
    lines = []
    for entity in (names[place] for place in drawn):
        attribute = str(rng.choice(list(_ATTRIBUTES)))
        lines.append(str(rng.choice(_ATTRIBUTES[attribute])).format(e=entity, v=known[entity][attribute]))
    documents = [
        {"id": f"facts/{k}", "text": " ".join(lines[k : k + 40]), "domain": "facts"} for k in range(0, len(lines), 40)
    ]
    questions = []
    for entity in names[: len(names) // 2]:
        for attribute, forms in _ATTRIBUTES.items():
            gold = known[entity][attribute]
            others = [known[names[k]][attribute] for k in rng.permutation(len(names))[:8]]
            wrong = [value for value in dict.fromkeys(others) if value != gold][:3]
            options = [f" {value}" for value in rng.permutation([gold, *wrong])]
            context = forms[0].format(e=entity, v="").removesuffix(" .")
            row = {
                "id": f"{entity}/{attribute}",
                "context": context,
                "options": options,
                "gold": options.index(f" {gold}"),
                "domain": attribute,
            }
            questions.append(row)
    write_jsonl(folder / "facts.jsonl", documents)
    write_jsonl(folder / "questions.jsonl", questions)
    return folder / "facts.jsonl", folder / "questions.jsonl"


def prepare(folder: Path) -> Path:
    """Documents, tokenizer and shards as a run."""
    path, _ = facts(folder)
    tokenize = {"kind": "tokenize", "documents": "documents", "tokenizer": "tokenizer"}
    source = {"kind": "jsonl", "path": str(path), "domain_field": "domain", "id_field": "id"}
    stages = {
        "documents": {
            "kind": "collect",
            "sources": [source, {"kind": "python_library"}],
            "near_duplicate_threshold": None,
            "heldout_fraction": 0.05,
        },
        "tokenizer": {"kind": "train_tokenizer", "documents": "documents", "vocab_size": 512},
        "tokens": tokenize,
        "heldout_tokens": {**tokenize, "split": "heldout"},
    }
    out = folder / "data"
    run_recipe(Recipe.parse({"name": "data", "stages": stages}, "the benchmark"), out)
    return out


def plan(data: Path, questions: Path, sizes: dict[str, int], multiples: tuple[float, ...]) -> LadderPlan:
    """Runs of one recipe that differ in size and length alone."""
    shapes = {
        name: ModelConfig.model_validate(
            {"vocab_size": 512, "num_layers": 2, "d_model": d, "num_heads": 2, "max_seq_len": 128}
        )
        for name, d in sizes.items()
    }
    train = {key: str(data / key) for key in ("tokens", "tokenizer", "heldout_tokens")} | {
        "questions": str(questions),
        "tasks_limit": 450,
        "max_epochs": 4,
    }
    trainer = {"schedule": {"kind": "cosine", "final_fraction": 0.1}, "precision": "fp32", "log_every": 100}
    return LadderPlan(sizes=shapes, multiples=multiples, seq_len=128, evaluations=12, trainer=trainer, train=train)


def by_groups(table: RunTable, outcome: RunTable, questions: Path, out: Path) -> None:
    """Print the forecast by groups of questions, from a row a question of every run's last model."""
    asked = RankedTask(name="questions", requests=str(questions), normalization="bytes")
    for folder, runs in ((out / "rungs", table), (out / "target", outcome)):
        for run in runs:
            evaluator = Evaluator.load(folder / run.name / "model" / "model", precision="fp32")
            run_task(evaluator, asked, Settings(limit=450), out / "rows" / f"{run.name}.jsonl")
    (target,) = outcome.runs
    whole = RunTable((*table.runs, replace(target, mode="eval")))
    answers = read_answers(out / "rows", [run.name for run in whole])
    rows = forecast_by_difficulty(
        whole, answers, target.n, target.final_tokens, flops_per_token=target.flops_per_token, target=target.name
    )
    print("| questions | count | smallest run | largest run | forecast | interval | outcome |\n" + "|---" * 7 + "|")
    for each in rows:
        cells = [f"{100 * value:.1f}" for value in (each.smallest, each.largest, each.accuracy)]
        interval = f"{100 * each.lo:.1f} to {100 * each.hi:.1f}"
        print(
            f"| {each.name} | {each.questions} | {' | '.join(cells)} | {interval} | {100 * (each.measured or 0):.1f} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--scale", type=float, default=1.0)
    arguments = parser.parse_args()
    out = arguments.out or Path(tempfile.mkdtemp(prefix="lmlab-tiny-"))
    out.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    data, questions = prepare(out), out / "questions.jsonl"
    multiples = tuple(multiple * arguments.scale for multiple in _MULTIPLES)
    train_rungs(plan(data, questions, _SIZES, multiples), out / "rungs")
    table, task = collect([out / "rungs"]), ladder_task(questions, 450)
    target = plan(data, questions, dict([_TARGET]), (2.0 * arguments.scale,))
    (rung,) = target.rungs()
    found = forecast(table, task, float(rung.n), rung.tokens, rung.flops / rung.tokens)
    (out / "forecast.json").write_text(json.dumps(found, indent=1))
    print(f"forecast written at {found['made']}, after {time.perf_counter() - start:.0f} s")
    train_rungs(target, out / "target")
    outcome = collect([out / "target"])
    (run,) = outcome.runs
    loss, accuracy = float(run.metrics["questions/bits_per_byte"][-1]), float(run.metrics["questions/accuracy"][-1])
    chain = fit_chain(table, [task], TwoStepSettings())
    error = float(np.abs(chain.loss(chain.points.x_3R)[0, 0] / chain.points.y_TR[0] - 1).mean())
    paper = TwoStep("paper").fit(table, task).predict(rung.n, rung.tokens)
    recommended = found["accuracy"]
    print(f"{len(read_questions(questions))} questions, {len(table)} runs, first step fits to {error:.2%}")
    print(
        f"task loss: forecast {found['prediction']['loss']:.3f}, outcome {loss:.3f}"
        f" ({found['prediction']['loss'] / loss - 1:+.1%})"
    )
    print("| accuracy | value | error, points |\n|---|---|---|")
    print(f"| outcome | {accuracy:.3f} | |")
    interval = f"[{recommended['lo']:.3f}, {recommended['hi']:.3f}]"
    print(f"| recommended | {recommended['value']:.3f} {interval} | {100 * abs(recommended['value'] - accuracy):.1f} |")
    print(
        f"| paper | {paper.accuracy:.3f} [{paper.lo:.3f}, {paper.hi:.3f}] |"
        f" {100 * abs(paper.accuracy - accuracy):.1f} |"
    )
    for name in ("carry_forward", "log_linear"):
        print(f"| {name.replace('_', ' ')} | {recommended[name]:.3f} | {100 * abs(recommended[name] - accuracy):.1f} |")
    by_groups(table, outcome, questions, out)
    print(f"{time.perf_counter() - start:.0f} s in all; the files are in {out}")
    assert read_json(out / "forecast.json")["made"] == found["made"]


if __name__ == "__main__":
    main()
