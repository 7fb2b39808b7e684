"""Does a tutor that learned from dialogues say what a term is, in chapters that it has not seen? A published chat model
learns by adapters from dialogues by rule whose questions ask what a term is and whose answers quote the sentence that
says it; beside it one that learns everything else (the mask inverted). Chapters are held out whole.

    OMP_NUM_THREADS=1 python benchmarks/tutor_definitions.py models/smollm2 TEXTBOOKS --out runs/tutor-definitions

TEXTBOOKS is as for `tutor_end_to_end.py`. All of the following was fixed before the first run, and was run once:

- Half of the chapters are held out, by the digest of their names. Each sentence there that says "TERM is a ..." gives
  one question, in words that no dialogue has ("Please tell me in one sentence what TERM is."), at most two a chapter,
  shown with the part of the chapter (100 words) in which it stands. The sentence is the one key point.
- The figure that counts is the mean grade by `coverage+likelihood` of whole answers, as that judge ordered the most of
  the 72 pairs of `tutor_judges.py` (64); likelihood is by the untuned model. Tuning is shown to raise it where the
  paired interval over chapters is above 0, and to do so by what is learned where the inverted mask's is not.
- Beside it, to tell what the figure is made of: the same with all answers to a question cut to the words of the
  shortest, and read at no difference of length; both judges alone; and how far the answer keeps to the chapter
  (`coverage` with the roles exchanged: each sentence of the answer as a point, the part of the chapter as what has to
  make it).
- Answers that no model wrote say what those grades are worth: the question itself, the wrong sentence of the part that
  is nearest to the question, and the right one.
- Rank 16, 24 steps of two rows of 256 tokens, learning rate 5e-4, answers of at most 48 tokens: small, so that it takes
  some minutes of one core.

Stopped, the same command goes on.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tutor_grades import rewritten, seconds, show_losses, tune

from lmlab.data import Reject
from lmlab.data.chapters.chapter import Chapter, split_at_paragraphs
from lmlab.data.chapters.source import read_chapters
from lmlab.files import read_jsonl, write_jsonl
from lmlab.judging import AnswerItem, AnswerJudgeConfig, Coverage, judge_answers, make_answer_judge
from lmlab.judging.offline.sentences import sentences
from lmlab.methods.tutor.answering.run import answer_locally
from lmlab.methods.tutor.config import AnswerConfig
from lmlab.methods.tutor.items.item import load_items
from lmlab.methods.tutor.scoring.compare import compare_rows, equal_length_verdict, verdict
from lmlab.methods.tutor.scoring.grade import grade_run, keep_items
from lmlab.methods.tutor.scoring.score import score
from lmlab.methods.tutor.writing.definitions import definitions, split_sentences
from lmlab.stats import bootstrap, paired_bootstrap

ONE_OF = 2  # chapters is held out
WORDS = 100  # of the part of a chapter before a question
ASKED = "Please tell me in one sentence what {term} is."
_SAYS = re.compile(r"^[`* ]*(?:is|are|means|refers to|denotes) (?:a|an|the)\b")
MOST = 2  # questions a chapter, so that long ones do not decide


def main() -> None:
    """Tune, ask, grade and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("textbooks", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/tutor-definitions"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores, one thread", flush=True)
    given.out.mkdir(parents=True, exist_ok=True)
    settings = {"answers": "sentence", "max_words": 80, "learning_rate": 5e-4, "steps": 24, "length": 256}
    settings |= {"controls": ["inverted"]}
    given = argparse.Namespace(**vars(given), **settings)
    books = given.out / "textbooks"
    if not books.exists():
        shutil.copytree(given.textbooks, books, ignore=lambda _, names: [name for name in names if is_held_out(name)])
    questions = given.out / "questions.jsonl"
    write_jsonl(questions, asked_of(given.textbooks))
    started = seconds()
    models = {"base": Path(given.model), **tune(given, books)}
    print(f"tuning: {seconds() - started:.0f} CPU s", flush=True)
    show_losses(models, given.out, given.length)
    items = load_items(questions)
    print(f"{len(items)} questions about {len({item.cluster for item in items})} held-out chapters", flush=True)
    folders = {name: given.out / name.replace(" ", "-") for name in models}
    for name, model in models.items():
        keep_items(items, folders[name])
        rows = answer_locally(str(model), items, AnswerConfig(max_new_tokens=48), folders[name])
        words = [len(row["tutor"]["output"].split()) for row in rows]
        print(f"{name}: {sum(words) / len(words):.0f} words an answer; {seconds() - started:.0f} CPU s", flush=True)
    short = at_equal_length(folders, given.out)
    folders |= references(folders["base"], given.out)
    judge = make_answer_judge(AnswerJudgeConfig(judge=(f"coverage+likelihood:{given.model}",)))
    for what, each in (("whole answers", folders), ("answers of equal length", short)):
        graded = {label: grade_run(folder, judge, new_run=True)[0] for label, folder in each.items()}
        for figure in ("coverage+likelihood", "coverage", "likelihood"):
            print(f"\nGraded by {figure}: {what}", flush=True)
            show({label: alone(rows, judge, figure) for label, rows in graded.items()}, read=each is folders)
    keeps_to_chapter(folders)
    print(f"in all {seconds() - started:.0f} CPU s; load {os.getloadavg()[0]:.1f}")


