"""Corpus poisoning of one's own retriever on a GPU: how many candidates a second, and the grid of passages, objectives
and optimizers, each with the same evaluations for a passage, all passages of a set in one batch.

With `LMLAB_SHARED` naming the folder of the shared collections (`data/retrieval/boolq` in it) and the encoder `minilm`
installed, or `POISON_ENCODER` naming a directory, the grid gives success rates on held-out questions, undefended and
behind a gate of hubness and similarity whose sentinels are other questions. Without them a network of MiniLM's shape
with random weights and made-up questions takes their place, and only the share of the bound means something.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gpu_parts.session import Session
from lmlab.methods.corpus_poisoning import (
    AdmissionGate,
    Budget,
    CraftConfig,
    DetectorContext,
    EncoderSpec,
    MeanSimilarity,
    Passages,
    Problem,
    craft,
    passage_scores,
)
from lmlab.methods.corpus_poisoning.attack.searching.together import Network
from lmlab.methods.corpus_poisoning.attack.vocabulary import allowed_ids
from lmlab.methods.corpus_poisoning.measure.evaluate import success
from lmlab.methods.corpus_poisoning.setup import Retriever, Target
from lmlab.retrieval.encoders.load import PACKAGED, packaged_directory

_DEPTH = 20
_SPEED, _GRID, _LENGTHS, _CURVE = (
    "candidates of MiniLM's shape a second, 50 tokens",
    "the grid, all passages of a set at once",
    "length of passages",
    "success over evaluations",
)


@dataclass
class _Victim:
    spec: EncoderSpec
    texts: list[str]
    queries: np.ndarray
    train: Target | None = None
    test: Target | None = None
    gate: AdmissionGate | None = None


def run(session: Session) -> None:
    """Speed first, then the grid in the order of its worth, as far as time goes."""
    with tempfile.TemporaryDirectory() as folder:
        place = _encoder(Path(folder), session.tiny)
        _speed(session, EncoderSpec(str(place), {"device": str(session.device)}))
        victim = _victim(session, place, Path(folder))
        evaluations, few = (120, 2) if session.tiny else (2000, 10)
        for seed in range(1 if session.tiny else 3):
            for k in (2,) if session.tiny else (10, 50, 1, 100):
                for objective in ("coverage", "mean") if victim.test else ("mean",):
                    for optimizer in ("multiflip", "gaslite", "gcg", "hotflip"):
                        asked = {"optimizer": optimizer, "objective": objective, "k": k, "seed": seed}
                        _one(session, victim, _GRID, evaluations, asked, Path(folder))
            if seed == 0:
                for length in (6, 8) if session.tiny else (10, 20, 100):
                    _one(session, victim, _LENGTHS, evaluations, {"k": few, "length": length}, Path(folder))
                for count in (60,) if session.tiny else (300, 650, 1300, 5000, 20_000):
                    _one(session, victim, _CURVE, count, {"k": few}, Path(folder))


def _encoder(folder: Path, tiny: bool) -> Path:
    if named := os.environ.get("POISON_ENCODER"):
        return Path(named)
    if not tiny:
        try:
            found = packaged_directory(next(iter(PACKAGED)))
        except Exception:
            found = None
        if found is not None:
            return found
    return _made_up(folder / "encoder", tiny)


def _made_up(place: Path, tiny: bool) -> Path:
    """A directory of sentence-transformers with random weights."""
    import tokenizers
    import transformers
    from tokenizers import models, normalizers, pre_tokenizers, processors

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    count = 400 if tiny else 30_522
    words = [*special, *(f"w{number}" for number in range(count - len(special)))]
    backend = tokenizers.Tokenizer(models.WordPiece({word: id for id, word in enumerate(words)}, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    backend.add_special_tokens(special)
    sizes = (
        {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
        if tiny
        else {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536}
    )
    torch.manual_seed(0)
    network = transformers.BertModel(transformers.BertConfig(vocab_size=count, **sizes), add_pooling_layer=False)
    network.eval().save_pretrained(place)
    backend.save(str(place / "tokenizer.json"))
    names = {"unk_token": "[UNK]", "sep_token": "[SEP]", "pad_token": "[PAD]", "cls_token": "[CLS]"}
    settings = {**names, "mask_token": "[MASK]", "tokenizer_class": "BertTokenizer", "model_max_length": 256}
    (place / "1_Pooling").mkdir(parents=True)
    kinds = (("Transformer", ""), ("Pooling", "1_Pooling"), ("Normalize", "2_Normalize"))
    files: dict[str, Any] = {
        "tokenizer_config.json": settings,
        "sentence_bert_config.json": {"max_seq_length": 256},
        "1_Pooling/config.json": {"pooling_mode_mean_tokens": True},
        "modules.json": [{"type": f"sentence_transformers.models.{kind}", "path": path} for kind, path in kinds],
    }
    for name, content in files.items():
        (place / name).write_text(json.dumps(content))
    return place


def _speed(session: Session, spec: EncoderSpec) -> None:
    """Scores of candidates of one passage alone, and of fifty passages at once; and one gradient of them."""
    encoder = spec.load()
    allowed = allowed_ids(encoder.tokenizer)
    length = 8 if session.tiny else 50
    objective = MeanSimilarity(torch.randn(encoder.dim, device=session.device))
    problem = Problem(encoder, objective, allowed, np.ones(length, bool), Budget(1 << 60), "bf16")
    network = Network(encoder)
    generator = np.random.default_rng(0)
    for passages in (1, 2) if session.tiny else (1, 10, 50):
        count = 50 * passages
        if not session.has(f"candidates {passages}", 4):
            continue
        row: dict[str, Any] = {"passages at once": passages, "batch": count}
        with session.attempt(_SPEED, row):
            rows = problem.wrap(generator.choice(allowed, (count, length)))
            for precision in ("fp32", "bf16"):
                took = session.median(lambda rows=rows, how=precision: network.vectors(rows, how), 1.5)
                row[f"{precision} a second"] = count / took
            single = problem.wrap(generator.choice(allowed, (passages, length)))
            parts, objectives = list(single.split(1)), [objective] * passages
            row["ms for the gradients"] = 1000 * session.median(
                lambda parts=parts, objectives=objectives: network.gradients(parts, objectives), 1.0
            )
            session.record.row(_SPEED, {**row, "peak GiB": session.peak_gib()})


def _victim(session: Session, place: Path, folder: Path) -> _Victim:
    spec = EncoderSpec(str(place), {"device": str(session.device)})
    shared = os.environ.get("LMLAB_SHARED")
    data = Path(shared) / "data" / "retrieval" / "boolq" if shared and not session.tiny else None
    if data is None or not data.is_dir() or place.is_relative_to(folder):
        session.record.note("made-up questions: only the share of the bound means something")
        generator = np.random.default_rng(0)
        encoder = spec.load()
        words = [word for word in encoder.tokenizer.pieces(allowed_ids(encoder.tokenizer)[:200].tolist()) if word]
        texts = [" ".join(generator.choice(words, 8)) for _ in range(40 if session.tiny else 2000)]
        return _Victim(spec, texts, encoder.encode_text(texts, "query"))
    retriever = Retriever(spec, folder / "cache", "bf16")
    train, test = (Target.load(retriever, str(data), split) for split in ("train", "test"))
    started = time.monotonic()
    documents = Passages(test.data.corpus.texts, test.documents)
    session.record.note(f"{len(documents):,} passages encoded in {time.monotonic() - started:.1f} s")
    others = np.random.default_rng(0).permutation(len(test.data.queries))
    sentinels = [test.data.queries.texts[row] for row in others[:1000]]
    context = DetectorContext(retriever.encoder, test.index, sentinels, test.queries()[others[:1000]])
    half = np.random.default_rng(1).permutation(len(documents)).tolist()
    middle = len(half) // 2
    gate = AdmissionGate.fit(
        ["hubness", "similarity"], context, documents.part(half[:middle]), documents.part(half[middle:]), 0.005
    )
    session.record.note("sentinels of the gate are 1,000 held-out questions, on which success is not measured")
    victim = _Victim(spec, list(train.data.queries.texts), train.queries(), train, test, gate)
    victim.test = test
    return victim


def _one(
    session: Session, victim: _Victim, table: str, evaluations: int, changes: dict[str, Any], folder: Path
) -> None:
    """Craft a set, and measure it."""
    fitting = {"length": 8} if session.tiny else {}
    config = CraftConfig(
        **{**fitting, "precision": "bf16", "together": 64, "evaluations": evaluations, "candidates": 50, **changes}
    )
    told = {name: getattr(config, name) for name in ("optimizer", "objective", "k", "length", "evaluations", "seed")}
    # a forward of the network and the waiting of the searches for each other, as far as it is known beforehand
    if not session.has(f"grid {told}", 2 + config.k * evaluations / 12_000):
        return
    row: dict[str, Any] = dict(told)
    with session.attempt(table, row):
        tau = None
        if config.objective == "coverage":
            assert victim.train is not None
            tau = victim.train.hits(_DEPTH).tau(_DEPTH)
        started = time.monotonic()
        out = folder / "-".join(map(str, [table.partition(" ")[0], *told.values()]))
        found = craft(victim.spec, victim.texts, victim.queries, config, out, tau)
        took = time.monotonic() - started
        row |= {"s": took, "evaluations a second": found.evaluations / took}
        if victim.test is None:
            bounds = np.linalg.norm(found.clusters.centroids_kH, axis=1)
            shares = [(each.objective_text or 0.0) / bounds[int(each.cluster)] for each in found.passages.passages]
            row["share of the bound"] = float(np.mean(shares))
        else:
            row |= _rates(victim, found.passages.texts)
        session.record.row(table, {**row, "peak GiB": session.peak_gib()})


def _rates(victim: _Victim, texts: list[str]) -> dict[str, float]:
    """Success on the questions that are no sentinels, undefended and with what the gate admits."""
    assert victim.test is not None and victim.gate is not None
    test = victim.test
    asked = np.random.default_rng(0).permutation(len(test.data.queries))[1000:]
    passages = Passages.of(texts, test.retriever.encoder)
    hits = test.hits(100).of(asked.tolist())
    admitted = [number for number, each in enumerate(victim.gate.check_all(passages)) if each.admit]
    rates = {}
    for name, rows in (("ASR@20 %", list(range(len(texts)))), ("behind the gate %", admitted)):
        scores = passage_scores(test.queries()[asked], passages.vectors[rows])
        rates[name] = 100 * float(success(scores, hits, _DEPTH).mean())
    return rates
