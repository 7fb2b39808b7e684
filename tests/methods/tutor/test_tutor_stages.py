"""Stages: dialogues about chapters become tokens, a model learns from them, a tutor is measured and compared."""

from __future__ import annotations

import json

import yaml

import lmlab as door


def test_from_chapters_to_a_tutor_that_is_compared_with_its_base(lmlab, tutor, questions, judge_script, tmp_path):
    books = tmp_path / "textbooks" / "phys" / "book"
    books.mkdir(parents=True)
    for number in range(6):
        text = f"Star {number} is a body that shines in the sky of chapter {number}. "
        text += f"Planet {number} is a body that does not shine by itself."
        (books / f"c{number}.md").write_text(f"# Chapter {number}\n\n{text}\n\n" + "words of the chapter " * 20)
    grading = {"judge": ["mock:j"], "replies": str(judge_script)}
    answers = {"max_new_tokens": 8, "precision": "fp32", "device": "cpu", "format": "plain"}
    recipe = {
        "name": "small",
        "stages": {
            "dialogues": {
                "kind": "tutor_dialogues",
                "chapters": str(tmp_path / "textbooks"),
                "scheme": "rule",
                "num_turns": 2,
                "per_chapter": 2,
                "min_words": 20,
                "near_duplicate": 1.0,
                "rule_answers": "sentence",
            },
            "tokens": {"kind": "tutor_mix", "dialogues": "dialogues", "tokenizer": str(tutor), "max_len": 513},
            "tuned": {
                "kind": "train",
                "start": str(tutor),
                "tokens": "tokens",
                "packing": "best_fit",
                "seq_len": 512,
                "max_epochs": 40,
                "trainer": {"steps": 3, "batch_size": 2, "optimizer": {"learning_rate": 1e-3}},
            },
            "base": {
                "kind": "tutor_evaluate",
                "model": str(tutor),
                "questions": str(questions),
                "grading": grading,
                "answers": answers,
            },
            "measured": {
                "kind": "tutor_evaluate",
                "model": "tuned",
                "questions": str(questions),
                "against": "base",
                "grading": grading,
                "answers": answers,
            },
            "report": {"kind": "report"},
        },
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe, sort_keys=False))
    told = lmlab("run", path, "--out", tmp_path / "run")
    assert told.code == 0, told.err
    page = (tmp_path / "run" / "report.html").read_text()
    assert "no difference is shown" in page and "Dialogues to learn from" in page
    again = lmlab("run", path, "--out", tmp_path / "run")
    assert again.code == 0
    found = door.grade_tutor(tutor, questions, tmp_path / "own", grading=grading, answers=answers)
    stored = json.loads((tmp_path / "run" / "base" / "report.json").read_text())
    assert found.n == 12 and found.total == stored["total"]