def show(graded: dict[str, list[dict[str, Any]]], read: bool) -> None:
    """The scores of all, what they have more than the base, and (`read`) what they would have at equal length."""
    for label, rows in graded.items():
        total = score(rows)["total"]
        print(f"  {label}: {total['value']:.1f} % [{total['low']:.1f}, {total['high']:.1f}]", end="")
        if label != "base":
            found = compare_rows(graded["base"], rows)
            print(f"; less the base {verdict(found)}", end=f" {equal_length_verdict(found)}" if read else "")
        print(flush=True)


def alone(rows: Sequence[dict[str, Any]], judge: Any, figure: str) -> list[dict[str, Any]]:
    """Rows with the grade that one of the judge's figures alone would give; as they are for both together."""
    found = []
    for row in rows:
        grades = dict(row["grades"])
        for scorer in judge.scorers:
            if scorer.name == figure and grades["correctness"] is not None and row["judged"]["details"]:
                (point,) = row["judged"]["details"]
                grades["correctness"] = 3 * min(1.0, max(0.0, scorer.range.share(point[figure])))
        found.append({**row, "grades": grades})
    return found


def is_held_out(name: str) -> bool:
    """Whether nothing is learned from a file of this name."""
    return "." in name and int(hashlib.sha256(name.encode()).hexdigest(), 16) % ONE_OF == 0


def asked_of(textbooks: Path) -> list[dict[str, Any]]:
    """A question for each definition in a held-out chapter, each term once a chapter."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    asked = Counter[str]()
    for chapter in read_chapters(str(textbooks), min_words=100, max_words=1_000_000):
        if isinstance(chapter, Reject) or not is_held_out(Path(chapter.path).name):
            continue
        for part in split_at_paragraphs(Chapter("", "", chapter.text), WORDS):
            for term, sentence in definitions(part.text):
                place = Path(chapter.path).name
                if _SAYS.match(sentence[len(term) :]) and asked[place] < MOST and (place, term) not in found:
                    asked[place] += 1
                    row = {"question": ASKED.format(term=term), "chapter": part.text, "key_points": [sentence]}
                    found[place, term] = row | {"path_to_chapter": place}
    return list(found.values())


def at_equal_length(folders: dict[str, Path], out: Path) -> dict[str, Path]:
    """The answers of all, those to one question cut to the words of the shortest that has any."""
    answers = {
        name: {row["id"]: row["tutor"]["output"].split() for row in read_jsonl(folder / "answers.jsonl")}
        for name, folder in folders.items()
    }
    fewest = {
        id: min((len(each[id]) for each in answers.values() if each[id]), default=0)
        for id in next(iter(answers.values()))
    }

    def cut(name: str) -> Callable[[dict[str, Any]], str]:
        return lambda row: " ".join(answers[name][row["id"]][: fewest[row["id"]]])

    return {name: rewritten(folder, out / f"{folder.name}-short", cut(name)) for name, folder in folders.items()}


def references(base: Path, out: Path) -> dict[str, Path]:
    """Answers that no model has written: the question, the wrong sentence nearest to it, and the right one."""
    encoder = Coverage.load().encoder
    answers: dict[str, dict[str, str]] = {"the question": {}, "a wrong sentence": {}, "the right sentence": {}}
    for item in load_items(base / "items.jsonl"):
        (point,) = item.key_points
        said = [each for text in item.chapter.split("\n\n") if text[:1] != "#" for each in split_sentences(text)]
        others = [each for each in said if each != point and len(each.split()) > 4] or [item.question]
        vectors = np.asarray(encoder.encode_text([item.question, *others]), float)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        nearest = others[int((vectors[1:] @ vectors[0]).argmax())]
        for name, text in zip(answers, (item.question, nearest, point), strict=True):
            answers[name][item.id] = text

    def written(name: str) -> Callable[[dict[str, Any]], str]:
        return lambda row: answers[name][row["id"]]

    return {name: rewritten(base, out / name.replace(" ", "-"), written(name)) for name in answers}


def keeps_to_chapter(folders: dict[str, Path]) -> None:
    """How far each sentence of an answer stands in the part of the chapter, by `coverage` with the roles exchanged."""
    judge = make_answer_judge(AnswerJudgeConfig(judge=("coverage",)))
    print("\nKeeps to the chapter, by coverage: whole answers")
    base: Sequence[float] | None = None
    items = {item.id: item for item in load_items(folders["base"] / "items.jsonl")}
    chapters = [item.cluster for item in items.values()]
    for name, folder in folders.items():
        said = {row["id"]: row["tutor"]["output"] for row in read_jsonl(folder / "answers.jsonl")}
        claims = [
            AnswerItem(item.id, item.question, item.chapter, tuple(sentences(said[item.id])) or ("",))
            for item in items.values()
        ]
        grades = [100 * float(each.grades["correctness"] or 0) / 3 for each in judge_answers(judge, claims)]
        values = np.array(grades)
        mean = bootstrap(lambda chosen, values=values: float(values[chosen].mean()), len(values), clusters=chapters)
        told = ""
        if base is not None:
            gap, _ = paired_bootstrap(base, grades, clusters=chapters)
            told = f"; less the base {gap.value:+.1f} points [{gap.low:+.1f}, {gap.high:+.1f}]"
        base = grades if base is None else base
        print(f"  {name}: {mean.value:.1f} % [{mean.low:.1f}, {mean.high:.1f}]{told}", flush=True)


if __name__ == "__main__":
    main()
