"""Corpus poisoning: each defense against the honest attack and against one that knows this very defense.

    python benchmarks/poison_adaptive.py PART --shared shared/data/retrieval --cache cache [--detector norm ...]

Parts: each (every detector alone at 1 % refused clean passages, attacked with equal budgets by who does not know it and
by who does), gate (the same for a gate of several detectors), calibration (the share of unseen clean passages that a
gate refuses, over many splits of the passages that no detector was fitted on). Each prints JSON lines, with processor
seconds and the machine's load. Crafted sets are kept and found again.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from poison import encoded, rates, tell

from lmlab.methods.corpus_poisoning import (
    AdmissionGate,
    CraftConfig,
    DetectorContext,
    EncoderSpec,
    Passages,
    Threshold,
    craft,
    make_detector,
    measure_defenses,
    passage_scores,
)
from lmlab.methods.corpus_poisoning.attack.crafted import AdversarialSet
from lmlab.methods.corpus_poisoning.defend.detector import COSTLY, Scores
from lmlab.methods.corpus_poisoning.defend.gate import _share_below
from lmlab.methods.corpus_poisoning.defend.measure import _thirds
from lmlab.methods.corpus_poisoning.formats import black_box, read_poisonedrag
from lmlab.methods.corpus_poisoning.setup import Retriever, Target
from lmlab.retrieval import read_queries

DETECTORS = ("excerpts", "questions", "hubness", "similarity", "norm", "mask_collapse", "perplexity")
SPLITS = 200
RATES = (0.005, 0.01, 0.02, 0.05)


def sentinels_of(shared: Path, train: Target, language_model: str | None) -> DetectorContext:
    """500 questions of NQ-open as vectors and all as text, without those of PoisonedRAG."""
    gone = {each.question.strip().casefold() for each in read_poisonedrag(shared / "poisonedrag" / "nq.json")}
    texts = [text for text in read_queries(shared / "nq-open").texts if text.strip().casefold() not in gone]
    picked = np.random.default_rng(0).permutation(len(texts))[:500]
    encoder = train.retriever.encoder
    asked = encoder.encode_text([texts[row] for row in picked], "query")
    return DetectorContext(encoder, train.index, texts, asked, language_model)


def fitted(names: list[str], context: DetectorContext, target: Target, rate: float, sample: int) -> AdmissionGate:
    """The gate whose detectors are those that `measure_defenses` fits: same documents, same thirds."""
    documents = Passages(target.data.corpus.texts, target.documents)
    if any(name in COSTLY for name in names):
        step = max(1, len(documents) // sample)
        documents = documents.part(np.arange(0, len(documents), step).tolist())
    fitting, calibration, _ = _thirds(len(documents))
    return AdmissionGate.fit(names, context, documents.part(fitting), documents.part(calibration), rate)


def attack(train: Target, test: Target, given: argparse.Namespace, name: str, gate: AdmissionGate | None) -> Path:
    """Craft, or find, passages of who knows a gate; what they reach undefended is told."""
    place = given.out / f"{name}-{given.evaluations}-{given.seed}"
    if gate is not None:
        gate.save(place.with_name(f"gate-{place.name}"))
    config = CraftConfig(
        k=given.k,
        evaluations=given.evaluations,
        objective="coverage",
        precision="bf16",
        seed=given.seed,
        known_gate=None if gate is None else place.with_name(f"gate-{place.name}"),
    )
    tau = train.hits(config.coverage_rank).tau(config.coverage_rank)
    found = craft(train.retriever.spec, train.data.queries.texts, train.queries(), config, place, tau)
    scores = passage_scores(test.queries(), encoded(test, found.passages.texts))
    reached = rates(scores, test.hits(100))
    tell(part="attack", knows=name, k=config.k, evaluations=found.evaluations, asr=reached, cpu_s=round(found.seconds))
    return place


def each(train: Target, test: Target, context: DetectorContext, given: argparse.Namespace) -> None:
    """A table of detectors, each against both attackers."""
    sets = {"honest": attack(train, test, given, "honest", None), **{place.name: place for place in given.attack}}
    for name in given.detector or DETECTORS:
        started = time.process_time()
        aware = attack(train, test, given, name, fitted([name], context, test, 0.01, given.sample))
        passages = {
            attack: Passages.of(AdversarialSet.load(place).texts, context.encoder)
            for attack, place in {**sets, "knows": aware}.items()
        }
        for row in measure_defenses([name], context, test, passages, rates=(0.01,), sample=given.sample):
            tell(part="each", **{key: value for key, value in row.row().items() if key != "escaped"})
        tell(part="each", detector=name, cpu_s=round(time.process_time() - started))


def stack(train: Target, test: Target, context: DetectorContext, given: argparse.Namespace) -> None:
    """A gate of several detectors."""
    names = given.detector or ["excerpts", "questions"]
    sets = {place.name: place for place in given.attack}
    if not given.measure_only:
        gate = fitted(names, context, test, given.rate, given.sample)
        sets["knows"] = attack(train, test, given, "+".join(names), gate)
    passages = {name: Passages.of(AdversarialSet.load(place).texts, context.encoder) for name, place in sets.items()}
    targeted = read_poisonedrag(given.shared / "poisonedrag" / "nq.json")
    for count in (50, 100):
        rag = black_box(targeted[:count])
        passages[f"S + I, {len(rag)}"] = Passages.of(rag.texts, context.encoder)
    for row in measure_defenses([], context, test, passages, stack=names, stack_rate=given.rate):
        tell(part="gate", **{key: value for key, value in row.row().items() if key != "escaped"})


def calibration(test: Target, context: DetectorContext, given: argparse.Namespace) -> None:
    """Detectors are fitted once on a third; the rest is split many times into what sets a threshold and what comes. The
    shares of clean passages below a score are those of what was fitted on (as gates once had it), or of the others.
    """
    names = given.detector or ["excerpts", "questions"]
    documents = Passages(test.data.corpus.texts, test.documents)
    fitting, second, third = _thirds(len(documents))
    rest = np.array(second + third)
    scores: dict[str, Scores] = {}
    seen: dict[str, Scores] = {}
    rag = black_box(read_poisonedrag(given.shared / "poisonedrag" / "nq.json"))
    sets = {place.name: AdversarialSet.load(place).texts for place in given.attack} | {"S + I": rag.texts}
    crafted = {attack: Passages.of(texts, context.encoder) for attack, texts in sets.items()}
    found_of: dict[str, dict[str, Scores]] = {attack: {} for attack in crafted}
    for name in names:
        detector = make_detector(name, context)
        detector.fit(documents.part(fitting))
        found = detector.score(documents)
        scores[name], seen[name] = found[rest], np.sort(found[fitting])
        for attack, passages in crafted.items():
            found_of[attack][name] = detector.score(passages)
    generator = np.random.default_rng(given.seed)
    refused: dict[tuple[str, float], list[float]] = {}
    caught: dict[tuple[str, float, str], list[float]] = {}
    for _ in range(SPLITS):
        order = generator.permutation(len(rest))
        known, come = np.split(order, [len(order) // 2])
        scales = {"seen": seen, "unseen": {name: np.sort(values[known]) for name, values in scores.items()}}
        for how, clean in scales.items():
            shares = np.array([_share_below(clean[name], scores[name]) for name in names])
            theirs = {
                attack: np.max([_share_below(clean[name], own[name]) for name in names], 0)
                for attack, own in found_of.items()
            }
            for rate in RATES:
                bound = Threshold.at(shares[:, known].max(0), rate).value
                refused.setdefault((how, rate), []).append(float((shares[:, come].max(0) > bound).mean()))
                for name, own in zip(names, shares[:, come], strict=True):
                    caught.setdefault((how, rate, f"clean, by {name}"), []).append(float((own > bound).mean()))
                for attack, own in theirs.items():
                    caught.setdefault((how, rate, attack), []).append(float((own > bound).mean()))
    for (how, rate), shares in refused.items():
        low, high = np.quantile(shares, (0.025, 0.975))
        tell(
            part="calibration",
            detectors=names,
            scale=how,
            asked=rate,
            refused=round(float(np.mean(shares)), 5),
            interval=[round(float(low), 5), round(float(high), 5)],
            caught={
                what: round(float(np.mean(values)), 4)
                for (scale, at, what), values in caught.items()
                if (scale, at) == (how, rate)
            },
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["each", "gate", "calibration"])
    parser.add_argument("--shared", type=Path, required=True)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--encoder", default="minilm")
    parser.add_argument("--out", type=Path, default=Path("poison-adaptive"))
    parser.add_argument("--detector", action="append")
    parser.add_argument("--attack", type=Path, action="append", default=[], help="crafted sets that are measured too")
    parser.add_argument("--language-model")
    parser.add_argument("--k", type=int, default=10)
    parser.add_argument("--evaluations", type=int, default=650)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rate", type=float, default=0.005, help="of the gate")
    parser.add_argument("--sample", type=int, default=308, help="clean documents that costly detectors score")
    parser.add_argument("--measure-only", action="store_true", help="craft nothing against the gate")
    given = parser.parse_args()
    torch.set_num_threads(1)
    retriever = Retriever(EncoderSpec(given.encoder), given.cache, "bf16")
    train, test = (Target.load(retriever, str(given.shared / "boolq"), split) for split in ("train", "test"))
    context = sentinels_of(given.shared, test, given.language_model)
    match given.part:
        case "each":
            each(train, test, context, given)
        case "gate":
            stack(train, test, context, given)
        case "calibration":
            calibration(test, context, given)


if __name__ == "__main__":
    main()
