"""Corpus poisoning, what users do beyond a table of attacks: harden a retriever, answer from its results, keep an
agent's memory.

    python benchmarks/poison_uses.py PART ... --shared shared/data/retrieval --cache cache --language-model models/lm

Parts: hardening (rounds of attack and training on part of BoolQ, one run for each seed), answers (PoisonedRAG's
questions, whose texts are among BoolQ's passages; some questions at a time), memory (one poisoned entry among many).
Each prints JSON lines, with processor seconds and the machine's load, and keeps what is done: a second run goes on.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from poison import tell
from poison_adaptive import sentinels_of

from lmlab.files import read_json, write_json, write_jsonl
from lmlab.methods.corpus_poisoning import AdmissionGate, CraftConfig, EncoderSpec, Passages
from lmlab.methods.corpus_poisoning.config import HardenConfig, MemoryConfig
from lmlab.methods.corpus_poisoning.defend.harden import harden
from lmlab.methods.corpus_poisoning.formats import read_poisonedrag
from lmlab.methods.corpus_poisoning.measure.answers import answer_rows
from lmlab.methods.corpus_poisoning.measure.memory import memory_rows
from lmlab.methods.corpus_poisoning.setup import Retriever, Target
from lmlab.retrieval import load_dataset
from lmlab.retrieval.collections.write import write_qrels
from lmlab.runs import Model

DOCUMENTS, TOKENS = 1500, 64  # of the collection that is hardened: an encoder is trained and all encoded every round
AT_ONCE = 5  # questions of answers: what is done after each few is kept


def kept(place: Path, make: Callable[[], Any]) -> Any:
    """A JSON value, made where it is not there."""
    if not place.exists():
        write_json(place, make())
    return read_json(place)


def part_of(shared: Path, out: Path) -> str:
    """The first documents of BoolQ with the questions that they answer, as a BEIR folder."""
    queries = list[Any]()
    for split in ("train", "test"):
        whole = load_dataset(str(shared / "boolq"), split)
        ids = set(whole.corpus.ids[:DOCUMENTS])
        qrels = {query: judged for query, judged in whole.qrels.items() if judged.keys() <= ids}
        write_qrels(qrels, out / "qrels" / f"{split}.tsv")
        queries += whole.queries.only([id for id in whole.queries.ids if id in qrels]).rows()
        write_jsonl(out / "corpus.jsonl", itertools.islice(whole.corpus.rows(), DOCUMENTS))
    write_jsonl(out / "queries.jsonl", queries)
    return str(out)


def hardening(given: argparse.Namespace) -> None:
    """Rounds for each seed: clean quality, the success of all old passages, and that of a new attack."""
    data = part_of(given.shared, given.out / "part")
    spec = EncoderSpec(given.encoder, {"max_length": TOKENS})
    for seed in given.seed:
        started = time.process_time()
        attack = CraftConfig(k=5, length=40, evaluations=300, objective=given.objective, seed=100 * seed)
        how = HardenConfig(rounds=3, steps=given.steps, batch=8)
        place = given.out / f"hardening-{given.objective}-{given.steps}-{seed}"
        rows = harden(Retriever(spec, given.cache, "bf16"), data, attack, how, place)
        tell(part="hardening", seed=seed, steps=given.steps, cpu_s=round(time.process_time() - started), rows=rows)


def answers(given: argparse.Namespace) -> None:
    """Some questions at a time, among all passages of BoolQ; sums over all that are done."""
    target = Target.load(
        Retriever(EncoderSpec(given.encoder), given.cache, "bf16"), str(given.shared / "boolq"), "test"
    )
    found = Model.find(given.language_model)
    model, tokenizer = found.load().to(torch.bfloat16), found.tokenizer()
    questions = read_poisonedrag(given.shared / "poisonedrag" / "nq.json")[: given.questions]
    gate = gate_of(given, target)
    parts = list[list[dict[str, Any]]]()
    for first in range(0, len(questions), AT_ONCE):
        started, some = time.process_time(), questions[first : first + AT_ONCE]

        def make(some: list[Any] = some) -> list[dict[str, Any]]:
            return [row.row() for row in answer_rows(target, some, model, tokenizer, 5, gate)]

        parts.append(kept(given.out / "answers" / f"{first:03d}.json", make))
        tell(part="answers", done=first + len(some), cpu_s=round(time.process_time() - started))
        told = [
            {
                **{name: row[name] for name in ("reader", "poison")},
                **{
                    name: round(float(np.average([part[n][name] for part in parts], weights=sizes)), 4)
                    for name in ("correct", "wanted", "f1")
                },
            }
            for n, row in enumerate(parts[0])
            if (sizes := [part[n]["questions"] for part in parts])
        ]
        sure = [row["certified"] for part in parts for row in part if row["certified"] is not None]
        tell(part="answers", questions=first + len(some), certified=float(np.mean(sure)), rows=told)


def gate_of(given: argparse.Namespace, target: Target) -> AdmissionGate:
    """The default gate, fitted on half of the collection, with questions of NQ that are none of PoisonedRAG's."""
    context = sentinels_of(given.shared, target, None)
    documents = Passages(target.data.corpus.texts, target.documents)
    order = np.random.default_rng(0).permutation(len(documents)).tolist()
    half = len(order) // 2
    parts = documents.part(order[:half]), documents.part(order[half:])
    return AdmissionGate.fit(["excerpts", "questions"], context, *parts, 0.005)


def memory(given: argparse.Namespace) -> None:
    """One entry among so many, for each seed."""
    retriever = Retriever(EncoderSpec(given.encoder), given.cache, "bf16")
    train, test = (Target.load(retriever, str(given.shared / "boolq"), split) for split in ("train", "test"))
    for seed in given.seed:
        started = time.process_time()
        settings = MemoryConfig(trigger="be safe and careful", entries=given.entries, seed=seed)

        def make(settings: MemoryConfig = settings) -> list[dict[str, Any]]:
            return [row.row() for row in memory_rows(test, train, settings)]

        rows = kept(given.out / f"memory-{given.entries}-{seed}.json", make)
        tell(part="memory", seed=seed, cpu_s=round(time.process_time() - started), rows=rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["hardening", "answers", "memory"], nargs="+")
    parser.add_argument("--shared", type=Path, required=True)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--encoder", default="minilm")
    parser.add_argument("--out", type=Path, default=Path("poison-uses"))
    parser.add_argument("--language-model", help="the reader of answers")
    parser.add_argument("--seed", type=int, action="append", help="of hardening and memory")
    parser.add_argument("--objective", default="mean", help="of the attacks on a hardened retriever")
    parser.add_argument("--steps", type=int, default=25, help="of a round of hardening")
    parser.add_argument("--questions", type=int, default=30, help="of answers")
    parser.add_argument("--entries", type=int, default=10_000, help="of the memory")
    given = parser.parse_args()
    given.seed = given.seed or [1, 2, 3]
    torch.set_num_threads(1)
    for part in given.part:
        {"hardening": hardening, "answers": answers, "memory": memory}[part](given)


if __name__ == "__main__":
    main()
