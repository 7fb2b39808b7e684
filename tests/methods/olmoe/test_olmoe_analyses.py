"""Measures of routers against the stored figures: of real traces of OLMoE-1B-7B and Mixtral, and of a trained
miniature.
"""

from __future__ import annotations

import csv
import json
import os
import pickle
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from lmlab.errors import LmlabError, UserError
from lmlab.methods.olmoe import (
    RoutingStatistics,
    RoutingTrace,
    collect,
    concatenate,
    cross_layer_routing,
    domain_specialization,
    expert_coactivation,
    jensen_shannon,
    load_summary,
    most_coactivated,
    mutual_information,
    read_counters,
    router_saturation,
    routing_page,
    token_probabilities,
    vocab_by_expert,
    vocab_specialization,
    vocab_summary,
    watch,
)
from lmlab.methods.olmoe.report import NO_INTERVALS
from lmlab.models import ModelConfig, MoEConfig, Transformer, from_pretrained
from lmlab.stats import jackknife

DATA = Path(os.environ.get("LMLAB_SHARED", "../shared"), "data/olmoe")
needs_data = pytest.mark.skipif(not DATA.exists(), reason="needs the stored routing data (LMLAB_SHARED)")


@pytest.fixture(scope="module")
def expected():
    return json.loads((DATA / "tiny/expected_val.json").read_text())


@pytest.fixture(scope="module")
def trace():
    return RoutingTrace.load(DATA / "tiny/trace_val.npz", "step600", 16)


def random_trace(
    seed: int = 0, sequences: int = 6, length: int = 20, layers: int = 2, experts: int = 8, k: int = 3
) -> RoutingTrace:
    random = np.random.default_rng(seed)
    chosen = random.permuted(np.broadcast_to(np.arange(experts), (sequences, length, layers, experts)), axis=-1)[
        ..., :k
    ]
    domains = ("a", "b")
    ids = np.random.default_rng(1).integers(0, 30, (sequences, length))
    return RoutingTrace(ids, chosen, experts, tuple(range(layers)), domains, np.arange(sequences) % 2, ids[:, ::-1])


@needs_data
def test_saturation_of_the_miniature(trace, expected):
    for step, by_k in expected["router_saturation"].items():
        earlier = RoutingTrace.load(DATA / "tiny/trace_val.npz", f"step{step}", 16)
        for k, values in by_k.items():
            np.testing.assert_allclose(router_saturation(earlier, trace, int(k)).value, values, atol=1e-6)


@needs_data
def test_coactivation_of_the_miniature(trace, expected):
    for key, pairs in (("coactivation", "all"), ("coactivation_adjacent_rank_only", "adjacent_rank")):
        for layer, values in expected[key].items():
            np.testing.assert_allclose(expert_coactivation(trace, int(layer), pairs), values, atol=1e-6)


@needs_data
def test_domain_specialization_of_the_miniature(trace, expected):
    for k, by_domain in expected["domain_specialization"].items():
        found = domain_specialization(trace, int(k))
        for number, name in enumerate(trace.domains):
            np.testing.assert_allclose(found[number], by_domain[name], atol=1e-6)


@needs_data
def test_vocab_specialization_of_the_miniature(trace, expected):
    kinds = {"input": "input", "predicted_output": "predicted", "ground_truth_output": "target"}
    for kind, by_k in expected["vocab_specialization"].items():
        for k, values in by_k.items():
            found = vocab_specialization(trace, int(k), kinds[kind])
            for name in ("macro", "macro_min10", "micro"):
                np.testing.assert_allclose(found[name], values[name], atol=1e-6)


@needs_data
def test_the_miniature_traced_here_gives_the_stored_trace(trace):
    model = from_pretrained(DATA / "tiny/checkpoint")
    ids = torch.from_numpy(trace.input_ids_ST[::10])
    again = collect(model, [ids])
    assert np.mean(again.expert_ids_STLk == trace.expert_ids_STLk[::10]) > 0.9999
    assert np.mean(again.predicted_ids_ST == trace.predicted_ids_ST[::10]) > 0.999


