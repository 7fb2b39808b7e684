"""Files of the reference and of its descendants, read and written: the reference's adversarial passages and results,
and PoisonedRAG's targeted questions.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmlab.errors import UserError, reads
from lmlab.files import kind_of, read_json, read_mapping, write_text
from lmlab.methods.corpus_poisoning.attack.crafted import AdversarialSet, Passage, passage_id
from lmlab.methods.corpus_poisoning.attack.vocabulary import reads_back, spell
from lmlab.retrieval.encoders.words import EncoderTokenizer
from lmlab.words import counted

_NAME = re.compile(r"^(?P<data>.+)-(?P<model>.+)-k(?P<k>\d+)-s(?P<s>\d+)\.json$")
_IMPORTED = "imported"


@reads("the reference's adversarial passages")
def read_reference(
    folder: Path, tokenizer: EncoderTokenizer, k: int | None = None, partial: bool = False
) -> tuple[AdversarialSet, dict[str, Any]]:
    """The reference's files, one a cluster: `DATASET-MODEL-kK-sS.json` with `it`, `best_acc`, `dummy` and `tot`.

    Arguments:
        k: which k, where the folder holds several.
        partial: take what is there; the second result then says how many of how many.

    Returns:
        The passages, and what was found: `k`, `found`, `round_trip` (how many survive being text).

    Raises:
        UserError: files of some clusters are missing, lengths differ, or a token is unknown.
    """
    named = [(path, found) for path in sorted(folder.glob("*.json")) if (found := _NAME.match(path.name))]
    sizes = sorted({int(found["k"]) for _, found in named})
    if not named:
        raise UserError(f"'{folder}' holds no file named DATASET-MODEL-kK-sS.json.")
    if k is None:
        if len(sizes) > 1:
            raise UserError(f"'{folder}' holds passages for k = {', '.join(map(str, sizes))}.", "Name one with --k.")
        k = sizes[0]
    fitting = {int(found["s"]): path for path, found in named if int(found["k"]) == k}
    missing = [number for number in range(k) if number not in fitting]
    if missing and not partial:
        names = ", ".join(f"s{number}" for number in missing[:20])
        raise UserError(
            f"'{folder}' lacks {len(missing)} of {counted(k, 'clusters')}: {names}.", "Take those there: --partial."
        )
    passages, lengths = [], {}
    survive = 0
    for number, path in sorted(fitting.items()):
        row = read_mapping(path)
        tokens = row.get("dummy")
        if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
            raise UserError(f"'{path}': the key 'dummy' must hold a list of tokens, not {kind_of(tokens)}.")
        lengths[path.name] = len(tokens)
        ids = [_token_id(tokenizer, token, path) for token in tokens]
        text = spell(tokenizer, ids)
        survive += reads_back(tokenizer, ids, text)
        name = passage_id(_IMPORTED, number)
        passages.append(Passage(name, text, _IMPORTED, "hotflip", "", str(number), token_ids=tuple(ids)))
    if len(set(lengths.values())) > 1 and not partial:
        told = ", ".join(f"{name}: {length}" for name, length in lengths.items())
        raise UserError(f"The passages differ in length ({told:.300}).", "Take them as they are: --partial.")
    return AdversarialSet(tuple(passages)), {"k": k, "found": len(passages), "round_trip": survive}


def _token_id(tokenizer: EncoderTokenizer, token: str, path: Path) -> int:
    found = tokenizer.backend.token_to_id(token)
    if found is None:
        raise UserError(f"'{path}': the encoder's vocabulary has no token '{token}'.", "Name the encoder it is for.")
    return int(found)


def write_reference(passages: AdversarialSet, tokenizer: EncoderTokenizer, folder: Path, data: str, model: str) -> None:
    """Write passages as the reference does. Without its own measurements, `it` is the evaluations spent."""
    count = len(passages)
    for number, passage in enumerate(passages.passages):
        row = {
            "it": passage.evaluations,
            "best_acc": None,
            "dummy": tokenizer.pieces(passage.token_ids or tokenizer.inner([passage.text])[0]),
            "tot": None,
        }
        write_text(folder / f"{slug(data)}-{slug(model)}-k{count}-s{number}.json", json.dumps(row))


def write_reference_results(asr: Mapping[str, Mapping[int, float]], path: Path) -> None:
    """Write success rates as the reference's evaluation file: `{"k=10": {"Recall@1": ...}}`; its Recall is this."""
    rows = {name: {f"Recall@{k}": round(value, 5) for k, value in rates.items()} for name, rates in asr.items()}
    write_text(path, json.dumps(rows))


def slug(text: str) -> str:
    """A safe part of a file's name."""
    return re.sub(r"[^A-Za-z0-9._]+", "_", text).strip("._") or "x"


@dataclass(frozen=True)
class TargetedQuestion:
    """A question of PoisonedRAG with the answer that it has and the one that an attacker wants."""

    id: str
    question: str
    correct: str
    incorrect: str
    texts: tuple[str, ...]


@reads("PoisonedRAG's questions")
def read_poisonedrag(path: Path) -> list[TargetedQuestion]:
    """Read `{id: {"id", "question", "correct answer", "incorrect answer", "adv_texts"}}`."""
    rows = read_json(path)
    values = list(rows.values()) if isinstance(rows, dict) else rows
    found = []
    for row in values:
        texts = row["adv_texts"]
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise UserError(f"'{path}', question '{row['id']}': 'adv_texts' must hold a list of texts.")
        found.append(
            TargetedQuestion(
                str(row["id"]), row["question"], str(row["correct answer"]), str(row["incorrect answer"]), tuple(texts)
            )
        )
    return found


def black_box(questions: Sequence[TargetedQuestion], run: str = "blackbox") -> AdversarialSet:
    """PoisonedRAG's passages without gradients: the question, a full stop, and a text (its S + I)."""
    return AdversarialSet(
        tuple(
            Passage(
                passage_id(run, slug(question.id), number),
                f"{question.question}.{text}",
                run=run,
                optimizer="black box (S + I)",
                retriever="",
                cluster=question.id,
                payload=text,
            )
            for question in questions
            for number, text in enumerate(question.texts)
        )
    )
