"""Corpus poisoning: quality, speed and defenses of a real retriever on real collections, beside the reference's
structure and sentence-transformers in the same run.

    python benchmarks/poison.py PART --shared shared/data/retrieval --cache cache [--k 10] [--evaluations 2600] ...

Parts: encoding, quality, speed, craft, optimizers, defenses, transfer, evaluate (seconds of a measurement and of a
gate's verdict, vectors at hand). Everything costly is cached. Each part prints JSON lines, with the machine's load.
"""

from __future__ import annotations

import argparse
import json
import os
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lmlab.methods.corpus_poisoning import (
    AdmissionGate,
    Budget,
    CraftConfig,
    DetectorContext,
    EncoderSpec,
    MeanSimilarity,
    Passages,
    Problem,
    cluster_queries,
    craft,
    evaluate_attack,
    measure_defenses,
    measure_fusion,
    optimize,
    passage_scores,
)
from lmlab.methods.corpus_poisoning.attack.crafted import AdversarialSet
from lmlab.methods.corpus_poisoning.attack.layout import start_ids
from lmlab.methods.corpus_poisoning.attack.vocabulary import allowed_ids, spell
from lmlab.methods.corpus_poisoning.formats import black_box, read_poisonedrag
from lmlab.methods.corpus_poisoning.measure.evaluate import success
from lmlab.methods.corpus_poisoning.setup import Retriever, Target
from lmlab.retrieval import evaluate_run, read_queries
from lmlab.retrieval.encoders.load import packaged_directory

K = (1, 10, 20)


def tell(**row: Any) -> None:
    load = os.getloadavg()[0]
    print(json.dumps({**row, "load": round(load, 1), "cores": os.cpu_count()}), flush=True)


def reference_structure(place: Path, target: Target, iterations: int) -> dict[str, float]:
    """Seconds an iteration of the released code's structure: 64 queries and gold passages encoded twice, 100
    candidates one by one with their graph, and one evaluation on held-back pairs.
    """
    import transformers

    model = transformers.AutoModel.from_pretrained(place).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(place)
    queries, documents = list(target.data.queries.texts), target.data.corpus.texts
    rows = {id: row for row, id in enumerate(target.data.corpus.ids)}
    golds = [documents[rows[next(iter(target.data.qrels[id]))]] for id in target.data.queries.ids]

    def encode(texts: list[str]) -> torch.Tensor:
        batch = tokenizer(texts, padding="max_length", max_length=128, truncation=True, return_tensors="pt")
        mask = batch["attention_mask"][..., None]
        return (model(**batch).last_hidden_state * mask).sum(1) / mask.sum(1)

    generator = np.random.default_rng(0)
    ids = torch.full((1, 50), tokenizer.mask_token_id)
    table = model.get_input_embeddings()
    plain = 0.0
    for _ in range(iterations):
        started = time.process_time()
        for _ in range(2):
            picked = generator.integers(0, len(queries), 64)
            with torch.no_grad():
                asked = encode([queries[row] for row in picked])
                encode([golds[row] for row in picked])
        embeddings = table(ids).detach().requires_grad_()
        (model(inputs_embeds=embeddings).last_hidden_state.mean(1) @ asked.T).mean().backward()
        tokens = (table.weight @ embeddings.grad[0, 7]).topk(100).indices
        for token in tokens.tolist():
            trial = ids.clone()
            trial[0, 7] = token
            (model(trial).last_hidden_state.mean(1) @ asked.T).mean()
        plain += time.process_time() - started
    started = time.process_time()
    count = 64
    with torch.no_grad():
        encode(queries[:count])
        encode(golds[:count])
    held_back = (time.process_time() - started) * 1000 / count
    return {"iteration": plain / iterations, "held_back_of_1000": held_back}


def speed(target: Target, place: Path, iterations: int) -> None:
    theirs = reference_structure(place, target, iterations)
    encoder = target.retriever.encoder
    objective = MeanSimilarity.of(torch.from_numpy(target.queries()))
    problem = Problem(encoder, objective, allowed_ids(encoder.tokenizer), np.ones(50, bool), Budget(10**6), "bf16")
    config = CraftConfig(k=1)
    ids = start_ids(config, encoder, target.data.queries.texts, target.queries())
    problem.gradient(ids[None])
    started = time.process_time()
    rounds = 5
    for _ in range(rounds):  # what one iteration of the reference does: a gradient and 100 candidates
        problem.first_order(problem.gradient(ids[None]), ids)
        problem.scores(np.tile(ids, (101, 1)))
    ours = (time.process_time() - started) / rounds
    whole = theirs["iteration"] + theirs["held_back_of_1000"]
    tell(
        part="speed",
        cpu_s_iteration_ours=ours,
        cpu_s_iteration_reference=theirs["iteration"],
        ratio=theirs["iteration"] / ours,
        cpu_s_with_held_back_reference=whole,
        ratio_with_held_back=whole / ours,
    )