@needs_data
def test_domains_of_the_real_models():
    counts = np.load(DATA / "routing_counts.npz", allow_pickle=False)
    with open(DATA / "expected_domain_specialization.csv", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            domain = counts[f"{row['model']}/domains"].tolist().index(row["domain"])
            layer = counts["layers"].tolist().index(int(row["layer"]))
            for key, column in (("expert_counts", "ds_topk_percent"), ("expert_counts_top1", "ds_top1_percent")):
                share = counts[f"{row['model']}/{key}"][domain, layer, int(row["expert"])] / 208_896
                assert 100 * share == pytest.approx(float(row[column]), abs=1e-4)


@needs_data
def test_loads_of_the_real_models():
    counts = np.load(DATA / "routing_counts.npz", allow_pickle=False)
    with open(DATA / "expected_load_summary.csv", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            domain = counts[f"{row['model']}/domains"].tolist().index(row["domain"])
            layer = counts["layers"].tolist().index(int(row["layer"]))
            found = load_summary(counts[f"{row['model']}/expert_counts"][domain, layer])
            for name in (
                "max_over_mean",
                "min_over_mean",
                "normalized_entropy",
                "n_experts_over_2x",
                "n_experts_under_half",
            ):
                published = row[name.replace("normalized", "normalised")]  # as the file spells it
                assert float(found[name]) == pytest.approx(float(published), abs=1e-6), row


@needs_data
def test_vocabularies_of_the_real_models():
    import pyarrow.parquet as pq

    table = pq.read_table(DATA / "vocab_counts.parquet")
    names = {name: table[name].combine_chunks() for name in table.column_names}
    text = {
        name: np.array(names[name].dictionary.to_pylist())[names[name].indices.to_numpy()]
        for name in ("model", "domain")
    }
    columns = {name: names[name].to_numpy().astype(np.int64) for name in ("layer", "expert", "token", "count")}
    with open(DATA / "expected_vocab_specialization.csv", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            chosen = (
                (text["model"] == row["model"])
                & (text["domain"] == row["domain"])
                & (columns["layer"] == int(row["layer"]))
            )
            counts = np.zeros((2**16, 64), np.int64)
            np.add.at(counts, (columns["token"][chosen], columns["expert"][chosen]), columns["count"][chosen])
            found = vocab_summary(counts, counts.sum(1) // int(row["k"]))
            assert (found["ids"], found["ids_min10"]) == (int(row["n_token_types"]), int(row["n_types_min10"]))
            for name in ("macro", "macro_min10", "micro"):
                assert 100 * found[name] == pytest.approx(float(row[f"{name}_percent"]), abs=1e-4)


def test_what_holds_for_every_trace():
    trace = random_trace()
    for layer in trace.layers:
        together = expert_coactivation(trace, layer)
        np.testing.assert_allclose(together.sum(1), trace.top_k - 1)
        assert (expert_coactivation(trace, layer, "adjacent_rank") <= together + 1e-12).all()
    np.testing.assert_allclose(domain_specialization(trace, 3).sum(-1), 3)
    np.testing.assert_allclose(domain_specialization(trace, 1).sum(-1), 1)
    for k in (1, 3):
        np.testing.assert_allclose(router_saturation(trace, trace, k).value, 1)
        for tokens in ("input", "predicted", "target"):
            assert (vocab_specialization(trace, k, tokens)["macro"] >= 1 / trace.num_experts).all()


def test_saturation_by_hand():
    ids = np.zeros((1, 2), np.int64)
    early = RoutingTrace(ids, np.array([[[[0, 1]], [[2, 3]]]]), 4, (0,))
    late = RoutingTrace(ids, np.array([[[[1, 0]], [[2, 1]]]]), 4, (0,))
    assert router_saturation(early, late, 2).value.tolist() == [0.75]
    assert router_saturation(early, late, 1).value.tolist() == [0.5]


def test_traces_of_other_tokens_are_not_compared():
    first, other = random_trace(), random_trace()
    changed = RoutingTrace(first.input_ids_ST + 1, other.expert_ids_STLk, 8, (0, 1))
    with pytest.raises(UserError, match="different tokens"):
        router_saturation(first, changed, 1)
    with pytest.raises(UserError, match="needs traces with as many experts"):
        router_saturation(first, first, 4)


def test_counts_of_parts_add_up_to_those_of_the_whole():
    trace = random_trace(sequences=12)
    whole = RoutingStatistics.of(trace, groups=4)
    parts = [RoutingStatistics(8, 3, (0, 1), ("a", "b"), whole.vocab_size, 4) for _ in range(2)]
    for number, part in enumerate(parts):
        rows = slice(4 * number * 2 - 0, 8) if number == 0 else slice(8, 12)
        part.update(
            trace.input_ids_ST[rows], trace.expert_ids_STLk[rows], trace.domain_S[rows], trace.predicted_ids_ST[rows]
        )
    parts[0].merge(parts[1])
    for k in (1, 3):
        assert np.array_equal(whole.expert_counts[k].sum(0), parts[0].expert_counts[k].sum(0))
        for kind in ("input", "predicted", "target"):
            assert np.array_equal(whole.token_counts[kind, k], parts[0].token_counts[kind, k])
    assert np.array_equal(whole.pair_counts["all"].sum(0), parts[0].pair_counts["all"].sum(0))
    with pytest.raises(UserError, match="cannot be added"):
        whole.merge(RoutingStatistics(9, 3, (0, 1), ("a", "b"), whole.vocab_size, 4))


def test_intervals_hold_the_true_value_about_as_often_as_they_say():
    random, hits = np.random.default_rng(0), 0
    for _ in range(400):
        counts = np.stack([random.binomial(50, 0.3, 20), np.full(20, 50)], 1)
        figure = jackknife(lambda total: total[:1] / total[1], counts)
        hits += abs(figure.value[0] - 0.3) <= figure.half_width[0]
    assert 0.91 < hits / 400 < 0.98
    assert np.isnan(jackknife(lambda total: total, counts[:1]).half_width).all()


def test_a_domain_in_few_sequences_has_a_wide_interval():
    """Three sequences say little of the spread, however many others there are of another domain; one says nothing."""
    random = np.random.default_rng(0)
    statistics = RoutingStatistics(4, 2, (0,), ("many", "few", "one"), 16, 2)
    statistics.tokens_GD = np.zeros((20, 3))
    statistics.tokens_GD[:, 0], statistics.tokens_GD[:3, 1], statistics.tokens_GD[:1, 2] = 50, 50, 50
    chosen = random.multinomial(100, [0.25] * 4, (20, 3, 1)) * (statistics.tokens_GD > 0)[:, :, None, None]
    statistics.expert_counts = {1: chosen, 2: chosen} if isinstance(statistics.expert_counts, dict) else chosen
    figure = statistics.domain_specialization(2)
    assert np.isfinite(figure.half_width[0]).all() and (figure.half_width[0] < 0.2).all()
    assert (figure.half_width[1] > figure.half_width[0]).all() and np.isfinite(figure.half_width[1]).all()
    assert np.isnan(figure.half_width[2]).all()


def test_a_page_of_one_sequence_says_that_it_has_no_intervals_and_what_to_do():
    assert NO_INTERVALS in routing_page(random_trace(sequences=1)).to_html()
    assert NO_INTERVALS not in routing_page(random_trace(sequences=3)).to_html()


def test_information_and_divergence_by_hand():
    assert mutual_information(np.array([[4, 0], [0, 4]])) == pytest.approx(1)
    assert mutual_information(np.array([[2, 2], [2, 2]])) == pytest.approx(0)
    assert jensen_shannon(np.array([1, 0]), np.array([0, 5])) == pytest.approx(1)
    assert jensen_shannon(np.array([1, 3]), np.array([2, 6])) == pytest.approx(0)


def test_lists_of_tokens_and_of_experts():
    counts, occurrences = np.array([[9, 3], [0, 20], [5, 1]]), np.array([12, 20, 6])
    assert vocab_by_expert(counts, occurrences) == [[(0, 0.75)], [(1, 1.0)]]
    together = np.array([[0, 0.1, 0.9], [0.2, 0, 0.3], [0.8, 0.4, 0]])
    assert most_coactivated(together, 2) == [0, 2]
    table = cross_layer_routing(random_trace(), 0, 1)
    assert table.sum() == 120


def test_probabilities_of_tokens_by_domain_by_hand():
    ids = np.array([[7, 7, 7, 9], [7, 7, 7, 7]])
    experts = np.array([[[[0, 1]], [[0, 2]], [[0, 1]], [[3, 1]]], [[[2, 1]]] * 4])
    trace = RoutingTrace(ids, experts, 4, (5,), ("a", "b"), np.array([0, 1]))
    tokens, shares = token_probabilities(trace, 5, "a", min_count=6)
    assert tokens.tolist() == [7] and shares.tolist() == [[3 / 6, 2 / 6, 1 / 6, 0]]
    tokens, shares = token_probabilities(trace, 5, "a", 1, min_count=1)
    assert tokens.tolist() == [7, 9] and shares.tolist() == [[1, 0, 0, 0], [0, 0, 0, 1]]
    assert len(token_probabilities(trace, 5, "a")[0]) == 0
    for arguments, message in (
        ((5, "c"), "no domain 'c', but a, b"),
        ((4, "a"), "no layer 4"),
        ((5, "a", 3), "2 experts for each token, not 3"),
    ):
        with pytest.raises(UserError, match=message):
            token_probabilities(trace, *arguments)


def test_domains_of_different_length_are_compared_by_shares():
    ids, experts = np.zeros((4, 2), np.int64), np.array([[[[0]], [[1]]]] * 3 + [[[[0]], [[1]]]])
    trace = RoutingTrace(ids, experts, 4, (0,), ("long", "short"), np.array([0, 0, 0, 1]))
    assert domain_specialization(trace, 1)[:, 0].tolist() == [[0.5, 0.5, 0, 0]] * 2
    assert RoutingStatistics.of(trace).information(1)["domain"] == pytest.approx(0)


def test_few_tokens_look_specialized_and_the_figures_beside_say_so():
    rare = vocab_summary(np.eye(4, dtype=int), np.ones(4, int))
    assert rare["macro"] == 1 and np.isnan(rare["macro_min10"]) and rare["ids_min10"] == 0


def test_a_trace_comes_back_as_it_was(tmp_path):
    trace = random_trace()
    again = RoutingTrace.load(trace.save(tmp_path / "trace.npz"))
    assert np.array_equal(again.expert_ids_STLk, trace.expert_ids_STLk) and np.array_equal(
        again.predicted_ids_ST, trace.predicted_ids_ST
    )
    assert (again.domains, again.layers, again.num_experts, again.token_hash) == (
        trace.domains,
        trace.layers,
        8,
        trace.token_hash,
    )
    joined = concatenate([trace, again])
    assert joined.domain_S.tolist() == [0, 1] * 6


def test_damaged_foreign_and_pickled_files_are_refused(tmp_path):
    with pytest.raises(UserError, match="There is no file"):
        RoutingTrace.load(tmp_path / "none.npz")
    (tmp_path / "text.npz").write_text("no archive")
    with pytest.raises(UserError, match="not a routing trace or is damaged"):
        RoutingTrace.load(tmp_path / "text.npz")
    np.savez(tmp_path / "pickled.npz", input_ids=np.array([{}], dtype=object), expert_ids=np.zeros((1, 1, 1, 1)))
    with pytest.raises(UserError, match="not a routing trace or is damaged"):
        RoutingTrace.load(tmp_path / "pickled.npz")
    np.savez(tmp_path / "other.npz", weights=np.zeros(3))
    with pytest.raises(UserError, match="has no array 'expert_ids'"):
        RoutingTrace.load(tmp_path / "other.npz")
    with pytest.raises(LmlabError, match="names expert 7, but there are 4"):
        RoutingTrace(np.zeros((1, 1)), np.full((1, 1, 1, 1), 7), 4, (0,))


def test_pickles_of_counters_are_read_when_asked_for_and_nothing_else_is(tmp_path):
    counts = {"layer": defaultdict(int, {3: 5}), 7: Counter({2: np.int64(4)}), "share": [0.5, np.float32(0.25)]}
    path = tmp_path / "counts.pkl"
    path.write_bytes(pickle.dumps(counts))
    with pytest.raises(UserError, match="does not open unasked"):
        read_counters(path)
    assert read_counters(path, allow_pickle=True) == counts
    path.write_bytes(pickle.dumps(Path))
    with pytest.raises(UserError, match=r"not a pickle of counters \(it asks for pathlib"):
        read_counters(path, allow_pickle=True)
    path.write_bytes(b"cbuiltins\neval\n(S'1'\ntR.")
    with pytest.raises(UserError, match=r"it asks for builtins\.eval"):
        read_counters(path, allow_pickle=True)
    path.write_bytes(b"no pickle")
    with pytest.raises(UserError, match="not a pickle of counters"):
        read_counters(path, allow_pickle=True)
    with pytest.raises(UserError, match="There is no file"):
        read_counters(tmp_path / "none.pkl", allow_pickle=True)


def test_a_file_that_announces_more_than_memory_holds_is_refused_before_it_is_read(tmp_path):
    import io
    import zipfile

    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"shape": (2**20, 2**20), "fortran_order": False, "descr": "|u1"})
    with zipfile.ZipFile(tmp_path / "bomb.npz", "w") as archive:
        archive.writestr("input_ids.npy", header.getvalue())
    with pytest.raises(UserError, match="claim 1,099,511,627,776 bytes"):
        RoutingTrace.load(tmp_path / "bomb.npz")


def test_published_records_have_their_layers_last(tmp_path):
    trace = random_trace()
    path = tmp_path / "c4.jsonl"
    rows = [
        {
            "input_ids": ids.tolist(),
            "predicted_token_ids": predicted.tolist(),
            "exp_ids": experts.transpose(0, 2, 1).tolist(),
        }
        for ids, predicted, experts in zip(
            trace.input_ids_ST, trace.predicted_ids_ST, trace.expert_ids_STLk, strict=True
        )
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    again = RoutingTrace.from_reference_jsonl([path], 8)
    assert np.array_equal(again.expert_ids_STLk, trace.expert_ids_STLk) and again.domains == ("c4",)
    path.write_text(path.read_text() + '\n{"input_ids": [1]}')
    with pytest.raises(UserError, match="line 7: not a record of a trace"):
        RoutingTrace.from_reference_jsonl([path], 8)


SMALL = {
    "vocab_size": 50,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
FOREIGN = {
    "mixtral": transformers.MixtralConfig(**SMALL, intermediate_size=48, num_local_experts=4, num_experts_per_tok=2),
    "qwen2_moe": transformers.Qwen2MoeConfig(
        **SMALL,
        intermediate_size=48,
        moe_intermediate_size=24,
        shared_expert_intermediate_size=24,
        num_experts=6,
        num_experts_per_tok=2,
    ),
    "qwen3_moe": transformers.Qwen3MoeConfig(
        **SMALL, intermediate_size=48, moe_intermediate_size=24, num_experts=6, num_experts_per_tok=3, head_dim=8
    ),
    "olmoe": transformers.OlmoeConfig(
        **SMALL, intermediate_size=24, num_experts=6, num_experts_per_tok=2, pad_token_id=None, eos_token_id=1
    ),
}


@pytest.mark.parametrize("family", FOREIGN)
def test_routers_of_other_families_are_watched_by_hooks(family):
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(FOREIGN[family]).eval()
    ids = torch.randint(0, 50, (3, 12))
    trace = collect(model, ids.split(2))
    assert trace.expert_ids_STLk.shape == (3, 12, 2, FOREIGN[family].num_experts_per_tok)
    with torch.no_grad():
        output = model(ids, output_router_logits=True)
    assert np.array_equal(trace.predicted_ids_ST, output.logits.argmax(-1).numpy())
    for place, logits in enumerate(output.router_logits):
        probabilities = (
            logits.float()
            if torch.allclose(logits.sum(-1), torch.ones(len(logits)), atol=1e-4)
            else logits.float().softmax(-1)
        )
        best = probabilities.view(3, 12, -1).topk(trace.top_k, -1).indices.numpy()
        assert np.array_equal(trace.expert_ids_STLk[:, :, place], best)


def small_moe(**moe) -> Transformer:
    sizes = {
        "vocab_size": 50,
        "num_layers": 3,
        "d_model": 32,
        "num_heads": 4,
        "max_seq_len": 32,
        "d_ff": 40,
        "ffn": ("dense", "moe", "moe"),
    }
    settings = MoEConfig(**{"num_experts": 6, "top_k": 2, "expert_hidden_size": 24, **moe})
    return Transformer(ModelConfig(**sizes, moe=settings)).initialize(0)


def test_layers_without_routers_and_impossible_tokens_are_refused():
    model = small_moe()
    trace = collect(model, [torch.randint(0, 50, (2, 8))], layers=[2])
    assert trace.layers == (2,)
    with pytest.raises(UserError, match="Layer 0 has no router; those that have one: 1, 2"):
        collect(model, [torch.zeros(1, 4, dtype=torch.long)], layers=[0])
    with pytest.raises(UserError, match="Sequence 3, place 1: token id 50 is not below vocab_size 50"):
        collect(model, [torch.zeros(2, 3, dtype=torch.long), torch.tensor([[0, 0, 0], [0, 50, 0]])])
    with pytest.raises(UserError, match="Sequences of 40 tokens are longer than the model's 32"):
        collect(model, [torch.zeros(1, 40, dtype=torch.long)])
    with pytest.raises(UserError, match="choose their tokens"):
        watch(small_moe(router="expert_choice"))
    with pytest.raises(UserError, match="no mixture-of-experts layers"):
        watch(Transformer(ModelConfig(vocab_size=9, num_layers=1, d_model=8, num_heads=2)))
    with pytest.raises(UserError, match="There are no tokens"):
        collect(model, [])


def test_the_page_shows_tokens_as_text_and_never_as_markup(tmp_path):
    trace = RoutingTrace(np.zeros((4, 20), np.int64), random_trace(sequences=4).expert_ids_STLk, 8, (0, 1))
    html = routing_page(trace, {"before": trace}, decode=lambda token: "<script>alert(1)</script>").to_html()
    assert "<script>alert(1)" not in html and "Saturation" in html
    with pytest.raises(UserError, match=r"has no 'published_vocab_specialization\.csv'"):
        routing_page(trace, published=tmp_path)
