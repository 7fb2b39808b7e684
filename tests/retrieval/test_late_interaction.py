"""Late interaction: vectors as sentence-transformers gives them, search by the rule, and an attack on it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from lmlab import cli
from lmlab.errors import UserError
from lmlab.methods.corpus_poisoning import Budget, MaxSim, Problem, optimize
from lmlab.methods.corpus_poisoning.attack.vocabulary import allowed_ids
from lmlab.retrieval import LateIndex, load_encoder, load_late_encoder, maxsim
from tiny_retriever import LATE_WIDTH, write_late, write_retriever

TEXTS = ["the sea, the ship.", "star", "", "what is a whale? a captain of the storm - " * 6]


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    return write_late(tmp_path_factory.mktemp("late") / "encoder")


@pytest.mark.parametrize(("attend", "expansion"), [(False, True), (True, True), (False, False)])
def test_vectors_are_those_of_sentence_transformers(attend, expansion, tmp_path):
    sentence_transformers = pytest.importorskip("sentence_transformers")
    place = write_late(tmp_path / "encoder", attend, expansion)
    theirs = sentence_transformers.MultiVectorEncoder(str(place), device="cpu", local_files_only=True)
    ours = load_late_encoder(place)
    queries = [text for text in TEXTS if text]
    for found, expected in (
        (ours.encode_text(TEXTS), theirs.encode_document(TEXTS)),
        (ours.encode_text(queries, "query"), theirs.encode_query(queries)),
    ):
        assert [each.shape for each in found] == [tuple(each.shape) for each in expected]
        for own, other in zip(found, expected, strict=True):
            assert np.abs(own - np.asarray(other)).max() < 1e-5
    score = float(theirs.similarity(theirs.encode_query(queries[:1]), theirs.encode_document(TEXTS[:1]))[0][0])
    assert maxsim(ours.encode_text(queries[:1], "query")[0], ours.encode_text(TEXTS[:1])[0]) == pytest.approx(
        score, abs=1e-4
    )


def test_an_index_follows_the_rule(place):
    encoder = load_late_encoder(place)
    words = [f"{a} {b}" for a in ("sea", "ship", "star", "king") for b in ("bread", "goal", "moon")]
    documents = [*encoder.encode_text([*words, words[0], words[0]]), np.zeros((0, LATE_WIDTH), np.float32)]
    ids = [*(f"d{number:02d}" for number in range(12)), "z", "a", "empty"]
    queries = encoder.encode_text(["what is the sea bread", "king"], "query")
    index = LateIndex(ids, documents)
    hits = index.topk(queries, 5)
    for query, rows, scores in zip(queries, hits.rows_QK, hits.scores_QK, strict=True):
        exact = {id: np.float32(maxsim(query, each)) for id, each in zip(ids, documents, strict=True)}
        order = sorted(ids, key=lambda id: (exact[id], id), reverse=True)
        assert [ids[row] for row in rows] == order[:5] and scores == pytest.approx([exact[id] for id in order[:5]])
    alone = index.topk(queries[1:], 5)
    assert np.array_equal(alone.rows_QK[0], hits.rows_QK[1]) and np.array_equal(alone.scores_QK[0], hits.scores_QK[1])
    assert index.topk(queries, 99).rows_QK.shape == (2, 15) and "holds 15" in index.topk(queries, 99).notice
    assert LateIndex([], []).topk(queries, 3).rows_QK.shape == (2, 0)
    with pytest.raises(UserError, match="k is 0"):
        index.topk(queries, 0)


def test_more_equal_documents_than_candidates_are_told_apart_by_id_alone():
    """A fast product may round the same document differently in different places."""
    generator = np.random.default_rng(0)
    one = generator.normal(size=(7, 96)).astype(np.float32)
    one /= np.linalg.norm(one, axis=1, keepdims=True)
    ids = [f"d{number:04d}" for number in generator.permutation(3001)]
    query = generator.normal(size=(13, 96)).astype(np.float32)
    hits = LateIndex(ids, [one] * len(ids)).topk([query], 5)
    assert [ids[row] for row in hits.rows_QK[0]] == [f"d{number:04d}" for number in range(3000, 2995, -1)]


def test_another_layer_behind_the_network_is_another_encoder(place, tmp_path):
    ours, other = load_late_encoder(place), load_late_encoder(write_late(tmp_path / "other"))
    assert ours.fingerprint == other.fingerprint
    layer = tmp_path / "other" / "1_Dense" / "model.safetensors"
    save_file({"linear.weight": torch.ones(LATE_WIDTH, 32)}, layer)
    assert load_late_encoder(tmp_path / "other").fingerprint != ours.fingerprint


def test_a_collection_is_searched_and_what_is_no_such_encoder_is_told(place, collection, tmp_path, capsys, monkeypatch):
    arguments = ["retrieval", "evaluate", "--data", collection, "--by", "late", "--k", 5, "--json"]

    def call(*more: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["lmlab", *map(str, [*arguments, *more])])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return (int(ended.value.code or 0), *capsys.readouterr())

    code, out, err = call("--encoder", place)
    assert code == 0 and 0 <= json.loads(out)["nDCG@5"] <= 1, err
    for option, value in (("--prompt", "query=x"), ("--dims", 4), ("--index", "hnsw"), ("--max-length", 9)):
        code, _, err = call("--encoder", place, option, value)
        assert code == 2 and f"from the encoder's directory, not {option}" in " ".join(err.split())
    code, _, err = call("--encoder", write_retriever(tmp_path / "plain"))
    assert code == 2 and "holds no encoder of late interaction" in err
    with pytest.raises(UserError, match=r"\(late interaction\)"):
        load_encoder(place)


def test_the_objective_of_late_interaction_is_its_mean_score_and_can_be_attacked(place):
    encoder = load_late_encoder(place)
    queries = encoder.encode_text(["what is the sea", "who is the king of bread", "how"], "query")
    objective = MaxSim.of([torch.from_numpy(each) for each in queries])
    allowed = allowed_ids(encoder.tokenizer, forbidden=encoder.skipped)
    problem = Problem(encoder, objective, allowed, np.ones(8, bool), Budget(600))
    start = np.random.default_rng(0).choice(allowed, 8)
    found = optimize(problem, start, candidates=20)
    text = encoder.tokenizer.decode(found.ids_L.tolist())
    by_text = encoder.encode_text([text])[0]
    assert found.value == pytest.approx(np.mean([maxsim(query, by_text) for query in queries]), abs=1e-4)
    assert problem.score(start) < found.value <= objective.bound
    ids = torch.tensor([encoder.wrap(encoder.tokenizer.inner(["sea . ship"])[0])])
    own = MaxSim(torch.from_numpy(queries[0])[None])
    expected = maxsim(queries[0], encoder.encode_text(["sea . ship"])[0])  # marks do not count
    assert float(own(encoder.encode_ids(ids))[0]) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(("name", "length"), [("query_length", 3), ("query_length", 1), ("document_length", 2)])
def test_a_length_without_room_for_a_word_is_refused(name, length, tmp_path):
    place = write_late(tmp_path / "encoder")
    path = place / "config_sentence_transformers.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), name: length}))
    kind = name.partition("_")[0]
    with pytest.raises(UserError, match=f"a {kind} of {length} tokens leaves no room beside the 3 that stand around"):
        load_late_encoder(place)
    path.write_text(json.dumps({**json.loads(path.read_text()), name: 4}))
    (found,) = load_late_encoder(place).encode_text(["sea ship star"], kind)  # one word is left
    assert len(found) == 4
