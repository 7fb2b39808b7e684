"""Does tuning on dialogues raise a model's grade? A published chat model learns dialogues about other chapters by
adapters: as they are, with the mask inverted (chapters and questions learned), and with the answers of other dialogues.
All four answer the 24 questions of `tutor_items.yaml`, open book with the part of the chapter that a word search finds,
and are graded by judges that ask nobody, paired by question: their whole answers, and all cut to as many words.

    OMP_NUM_THREADS=1 python benchmarks/tutor_grades.py models/smollm2 TEXTBOOKS --out runs/tutor-grades

TEXTBOOKS is as for `tutor_end_to_end.py`. Chapters that are asked about are left out of the dialogues, which are made
by rule: answers are the chapter's own sentences. Intervals are of a bootstrap over chapters. Stopped, the same command
goes on.
"""

from __future__ import annotations

import argparse
import os
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from tutor_end_to_end import ITEMS, write_questions
from tutor_tuning import answer_losses, heldout_dialogues, invert

from lmlab.data import Tokenizer
from lmlab.data.chapters.chapter import Chapter, split_at_paragraphs
from lmlab.files import read_json, read_jsonl, write_json, write_jsonl
from lmlab.judging import AnswerJudge, AnswerJudgeConfig, Coverage, make_answer_judge
from lmlab.methods.tutor.answering.run import answer_locally
from lmlab.methods.tutor.config import AnswerConfig
from lmlab.methods.tutor.items.item import load_items
from lmlab.methods.tutor.scoring.compare import compare_rows, verdict
from lmlab.methods.tutor.scoring.grade import grade_run, keep_items
from lmlab.methods.tutor.scoring.score import score
from lmlab.methods.tutor.writing.definitions import split_sentences
from lmlab.retrieval import BM25
from lmlab.runs import Model, Recipe, run_recipe
from lmlab.stats import paired_bootstrap

DEVELOPMENT = Path(__file__).with_name("tutor_development_items.yaml")  # to choose settings by, with --items
CUT = 40  # words, at which all answers are compared too: longer ones say more key points


