"""Edges that are told apart by the tokens at which they are read."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace

import pytest
import torch

from lmlab.data.tokenizer import Tokenizer
from lmlab.errors import UserError
from lmlab.methods.edge_pruning import (
    Circuit,
    CircuitGraph,
    Counterfactuals,
    FindConfig,
    GraphOptions,
    MaskedModel,
    acdc,
    attribute,
    clean,
    exact_effects,
    find_by_pruning,
    find_circuit,
    generate,
    make_examples,
    read_examples,
    search,
    writes_constants,
)
from lmlab.methods.edge_pruning.examples.spans import spans_of
from lmlab.methods.edge_pruning.graph.formats import write_eap_ig
from lmlab.methods.edge_pruning.report import circuit_page, strongest_paths
from lmlab.models import ModelConfig, Transformer, save_pretrained

_NAMES = ("who", "what", "where")


def _task(model, positions="spans", ablation="interchange", count=6, length=7, seed=3, **options):
    """Random tokens in three spans, the last two of which are of different lengths in each example."""
    generator = torch.Generator().manual_seed(seed)
    clean_, corrupted = torch.randint(0, 61, (2, count, length), generator=generator).tolist()
    answers, distractors = torch.randint(0, 61, (2, count), generator=generator).tolist()
    cuts = [(2, 3 + n % 3) for n in range(count)]
    spans = [[0] * a + [1] * (b - a) + [2] * (length - b) for a, b in cuts]
    examples = make_examples(
        clean_, corrupted, [[length - 1]] * count, answers, distractors, spans=spans, span_names=_NAMES
    )
    graph = GraphOptions(positions=positions, **options)
    found = CircuitGraph(model.config, graph, spans=spans_of(examples, positions))
    return Counterfactuals(MaskedModel(model, found), examples, ablation, batch_size=4)


def _shared(task):
    """The same examples on the graph that does not tell positions apart."""
    masked = task.masked
    options = masked.graph.options.model_copy(update={"positions": "shared"})
    graph = CircuitGraph(masked.graph.config, options)
    return Counterfactuals(MaskedModel(masked.model, graph), task.examples, task.ablation, batch_size=4)


def _spread(task, shared, kept_E):
    """Each edge of the shared graph at all spans of the other."""
    names = set(shared.masked.graph.edges(kept_E))
    return torch.tensor([(w, r.partition("@")[0]) in names for w, r in task.masked.graph.edges()])


def _logits(task, kept_E):
    return torch.cat([logits for _, logits in task.run(kept_E.float())])


@pytest.mark.parametrize("kind", ["gpt2", "llama", "qwen3", "olmo2", "olmoe", "no_norm", "phi", "gemma2"])
@pytest.mark.parametrize("ablation", ["interchange", "zero", "mean"])
def test_an_edge_at_all_spans_is_the_edge_of_all_tokens(network, kind, ablation):
    task = _task(network(kind), ablation=ablation)
    shared = _shared(task)
    output = len(shared.masked.graph.writers)  # the output is read at one span alone
    assert task.masked.graph.num_edges == 3 * (shared.masked.graph.num_edges - output) + output
    kept_E = torch.rand(shared.masked.graph.num_edges, generator=torch.Generator().manual_seed(0)) < 0.6
    assert torch.allclose(_logits(task, _spread(task, shared, kept_E)), _logits(shared, kept_E), atol=1e-10)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_an_edge_at_a_span_carries_the_clean_run_to_the_tokens_of_that_span_alone(network, kind):
    """Against plain hooks: what the edge from an embedding to the first feed-forward network adds, token by token."""
    model = network(kind, num_layers=1)
    task = _task(model, positions="each", count=3)
    graph = task.masked.graph
    token = next(name for name in graph.writers if "embed" in name)
    inputs = task.inputs(torch.arange(3))
    clean_, corrupted = (model.embeddings(each)[0][0] for each in (task.examples.clean, task.examples.corrupted))
    seen = {}
    block = model.block(0)
    hook = block.ffn.register_forward_pre_hook(lambda module, given: seen.update(read=given[0].clone()))
    for place in (0, 4, 6):
        kept_E = graph.mask([(token, f"m0@{place}"), ("m0", "resid_post@6")])
        with torch.no_grad():
            ours = task.masked(inputs, kept_E[None].double())
        read = seen["read"]
        middle = inputs.replaced.streams[1].clone()
        middle[:, place] += (clean_ - corrupted)[:, place]
        assert torch.allclose(read, block.ffn_norm(middle), atol=1e-10)
        changed = not torch.allclose(ours, task.masked(inputs, torch.zeros_like(kept_E)[None].double()), atol=1e-12)
        assert changed == (place == 6)  # what a network writes at one token nobody reads at another
    hook.remove()


@pytest.mark.parametrize("positions", ["each", "spans"])
def test_atp_star_is_exact_at_each_span_where_the_pattern_is_all_that_bends(network, positions):
    """One layer whose attention has a sharp softmax, and nothing after it but sums; keys are shared by two heads."""
    model = network("no_norm", num_layers=1, causal=True, tie_embeddings=False, num_kv_heads=2)
    with torch.no_grad():
        model.blocks[0].ffn.down.weight.zero_()
        model.blocks[0].ffn.down.bias.zero_()
        model.blocks[0].attention.query.weight.mul_(6)
    task = _task(model, positions, count=2)
    edges = task.masked.graph.edges()
    effects_BE = torch.stack(
        [exact_effects(task.on(task.examples.take(torch.tensor([n]))).by("logit_difference")).abs() for n in range(2)]
    )
    assert torch.allclose(attribute(task, "atp-star"), effects_BE.mean(0), atol=1e-9)
    looking = torch.tensor([reader.partition("@")[0][-2:] == ".k" for _, reader in edges])
    assert float(effects_BE[:, looking].max()) > 1e-3


@pytest.mark.parametrize("kind", ["gpt2", "llama", "olmo2", "olmoe"])
def test_gradients_of_masks_are_slopes_and_add_up_over_spans(network, kind):
    model = network(kind)
    task = _task(model)
    shared, masked = _shared(task), task.masked
    index = torch.arange(4)
    generator = torch.Generator().manual_seed(0)
    z = torch.rand(4, masked.graph.num_edges, generator=generator, dtype=torch.float64).requires_grad_()
    weights = torch.randn(61, generator=generator, dtype=torch.float64)
    (slope,) = torch.autograd.grad((masked(task.inputs(index), z) * weights).sum(), z)
    for edge in range(0, masked.graph.num_edges, masked.graph.num_edges // 7):
        step = torch.zeros_like(z)
        step[:, edge] = 1e-5
        with torch.no_grad():
            up, down = ((masked(task.inputs(index), z + each) * weights).sum() for each in (step, -step))
        assert float(slope[:, edge].sum()) == pytest.approx(float(up - down) / 2e-5, rel=1e-4, abs=1e-6)
    for method in ("eap", "eap-ig", "mask-ig"):
        own, whole = attribute(task, method), attribute(shared, method)
        added: dict[tuple[str, str], float] = {}
        for (writer, reader), score in zip(masked.graph.edges(), own.tolist(), strict=True):
            edge = (writer, reader.partition("@")[0])
            added[edge] = added.get(edge, 0) + score
        assert [added[edge] for edge in shared.masked.graph.edges()] == pytest.approx(whole.tolist(), abs=1e-9)


@pytest.mark.parametrize("kind", ["gpt2", "llama", "olmo2", "olmoe", "no_norm"])
@pytest.mark.parametrize("ablation", ["interchange", "zero", "mean"])
@pytest.mark.parametrize("positions", ["spans", "each"])
def test_cleaning_leaves_the_output_as_it_is(network, kind, ablation, positions):
    task = _task(network(kind), positions, ablation, count=3)
    graph, constant = task.masked.graph, writes_constants(task.masked.model)
    taken = 0
    for seed, share in itertools.product(range(2), (0.03, 0.15)):
        kept_E = torch.rand(graph.num_edges, generator=torch.Generator().manual_seed(seed)) < share
        cleaned_E = clean(graph, kept_E, ablation, constant)
        taken += int(kept_E.sum() - cleaned_E.sum())
        assert torch.allclose(_logits(task, kept_E), _logits(task, cleaned_E), atol=1e-10)
    assert taken > 0


def test_an_edge_at_a_span_that_nobody_reads_is_dead(network):
    graph = _task(network("llama")).masked.graph
    last = ("m0", "resid_post@where")
    cases = {
        (("embeds", "m0@where"),): True,
        (("embeds", "m0@who"),): False,  # it writes at its own tokens only, which the output does not read
    }
    for edges, alive in cases.items():
        kept_E = clean(graph, graph.mask([*edges, last]))
        assert int(kept_E.sum()) == (2 if alive else 0)
    head = [("embeds", "a0.h0.v@who"), ("a0.h0", "resid_post@where")]
    assert int(clean(graph, graph.mask(head)).sum()) == 2  # values are looked at by later tokens
    query = [("embeds", "a0.h0.q@who"), ("a0.h0", "resid_post@where")]
    assert int(clean(graph, graph.mask(query)).sum()) == 0  # queries look for their own token only


@pytest.mark.parametrize(
    "method", ["edge-pruning", "ugs", "ranking", "eap-gp", "nap-ig", "relp", "ifr", "exact", "acdc"]
)
def test_every_search_runs_on_spans_and_its_circuit_comes_back(network, tmp_path, method):
    task = _task(network("llama", num_layers=1), count=4)
    trained = {"steps": 3, "batch_size": 4}
    more = (
        {"ranking": trained}
        if method == "ranking"
        else {"pruning": trained}
        if method in ("edge-pruning", "ugs")
        else {}
    )
    config = FindConfig(method=method, num_edges=20, graph={"positions": "spans"}, **more)
    circuit = find_circuit(task, config, force=True)
    assert 0 <= circuit.num_edges <= 20 and len(circuit.scores_E) == task.masked.graph.num_edges
    circuit.save(tmp_path / "c.json")
    again = Circuit.load(tmp_path / "c.json")
    assert again.edges == circuit.edges and again.graph.spans == task.masked.graph.spans
    circuit_page(again).write(tmp_path / "p.html")


def test_flow_over_spans_adds_up_to_that_over_all_tokens(network):
    from lmlab.methods.edge_pruning import information_flow

    task = _task(network("llama"))
    assert float(information_flow(task).sum()) == pytest.approx(float(information_flow(_shared(task)).sum()))


def test_trials_find_that_an_answer_hangs_on_one_span(network):
    """Only the first token of the last span differs, so that edges of embeddings at other spans carry nothing."""
    model = network("llama", num_layers=1)
    task = _task(model, count=4)
    corrupted = task.examples.clean.clone()
    corrupted[:, 1] = (corrupted[:, 1] + 7) % 61
    task = Counterfactuals(task.masked, task.examples.corrupted_by(corrupted))
    kept_E, _ = acdc(task, 1e-6 * task.empty_distance)
    spans = {reader.partition("@")[2] for writer, reader in task.masked.graph.edges(kept_E) if writer == "embeds"}
    assert spans == {"who"}
    effects_E = exact_effects(task)
    outside_E = torch.tensor([w == "embeds" and "@who" not in r for w, r in task.masked.graph.edges()])
    assert float(effects_E[outside_E].abs().max()) < 1e-12 < float(effects_E.max())
    circuit = Circuit(task.masked.graph, kept_E, "interchange")
    (table,) = next(each for each in circuit_page(circuit).sections if each.title == "Where edges are read").blocks
    assert [row[0] for row in table.rows] == list(_NAMES) and sum(row[-1] for row in table.rows) == circuit.num_edges
    queries = sum(reader.startswith("a0") and ".q@where" in reader for _, reader in circuit.edges)
    assert table.rows[2][1] == queries
    paths = strongest_paths(circuit)
    assert paths and all(way[0] == "embeds@who" and way[-1] == "resid_post@where" for _, way in paths)


@pytest.mark.parametrize(
    ("spans", "message"),
    [
        ({"a": [0, 9]}, r"line 1: the span 'a' must be \[start, end\] in tokens, within 0 and 3"),
        ({"a": [1, 1]}, "the span 'a' must be"),
        ({"a": [True, 2]}, "the span 'a' must be"),
        ({"a": [0, 2], "b": [1, 3]}, "the spans 'a' and 'b' share a token"),
        ({"a@b": [0, 1]}, "cannot be called 'a@b'"),
        ([[0, 1]], "spans must be given by name"),
    ],
)
def test_wrong_spans_are_refused_by_line(tmp_path, spans, message):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"clean": [1, 2, 3], "corrupted": [4, 2, 3], "spans": spans}) + "\n")
    with pytest.raises(UserError, match=message):
        read_examples(path)


def test_what_does_not_fit_together_is_told(network, tmp_path):
    model = network("llama")
    task = _task(model)
    plain = replace(task.examples, spans=None, span_names=())
    with pytest.raises(UserError, match="the examples name none"):
        spans_of(plain, "spans")
    with pytest.raises(UserError, match="differ in length"):
        spans_of(replace(plain, lengths=torch.tensor([7, 6, 7, 7, 7, 7])), "each")
    with pytest.raises(UserError, match="span 'else', which the graph does not"):
        Counterfactuals(task.masked, replace(task.examples, span_names=("who", "what", "else")))
    with pytest.raises(UserError, match="no spans of tokens are known"):
        CircuitGraph(model.config, GraphOptions(positions="spans"))
    circuit = Circuit(task.masked.graph, torch.ones(task.masked.graph.num_edges, dtype=torch.bool), "interchange")
    with pytest.raises(UserError, match="tells positions apart"):
        write_eap_ig(circuit, tmp_path / "c.json")


def test_held_out_examples_may_name_spans_in_another_order(network):
    task = _task(network("llama"))
    order = torch.tensor([2, 0, 1])
    names = tuple(_NAMES[n] for n in order)
    numbers = torch.empty(3, dtype=torch.long)
    numbers[order] = torch.arange(3)
    other = Counterfactuals(task.masked, replace(task.examples, spans=numbers[task.examples.spans], span_names=names))
    kept_E = torch.rand(task.masked.graph.num_edges, generator=torch.Generator().manual_seed(0)) < 0.5
    assert torch.allclose(_logits(task, kept_E), _logits(other, kept_E), atol=1e-12)


def test_from_generated_examples_to_a_page(lmlab, tmp_path):
    words = "Mary John Tom Anna Paul Then went to the store gave a ring kiss book"
    tokenizer = Tokenizer.train([f"to {name} and {name}" for name in words.split()] * 30, 500)
    rows = generate("ioi", tokenizer, 12)
    for row in rows:
        text = {name: row["clean"][a:b] for name, (a, b) in row["spans"].items()}
        assert text["object"] == row["answer"].strip() and text["end"] == "to"
        assert text["subject"] == text["subject_again"] == row["distractor"].strip()
        assert row["spans"]["subject"][0] < row["spans"]["subject_again"][0]
    (tmp_path / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = ModelConfig(
        vocab_size=tokenizer.vocab_size, num_layers=2, d_model=32, num_heads=4, num_kv_heads=2, d_ff=48
    )
    save_pretrained(Transformer(config).initialize(0), tmp_path / "model")
    tokenizer.save(tmp_path / "model")
    shared = ("--model", tmp_path / "model", "--data", tmp_path / "d.jsonl", "--force")
    out = tmp_path / "c.json"
    done = lmlab(
        "circuits",
        "find",
        *shared,
        "--method",
        "eap-ig",
        "--num-edges",
        60,
        "--set",
        "graph.positions=spans",
        "--out",
        out,
    )
    assert done.code == 0, done.err
    assert {name.partition("@")[2] for _, name in Circuit.load(out).edges} <= {
        "subject",
        "object",
        "subject_again",
        "end",
        "rest",
    }
    done = lmlab("circuits", "evaluate", out, *shared, "--curve")
    assert done.code == 0, done.err
    done = lmlab(
        "circuits", "report", out, "-o", tmp_path / "p.html", "-o", tmp_path / "g.graphml", *shared[:4], "--prompts", 1
    )
    assert done.code == 0, done.err
    assert "@subject" in (tmp_path / "p.html").read_text()
    done = lmlab("circuits", "find", *shared, "--method", "eap", "--num-edges", 9, "--set", "graph.positions=each")
    assert done.code == 2 and "differ in length" in done.err


def test_edge_pruning_on_spans_keeps_fewer_of_them(network):
    task = _task(network("llama", num_layers=1), count=4)
    corrupted = task.examples.clean.clone()
    corrupted[:, 0] = (corrupted[:, 0] + 5) % 61
    task = Counterfactuals(task.masked, task.examples.corrupted_by(corrupted))
    config = FindConfig(graph={"positions": "spans"}, pruning={"steps": 20, "batch_size": 4, "learning_rate": 0.3})
    found = find_by_pruning(task, config.pruning_config(task.masked.graph.num_edges))
    read = {reader.partition("@")[2] for writer, reader in task.masked.graph.edges(found.kept_E) if writer == "embeds"}
    assert found.converged and read == {"who"}
    assert search(task, FindConfig(method="random", num_edges=5)).kept_E.shape == found.kept_E.shape
