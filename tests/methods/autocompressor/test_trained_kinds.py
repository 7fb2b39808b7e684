"""Kinds that learn: their formulas, their gradients, and one shared training."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from small_models import FEATURES, random_model

from lmlab.errors import UserError
from lmlab.methods.autocompressor import AutoCompressor, CompressorConfig
from lmlab.methods.autocompressor.fitting.files import load_kind, save_kind
from lmlab.methods.autocompressor.kinds.base import create, kinds, slots_for
from lmlab.methods.autocompressor.kinds.cartridge import Excerpts, Studies, train_cartridge
from lmlab.methods.autocompressor.kinds.config import CartridgeConfig
from lmlab.methods.autocompressor.kinds.ot_pool import sinkhorn, transport_cost
from lmlab.methods.autocompressor.kinds.summary import Summary
from lmlab.methods.autocompressor.kinds.trained import groups_of
from lmlab.models import IGNORE, Memory, read_rows
from lmlab.train import OptimizerConfig, ScheduleConfig, TrainerConfig

LEARNED = ["icae", "kv_tokens", "bi_tokens", "meanpool", "anchor_kv", "ot_pool"]


def ids_of(rows, length, seed=0):
    return torch.randint(0, 61, (rows, length), generator=torch.Generator().manual_seed(seed))


def close(actual, expected, tolerance=1e-5):
    torch.testing.assert_close(actual, expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("kind", FEATURES)
@torch.no_grad()
def test_anchors_at_every_token_in_causal_order_are_the_full_context(kind):
    model, context, text = random_model(kind), ids_of(2, 12), ids_of(2, 5, seed=1)
    memory = create("anchor_kv", model, ratio=1, causal=True).compress(context)
    close(model(text, memory=memory).logits_BTV, model(torch.cat((context, text), 1)).logits_BTV[:, 12:])


@torch.no_grad()
def test_anchors_are_the_last_tokens_of_runs_at_their_own_positions():
    memory = create("anchor_kv", random_model(), ratio=4).compress(ids_of(1, 10))
    assert memory.rows.positions_LBKM.unique().tolist() == [3, 7, 9] and memory.next_position.tolist() == [10]


@torch.no_grad()
def test_means_are_of_runs_of_r_tokens_that_see_each_other():
    model, ids = random_model(), ids_of(1, 10)
    vectors = create("meanpool", model, ratio=4).compress(ids).pieces[0].x[0]
    places = torch.arange(10)[None]
    hidden = model(ids, visible_BTS=torch.ones(1, 10, 10, dtype=torch.bool), position_ids_BT=places).hidden_BTD[0]
    close(vectors, torch.stack([hidden[:4].mean(0), hidden[4:8].mean(0), hidden[8:].mean(0)]))


@pytest.mark.parametrize("name", ["meanpool", "anchor_kv", "ot_pool", "icae"])
@torch.no_grad()
def test_ratios_that_are_no_whole_numbers_leave_as_many_slots_to_every_kind(name):
    """ot_pool failed where its windows had fewer runs than slots, and meanpool and anchor_kv kept too little."""
    model = random_model()
    for ratio in (1.1, 1.5, 2.5, 3.3, 100.0, 1e12):
        for length in (1, 2, 5, 8, 23):
            memory = create(name, model, ratio=ratio).compress(ids_of(1, length))
            assert memory.slots_B.tolist() == [slots_for(length, ratio)]
    runs = [groups_of(10, 2.5, torch.device("cpu")).tolist(), groups_of(33, 1.1, torch.device("cpu")).tolist()[-2:]]
    assert runs == [[0, 0, 1, 1, 1, 2, 2, 3, 3, 3], [29, 29]]


@pytest.mark.parametrize("name", ["meanpool", "icae", "bi_tokens", "summary", "rmt"])
@torch.no_grad()
def test_vectors_of_final_states_can_be_as_long_as_embeddings_and_stay_so_in_the_file(name, tmp_path):
    """The final states of trained models are many times longer than what they read."""
    model, ids = random_model(), ids_of(2, 12)
    model.embedding.weight.mul_(0.1)
    own = {"segment": 12} if name in ("summary", "rmt") else {}
    plain, scaled = (create(name, model, ratio=4, vector_scale=scale, **own) for scale in (1.0, "embedding"))
    factor = scaled.config.vector_scale
    assert 0 < factor < 0.2
    vectors = scaled.compress(ids).pieces[0].x
    close(vectors, plain.compress(ids).pieces[0].x * factor)
    embeds = model.embedding.weight.norm(dim=-1).mean()
    assert 0.5 < vectors.norm(dim=-1).mean() / embeds < 2
    save_kind(scaled, tmp_path)
    again = load_kind(tmp_path)
    assert again.config.vector_scale == factor
    close(again.compress(ids).pieces[0].x, vectors)


def test_a_file_of_a_kind_that_learns_nothing_is_refused(tmp_path):
    save_kind(create("meanpool", random_model(), ratio=4), tmp_path)
    about = json.loads((tmp_path / "kind.json").read_text())
    (tmp_path / "kind.json").write_text(json.dumps(about | {"kind": "truncate"}))
    with pytest.raises(UserError, match="'truncate' learns nothing"):
        load_kind(tmp_path)


@torch.no_grad()
def test_compression_tokens_stand_behind_the_text():
    model, ids = random_model(), ids_of(1, 12)
    for name in ("icae", "kv_tokens", "bi_tokens"):
        compressor = create(name, model, ratio=4)
        memory = compressor.compress(ids)
        assert memory.slots_B.tolist() == [3]
        x = torch.cat((model.embed(ids), compressor.table_MD[None, :3]), 1)
        if name == "kv_tokens":
            assert memory.rows.positions_LBKM.unique().tolist() == [12, 13, 14]
            assert memory.next_position.tolist() == [15]
        else:
            both = {"visible_BTS": torch.ones(1, 15, 15, dtype=torch.bool), "position_ids_BT": torch.arange(15)[None]}
            hidden = model(inputs_embeds_BTD=x, **(both if name == "bi_tokens" else {})).hidden_BTD
            close(memory.pieces[0].x, hidden[:, 12:])


def test_sinkhorns_plan_has_the_sums_that_it_was_given():
    generator = torch.Generator().manual_seed(0)
    tokens, slots = torch.randn(2, 128, 16, generator=generator), torch.randn(2, 32, 16, generator=generator)
    cost = transport_cost(tokens, slots, 128, 0.2)
    mass = torch.rand(2, 128, generator=generator).softmax(-1)
    even = torch.full((2, 32), 1 / 32)
    plan = sinkhorn(cost, mass, even, 0.1, 30)
    close(plan.sum(1), even)
    close(plan.sum(2), mass, 1e-4)
    by_hand = 1 - torch.cosine_similarity(tokens[1, 5], slots[1, 7], dim=0) + 0.2 * (5 - (7.5 * 4 - 0.5)) ** 2 / 128**2
    close(cost[1, 5, 7], by_hand)
    # of all plans with these sums, softer ones cost more
    assert (plan * cost).sum() < (sinkhorn(cost, mass, even, 1.0, 30) * cost).sum()


@pytest.mark.parametrize("name", LEARNED)
def test_gradients_reach_all_that_is_new_through_every_loss(name):
    one = {"continuation": 0.0}
    for losses in ({"continuation": 1.0}, one | {"autoencode": 1.0}, one | {"distill": 1.0}):
        compressor = create(name, random_model(), train="new", **losses)
        total, count, _ = compressor.losses(ids_of(2, 12), ids_of(2, 5, seed=1), ids_of(2, 5, seed=2))
        assert count.item() == 10 and total.isfinite()
        new = {key: each for key, each in compressor.named_parameters() if not key.startswith("model.")}
        if not any(each.requires_grad for each in new.values()):
            continue  # meanpool has nothing of its own
        total.backward()
        for key, each in new.items():
            used = key != "again_D" or "autoencode" in losses
            assert not used or each.grad.abs().sum() > 0, key
        assert all(each.grad is None for key, each in compressor.named_parameters() if key.startswith("model."))


@torch.no_grad()
def test_a_memory_of_all_tokens_has_no_divergence_from_the_full_context():
    compressor = create("anchor_kv", random_model(), ratio=1, causal=True, distill=1.0)
    labels = ids_of(2, 5, seed=2)
    labels[0, 2] = IGNORE
    _, _, parts = compressor.losses(ids_of(2, 12), ids_of(2, 5, seed=1), labels)
    close(parts["distill"], torch.zeros(()), 1e-4)


class CopyRows:
    """The first token of a context is what follows it."""

    def __len__(self):
        return 64 * 60

    def __getitem__(self, index):
        context = np.random.default_rng(index).integers(0, 8, 4)
        return {"context": context, "input_ids": np.array([9]), "labels": context[:1]}


@pytest.mark.parametrize("name", ["anchor_kv", "bi_tokens"])
def test_fit_learns_by_the_one_training_loop(name, tmp_path):
    compressor = create(name, random_model(), ratio=2)
    config = TrainerConfig(
        steps=60,
        batch_size=64,
        optimizer=OptimizerConfig(learning_rate=3e-3),
        schedule=ScheduleConfig(kind="constant", warmup_fraction=0),
        precision="fp32",
        device="cpu",
        log_every=60,
        checkpoint_every=60,
    )
    rows = CopyRows()
    batch = {key: torch.from_numpy(np.stack([rows[i][key] for i in range(64)])) for key in rows[0]}

    def loss():
        with torch.no_grad():
            total, count, _ = compressor.losses(batch["context"], batch["input_ids"], batch["labels"])
        return float(total / count)

    before = loss()
    compressor.fit(rows, config, tmp_path)
    assert loss() < min(before, 2.0)


def test_every_kind_of_the_specification_is_there():
    pruned = {f"prune:{score}" for score in ("random", "norm", "recent", "snap", "expected", "kvzip")}
    assert {"none", "full", "truncate", "summary", "rmt", "cartridge"} | pruned | set(LEARNED) == set(kinds())


@torch.no_grad()
def test_summaries_as_a_kind_are_the_methods_own():
    model, ids, text = random_model(), ids_of(1, 20), ids_of(1, 5, seed=1)
    for name in ("summary", "rmt"):
        compressor = create(name, model, ratio=4, segment=12)
        trained = AutoCompressor(model, CompressorConfig(summary_length=3, accumulate=name == "summary"))
        trained.summary_embedding_ND.copy_(compressor.table_ND)
        memory = compressor.compress(ids)
        expected = trained.compress(ids, segment_lengths=12)
        assert torch.equal(memory.pieces[0].x, expected.vectors_BPD)
        close(model(text, memory=memory).logits_BTV, model(text, soft_prompt=expected.soft_prompt).logits_BTV)
        again = Summary.of(trained, 12)
        assert again.kind == name and torch.equal(again.compress(ids).pieces[0].x, memory.pieces[0].x)
        with pytest.raises(UserError, match="asks for 6 vectors of a segment of 12 tokens; the compressor writes 3"):
            compressor.compress(ids, ratio=2)


def test_studies_are_what_the_model_writes_behind_the_whole_text():
    model, ids = random_model(max_seq_len=96), ids_of(1, 40)[0]
    config = CartridgeConfig(steps=40, batch_size=2, excerpt=9, samples=36, top=61)
    studies, again = (Studies(model, ids, config) for _ in range(2))
    texts, repeated = ([each[number]["input_ids"].tolist() for number in range(80)] for each in (studies, again))
    assert len(studies) == 80 and texts[:36] == texts[36:72] and texts == repeated
    assert len({tuple(text) for text in texts}) > 30 and {text[0] for text in texts} <= set(ids.tolist())
    for number in (0, 35):  # what is learned of each is told by the model that reads the corpus before it
        text = torch.tensor(texts[number])
        with torch.no_grad():
            wanted = model(torch.cat((ids, text))[None]).logits_BTV[0, 40:].log_softmax(-1)
        row = studies[number]
        found = torch.zeros(9, 61).scatter(1, *(torch.from_numpy(row[n]) for n in ("top_ids", "top_log_probs")))
        torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("learn_from", "lessons"), [("studies", Studies), ("excerpts", Excerpts)])
def test_a_cartridge_begins_as_the_first_rows_and_learns_what_the_text_says(tmp_path, learn_from, lessons):
    """A model that repeats: after `a` comes whatever came after it in the text. Rows learn to say so."""
    model, ids = random_model(max_seq_len=96), ids_of(1, 40)[0]
    named = {"rows": 6, "excerpt": 12, "learning_rate": 3e-2, "top": 61}
    begun = create("cartridge", model, steps=0, **named).compress(ids[None])
    # as a cartridge reads them: with gradients another product may be asked, which rounds otherwise
    with torch.no_grad():
        first = read_rows(model, ids[None, :6])
    assert torch.equal(begun.rows.keys_LBKMH, first.keys_LBKMH) and begun.next_position.tolist() == [6]
    config = CartridgeConfig(steps=60, learn_from=learn_from, **named)
    learned = train_cartridge(model, ids, config, tmp_path / "one")
    assert torch.equal(learned.rows.keys_LBKMH[:, :, :, 0], first.keys_LBKMH[:, :, :, 0])  # the sink stays
    assert not torch.equal(learned.rows.keys_LBKMH[:, :, :, 1:], first.keys_LBKMH[:, :, :, 1:])
    unseen = lessons(model, ids, config.model_copy(update={"seed": 99}))

    def divergence(memory):
        found = 0.0
        for number in range(8):
            row = unseen[number]
            with torch.no_grad():
                logits = model(torch.from_numpy(row["input_ids"])[None], memory=memory).logits_BTV[0].log_softmax(-1)
            places, values = (torch.from_numpy(row[name]) for name in ("top_ids", "top_log_probs"))
            wanted = torch.zeros(12, 61).scatter(1, places, values.exp())
            found += float((wanted * ((wanted + 1e-9).log() - logits)).sum()) / 96
        return found

    assert divergence(learned) < 0.7 * divergence(begun)
    # the same directory gives the same again, without training
    assert torch.equal(train_cartridge(model, ids, config, tmp_path / "one").rows.keys_LBKMH, learned.rows.keys_LBKMH)
    assert all(each.requires_grad for each in model.parameters())
    with pytest.raises(UserError, match="cannot begin as the first tokens of a text of 3"):
        train_cartridge(model, ids[:3], config, tmp_path / "two")
    joined = Memory.in_sequence([learned, begun], model)  # cartridges of several corpora stand behind each other
    assert joined.next_position.tolist() == [12]
