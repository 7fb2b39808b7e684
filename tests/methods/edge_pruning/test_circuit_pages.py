"""Paths, differences, foreign files of examples, and circuits unlike others."""

from __future__ import annotations

import json
from contextlib import contextmanager

import pytest
import torch

from lmlab.errors import UserError
from lmlab.methods.edge_pruning import (
    Circuit,
    CircuitGraph,
    EdgePruningConfig,
    Ends,
    FindConfig,
    find_by_pruning,
    find_circuit,
    overlap,
    read_examples,
    resampled,
    search,
    with_bootstrap,
)
from lmlab.methods.edge_pruning.graph.kinds import count_kinds, mean_depths
from lmlab.methods.edge_pruning.prompts import busiest_heads, prompts_section
from lmlab.methods.edge_pruning.report import circuit_page, strongest_paths
from lmlab.methods.edge_pruning.search import attribution
from lmlab.models import save_pretrained
from lmlab.models.internals.taps import Recorder
from lmlab.reports import Figure, Table


def _circuit(task, edges, scores=None):
    graph = task.masked.graph
    scores_E = None
    if scores is not None:
        scores_E = torch.zeros(graph.num_edges)
        for edge, score in zip(edges, scores, strict=True):
            scores_E[graph.mask([edge])] = score
    return Circuit(graph, graph.mask(edges), task.ablation, scores_E, {"method": "eap"})


def test_paths_lead_from_an_embedding_to_the_output_by_their_weakest_edge(network, task_of):
    task = task_of(network("gpt2"))
    edges = [
        ("tok_embeds", "a0.h1.v"),
        ("a0.h1", "m0"),
        ("m0", "resid_post"),
        ("a0.h1", "resid_post"),
        ("pos_embeds", "a1.h0.q"),  # leads nowhere
    ]
    found = strongest_paths(_circuit(task, edges, [3.0, 2.0, 9.0, 1.0, 8.0]))
    assert found == [
        (2.0, ["tok_embeds", "a0.h1.v", "a0.h1", "m0", "m0", "resid_post"]),
        (1.0, ["tok_embeds", "a0.h1.v", "a0.h1", "resid_post"]),
    ]
    assert len(strongest_paths(_circuit(task, edges[:2]))) == 0
    page = circuit_page(_circuit(task, edges, [3.0, 2.0, 9.0, 1.0, 8.0])).to_html()
    assert "tok_embeds → a0.h1.v → a0.h1 → m0 → resid_post" in page  # one feed-forward part, and no loop


@pytest.mark.parametrize(("method", "passes"), [("eap", 1), ("eap-ig", 5), ("eap-gp", 5), ("mask-ig", 5)])
def test_progress_of_scores_counts_passes(network, task_of, monkeypatch, method, passes):
    told = []

    @contextmanager
    def watched(label, total, unit):
        told.append(total)
        yield told.append

    monkeypatch.setattr(attribution, "progress", watched)
    task = task_of(network("gpt2"))
    attribution.attribute(task, method)
    total, *done = told
    assert total == sum(done) == passes * len(task.examples)
    assert len(done) == passes * len(list(task.batches()))


def test_shared_keys_lead_to_every_head_of_their_group(network, task_of):
    task = task_of(network("llama"))  # two query heads share a key-value head
    found = strongest_paths(_circuit(task, [("embeds", "a0.h1.v"), ("a0.h2", "resid_post"), ("a0.h1", "resid_post")]))
    assert [way[2] for _, way in found] == ["a0.h2"]


