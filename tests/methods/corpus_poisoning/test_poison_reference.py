"""The reference's algorithm against a plain writing of its steps, and the files of the reference and of PoisonedRAG."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers

from lmlab.errors import UserError
from lmlab.methods.corpus_poisoning import AdversarialSet
from lmlab.methods.corpus_poisoning.attack.parity import craft_by_reference
from lmlab.methods.corpus_poisoning.attack.searching.reference import ReferenceSettings, pairs_of, reference_attack
from lmlab.methods.corpus_poisoning.formats import black_box, read_poisonedrag, read_reference, write_reference
from lmlab.methods.corpus_poisoning.setup import Target

SETTINGS = ReferenceSettings(length=6, candidates=8, batch=5, iterations=40, init_gold=False)


def by_hand(place, target, pairs, seed, settings):
    """The steps of the paper's code, one candidate at a time, on `transformers`."""
    model = transformers.AutoModel.from_pretrained(place).eval()
    table = model.get_input_embeddings().weight
    rows = {id: row for row, id in enumerate(target.data.corpus.ids)}
    asked = {id: row for row, id in enumerate(target.data.queries.ids)}
    queries = torch.from_numpy(target.queries()[[asked[query] for query, _ in pairs]])
    golds = torch.from_numpy(target.documents[[rows[doc] for _, doc in pairs]])
    generator = np.random.default_rng(seed)

    def embed(ids=None, embeddings=None):
        states = model(input_ids=ids, inputs_embeds=embeddings).last_hidden_state[0]
        return torch.nn.functional.normalize(states.mean(0), dim=0)

    held = int(0.3 * len(pairs))
    train = np.arange(held, len(pairs))

    def accuracy(ids):
        vector = embed(torch.tensor([ids]))
        return np.mean([float(q @ g) > float(q @ vector) for q, g in zip(queries[:held], golds[:held], strict=True)])

    ids, flips = [4] * settings.length, []
    with torch.no_grad():
        best, best_ids = accuracy(ids), list(ids)
    for iteration in range(settings.iterations):
        (batch,) = [generator.choice(train, settings.batch, replace=False)]
        embeddings = table[torch.tensor([ids])].detach().requires_grad_()
        (embed(embeddings=embeddings) @ queries[batch].T).mean().backward()
        place_ = int(generator.integers(settings.length))
        tokens = (table.detach() @ embeddings.grad[0, place_]).topk(settings.candidates).indices.tolist()
        (batch,) = [generator.choice(train, settings.batch, replace=False)]
        figures = []
        for token in [ids[place_], *tokens]:
            trial = [*ids[:place_], token, *ids[place_ + 1 :]]
            with torch.no_grad():
                scores = queries[batch] @ embed(torch.tensor([trial]))
            count = int((scores >= (queries[batch] * golds[batch]).sum(1)).sum())
            figures.append((float(scores.mean()), count))
        (now, count), others = figures[0], figures[1:]
        if any(similar > now for similar, _ in others) or any(beaten > count for _, beaten in others):
            taken = max(range(len(others)), key=lambda number: others[number][0])
            flips.append((iteration, place_, tokens[taken], now, others[taken][0]))
            ids = [*ids[:place_], tokens[taken], *ids[place_ + 1 :]]
            with torch.no_grad():
                if accuracy(ids) < best:
                    best, best_ids = accuracy(ids), list(ids)
    return flips, best_ids, best


def test_the_accepted_flips_are_those_of_the_references_steps(target, place):
    pairs = pairs_of(target.data.qrels, target.data.queries.ids)
    assert len(pairs) == 3 * len(target.data.queries)  # each query counts once for each relevant passage
    rows = {id: row for row, id in enumerate(target.data.corpus.ids)}
    asked = {id: row for row, id in enumerate(target.data.queries.ids)}
    queries = target.queries()[[asked[query] for query, _ in pairs]]
    golds = [rows[doc] for _, doc in pairs]
    worse = 0
    for seed in range(3):
        found = reference_attack(
            target.retriever.encoder,
            queries,
            target.documents[golds],
            [target.data.corpus.texts[row] for row in golds],
            SETTINGS,
            np.random.default_rng(seed),
        )
        flips, best_ids, best = by_hand(place, target, pairs, seed, SETTINGS)
        assert [flip[:3] for flip in found.flips] == [flip[:3] for flip in flips] and flips
        assert np.allclose([flip[3:] for flip in found.flips], [flip[3:] for flip in flips], atol=1e-5)
        assert found.ids_L.tolist() == best_ids and found.accuracy == pytest.approx(best)
        worse += sum(after < before for *_, before, after in found.flips)
    assert worse > 0  # its quirk: a flip is taken for its count, and the similarity falls


