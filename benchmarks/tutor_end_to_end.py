"""A model answers the 24 questions of `tutor_items.yaml` with their real chapters and without them, is graded by a
judge that asks nobody, and gets a report with intervals; then all of it again: no answer is made anew, and the report
is the same to the byte.

    OMP_NUM_THREADS=2 python benchmarks/tutor_end_to_end.py models/smollm2 TEXTBOOKS --out runs/tutor-24

TEXTBOOKS is a folder with phys/kstars (KStars' articles, of Debian's kstars-data) and cs/python (the tutorial of
python3.11-doc); docs/tutorial.md says how to get them.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import yaml

from lmlab.data import Reject
from lmlab.data.chapters.source import read_chapters

ITEMS = Path(__file__).with_name("tutor_items.yaml")
_FOLDERS = {"kstars": ("phys/kstars", "{}.docbook", "physics"), "python": ("cs/python", "{}.rst.txt", "programming")}


def main() -> None:
    """Run twice and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("textbooks", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/tutor-24"))
    parser.add_argument("--judge", default="coverage")
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--max-words", type=int, default=1000, help="a chapter is cut at the end of a paragraph")
    parser.add_argument("--limit", type=int, default=24)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    questions = write_questions(given.textbooks, given.out / "questions.jsonl", given.max_words)
    print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores; {questions} questions", flush=True)
    kept: dict[str, bytes] = {}
    for attempt in ("first", "again"):
        started, before = time.perf_counter(), os.times()
        for book in ("open", "closed"):
            run = given.out / book
            lmlab("tutor", "generate", "--model", given.model, "--data", given.out / "questions.jsonl", "--book", book,
                  "--max-new-tokens", given.max_new_tokens, "--limit", given.limit, "--out", run)  # fmt: skip
            lmlab("tutor", "grade", run, "--judge", given.judge)
            report = json.loads((run / "report.json").read_bytes())
            total = report["total"]
            print(
                f"  {attempt}, {book}: {total['value']:.1f} % [{total['low']:.1f}, {total['high']:.1f}] of {total['n']}"
            )
        cpu = os.times().children_user + os.times().children_system - before.children_user - before.children_system
        print(f"{attempt}: {time.perf_counter() - started:.0f} s, {cpu:.0f} CPU s", flush=True)
        found = {book: (given.out / book / "report.json").read_bytes() for book in ("open", "closed")}
        if attempt == "again":
            print(f"reports the same to the byte: {found == kept}")
        kept = found


def write_questions(textbooks: Path, path: Path, max_words: int, items: Path = ITEMS) -> int:
    """The questions with their chapters."""
    rows = []
    for item in yaml.safe_load(items.read_text()):
        book, _, name = item["chapter"].partition("/")
        folder, pattern, domain = _FOLDERS[book]
        (chapter,) = [
            each
            for each in read_chapters(str(textbooks / folder / pattern.format(name)), min_words=0, max_words=max_words)
            if not isinstance(each, Reject)
        ]
        rows.append(
            {
                "question": item["question"],
                "chapter": chapter.text,
                "key_points": item["key_points"],
                "domain": domain,
                "path_to_chapter": item["chapter"],
                "closed_book": True,
                "answer_in_chapter": True,
                "misleading_question": False,
            }
        )
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return len(rows)


def lmlab(*arguments: object) -> None:
    """One command, as a user types it."""
    subprocess.run([sys.executable, "-m", "lmlab", *map(str, arguments)], check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
