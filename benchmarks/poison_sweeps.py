"""Corpus poisoning over one setting at a time: lengths, starts, payloads, and a second retriever.

    python benchmarks/poison_sweeps.py PART --shared shared/data/retrieval --cache cache [--k 5] [--evaluations 300]

Parts: lengths (10 to 100 tokens), starts (queries, mask, random), payloads (none, before, behind), decode (fluent
passages), second (passages crafted against one retriever, searched by another, a few documents). Each prints JSON
lines, with processor seconds and the machine's load.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from poison import encoded, rates, tell

from lmlab.methods.corpus_poisoning import CraftConfig, EncoderSpec, craft, passage_scores
from lmlab.methods.corpus_poisoning.attack.crafted import AdversarialSet
from lmlab.methods.corpus_poisoning.measure.thresholds import clean_hits
from lmlab.methods.corpus_poisoning.setup import Retriever, Target
from lmlab.retrieval import Corpus, ExactIndex, evaluate_run

DEPTH = 20


def sweep(train: Target, test: Target, part: str, settings: list[dict[str, Any]], shared: dict[str, Any], out: Path):
    """Craft with each of some settings, and tell the success on the questions that are held out."""
    hits = test.hits(100)
    for changed in settings:
        config = CraftConfig(precision="bf16", objective="coverage", **{**shared, **changed})
        rank = config.coverage_rank
        place = out / (part + "-" + "-".join(str(value).replace("/", "_") for value in changed.values()))
        tau = train.hits(rank).tau(rank)
        found = craft(train.retriever.spec, train.data.queries.texts, train.queries(), config, place, tau)
        scores = passage_scores(test.queries(), encoded(test, found.passages.texts))
        tell(
            part=part,
            **{key: value for key, value in changed.items() if key != "language_model"},
            k=config.k,
            evaluations=found.evaluations,
            asr=rates(scores, hits),
            cpu_s=round(found.seconds, 1),
            notes=[each.note for each in found.passages.passages if each.note][:3],
            with_payload=sum(each.payload.casefold() in each.text.casefold() for each in found.passages.passages),
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
    parser.add_argument("part", choices=["lengths", "starts", "payloads", "decode", "second"], nargs="+")
    parser.add_argument("--shared", type=Path, required=True)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--encoder", default="minilm")
    parser.add_argument("--out", type=Path, default=Path("poison-sweeps"))
    parser.add_argument("--k", type=int, default=5)
    parser.add_argument("--evaluations", type=int, default=300)
    parser.add_argument("--language-model", help="for decode, and as the second retriever, by mean pooling")
    parser.add_argument("--attack", type=Path, action="append", default=[])
    parser.add_argument("--documents", type=int, default=200)
    parser.add_argument("--questions", type=int, default=150)
    given = parser.parse_args()
    torch.set_num_threads(1)
    retriever = Retriever(EncoderSpec(given.encoder), given.cache, "bf16")
    train, test = (Target.load(retriever, str(given.shared / "boolq"), split) for split in ("train", "test"))
    shared = {"k": given.k, "evaluations": given.evaluations}
    settings = {
        "lengths": [{"length": length} for length in (10, 20, 50, 100)],
        "starts": [{"start": start} for start in ("queries", "mask", "random")],
        "payloads": [{"payload_position": position} for position in ("none", "prefix", "suffix")],
        "decode": [{"optimizer": "decode", "language_model": given.language_model}],
    }
    for part in given.part:
        print(json.dumps({"part": part, "load": os.getloadavg()}), flush=True)
        if part == "second":
            other = EncoderSpec(str(given.language_model), {"pooling": "mean"})
            second(test, other, given.attack, given.cache, given.documents, given.questions)
        else:
            sweep(train, test, part, settings[part], shared, given.out)


if __name__ == "__main__":
    main()