def test_the_reference_starts_from_the_gold_passage_where_it_beats_nothing(target):
    encoder = target.retriever.encoder
    queries, golds = target.queries()[:10], target.queries()[:10]  # no passage is above a query's own vector
    text = "sea ship captain island storm harbor sailor"
    settings = ReferenceSettings(length=12, iterations=1, batch=2, candidates=2)
    found = reference_attack(encoder, queries, golds, [text] * 10, settings, np.random.default_rng(0))
    ids = encoder.tokenizer.encode([text], 128)[0]
    assert found.ids_L.tolist() == (ids + [0] * 12)[:12]  # its own [CLS] and [PAD], as the reference has them
    plain = ReferenceSettings(length=12, iterations=1, batch=2, candidates=2, init_gold=False)
    found = reference_attack(encoder, queries, golds, [text] * 10, plain, np.random.default_rng(0))
    assert found.ids_L.tolist() == [encoder.tokenizer.mask_id] * 12 and found.accuracy == 1.0


def test_the_references_files_are_written_read_and_refused(target, small, tmp_path):
    retriever = target.retriever
    asked = Target.load(retriever, str(small), "train")
    judged = [row for row, id in enumerate(asked.data.queries.ids) if id in asked.data.qrels]
    distinct = len(np.unique(asked.queries()[judged], axis=0))
    with pytest.raises(UserError, match=f"1,000 clusters of {distinct} distinct queries cannot be made"):
        craft_by_reference(retriever, str(small), "train", SETTINGS, tmp_path, k=1000)
    about = craft_by_reference(retriever, str(small), "train", SETTINGS, tmp_path, k=2)
    files = sorted(path.name for path in tmp_path.glob("small-*.json"))
    assert about["found"] == 2 and files == ["small-encoder-k2-s0.json", "small-encoder-k2-s1.json"]
    row = json.loads((tmp_path / files[0]).read_text())
    assert row.keys() == {"it", "best_acc", "dummy", "tot"} and len(row["dummy"]) == 6
    other = replace(SETTINGS, iterations=SETTINGS.iterations + 1)
    with pytest.raises(UserError, match="was made by other settings"):
        craft_by_reference(retriever, str(small), "train", other, tmp_path, k=2)
    overlay = AdversarialSet.load(tmp_path)
    tokenizer = retriever.encoder.tokenizer
    assert tokenizer.pieces(overlay.passages[0].token_ids) == row["dummy"]
    write_reference(overlay, tokenizer, tmp_path / "again", "a/b", "encoder")
    again, _ = read_reference(tmp_path / "again", tokenizer)
    assert again.texts == overlay.texts
    (tmp_path / files[1]).unlink()
    with pytest.raises(UserError, match=r"lacks 1 of 2 clusters: s1\."):
        read_reference(tmp_path, tokenizer)
    some, told = read_reference(tmp_path, tokenizer, partial=True)
    assert len(some) == 1 and (told["found"], told["k"]) == (1, 2)
    (tmp_path / files[1]).write_text(json.dumps({**row, "dummy": ["sea"]}))
    with pytest.raises(UserError, match="differ in length"):
        read_reference(tmp_path, tokenizer)
    (tmp_path / files[1]).write_text(json.dumps({**row, "dummy": ["zebra"] * 6}))
    with pytest.raises(UserError, match="the encoder's vocabulary has no token 'zebra'"):
        read_reference(tmp_path, tokenizer)
    (tmp_path / files[1]).write_text(json.dumps({**row, "dummy": 3}))
    with pytest.raises(UserError, match="'dummy' must hold a list of tokens, not 3"):
        read_reference(tmp_path, tokenizer)
    with pytest.raises(UserError, match="holds no file named"):
        read_reference(tmp_path / "again" / "nothing", tokenizer)


def test_tokens_that_do_not_survive_being_text_are_counted(target, tmp_path):
    row = {"it": 1, "best_acc": 0.5, "dummy": ["##s", "[MASK]", "sea"], "tot": 9}
    (tmp_path / "nq-contriever-k1-s0.json").write_text(json.dumps(row))
    found, about = read_reference(tmp_path, target.retriever.encoder.tokenizer)
    assert about["round_trip"] == 0 and found.passages[0].token_ids


def test_poisonedrags_questions_become_passages_without_gradients(tmp_path, target):
    rows = {
        "test1": {
            "id": "test1",
            "question": "what is the sea",
            "correct answer": "a",
            "incorrect answer": "b",
            "adv_texts": ["x y", "z"],
        }
    }
    path = tmp_path / "nq.json"
    path.write_text(json.dumps(rows))
    questions = read_poisonedrag(path)
    assert (questions[0].correct, questions[0].incorrect) == ("a", "b")
    found = black_box(questions)
    assert found.texts == ["what is the sea.x y", "what is the sea.z"]
    assert found.ids == ["redteam-blackbox-test1-0", "redteam-blackbox-test1-1"]
    assert all(row["metadata"]["redteam"] for row in found.corpus.rows())
    del rows["test1"]["incorrect answer"]
    path.write_text(json.dumps(rows))
    with pytest.raises(UserError, match="the key 'incorrect answer' is missing"):
        read_poisonedrag(path)
    import os
    from pathlib import Path

    shared = Path(os.environ.get("LMLAB_SHARED", "../shared")) / "data" / "retrieval" / "poisonedrag" / "nq.json"
    if shared.exists():
        real = read_poisonedrag(shared)
        assert len(real) == 100 and all(len(question.texts) == 5 for question in real)
        assert len(black_box(real)) == 500