def main() -> None:
    """Tune, ask, grade and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("textbooks", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/tutor-grades"))
    parser.add_argument("--items", type=Path, default=ITEMS)
    parser.add_argument("--judge", action="append", help="by default coverage alone; another must ask nobody either")
    parser.add_argument("--book", choices=["open", "closed"], default="open")
    parser.add_argument("--answers", choices=["passage", "sentence"], default="passage", help="of the dialogues")
    parser.add_argument("--max-new-tokens", type=int, default=96)
    parser.add_argument("--max-words", type=int, default=120, help="of the part of a chapter before a dialogue")
    parser.add_argument("--asked-words", type=int, default=200, help="of the part of a chapter before a question")
    parser.add_argument("--learning-rate", type=float, default=5e-4)
    parser.add_argument("--steps", type=int, default=32, help="of the optimizer, of two rows each")
    parser.add_argument("--length", type=int, default=384, help="of the rows that are learned from, in tokens")
    parser.add_argument("--controls", nargs="*", choices=["inverted", "strange"], default=["inverted", "strange"])
    parser.add_argument("--references", action="store_true", help="grade answers that no model has written too")
    given = parser.parse_args()
    torch.set_num_threads(1)
    print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores, one thread", flush=True)
    given.out.mkdir(parents=True, exist_ok=True)
    books = given.out / "textbooks"
    if not books.exists():
        shutil.copytree(given.textbooks, books, ignore=asked_about([ITEMS, DEVELOPMENT, given.items]))
    started = seconds()
    models = {"base": Path(given.model), **tune(given, books)}
    print(f"tuning: {seconds() - started:.0f} CPU s", flush=True)
    show_losses(models, given.out, given.length)
    asked = given.out / given.items.stem
    asked.mkdir(exist_ok=True)
    questions = asked / "questions.jsonl"
    write_questions(given.textbooks, questions, 1_000_000, given.items)
    write_jsonl(questions, [with_part(row, given.asked_words) for row in read_jsonl(questions)])
    items = load_items(questions, given.book)
    config = AnswerConfig(book=given.book, max_new_tokens=given.max_new_tokens)
    folders = {name: asked / f"{name.replace(' ', '-')}-{given.book}" for name in models}
    for name, model in models.items():
        keep_items(items, folders[name])
        rows = answer_locally(str(model), items, config, folders[name])
        words = [len(row["tutor"]["output"].split()) for row in rows]
        print(f"{name}: {sum(words) / len(words):.0f} words an answer; {seconds() - started:.0f} CPU s", flush=True)
    if given.references:
        folders |= references(folders["base"], asked)
    short = {name: cut(folder, asked / f"{folder.name}-cut") for name, folder in folders.items()}
    for name in given.judge or ["coverage"]:
        judge = make_answer_judge(AnswerJudgeConfig(judge=(name,)))
        for what, each in (("whole answers", folders), (f"answers cut to {CUT} words", short)):
            print(f"\nGraded by {name}: {what}", flush=True)
            grade(each, judge)
    print(f"in all {seconds() - started:.0f} CPU s; load {os.getloadavg()[0]:.1f}")


def grade(folders: dict[str, Path], judge: AnswerJudge) -> None:
    """The scores of all, and their differences from the first."""
    rows = {name: grade_run(folder, judge, new_run=True)[0] for name, folder in folders.items()}
    for name, found in rows.items():
        total = score(found)["total"]
        print(f"  {name}: {total['value']:.1f} % [{total['low']:.1f}, {total['high']:.1f}] of {total['n']}")
    for name, found in list(rows.items())[1:]:
        print(f"  base to {name}: {verdict(compare_rows(rows['base'], found))}", flush=True)


def asked_about(files: Sequence[Path]) -> Any:
    """For `copytree`: leaves out the files of chapters that are asked about."""
    asked = {item["chapter"].partition("/")[2] for file in files for item in yaml.safe_load(file.read_text())}
    return lambda _, names: [name for name in names if name.partition(".")[0] in asked]


def with_part(row: dict[str, Any], words: int) -> dict[str, Any]:
    """A question with the part of its chapter that shares most with it, by BM25."""
    parts = [each.text for each in split_at_paragraphs(Chapter("", "", row["chapter"]), words)]
    found = BM25([str(number) for number in range(len(parts))], parts).scores(row["question"])
    return row | {"chapter": parts[int(found.argmax())]}


def references(base: Path, asked: Path) -> dict[str, Path]:
    """Answers that no model has written: the question itself, the run of sentences of the part that is nearest to it by
    the small encoder (what a tutor that quotes could do), and the whole part.
    """
    encoder = Coverage.load().encoder
    parts = {item.id: item.chapter for item in load_items(asked / "questions.jsonl")}
    answers: dict[str, dict[str, str]] = {"the question": {}, "the nearest sentences": {}, "the whole part": {}}
    for row in read_jsonl(base / "answers.jsonl"):
        runs = quotes(parts[row["id"]])
        vectors = np.asarray(encoder.encode_text([row["question"], *runs]), float)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        nearest = runs[int((vectors[1:] @ vectors[0]).argmax())]
        for name, text in zip(answers, (row["question"], nearest, parts[row["id"]]), strict=True):
            answers[name][row["id"]] = text
    return {
        name: rewritten(base, asked / name.replace(" ", "-"), lambda row, texts=texts: texts[row["id"]])
        for name, texts in answers.items()
    }


def quotes(part: str) -> list[str]:
    """Runs of sentences of a part, of 15 to 60 words."""
    said = [each for text in part.split("\n\n") if not text.startswith("#") for each in split_sentences(text)]
    runs = [" ".join(said[a:b]) for a in range(len(said)) for b in range(a + 1, len(said) + 1)]
    return [each for each in runs if 15 <= len(each.split()) <= 60] or [" ".join(said)]


def cut(folder: Path, out: Path) -> Path:
    """The answers of a model, each cut to so many words."""
    return rewritten(folder, out, lambda row: " ".join(row["tutor"]["output"].split()[:CUT]))


def rewritten(folder: Path, out: Path, text: Callable[[dict[str, Any]], str]) -> Path:
    """A folder of answers with other texts."""
    out.mkdir(exist_ok=True)
    for name in ("items.jsonl", "run.json"):
        shutil.copy(folder / name, out / name)
    rows = list(read_jsonl(folder / "answers.jsonl"))
    for row in rows:
        row["tutor"]["output"] = text(row)
    write_jsonl(out / "answers.jsonl", rows)
    return out


def seconds() -> float:
    """Of the processor, of this process and of those that it started."""
    return time.process_time() + os.times().children_user + os.times().children_system


def tune(given: argparse.Namespace, books: Path) -> dict[str, Path]:
    """The models: tuned on answers, on everything else, and on answers to other questions."""
    train: dict[str, Any] = {
        "kind": "train",
        "start": given.model,
        "lora": {"rank": 16},
        "packing": "best_fit",
        "seq_len": given.length,
        "max_epochs": 10,
        "trainer": {
            "steps": given.steps,
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
        "max_len": given.length + 1,
    }
    stages: dict[str, Any] = {
        "dialogues": {
            "kind": "tutor_dialogues",
            "chapters": str(books),
            "scheme": "rule",
            "rule_answers": given.answers,
            "num_turns": 2,
            "min_words": 60,
            "max_words": given.max_words,
            "long_chapters": "split",
            "heldout_fraction": 0.1,
        },
        "tokens": mix,
        "heldout": {**mix, "split": "heldout"},
        "tuned": {**train, "tokens": "tokens"},
    }
    run = given.out / "run"
    run_recipe(Recipe.parse({"name": "tuned", "seed": 0, "stages": stages}, "tuned"), run)
    found = {"tuned": run / "tuned"}
    if "inverted" in given.controls:
        opposite = given.out / "inverted"
        if not (opposite / "tokens").exists():
            invert(run / "tokens", opposite / "tokens")
        stages = {"tuned": {**train, "tokens": str(opposite / "tokens")}}
        run_recipe(Recipe.parse({"name": "inverted", "seed": 0, "stages": stages}, "inverted"), opposite / "run")
        found["mask inverted"] = opposite / "run" / "tuned"
    if "strange" in given.controls:
        strange = given.out / "strange"
        exchange(run / "dialogues" / "train.jsonl", strange / "train.jsonl")
        stages = {
            "tokens": {**mix, "dialogues": str(strange / "train.jsonl")},
            "tuned": {**train, "tokens": "tokens"},
        }
        run_recipe(Recipe.parse({"name": "strange", "seed": 0, "stages": stages}, "strange"), strange / "run")
        found["answers of others"] = strange / "run" / "tuned"
    return found


def exchange(path: Path, out: Path) -> None:
    """Dialogues whose teacher says what it says in another, half of all dialogues later."""
    rows = list(read_jsonl(path))
    for row, other in zip(rows, rows[len(rows) // 2 :] + rows[: len(rows) // 2], strict=True):
        own, said = row["conversation"], other["conversation"][2::2]
        row["mine"] = [
            own[0],
            *(said[(n // 2 - 1) % len(said)] if n and n % 2 == 0 else own[n] for n in range(1, len(own))),
        ]
    out.parent.mkdir(exist_ok=True)
    write_jsonl(out, [{**row, "conversation": row.pop("mine")} for row in rows])


def show_losses(models: dict[str, Path], out: Path, length: int) -> None:
    """The loss of answers in dialogues about chapters that no model has learned from."""
    tokenizer = Tokenizer.load(models["base"])
    dialogues = heldout_dialogues(out / "run" / "dialogues" / "heldout.jsonl", tokenizer, length + 1, "template", 24)
    chapters = [chapter for chapter, _ in dialogues]
    losses = {}
    for name, model in models.items():
        kept = out / f"losses-{name.replace(' ', '-')}.json"
        if not kept.exists():
            write_json(kept, {"losses": answer_losses(Model.find(model).load(), dialogues).tolist()})
        losses[name] = np.array(read_json(kept)["losses"])
    base = losses["base"]
    print(f"Loss of answers in {len(base)} dialogues about {len(set(chapters))} held-out chapters, nats a token")
    for name, each in losses.items():
        gap, _ = paired_bootstrap(base, each, clusters=chapters)
        share = 100 * (each.mean() / base.mean() - 1)
        print(
            f"  {name:17s} {each.mean():.3f}   {share:+.1f} %   difference [{gap.low:+.3f}, {gap.high:+.3f}]",
            flush=True,
        )


if __name__ == "__main__":
    main()
