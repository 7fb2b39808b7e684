"""Labeled texts beside the simplest models: slots or entities and a unigram tagger, intents and a bag of words, in one
process.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lmlab.data.labeled import LabeledSequence, read_labeled
from lmlab.evals.spans import span_scores
from lmlab.files import write_jsonl
from lmlab.hardware import machine_load
from lmlab.methods.transformer_programs import TrainedNetworks, TrainSettings, load_data, load_program, train
from lmlab.methods.transformer_programs.analysis.explain import measure_program
from lmlab.methods.transformer_programs.analysis.export import export_program
from lmlab.methods.transformer_programs.tasks.load import read_examples

_SLOTS = {
    "embedding_vars": 8, "d_var": 32, "cat_heads": 8, "predicates": "families", "epochs": 3, "batch_size": 32,
    "max_words": 8000, "max_length": 30, "replace_numbers": True, "attention_noise": False, "polish": 1,
}  # fmt: skip
_INTENTS = {
    "embedding_vars": 4, "d_var": 25, "cat_heads": 2, "epochs": 3, "batch_size": 128, "max_words": 5000,
    "max_length": 25,
}  # fmt: skip


_NAMES = {"train": ("train",), "valid": ("valid", "dev"), "test": ("test",)}


def _file(source: Path, split: str) -> Path:
    """The file of a split: JSON lines or columns."""
    found = [source / f"{name}{end}" for name in _NAMES[split] for end in (".jsonl", ".conll")]
    return next((each for each in found if each.is_file()), found[0])


def _read(path: Path, kind: Any) -> list[LabeledSequence]:
    return [each for each in read_labeled(str(path), kind) if isinstance(each, LabeledSequence)]


def unigram_f1(train_rows: Sequence[LabeledSequence], test_rows: Sequence[LabeledSequence]) -> float:
    """Strict F1 of the tagger that gives each word its most common tag, and O to words that it has never seen."""
    counts: dict[str, Counter[str]] = {}
    for row in train_rows:
        for token, label in zip(row.tokens, row.labels, strict=True):
            counts.setdefault(token, Counter())[str(label)] += 1
    best = {word: found.most_common(1)[0][0] for word, found in counts.items()}
    answers = [[best.get(token, "O") for token in row.tokens] for row in test_rows]
    return span_scores(answers, [list(map(str, row.labels)) for row in test_rows])["f1"]


def bag_of_words(train_rows: Sequence[LabeledSequence], test_rows: Sequence[LabeledSequence]) -> float:
    """Accuracy of a logistic regression on which words occur."""
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    model = make_pipeline(
        CountVectorizer(analyzer=lambda tokens: [token.lower() for token in tokens]), LogisticRegression(max_iter=1000)
    )
    model.fit([row.tokens for row in train_rows], [row.labels[0] for row in train_rows])
    return float(model.score([row.tokens for row in test_rows], [row.labels[0] for row in test_rows]))


def measure_text(directory: Path, source: Path, embeddings: str | None, only: Sequence[str], changes: Any) -> None:
    """Both tasks, or of files with columns the tags alone; stopped, the same command goes on.

    Arguments:
        source: a directory with `train`, `valid` and `test.jsonl` of tokens, tags and intent, or `train`, `dev` and
            `test.conll` with a token and its tag on each line.
        embeddings: the model, or file of vectors, that the categories of words begin from.
    """
    for task, kind, shape in (("slots", "tokens", _SLOTS), ("intents", "sequence", _INTENTS)):
        if (only and task not in only) or (kind == "sequence" and _file(source, "train").suffix == ".conll"):
            continue
        place = directory / task
        place.mkdir(parents=True, exist_ok=True)
        rows = {split: _read(_file(source, split), kind) for split in _NAMES}
        name = "labels" if kind == "tokens" else "label"
        for split, part in rows.items():
            values = ({"tokens": row.tokens, name: row.labels if kind == "tokens" else row.labels[0]} for row in part)
            write_jsonl(place / f"{split}.jsonl", values)
        files = {key: str(place / f"{key if key != 'data' else 'train'}.jsonl") for key in ("data", "valid", "test")}
        settings = TrainSettings(
            **{
                **files, "labels": kind, "num_layers": 1, "num_heads": 0, "cat_mlps": 0, "num_mlps": 0, "lower": True,
                "seeds": 1, "evaluations": 1, "init_embeddings": embeddings, **shape, **changes,
            }
        )  # fmt: skip
        before = time.process_time()
        train(settings, place / "run")
        networks = TrainedNetworks.find(place / "run")
        manifest = export_program(networks.load(), networks.place_of(None), load_data(settings), place / "program")
        spent = time.process_time() - before
        program = load_program(place / "program")
        fits = [program.longest is None or len(row.tokens) + 2 <= program.longest for row in rows["test"]]
        pairs = zip(read_examples(files["test"], kind, "<s>", "</s>"), fits, strict=True)
        test, beside = (
            [each for each, fit in pairs if fit],
            [row for row, fit in zip(rows["test"], fits, strict=True) if fit],
        )
        figures = measure_program(program, test, kind == "tokens")
        ours, theirs, called = (
            (figures["span_f1"], unigram_f1(rows["train"], beside), "strict F1; unigram tagger")
            if kind == "tokens"
            else (figures["accuracy"], bag_of_words(rows["train"], beside), "accuracy; bag of words")
        )
        print(
            f"{task}: {100 * ours:.2f} % {called} {100 * theirs:.2f} % ({len(test)} test sequences of"
            f" {len(rows['test'])}); the program equals its network on {manifest['verification']['places']:,} places;"
            f" {spent:.0f} CPU-s; load {machine_load()}",
            flush=True,
        )