def encoding(target: Target, place: Path, count: int) -> None:
    from sentence_transformers import SentenceTransformer

    texts = target.data.corpus.texts[:: max(1, len(target.data.corpus) // count)][:count]
    peers = {
        "fp32": SentenceTransformer(str(place), device="cpu", local_files_only=True),
        "bf16": SentenceTransformer(
            str(place), device="cpu", local_files_only=True, model_kwargs={"dtype": torch.bfloat16}
        ),
    }
    encoder = target.retriever.encoder
    expected = peers["fp32"].encode(texts)
    for precision, theirs in peers.items():
        seconds, vectors = [], []
        for run in (theirs.encode, lambda given, how=precision: encoder.encode_text(given, precision=how)):
            run(texts[:8])
            started = time.process_time()
            vectors.append(np.asarray(run(texts), np.float32))
            seconds.append(time.process_time() - started)
        tell(
            part="encoding",
            texts=len(texts),
            precision=precision,
            cpu_s=seconds[1],
            peer_cpu_s=seconds[0],
            ratio=seconds[0] / seconds[1],
            largest_difference_from_fp32=[float(np.abs(each - expected).max()) for each in vectors[::-1]],
            least_cosine_with_fp32=[float((each * expected).sum(1).min()) for each in vectors[::-1]],
        )


def quality(retriever: Retriever, shared: Path) -> None:
    for name in ("finance", "boolq"):
        target = Target.load(retriever, str(shared / name), "test")
        hits = target.index.topk(target.queries(), 101)
        found = evaluate_run(hits.run(target.data.queries.ids, target.data.corpus.ids), target.data.qrels).means
        tell(part="quality", data=name, **{key: round(found[key], 4) for key in ("nDCG@10", "MAP@100", "Recall@10")})


def attack(train: Target, test: Target, config: CraftConfig, out: Path) -> None:
    tau = train.hits(config.coverage_rank).tau(config.coverage_rank) if config.objective == "coverage" else None
    found = craft(train.retriever.spec, train.data.queries.texts, train.queries(), config, out, tau)
    vectors = encoded(test, found.passages.texts)
    hits = test.hits(100)
    report = evaluate_attack(
        passage_scores(test.queries(), vectors),
        hits,
        len(test.data.corpus),
        K,
        test.data.queries.ids,
        test.data.qrels,
        found.passages.ids,
    )
    perfect = passage_scores(test.queries(), found.perfect_kH)
    tell(
        part="craft",
        config=config.model_dump(mode="json", exclude_defaults=True),
        asr={k: round(100 * value, 2) for k, value in report.asr.items()},
        interval20=[round(100 * each, 2) for each in report.interval[20]],
        ceiling={k: round(100 * float(success(perfect, hits, k).mean()), 1) for k in K},
        ndcg=[round(report.ndcg_before or 0, 4), round(report.ndcg_after or 0, 4)],
        cpu_s=round(found.seconds, 1),
        evaluations=found.evaluations,
        text_level=all(
            abs(each.objective_ids - each.objective_text) < 1e-6
            for each in found.passages.passages
            if each.objective_ids is not None and each.objective_text is not None
        ),
    )


def evaluation(test: Target, texts: list[str], attacks: list[Path]) -> None:
    """Wall and processor seconds of all figures of a set, its vectors and those of the collection at hand; and of a
    gate's verdict on a passage whose vector is at hand, with 5,000 questions as sentinels.
    """
    hits, queries = test.hits(100), test.queries()
    for place in attacks:
        crafted = AdversarialSet.load(place)
        vectors = encoded(test, crafted.texts)
        started, busy = time.perf_counter(), time.process_time()
        evaluate_attack(
            passage_scores(queries, vectors),
            hits,
            len(test.data.corpus),
            K,
            test.data.queries.ids,
            test.data.qrels,
            crafted.ids,
        )
        took, cpu = time.perf_counter() - started, time.process_time() - busy
        tell(part="evaluate", attack=place.name, passages=len(crafted), seconds=took, cpu_s=cpu)
    asked = np.resize(queries, (5000, queries.shape[1]))
    context = DetectorContext(test.retriever.encoder, test.index, texts, asked)
    documents = Passages(test.data.corpus.texts, test.documents)
    for names in (["excerpts", "questions"], ["excerpts", "questions", "hubness", "similarity"]):
        gate = AdmissionGate.fit(names, context, documents.part(range(0, 2000, 2)), documents.part(range(1, 2000, 2)))
        started, busy = time.perf_counter(), time.process_time()
        for row in range(2000, 2500):
            gate.check(documents.texts[row], documents.vectors[row])
        took, cpu = time.perf_counter() - started, time.process_time() - busy
        tell(part="evaluate", gate=names, milliseconds=2 * took, cpu_milliseconds=2 * cpu)


def encoded(target: Target, texts: list[str]) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return target.retriever.encoder.encode_text(texts)


def optimizers(train: Target, test: Target, clusters: int, seeds: int, stages: list[int]) -> None:
    """Every optimizer from the same starts with the same budget, and what it had when parts of it were spent: the
    largest of 50 clusters, one passage each.
    """
    encoder, queries, hits = train.retriever.encoder, train.queries(), test.hits(100)
    parts = cluster_queries(queries, 50)
    allowed = allowed_ids(encoder.tokenizer)
    starts = []
    for number in range(clusters):
        own = np.flatnonzero(parts.labels_n == number)
        texts = [train.data.queries.texts[row] for row in own]
        ids = start_ids(CraftConfig(k=1), encoder, texts, queries[own])
        starts.append((MeanSimilarity.of(torch.from_numpy(queries[own])), ids))
    for name in ("multiflip", "gcg", "hotflip", "gaslite", "arca"):
        shares, texts, started = np.zeros((len(stages), seeds, clusters)), {}, time.process_time()
        for seed in range(seeds):
            for number, (objective, ids) in enumerate(starts):
                problem = Problem(encoder, objective, allowed, np.ones(50, bool), Budget(stages[-1]), "bf16")
                best = {stage: ids for stage in stages}

                def seen(ids_L: np.ndarray, problem: Problem = problem, best: dict[int, np.ndarray] = best) -> bool:
                    best |= {stage: ids_L for stage in stages if problem.budget.spent <= stage}
                    return False

                best[stages[-1]] = optimize(problem, ids, name, 50, seed, seen).ids_L
                for place, stage in enumerate(stages):
                    value = Problem(encoder, objective, allowed, np.ones(50, bool), Budget(1)).score(best[stage])
                    shares[place, seed, number] = value / objective.bound
                    texts[stage, seed, number] = spell(encoder.tokenizer, best[stage].tolist())
        cpu = (time.process_time() - started) / shares[0].size
        for place, stage in enumerate(stages):
            reached = []
            for seed in range(seeds):
                vectors = encoded(test, [texts[stage, seed, number] for number in range(clusters)])
                reached.append(rates(passage_scores(test.queries(), vectors), hits)[20])
            tell(
                part="optimizers",
                optimizer=name,
                evaluations=stage,
                share_of_bound=round(float(shares[place].mean()), 4),
                sd_between_seeds=round(float(shares[place].std(0, ddof=1).mean()), 4),
                sd_of_runs=round(float(shares[place].std(ddof=1)), 4),
                asr20=[round(float(np.mean(reached)), 2), round(float(np.std(reached, ddof=1)), 2)],
                runs=shares[place].size,
                cpu_s_whole=round(cpu, 2),
            )


def defenses(
    test: Target,
    attacks: dict[str, Passages],
    sentinels: str,
    texts: list[str],
    names: list[str],
    fusion: bool,
    stack: list[str],
    sample: int,
    language_model: str | None,
) -> None:
    """Detectors with the vectors of 500 sentinel questions and the texts of all."""
    encoder = test.retriever.encoder
    picked = np.random.default_rng(0).permutation(len(texts))[:500]
    asked = encoder.encode_text([texts[row] for row in picked], "query")
    context = DetectorContext(encoder, test.index, texts, asked, language_model)
    rows = measure_defenses(names, context, test, attacks, sample=sample, stack=stack)
    rows += measure_fusion(test, attacks) if fusion else []
    for row in rows:
        tell(part="defenses", sentinels=sentinels, **row.row())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parts = ["encoding", "quality", "speed", "craft", "optimizers", "defenses", "transfer", "evaluate"]
    parser.add_argument("part", choices=parts)
    parser.add_argument("--shared", type=Path, required=True)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--encoder", default="minilm")
    parser.add_argument("--out", type=Path, default=Path("poison-benchmark"))
    parser.add_argument("--k", type=int, default=10)
    parser.add_argument("--evaluations", type=int)
    parser.add_argument("--objective", default="coverage")
    parser.add_argument("--optimizer", default="multiflip")
    parser.add_argument("--clusters", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--count", type=int, default=256)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--length", type=int, default=50)
    parser.add_argument("--start", default="queries")
    parser.add_argument("--payload-position", default="none")
    parser.add_argument("--known-gate", type=Path)
    parser.add_argument("--attack", type=Path, action="append", default=[])
    parser.add_argument("--sentinels", choices=["nq-open", "boolq-test"], default="nq-open")
    parser.add_argument("--detector", action="append")
    parser.add_argument("--stack", action="append", help="detectors of the gate that is measured as a whole")
    parser.add_argument("--language-model")
    parser.add_argument("--no-fusion", action="store_true")
    parser.add_argument("--no-stack", action="store_true")
    parser.add_argument("--sample", type=int, default=400, help="clean documents that costly detectors score")
    parser.add_argument("--targeted", type=int, help="so many first questions of PoisonedRAG")
    given = parser.parse_args()
    torch.set_num_threads(1)
    retriever = Retriever(EncoderSpec(given.encoder), given.cache, "bf16")
    boolq = str(given.shared / "boolq")
    train, test = (Target.load(retriever, boolq, split) for split in ("train", "test"))
    place = packaged_directory(given.encoder) or Path(given.encoder)
    match given.part:
        case "encoding":
            encoding(test, place, given.count)
        case "quality":
            quality(retriever, given.shared)
        case "speed":
            speed(train, place, 3)
        case "craft":
            config = CraftConfig(
                k=given.k,
                evaluations=given.evaluations,
                objective=given.objective,
                optimizer=given.optimizer,
                precision="bf16",
                language_model=given.language_model,
                seed=given.seed,
                length=given.length,
                start=given.start,
                payload_position=given.payload_position,
                known_gate=given.known_gate,
            )
            about = config.model_dump(mode="json", exclude={"precision", "language_model"})
            named = ("optimizer", "objective", "k", "length", "evaluations", "start", "payload_position", "seed")
            name = "-".join(str(about[each]) for each in named) + ("-aware" if config.known_gate else "")
            attack(train, test, config, given.out / name)
        case "optimizers":
            optimizers(train, test, given.clusters, given.seeds, [100, 300, given.evaluations or 650])
        case "defenses":
            sets = {
                place.name: Passages.of(AdversarialSet.load(place).texts, retriever.encoder) for place in given.attack
            }
            targeted = read_poisonedrag(given.shared / "poisonedrag" / "nq.json")
            rag = black_box(targeted[: given.targeted])
            # the attacker's questions are the split train of boolq and those of PoisonedRAG: sentinels are others
            gone = {each.question.strip().casefold() for each in targeted}
            asked = test.data.queries if given.sentinels == "boolq-test" else read_queries(given.shared / "nq-open")
            texts = [text for text in asked.texts if text.strip().casefold() not in gone]
            sets["S + I (nq)"] = Passages.of(rag.texts, retriever.encoder)
            names = given.detector or ["excerpts", "hubness", "similarity", "questions", "near_duplicate"]
            stack = given.stack or ["excerpts", "questions"]
            stack = [] if given.no_stack else stack
            fusion = not given.no_fusion
            defenses(test, sets, given.sentinels, texts, names, fusion, stack, given.sample, given.language_model)
        case "evaluate":
            evaluation(test, list(read_queries(given.shared / "nq-open").texts), given.attack)
        case "transfer":
            for place in given.attack:
                vectors = encoded(test, AdversarialSet.load(place).texts)
                other = read_queries(given.shared / "nq-open")
                name = "nq-open/query"
                hits = test.hits(100, other, name)
                scores = passage_scores(test.queries(other, name), vectors)
                tell(part="transfer", attack=place.name, to="nq-open on boolq", asr=rates(scores, hits))
                finance = Target.load(retriever, str(given.shared / "finance"), "test")
                scores = passage_scores(finance.queries(), vectors)
                tell(part="transfer", attack=place.name, to="finance", asr=rates(scores, finance.hits(100)))


def rates(scores: np.ndarray, hits: Any) -> dict[int, float]:
    return {k: round(100 * float(success(scores, hits, k).mean()), 2) for k in K}


if __name__ == "__main__":
    main()
