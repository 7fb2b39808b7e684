"""Summaries in place of retrieved passages: mixtures, orders and re-ranking are what the paper defines."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from compressors import by_formula, small

from lmlab.data import Tokenizer
from lmlab.errors import UserError
from lmlab.files import write_jsonl
from lmlab.methods.autocompressor import AutoCompressor
from lmlab.methods.autocompressor.measure.rag import (
    Passages,
    RagSettings,
    Reader,
    Retrieved,
    by_distance,
    measure_rag,
    mixture,
    smoothed,
)
from lmlab.methods.autocompressor.measure.rerank import AFTER, Reranker
from lmlab.models import ModelConfig, Transformer, save_pretrained

_CONTEXT, _CONTINUATION = [3, 10, 17, 24], [31, 1, 8]


def _found(compressor: AutoCompressor) -> list[Retrieved]:
    passages = [[(5 * i + n) % 37 for i in range(6)] for n in range(3)]
    return [
        Retrieved(float(score), compressor.compress(torch.tensor([ids])).vectors_BPD[0], ids)
        for ids, score in zip(passages, (2.0, 1.0, 0.5), strict=True)
    ]


def test_mixtures_are_means_of_probabilities() -> None:
    log_probs = torch.log(torch.tensor([[0.5, 0.2], [0.1, 0.4]], dtype=torch.float64))
    weights = torch.softmax(torch.tensor([1.0, 0.0], dtype=torch.float64), 0)
    expected = torch.log(weights @ log_probs.exp())
    assert torch.allclose(mixture(log_probs, torch.tensor([1.0, 0.0])), expected)
    assert torch.allclose(smoothed(log_probs[0], log_probs[1]).exp(), torch.tensor([0.3, 0.3], dtype=torch.float64))


@pytest.mark.parametrize("kind", ["opt", "llama"])
def test_lines_are_what_they_say(kind: str) -> None:
    compressor = by_formula(kind)
    found, reader = _found(compressor), Reader(compressor)
    lines = ("replug", "soft_replug", "fused", "fused_as_retrieved", "fused_passages", "fused_random")
    losses = reader.read(_CONTEXT, _CONTINUATION, found, lines, found[:1])
    text = torch.tensor([[*_CONTEXT, *_CONTINUATION]])

    def log_probs(vectors: torch.Tensor | None = None, before: list[int] | None = None) -> torch.Tensor:
        ids = text if before is None else torch.cat((torch.tensor([before]), text), 1)
        logits = compressor(ids, soft_prompt=vectors).logits_BTV
        assert logits is not None
        return logits[0, -4:-1].log_softmax(-1).gather(1, text[0, 4:, None])[:, 0]

    none = log_probs()
    scores = torch.tensor([2.0, 1.0, 0.5])
    vectors = [each.vectors_ND for each in found]
    own = compressor.compress(torch.tensor([_CONTEXT])).vectors_BPD[0]
    distances = [float((each - own).norm()) for each in vectors]
    order = sorted(range(3), key=lambda n: -distances[n])
    expected = {
        "none": none,
        "soft_replug": mixture(torch.stack([log_probs(each[None]) for each in vectors]), scores),
        "replug": mixture(torch.stack([log_probs(before=list(each.ids)) for each in found]), scores),
        "fused": smoothed(log_probs(torch.cat([vectors[n] for n in order])[None]), none),
        "fused_as_retrieved": smoothed(log_probs(torch.cat(vectors[::-1])[None]), none),
        "fused_passages": smoothed(log_probs(before=[t for each in found[::-1] for t in each.ids]), none),
        "fused_random": smoothed(log_probs(vectors[0][None]), none),
    }
    assert losses == pytest.approx({name: -float(each.mean()) for name, each in expected.items()})
    assert losses["fused"] != losses["fused_as_retrieved"] or order == [2, 1, 0]


def test_a_text_begins_with_its_marks_also_behind_plain_passages() -> None:
    compressor = by_formula("llama")
    reader, found = Reader(compressor, [_CONTEXT[0]]), _found(compressor)[:1]
    losses = reader.read(_CONTEXT, _CONTINUATION, found, ("replug",))
    row = torch.tensor([[_CONTEXT[0], *found[0].ids, *_CONTEXT[1:], *_CONTINUATION]])
    logits = compressor(row).logits_BTV
    assert logits is not None
    expected = torch.nn.functional.cross_entropy(logits[0, -4:-1], row[0, -3:])
    assert losses["replug"] == pytest.approx(float(expected))
    assert losses["replug"] != pytest.approx(
        Reader(compressor).read(_CONTEXT, _CONTINUATION, found, ("replug",))["replug"]
    )


def test_random_passages_are_neither_the_text_nor_found_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compressor = small("llama")
    names = [f"p{number}" for number in range(6)]
    ids = {name: [(5 * i + n) % 37 for i in range(8)] for n, name in enumerate(names)}
    summary = {name: compressor.compress(torch.tensor([each])).vectors_BPD[0] for name, each in ids.items()}
    passages = Passages(names, summary.__getitem__, ids.__getitem__)
    texts = [(name, ids[name]) for name in names[:3]]  # each is a passage itself
    settings = RagSettings((2,), 4, 4, ("fused", "fused_random"))

    def retrieve(id: str, context: Any, k: int) -> list[tuple[str, float]]:
        return [(name, 1.0) for name in names if name != id][:k]

    asked, read = [], Reader.read
    monkeypatch.setattr(Reader, "read", lambda *given: asked.append(given) or read(*given))
    measure_rag(Reader(compressor), texts, passages, retrieve, settings, tmp_path / "a", ["bm25"])
    for (id, _), (*_, found, _, others) in zip(texts, asked, strict=True):
        told = [[next(n for n in names if ids[n] == one.ids) for one in each] for each in (found, others)]
        assert len(set(told[0] + told[1] + [id])) == 5
    # another retriever, other texts by the same names, too few passages
    for given, about in ((texts, ["minilm"]), ([(id, each[::-1]) for id, each in texts], ["bm25"])):
        with pytest.raises(UserError, match="Choose another|another measurement|other texts"):
            measure_rag(Reader(compressor), given, passages, retrieve, settings, tmp_path / "a", about)
    with pytest.raises(UserError, match="fused_random reads 3 passages beside the 3"):
        measure_rag(Reader(compressor), texts, passages, retrieve, RagSettings((3,), 4, 4), tmp_path / "b")
    with pytest.raises(UserError, match="5 can be found for 'p0'"):
        measure_rag(Reader(compressor), texts, passages, retrieve, RagSettings((6,), 4, 4, ("fused",)), tmp_path / "c")


def test_the_nearest_passage_is_read_last() -> None:
    summaries = [torch.tensor(each) for each in ([[0.0, 1.0]], [[5.0, 0.0]], [[0.0, 2.0]])]
    assert by_distance(summaries, torch.zeros(1, 2)) == [1, 2, 0]
    # of several segments the nearest one counts
    assert by_distance([*summaries, torch.tensor([[9.0, 9.0], [0.0, 1.5]])], torch.zeros(1, 2)) == [1, 2, 3, 0]


@pytest.mark.parametrize("kind", ["opt", "llama"])
def test_passages_of_several_segments_are_read_beside_shorter_ones(kind: str) -> None:
    compressor = small(kind).double()
    ids = [[(5 * i + n) % 37 for i in range(size)] for n, size in enumerate((4, 8, 4))]
    summaries = [compressor.compress(torch.tensor([each]), segment_lengths=4).vectors_BPD[0] for each in ids]
    scores = (2.0, 1.0, 0.5)
    found = [Retrieved(*each) for each in zip(scores, summaries, ids, strict=True)]
    context, continuation = ids[1][:4], ids[1][4:]
    reader = Reader(compressor)
    losses = reader.read(context, continuation, found, ("soft_replug", "fused"))
    each = [reader.log_probs(context, continuation, [vectors])[0] for vectors in summaries]
    probabilities = [float(p) for p in torch.tensor(scores, dtype=torch.float64).softmax(0)]
    mixed = sum(p * row.double().exp() for p, row in zip(probabilities, each, strict=True))
    assert losses["soft_replug"] == pytest.approx(-float(mixed.log().mean()), abs=1e-9)
    order = by_distance(summaries, reader.summary(context))
    both = reader.log_probs(context, continuation, [torch.cat([summaries[n] for n in order])])[0].double().exp()
    without = reader.log_probs(context, continuation, [None])[0].double().exp()
    assert losses["fused"] == pytest.approx(-float(((both + without) / 2).log().mean()), abs=1e-9)


@pytest.mark.parametrize("kind", ["opt", "llama"])
def test_questions_are_scored_behind_vectors_in_the_place_of_a_passage(kind: str, parts: dict[str, Any]) -> None:
    tokenizer = parts["tokenizer"]
    shape = parts["shapes"][kind]
    compressor = AutoCompressor(Transformer(shape).initialize(0).double(), small(kind).config).eval()
    reranker = Reranker(compressor, tokenizer)
    # the embeddings of a passage's own tokens, with positions, are the passage
    text = " rain falls"
    as_text = reranker.score("what falls", ["rain falls"])[0]
    before = tokenizer.encode_prompt("Passage:")
    ids = [*before, *tokenizer.encode(text), *tokenizer.encode(AFTER)]
    question = tokenizer.encode(" what falls")
    logits = compressor(torch.tensor([[*ids, *question]])).logits_BTV
    assert logits is not None
    expected = logits[0, len(ids) - 1 : -1].log_softmax(-1).gather(1, torch.tensor(question)[:, None]).mean()
    assert as_text == pytest.approx(float(expected))
    embeddings = compressor.model.embed(torch.tensor([tokenizer.encode(text)]))[0]
    as_vectors = reranker.score("what falls", [embeddings])[0]
    assert (as_vectors == pytest.approx(as_text)) == (kind == "llama")
    if kind == "llama":  # vectors at positions that are kept for them, text behind those, as in training
        config = compressor.config.model_copy(update={"rope_positions": "text_only", "position_budget": 2})
        kept = Reranker(AutoCompressor(compressor.model, config).eval(), tokenizer)
        assert kept.score("what falls", ["rain falls"])[0] == pytest.approx(as_text)
        after, vectors = [*tokenizer.encode(AFTER), *question], torch.stack((embeddings[0],) * 3)
        parts = [compressor.model.embed(torch.tensor([each])) for each in (before, after)]
        placed = torch.tensor([[*range(2, 2 + len(before)), 0, 1, 0, *range(2 + len(before), 2 + len(before + after))]])
        row = torch.cat((parts[0], vectors[None], parts[1]), 1)
        logits = compressor.model(inputs_embeds_BTD=row, position_ids_BT=placed).logits_BTV
        ends = logits[0, -len(question) - 1 : -1].log_softmax(-1).gather(1, torch.tensor(question)[:, None]).mean()
        assert kept.score("what falls", [vectors])[0] == pytest.approx(float(ends))


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    place = tmp_path_factory.mktemp("rag")
    rng = np.random.default_rng(0)
    words = ["rain", "falls", "on", "hills", "rivers", "carry", "stones", "to", "sea", "where", "ships", "wait", "wind"]
    texts = [" ".join(rng.choice(words, 24)) for _ in range(12)]
    tokenizer = Tokenizer.train([*texts, "Passage: . Please write a question based on this passage. what"], 300)
    base = {"vocab_size": tokenizer.vocab_size, "num_layers": 1, "d_model": 32, "num_heads": 2, "max_seq_len": 256}
    learned = {"positions": "learned", "position_offset": 2, "norm": "layernorm", "gated": False}
    shapes = {"llama": ModelConfig.model_validate(base), "opt": ModelConfig.model_validate(base | learned)}
    save_pretrained(Transformer(shapes["llama"]).initialize(0), place / "base")
    tokenizer.save(place / "base")
    AutoCompressor.from_base(place / "base", summary_length=3).save(place / "c", companions=place / "base")
    write_jsonl(place / "passages.jsonl", ({"id": f"p{n}", "text": text} for n, text in enumerate(texts)))
    write_jsonl(place / "texts.jsonl", ({"id": f"t{n}", "text": text} for n, text in enumerate(texts[:5])))
    (place / "beir" / "qrels").mkdir(parents=True)
    write_jsonl(
        place / "beir" / "corpus.jsonl", ({"_id": f"p{n}", "title": "", "text": t} for n, t in enumerate(texts))
    )
    write_jsonl(place / "beir" / "queries.jsonl", [{"_id": "q0", "text": "what rain"}, {"_id": "q1", "text": "ships"}])
    (place / "beir" / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq0\tp3\t1\nq1\tp5\t1\n")
    return {"place": place, "tokenizer": tokenizer, "shapes": shapes}


def test_the_commands(lmlab: Callable[..., Any], parts: dict[str, Any], tmp_path: Path) -> None:
    place = parts["place"]
    encode = ("compress", "encode", place / "c", "--in", place / "passages.jsonl", "--segment", 64, "--independent")
    assert lmlab(*encode, "--out", tmp_path / "s").code == 0
    rag = ("compress", "rag", place / "c", "--data", place / "texts.jsonl", "--store", tmp_path / "s", "--k", "1,3")
    sizes = ("--context", 8, "--continuation", 8)
    found = lmlab(*rag, "--passages", place / "passages.jsonl", *sizes, "--out", tmp_path / "rag")
    assert found.code == 0 and "fused_random" in found.out, found.err
    told = json.loads((tmp_path / "rag" / "rag.json").read_text())
    assert told["texts"] == 5 and set(told["lines"]) >= {"none", "fused/3", "soft_replug/1"}
    rerank = ("compress", "rerank", place / "c", "--data", place / "beir", "--store", tmp_path / "s", "--k", 2)
    found = lmlab(*rerank, "--plain", "--out", tmp_path / "rerank")
    assert found.code == 0 and "2 questions" in found.out, found.err
    ways = json.loads((tmp_path / "rerank" / "rerank.json").read_text())["ways"]
    assert set(ways) == {"first", "summaries", "plain"} and ways["plain"]["questions_per_second"] > 0
    write_jsonl(tmp_path / "other.jsonl", [{"id": f"p{n}", "text": "another text"} for n in range(12)])
    found = lmlab(*rag, "--passages", tmp_path / "other.jsonl", *sizes, "--out", tmp_path / "rag2")
    assert found.code == 2 and "another text" in found.err
    short = ("compress", "encode", place / "c", "--in", place / "passages.jsonl", "--segment", 8, "--independent")
    assert lmlab(*short, "--out", tmp_path / "pieces").code == 0
    pieces = ("compress", "rag", place / "c", "--data", place / "texts.jsonl", "--store", tmp_path / "pieces", "--k", 1)
    found = lmlab(*pieces, "--passages", place / "passages.jsonl", *sizes, "--out", tmp_path / "rag3")
    assert found.code == 2 and "a passage is read as one" in found.err
    compressor = AutoCompressor.load(place / "c")
    with torch.no_grad():
        compressor.model.embedding.weight[0] += 1
    compressor.save(tmp_path / "c2", companions=place / "base")
    found = lmlab("compress", "rerank", tmp_path / "c2", "--data", place / "beir", "--store", tmp_path / "s")
    assert found.code == 2 and "has model" in found.err
    with pytest.raises(UserError):
        Reader(compressor).read(_CONTEXT, _CONTINUATION, [Retrieved(0.0, torch.zeros(2, 5), [1])], ("soft_replug",))
