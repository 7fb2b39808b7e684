"""Does tuning on dialogues raise a model's grade? A published chat model learns dialogues about other chapters by
adapters, once with the teacher's turns learned and once with the mask inverted (chapters and questions learned). All
three answer the 24 questions of `tutor_items.yaml` and are graded by judges that ask nobody, paired by question; beside
them the base's answers, cut to the tuned model's length.

    OMP_NUM_THREADS=1 python benchmarks/tutor_grades.py models/smollm2 TEXTBOOKS --out runs/tutor-grades [--book closed]

TEXTBOOKS is as for `tutor_end_to_end.py`. Chapters that are asked about are left out of the dialogues, which quote by
rule. Intervals are of a bootstrap over chapters. Stopped, the same command goes on.
"""

from __future__ import annotations

import argparse
import os
import shutil
import time
from pathlib import Path
from typing import Any

import torch
import yaml
from tutor_end_to_end import ITEMS, lmlab, write_questions
from tutor_tuning import answer_losses, invert

from lmlab.files import read_json, read_jsonl, write_jsonl
from lmlab.methods.tutor.scoring.compare import compare_rows, verdict
from lmlab.methods.tutor.scoring.grade import graded_rows
from lmlab.runs import Model, Recipe, run_recipe
from lmlab.stats import paired_bootstrap


def main() -> None:
    """Tune, ask, grade and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("textbooks", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/tutor-grades"))
    parser.add_argument("--judge", action="append", help="by default coverage alone; another must ask nobody either")
    parser.add_argument("--book", choices=["open", "closed"], default="open")
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--max-words", type=int, default=120, help="of a chapter in the dialogues")
    parser.add_argument("--asked-words", type=int, default=250, help="of a chapter before a question")
    parser.add_argument("--per-chapter", type=int, default=2)
    parser.add_argument("--learning-rate", type=float, default=5e-4)
    parser.add_argument("--epochs", type=float, default=2)
    given = parser.parse_args()
    torch.set_num_threads(1)
    print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores, one thread", flush=True)
    given.out.mkdir(parents=True, exist_ok=True)
    books = given.out / "textbooks"
    if not books.exists():
        asked = {item["chapter"].partition("/")[2] for item in yaml.safe_load(ITEMS.read_text())}
        shutil.copytree(
            given.textbooks,
            books,
            ignore=lambda _, names: [name for name in names if name.partition(".")[0] in asked],
        )
    started = seconds()
    models = {"base": Path(given.model), **tune(given, books)}
    print(f"tuning, twice: {seconds() - started:.0f} CPU s", flush=True)
    show_losses(models, given.out / "run")
    questions = given.out / "questions.jsonl"
    write_questions(given.textbooks, questions, given.asked_words)
    folders = {name: given.out / f"{name}-{given.book}" for name in models}
    for name, model in models.items():
        lmlab("tutor", "generate", "--model", model, "--data", questions, "--book", given.book,
              "--max-new-tokens", given.max_new_tokens, "--out", folders[name])  # fmt: skip
        words = [len(row["tutor"]["output"].split()) for row in read_jsonl(folders[name] / "answers.jsonl")]
        print(f"{name}: {sum(words) / len(words):.0f} words an answer; {seconds() - started:.0f} CPU s", flush=True)
    folders["base, cut"] = cut(folders["base"], folders["tuned"], given.out / f"cut-{given.book}")
    for judge in given.judge or ["coverage"]:
        print(f"\nGraded by {judge}", flush=True)
        for name, folder in folders.items():
            lmlab("tutor", "grade", folder, "--judge", judge, "--new-run")
            total = read_json(folder / "report.json")["total"]
            print(f"  {name}: {total['value']:.1f} % [{total['low']:.1f}, {total['high']:.1f}] of {total['n']}")
        base = graded_rows(folders["base"])
        for name in list(folders)[1:]:
            print(f"  base to {name}: {verdict(compare_rows(base, graded_rows(folders[name])))}", flush=True)
    print(f"in all {seconds() - started:.0f} CPU s; load {os.getloadavg()[0]:.1f}")


def cut(base: Path, other: Path, out: Path) -> Path:
    """Answers of a model, each cut to as many words as another's: longer answers say more key points."""
    lengths = {row["id"]: len(row["tutor"]["output"].split()) for row in read_jsonl(other / "answers.jsonl")}
    out.mkdir(exist_ok=True)
    for name in ("items.jsonl", "run.json"):
        shutil.copy(base / name, out / name)
    rows = list(read_jsonl(base / "answers.jsonl"))
    for row in rows:
        row["tutor"]["output"] = " ".join(row["tutor"]["output"].split()[: lengths[row["id"]]])
    write_jsonl(out / "answers.jsonl", rows)
    return out


def seconds() -> float:
    """Of the processor, of this process and of those that it started."""
    return time.process_time() + os.times().children_user + os.times().children_system


def tune(given: argparse.Namespace, books: Path) -> dict[str, Path]:
    """The models, tuned on answers and on everything else."""
    train: dict[str, Any] = {
        "kind": "train",
        "start": given.model,
        "lora": {"rank": 16},
        "packing": "best_fit",
        "seq_len": 512,
        "max_epochs": 10,
        "trainer": {
            "epochs": given.epochs,
            "batch_size": 2,
            "micro_batch_size": 2,
            "precision": "auto",
            "optimizer": {"learning_rate": given.learning_rate, "weight_decay": 0},
            "schedule": {"kind": "cosine", "warmup_fraction": 0.1},
        },
    }
    mix: dict[str, Any] = {
        "kind": "tutor_mix",
        "dialogues": "dialogues",
        "tokenizer": given.model,
        "format": "template",
        "max_len": 513,
    }
    stages: dict[str, Any] = {
        "dialogues": {
            "kind": "tutor_dialogues",
            "chapters": str(books),
            "scheme": "rule",
            "num_turns": 4,
            "per_chapter": given.per_chapter,
            "min_words": 60,
            "max_words": given.max_words,
            "heldout_fraction": 0.15,
        },
        "tokens": mix,
        "heldout": {**mix, "split": "heldout"},
        "tuned": {**train, "tokens": "tokens"},
    }
    run = given.out / "run"
    run_recipe(Recipe.parse({"name": "tuned", "seed": 0, "stages": stages}, "tuned"), run)
    opposite = given.out / "inverted"
    if not (opposite / "tokens").exists():
        invert(run / "tokens", opposite / "tokens")
    stages = {"tuned": {**train, "tokens": str(opposite / "tokens")}}
    run_recipe(Recipe.parse({"name": "inverted", "seed": 0, "stages": stages}, "inverted"), opposite / "run")
    return {"tuned": run / "tuned", "inverted": opposite / "run" / "tuned"}


def show_losses(models: dict[str, Path], run: Path) -> None:
    """The loss of answers in dialogues about chapters that no model has learned from."""
    losses = {name: answer_losses(Model.find(model).load(), run / "heldout") for name, model in models.items()}
    base = losses["base"]
    print(f"Loss of answers in {len(base)} dialogues about as many held-out chapters, nats a token", flush=True)
    for name, each in losses.items():
        gap, _ = paired_bootstrap(base, each)
        share = 100 * (each.mean() / base.mean() - 1)
        print(
            f"  {name:9s} {each.mean():.3f}   {share:+.1f} %   difference [{gap.low:+.3f}, {gap.high:+.3f}]", flush=True
        )


if __name__ == "__main__":
    main()
