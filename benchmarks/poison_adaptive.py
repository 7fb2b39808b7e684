"""Corpus poisoning: each defense against the honest attack and against one that knows this very defense.

    python benchmarks/poison_adaptive.py PART --shared shared/data/retrieval --cache cache [--detector norm ...]

Parts: each (every detector alone at 1 % refused clean passages, attacked with equal budgets by who does not know it and
by who does), gate (the same for a gate of several detectors), splits (what a gate leaves, refuses and costs, over many
random splits of the clean documents). Each prints JSON lines, with processor seconds and the machine's load. Crafted
sets are kept and found again.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable
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
    craft,
    make_detector,
    measure_defenses,
    passage_scores,
)
from lmlab.methods.corpus_poisoning.attack.crafted import AdversarialSet
from lmlab.methods.corpus_poisoning.defend.detector import COSTLY, Threshold
from lmlab.methods.corpus_poisoning.defend.measure import _thirds, clean_ndcg, without
from lmlab.methods.corpus_poisoning.formats import black_box, read_poisonedrag
from lmlab.methods.corpus_poisoning.measure.evaluate import success
from lmlab.methods.corpus_poisoning.setup import Retriever, Target
from lmlab.retrieval import read_queries

DETECTORS = ("excerpts", "questions", "hubness", "similarity", "norm", "mask_collapse", "perplexity")
RATES = (0.005, 0.01)  # of the gate over splits
MOST_LEFT, DEAREST = 5.0, 0.005  # the goal: percent of ASR@20 that a defense leaves, and clean nDCG@10 that it costs
TARGETED = 50  # questions of PoisonedRAG, five texts each


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


def splits(test: Target, context: DetectorContext, given: argparse.Namespace) -> None:
    """Rules of refusal over many random splits of the clean documents: a third to fit detectors, one for shares and
    threshold, and one that comes. The first fit is on the third that `fitted` takes, which is the gate that an attacker
    knows. The rules are the gate's own, and distances over its detectors and over more of them.

    The change of clean nDCG@10 is that of the third that comes, times three: what set the gate is refused less.
    """
    names = given.detector or ["excerpts", "questions"]
    rules = {"gate": names, "distance": names, "distance of more": list(dict.fromkeys([*names, *given.more]))}
    documents = Passages(test.data.corpus.texts, test.documents)
    rag = black_box(read_poisonedrag(given.shared / "poisonedrag" / "nq.json")[:TARGETED])
    sets = {place.name: AdversarialSet.load(place).texts for place in given.attack} | {"S + I": rag.texts}
    crafted = {name: Passages.of(texts, context.encoder) for name, texts in sets.items()}
    similar = {name: passage_scores(test.queries(), each.vectors) for name, each in crafted.items()}
    hits = test.hits(140)  # refused clean documents move others up
    ids, qrels = test.data.queries.ids, test.data.qrels
    before = clean_ndcg(hits, ids, qrels)
    found: dict[tuple[str, int, str, float, str], list[float]] = {}
    for fit in range(given.fits):
        order, third = np.random.default_rng(fit).permutation(len(documents)), len(documents) // 3
        fitting, rest = order[:third], order[third:]
        detectors = {name: make_detector(name, context) for name in rules["distance of more"]}
        for detector in detectors.values():
            detector.fit(documents.part(fitting.tolist()))
        clean = {name: detector.score(documents) for name, detector in detectors.items()}
        theirs = {
            attack: {name: detector.score(each) for name, detector in detectors.items()}
            for attack, each in crafted.items()
        }
        for split, rule, rate in itertools.product(range(given.splits), rules, RATES):
            parted = np.random.default_rng([fit, split]).permutation(rest)
            known, come = parted[:third], parted[third:]
            seen = {name: clean[name][known] for name in rules[rule]}
            if rule == "gate":
                gate = AdmissionGate(context.encoder, {name: detectors[name] for name in names})
                gate.calibrate(seen, rate)
                suspicion, bound = gate.suspicion_of, gate.threshold.value
            else:
                suspicion = distance_of(seen)
                bound = Threshold.at(suspicion(seen), rate).value
            refused = suspicion({name: clean[name] for name in rules[rule]}) > bound
            coming = come[refused[come]]
            change = clean_ndcg(without(hits, coming), ids, qrels) - before
            left = without(hits, np.flatnonzero(refused))
            row = {("", "refused"): len(coming) / len(come), ("", "ndcg"): change * len(documents) / len(come)}
            for attack, scores in theirs.items():
                kept = suspicion({name: scores[name] for name in rules[rule]}) <= bound
                row[attack, "caught"] = 1 - float(kept.mean())
                row[attack, "asr20"] = float(success(similar[attack][:, kept], left, 20).mean())
            for (attack, what), value in row.items():
                key = (rule, fit, attack, rate, what)
                found.setdefault(key, []).append(100 * value if what != "ndcg" else value)
    among = {"all fits": range(given.fits), "the fit that an attacker knows": range(1)}
    for rule, fits, rate in itertools.product(rules, among, RATES):

        def values(attack: str, what: str, rule: str = rule, rate: float = rate, fits: str = fits) -> np.ndarray:
            return np.concatenate([found[rule, fit, attack, rate, what] for fit in among[fits]])

        cheap = values("", "ndcg") >= -DEAREST
        about = {"part": "splits", "rule": rule, "detectors": rules[rule], "fits": fits, "rate": rate}
        about |= {"splits": len(cheap)}
        tell(**about, refused=spread(values("", "refused")), ndcg_change=spread(values("", "ndcg")))
        for attack in crafted:
            asr = values(attack, "asr20")
            tell(
                **about,
                attack=attack,
                undefended=round(100 * float(success(similar[attack], hits, 20).mean()), 2),
                caught=spread(values(attack, "caught")),
                asr20=spread(asr),
                reaches_goal=round(float(((asr <= MOST_LEFT) & cheap).mean()), 3),
            )


def distance_of(seen: dict[str, np.ndarray]) -> Callable[[dict[str, np.ndarray]], np.ndarray]:
    """How far several scores are above clean ones together: each above its clean median, in units of what one in a
    hundred clean passages exceeds, and the length of what is above by the clean scores' correlation (Mahalanobis).
    """
    rows = np.stack(list(seen.values()))
    middle, high = np.quantile(rows, (0.5, 0.99), axis=1)[..., None]

    def above(scores: dict[str, np.ndarray]) -> np.ndarray:
        return np.maximum((np.stack([scores[name] for name in seen]) - middle) / (high - middle), 0)

    inverse = np.linalg.inv(np.corrcoef(rows))
    return lambda scores: np.einsum("in,ij,jn->n", above(scores), inverse, above(scores))


def spread(values: np.ndarray) -> dict[str, float]:
    """Mean, and range."""
    return {
        "mean": round(float(values.mean()), 4),
        "min": round(float(values.min()), 4),
        "max": round(float(values.max()), 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["each", "gate", "splits"])
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
    parser.add_argument("--fits", type=int, default=5, help="random thirds that detectors are fitted on")
    parser.add_argument("--splits", type=int, default=20, help="random splits of the others, for each fit")
    more = ["similarity", "hubness"]
    parser.add_argument("--more", nargs="*", default=more, help="of splits: detectors that a distance takes too")
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
        case "splits":
            splits(test, context, given)


if __name__ == "__main__":
    main()