def test_a_page_shows_what_two_circuits_do_not_share(network, task_of, tmp_path):
    task = task_of(network("gpt2"))
    a = _circuit(task, [("tok_embeds", "m0"), ("m0", "resid_post")])
    b = _circuit(task, [("tok_embeds", "m0"), ("m0", "m1"), ("m1", "resid_post")])
    circuit_page(a, None, {"other": b}).write(tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "Difference to other" in page and "here alone" in page and "in the other alone" in page


def test_a_circuit_unlike_another_shares_less_with_it(tracr_task):
    read, task = tracr_task("xproportion", "zero")
    config = EdgePruningConfig(price=0.01, steps=60, batch_size=32)
    first = find_by_pruning(task, config)
    costs_E = 1 + 4 * first.kept_E.float()
    other = find_by_pruning(task, config, 0, None, None, costs_E)
    # nothing else does what the program's circuit does, so it is found again at a higher price
    assert set(task.masked.graph.edges(other.kept_E)) == set(read.ground_truth["zero"])
    assert other.figures["loss"] == pytest.approx(first.figures["loss"] + 0.04 * int(first.kept_E.sum()), abs=1e-6)


def test_redundant_edges_are_replaced_by_their_equals(network, task_of):
    task = task_of(network("llama"), count=4)
    config = FindConfig(price=0.02, pruning={"steps": 30, "batch_size": 4, "restarts": 1})
    first = find_circuit(task, config, force=True)
    other = find_circuit(task, config, force=True, unlike=[first])
    assert overlap(first.kept_E, other.kept_E)["jaccard"] < 1
    with pytest.raises(UserError, match="cannot be told what to be unlike"):
        search(task, FindConfig(method="eap", num_edges=3), unlike_E=first.kept_E)


def test_searches_on_resampled_examples_tell_how_stable_a_circuit_is(network, task_of):
    task = task_of(network("llama"), count=8)
    config = FindConfig(method="eap", num_edges=40)
    circuit = find_circuit(task, config, force=True)
    draws = [find_circuit(resampled(task, number), config, force=True) for number in range(3)]
    found = with_bootstrap(circuit, draws).metrics["bootstrap"]
    pairs = [overlap(a.kept_E, b.kept_E)["jaccard"] for a, b in ((draws[0], draws[1]), (draws[0], draws[2]))]
    pairs.append(overlap(draws[1].kept_E, draws[2].kept_E)["jaccard"])
    assert found["searches"] == 3 and found["jaccard"] == pytest.approx(sum(pairs) / 3)
    assert found["jaccard"] < 1


def test_a_draw_on_which_the_model_looks_unable_does_not_end_the_command(lmlab, network, task_of, tmp_path):
    """On all pairs the model does the task; on a draw that misses the one where it does so well, it does not."""
    model = network("llama")
    task = task_of(model, count=8, length=6)
    ends = Ends.of(task)
    gains = (ends.full_each["logit_difference"] - ends.empty_each["logit_difference"]).double()
    best = int(gains.abs().argmax())
    signs = torch.where(gains > 0, -1.0, 1.0)  # answers change places with distractors where that makes a gain a loss
    signs[best] *= -1
    rest = sorted((n for n in range(8) if n != best), key=lambda n: float(gains[n].abs()))
    chosen = [best]
    for n in rest:  # as many losses as the one gain outweighs
        if float((gains * signs)[[*chosen, n]].sum()) > 1e-3:
            chosen.append(n)
    assert len(chosen) > 2
    rows, examples = [], task.examples
    for n in chosen:
        pair = [int(examples.answers[n]), int(examples.distractors[n])]
        pair = pair if signs[n] > 0 else pair[::-1]
        row = {"clean": examples.clean[n].tolist(), "corrupted": examples.corrupted[n].tolist()}
        rows.append({**row, "answer": pair[0], "distractor": pair[1]})
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    save_pretrained(model.float(), tmp_path / "model")
    draws = [torch.randint(len(rows), (len(rows),), generator=torch.Generator().manual_seed(n)) for n in range(12)]
    assert any(bool((draw != 0).all()) for draw in draws)
    command = ["circuits", "find", "--model", tmp_path / "model", "--data", tmp_path / "data.jsonl", "--held-out", 0]
    done = lmlab(*command, "--method", "eap", "--num-edges", 20, "--bootstrap", 12, "--out", tmp_path / "c.json")
    assert done.code == 0, done.err
    told = Circuit.load(tmp_path / "c.json").metrics["bootstrap"]
    # all draws without the one example are, and perhaps others
    assert told["searches"] == 12 and told["unable"] >= sum(bool((draw != 0).all()) for draw in draws)
    assert f"Warning: on {told['unable']} of them the model does the task no better" in done.out


def test_csv_of_eap_ig_and_arrow_of_the_reference_are_read(tmp_path):
    import pyarrow as pa

    path = tmp_path / "ioi.csv"
    path.write_text("clean,corrupted,correct_idx,incorrect_idx\n")
    with pytest.raises(UserError, match="holds no examples"):
        read_examples(path)
    path.write_text("question,reply\na,b\n")
    with pytest.raises(UserError, match="has the columns question, reply; known are"):
        read_examples(path)
    tables = {"train": [[1, 2], [3, 4]], "test": [[5, 6]]}
    for split, rows in tables.items():
        (tmp_path / "data" / split).mkdir(parents=True)
        corrupted = [[7, row[1]] for row in rows]
        table = pa.table({"seq": rows, "corr_seq": corrupted, "target": [row[0] for row in rows]})
        place = str(tmp_path / "data" / split / "data-00000-of-00001.arrow")
        with pa.OSFile(place, "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
            writer.write_table(table)
    assert read_examples(tmp_path / "data", split="test")[0].clean.tolist() == [[5, 6]]
    assert read_examples(tmp_path / "data", split="train")[0].corrupted.tolist() == [[7, 2], [7, 4]]
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.arrow").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"bad\.arrow"):
        read_examples(tmp_path / "bad.arrow")
    with pytest.raises(UserError, match="or a folder of Arrow files"):
        read_examples(tmp_path / "empty")


def test_texts_of_the_reference_end_before_what_is_asked(tmp_path):
    from lmlab.data.tokenizer import Tokenizer
    from lmlab.methods.edge_pruning.examples.foreign import foreign_rows

    path = tmp_path / "rows.csv"
    path.write_text(
        "ioi_sentences,corr_ioi_sentences,a,b\n"
        '"Then, Mary and John went. John gave a ring to Mary",'
        '"Then, Tom and Anna went. Kate gave a ring to Amy",Mary,John\n'
    )
    (row,) = foreign_rows(path)
    assert row["clean"].endswith("a ring to") and row["answer"] == " Mary" and row["distractor"] == " John"
    tokenizer = Tokenizer.train(["Then, Mary and John Tom Anna Kate Amy went. gave a ring to Mary John"] * 30, 400)
    examples, _ = read_examples(path, tokenizer, drop_mismatched=True)
    assert len(examples) == 1 and examples.has_answers


def test_a_page_shows_where_heads_look_within_the_circuit(network, task_of, tmp_path):
    model = network("llama")
    task = task_of(model, count=2)
    graph = task.masked.graph
    circuit = Circuit(graph, torch.ones(graph.num_edges, dtype=torch.bool), "interchange")
    section = prompts_section(circuit, task, lambda token: f"<b>{token}</b>", 1, heads=3)
    tokens, details = section.blocks
    assert tokens.pieces == [f"<b>{token}</b>" for token in task.examples.clean[0].tolist()]
    apart, _ = prompts_section(circuit, task, str, 1, between=" ").blocks  # numbers would run into each other
    assert "".join(apart.pieces).split() == [str(token) for token in task.examples.clean[0].tolist()]
    assert apart.caption == tokens.caption == "Prompt 1."
    seen = Recorder("blocks.*.attention.pattern")
    model(task.examples.clean[:1], taps=seen)
    figures = [block for block in details.blocks if isinstance(block, Figure)]
    assert len(figures) == 3
    for (layer, head), each in zip(busiest_heads(circuit, 3), figures, strict=True):
        drawn = torch.tensor(each.figure.data[0].z, dtype=torch.float64)
        assert torch.allclose(drawn, seen[f"blocks.{layer}.attention.pattern"][0, head], atol=1e-9)
        assert f"a{layer}.h{head}" in each.caption
    (table,) = (block for block in details.blocks if isinstance(block, Table))
    assert all(row[1] == pytest.approx(row[2]) for row in table.rows) and table.rows[0][1] == max(
        row[1] for row in table.rows
    )
    circuit_page(circuit, prompts=section).write(tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "<b>" + str(task.examples.clean[0, 0].item()) not in page and "next tokens and attention" in page


def test_the_busiest_heads_are_those_with_most_edges(network):
    graph = CircuitGraph(network("gpt2").config)
    edges = [("tok_embeds", "a0.h1.q"), ("tok_embeds", "a0.h1.k"), ("a0.h1", "a1.h2.v"), ("a1.h2", "resid_post")]
    circuit = Circuit(graph, graph.mask([*edges, ("m0", "a1.h3.q")]), "interchange")
    assert busiest_heads(circuit, 2) == [(0, 1), (1, 2)]


@pytest.mark.parametrize("given", [("--prompts", "3"), ("--data", "x.jsonl"), ("--split", "test")])
def test_prompts_without_a_model_are_refused(lmlab, network, task_of, tmp_path, given):
    task = task_of(network("gpt2"))
    _circuit(task, [("tok_embeds", "m0"), ("m0", "resid_post")]).save(tmp_path / "c.json")
    done = lmlab("circuits", "report", tmp_path / "c.json", "-o", tmp_path / "page.html", *given)
    assert done.code == 2 and "Give --model too." in done.err and not (tmp_path / "page.html").exists()
    assert lmlab("circuits", "report", tmp_path / "c.json", "-o", tmp_path / "page.html").code == 0


def test_circuits_of_different_graphs_stand_side_by_side_by_kinds_of_edges(lmlab, network, tmp_path):
    """As those of two rungs of a ladder."""
    found = {}
    for name, layers, keep in (("small", 1, ("a0.h0.q", "m0")), ("large", 3, ("m2", "resid_post"))):
        graph = CircuitGraph(network("llama", num_layers=layers).config)
        kept_E = torch.tensor([reader in keep for _, reader in graph.edges()])
        found[name] = Circuit(graph, kept_E, "interchange")
        found[name].save(tmp_path / f"{name}.json")
    kinds = count_kinds(found["small"])
    # embeds to the query; embeds and four heads to the feed-forward network
    assert kinds["embedding to query"] == (1, 4) and kinds["embedding to key"] == (0, 2)
    assert kinds["embedding to feed-forward"] == (1, 1) and kinds["head to feed-forward"] == (4, 4)
    assert kinds["feed-forward to output"] == (0, 1) and "head to query" not in kinds
    kept, all_ = (sum(each) for each in zip(*kinds.values(), strict=True))
    assert (kept, all_) == (found["small"].num_edges, found["small"].graph.num_edges)
    assert mean_depths(found["small"]) == pytest.approx((4 / 6 / 2, 1 / 2))  # 4 of 6 writers are heads of the layer
    page = tmp_path / "p.html"
    done = lmlab("circuits", "report", tmp_path / "small.json", "--with", tmp_path / "large.json", "-o", page)
    assert done.code == 0, done.err
    assert "head to feed-forward" in page.read_text() and "Difference to" not in page.read_text()
    done = lmlab("circuits", "compare", tmp_path / "small.json", tmp_path / "large.json")
    assert done.code == 2 and "different graphs" in done.err and "circuits report" in done.err
