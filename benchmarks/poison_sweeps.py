"""Corpus poisoning over one setting at a time: lengths, starts, payloads, and a second retriever.

    python benchmarks/poison_sweeps.py PART --shared shared/data/retrieval --cache cache [--k 5] [--evaluations 300]

Parts: lengths (10 to 100 tokens), starts (queries, gold, mask, random, and lm with a language model), grid (lengths by
starts), counts (1 to 100 passages), payloads (none, before, behind), decode (fluent passages), surprise (how surprising
such a set is to the language model, beside clean passages), second (passages crafted against one retriever, searched by
another: a few documents with `--language-model`, all of them with the static table of the package wordllama, whose
unpacked folder `--static` names). Each prints JSON lines, with processor seconds and the machine's load.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import torch
from poison import encoded, rates, tell

from lmlab.methods.corpus_poisoning import CraftConfig, DetectorContext, EncoderSpec, craft, passage_scores
from lmlab.methods.corpus_poisoning.attack.crafted import AdversarialSet
from lmlab.methods.corpus_poisoning.attack.run import gold_texts
from lmlab.methods.corpus_poisoning.attack.vocabulary import spell
from lmlab.methods.corpus_poisoning.defend.language import Perplexity
from lmlab.methods.corpus_poisoning.measure.thresholds import clean_hits
from lmlab.methods.corpus_poisoning.setup import Retriever, Target
from lmlab.retrieval import Corpus, ExactIndex, evaluate_run, save_static, static_encoder
from lmlab.retrieval.encoders.words import EncoderTokenizer

DEPTH = 20
PARTS = ["lengths", "starts", "grid", "counts", "payloads", "decode", "surprise", "second"]


def sweep(train: Target, test: Target, part: str, settings: list[dict[str, Any]], shared: dict[str, Any], out: Path):
    """Craft with each of some settings, and tell the success on the questions that are held out."""
    hits = test.hits(100)
    for changed in settings:
        config = CraftConfig(precision="bf16", objective="coverage", **{**shared, **changed})
        rank = config.coverage_rank
        shown = {key: value for key, value in changed.items() if key != "language_model" and value is not None}
        named = [part, *shown.values(), config.k, config.budget, config.seed]
        place = out / "-".join(str(value).rpartition("/")[2] for value in named)
        tau = train.hits(rank).tau(rank)
        of = gold_texts(train) if config.start == "gold" else {}
        golds = [of[id] for id in train.data.queries.ids] if of else None
        found = craft(train.retriever.spec, train.data.queries.texts, train.queries(), config, place, tau, golds=golds)
        scores = passage_scores(test.queries(), encoded(test, found.passages.texts))
        tell(
            part=part,
            **{key: str(value) if isinstance(value, Path) else value for key, value in shown.items() if key != "k"},
            k=config.k,
            seed=config.seed,
            evaluations=found.evaluations,
            asr=rates(scores, hits),
            cpu_s=round(found.seconds, 1),
            notes=[each.note for each in found.passages.passages if each.note][:3],
            with_payload=sum(each.payload.casefold() in each.text.casefold() for each in found.passages.passages),
        )


def static_directory(package: Path, out: Path) -> Path:
    """The static encoder of the package wordllama (mean of rows, length 1) as a directory that `load_encoder` reads."""
    from safetensors.torch import load_file

    tokenizer = EncoderTokenizer(
        tokenizers.Tokenizer.from_file(str(package / "tokenizers" / "l2_supercat_tokenizer_config.json")), {}
    )
    table = load_file(package / "weights" / "l2_supercat_256.safetensors")["embedding.weight"].float()
    save_static(static_encoder(table, tokenizer, "wordllama"), out)
    return out


def second_of_all(target: Target, other: EncoderSpec, places: list[Path], cache: Path, shared: Path) -> None:
    """The whole collection, and one of finance, searched by another retriever."""
    for data in ("boolq", "finance"):
        started = time.process_time()
        there = Target.load(Retriever(other, cache, "fp32"), str(shared / data), "test")
        run = there.index.topk(there.queries(), 100).run(there.data.queries.ids, there.data.corpus.ids)
        sets = {place.name: encoded(there, AdversarialSet.load(place).texts) for place in places}
        tell(
            part="second",
            encoder=other.place.rpartition("/")[2],
            data=data,
            ndcg=round(evaluate_run(run, there.data.qrels).means["nDCG@10"], 4),
            asr={
                name: rates(passage_scores(there.queries(), vectors), there.hits(100)) for name, vectors in sets.items()
            },
            cpu_s=round(time.process_time() - started, 1),
        )


def surprise(target: Target, places: list[Path], language_model: str, documents: int, length: int) -> None:
    """Nats a token of sets and of clean passages that are cut to the same length, as `perplexity` reads both."""
    encoder = target.retriever.encoder
    found = Perplexity(DetectorContext(encoder, language_model=language_model))
    step = max(1, len(target.data.corpus) // documents)
    cut = [encoder.tokenizer.inner([text])[0][:length] for text in target.data.corpus.texts[::step]]
    sets = {"clean": [spell(encoder.tokenizer, ids) for ids in cut]}
    sets |= {place.name: AdversarialSet.load(place).texts for place in places}
    bound = 0.0
    for name, texts in sets.items():
        whole, window = found.surprise(texts)
        bound = bound or float(np.quantile(whole, 0.95))
        tell(
            part="surprise",
            texts=name,
            count=len(texts),
            nats=round(float(whole.mean()), 3),
            nats_p95=round(float(np.quantile(whole, 0.95)), 3),
            worst_window_p95=round(float(np.quantile(window, 0.95)), 3),
            below_clean_p95=round(float((whole <= bound).mean()), 3),
        )


def second(target: Target, other: EncoderSpec, places: list[Path], cache: Path, documents: int, queries: int) -> None:
    """The same few documents and questions, searched by the retriever attacked and by another."""
    data = target.data
    asked = [row for row, id in enumerate(data.queries.ids) if id in data.qrels][:queries]
    golds = {id for row in asked for id in data.qrels[data.queries.ids[row]]}
    rest = [id for id in data.corpus.ids if id not in golds]
    drawn = np.random.default_rng(0).permutation(len(rest))[: max(0, documents - len(golds))]
    kept = sorted(golds | {rest[row] for row in drawn})
    row_of = {id: row for row, id in enumerate(data.corpus.ids)}
    bodies = tuple(data.corpus.texts[row_of[id]] for id in kept)
    corpus = Corpus(tuple(kept), ("",) * len(kept), bodies)
    few = data.queries.only([data.queries.ids[row] for row in asked])
    qrels = {id: data.qrels[id] for id in few.ids}
    attacks = {place.name: AdversarialSet.load(place).texts for place in places}
    for name, spec in (("attacked", target.retriever.spec), ("another", other)):
        started = time.process_time()
        encoder = Retriever(spec, cache, "bf16").encoder
        index = ExactIndex(corpus.ids, encoder.encode_text(corpus.texts, "document", "bf16"))
        vectors = encoder.encode_text(few.texts, "query", "bf16")
        hits = clean_hits(index, vectors, few, DEPTH)
        run = index.topk(vectors, 100).run(few.ids, corpus.ids)
        tell(
            part="second",
            retriever=name,
            encoder=spec.place.rpartition("/")[2],
            documents=len(corpus),
            questions=len(few),
            ndcg=round(evaluate_run(run, qrels).means["nDCG@10"], 4),
            asr={
                attack: rates(passage_scores(vectors, encoder.encode_text(texts)), hits)
                for attack, texts in attacks.items()
            },
            cpu_s=round(time.process_time() - started, 1),
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=PARTS, nargs="+")
    parser.add_argument("--shared", type=Path, required=True)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--encoder", default="minilm")
    parser.add_argument("--out", type=Path, default=Path("poison-sweeps"))
    parser.add_argument("--k", type=int, default=5)
    parser.add_argument("--evaluations", type=int, default=300)
    parser.add_argument("--language-model", help="for decode, and as the second retriever, by mean pooling")
    parser.add_argument("--attack", type=Path, action="append", default=[])
    parser.add_argument("--static", type=Path, help="unpacked folder of the package wordllama, the second retriever")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--length", type=int, default=50)
    parser.add_argument("--known-gate", type=Path, help="of decode")
    parser.add_argument("--surprise", type=float, default=5.0, help="of decode: the bound, in nats a token")
    parser.add_argument("--documents", type=int, default=200)
    parser.add_argument("--questions", type=int, default=150)
    given = parser.parse_args()
    torch.set_num_threads(1)
    retriever = Retriever(EncoderSpec(given.encoder), given.cache, "bf16")
    train, test = (Target.load(retriever, str(given.shared / "boolq"), split) for split in ("train", "test"))
    shared = {"k": given.k, "evaluations": given.evaluations, "seed": given.seed, "length": given.length}
    starts = [{"start": start} for start in ("queries", "gold", "mask", "random")]
    written = [{"start": "lm", "language_model": given.language_model}] if given.language_model else []
    lengths = (10, 20, 50, 100)
    settings = {
        "lengths": [{"length": length} for length in lengths],
        "starts": [*starts, *written],
        "grid": [{**start, "length": length} for length in lengths for start in starts],
        "counts": [{"k": k} for k in (1, 3, 10, 30, 100)],
        "payloads": [{"payload_position": position} for position in ("none", "prefix", "suffix")],
        "decode": [
            {
                "optimizer": "decode",
                "language_model": given.language_model,
                "k": given.k,
                "surprise": given.surprise,
                "known_gate": given.known_gate,
            }
        ],
    }
    for part in given.part:
        print(json.dumps({"part": part, "load": os.getloadavg()}), flush=True)
        if part == "second" and given.static:
            other = EncoderSpec(str(static_directory(given.static, given.out / "wordllama")))
            second_of_all(test, other, given.attack, given.cache, given.shared)
        elif part == "second":
            other = EncoderSpec(str(given.language_model), {"pooling": "mean"})
            second(test, other, given.attack, given.cache, given.documents, given.questions)
        elif part == "surprise":
            surprise(test, given.attack, str(given.language_model), given.documents, given.length)
        else:
            sweep(train, test, part, settings[part], shared, given.out)


if __name__ == "__main__":
    main()
