"""What circuits must not be silent about: stuck searches, held-out figures, errors, padding, wrong input."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import tokenizers
import torch

from lmlab.data.tokenizer import Tokenizer
from lmlab.errors import UserError
from lmlab.methods.edge_pruning import (
    Circuit,
    CircuitGraph,
    Counterfactuals,
    EdgePruningConfig,
    Ends,
    FindConfig,
    MaskedModel,
    TaskOptions,
    best_of,
    default_price,
    find_by_pruning,
    find_circuit,
    make_examples,
    measure_each,
    read_examples,
    search,
)
from lmlab.methods.edge_pruning.examples.load import Loaded
from lmlab.methods.edge_pruning.masking.gates import Gates
from lmlab.methods.edge_pruning.report import circuit_page
from lmlab.methods.edge_pruning.search.prune import decide
from lmlab.methods.edge_pruning.search.trials import Trials, refine
from lmlab.models import ModelConfig, save_pretrained


@pytest.mark.parametrize("ablation", ["zero", "interchange"])
def test_gates_that_are_stuck_are_left_behind(tracr_task, ablation):
    read, task = tracr_task("reverse", ablation)
    known_E = task.masked.graph.mask(read.ground_truth[ablation])
    for start in (torch.full((94,), -9.0), torch.where(known_E, -3.0, 3.0)):  # empty, and the very opposite
        gates = Gates(start, task.masked.graph.edge_writers)
        found = decide(task, EdgePruningConfig(price=0.01), gates)
        assert torch.equal(found.kept_E, known_E) and found.converged and found.figures["single_edges_tried"] > 0


def test_converged_means_that_no_single_edge_improves_the_price(tracr_task):
    _, task = tracr_task("reverse")
    price = 0.01 * task.empty_distance
    found = refine(Trials(task), torch.ones(94, dtype=torch.bool), torch.zeros(94), price)
    assert found.settled
    for edge in range(94):
        other_E = found.kept_E.clone()
        other_E[edge] = not other_E[edge]
        change = task.mean_distance(other_E) - found.distance
        assert change >= price * 0.999 if not other_E[edge] else -change <= price * 1.001


def test_a_collapsed_circuit_is_never_called_converged(tracr_task):
    _, task = tracr_task("reverse")
    gates = Gates(torch.full((94,), -9.0), task.masked.graph.edge_writers)
    found = decide(task, EdgePruningConfig(price=0.01, polish=False), gates)
    assert not found.converged and any("no better than the empty one" in text for text in found.warnings)


def test_a_circuit_larger_than_its_target_is_never_called_converged(network, task_of):
    """Single edges were tried, and none improved the price, so that a training of one step had converged."""
    task = task_of(network("llama"), count=4)
    config = EdgePruningConfig(target=0.9, steps=1, batch_size=4, restarts=1)
    found = find_by_pruning(task, config)
    assert found.figures["single_edges_tried"] > 0 and int(found.kept_E.sum()) > 0.12 * task.masked.graph.num_edges
    assert found.converged is False and any("the target" in text for text in found.warnings)


def test_a_small_graph_that_needs_most_of_its_edges_keeps_them(network):
    """9 of 13 edges are all that the network does; a price that nobody asked for must not drop some for cheap."""
    model = network("no_norm", num_layers=1, num_heads=1, num_kv_heads=1, causal=True)
    with torch.no_grad():
        model.blocks[0].ffn.down.weight.zero_()
        model.blocks[0].ffn.down.bias.zero_()
    tokens = torch.randint(0, 61, (2, 12, 5), generator=torch.Generator().manual_seed(0)).tolist()
    examples = make_examples(*tokens, [[4]] * 12)
    task = Counterfactuals(MaskedModel(model, CircuitGraph(model.config)), examples, "zero")
    config = FindConfig(ablation="zero", pruning={"steps": 20, "batch_size": 12})
    found = find_by_pruning(task, config.pruning_config(13))
    assert found.converged and found.figures["distance"] <= 1e-3 * task.empty_distance
    assert 6 < int(found.kept_E.sum()) <= 9


@pytest.mark.parametrize("method", ["edge-pruning", "eap", "acdc"])
def test_a_search_that_tried_no_single_edge_does_not_say_that_it_converged(tracr_task, method):
    _, task = tracr_task("xproportion")
    pruning = {"pruning": {"steps": 40, "batch_size": 32}} if method == "edge-pruning" else {}
    circuit = find_circuit(task, FindConfig(method=method, num_edges=5, ablation="zero", **pruning))
    assert circuit.about["converged"] is None or (method == "edge-pruning" and circuit.about["converged"] is False)
    assert "not known" in str(circuit_page(circuit).sections[0]) or circuit.about["converged"] is False


def test_the_default_price_follows_the_size_of_the_graph():
    # half of the empty circuit's distance buys the edges that a circuit of such a graph may need
    assert 0.5 / default_price(94) == pytest.approx(94) and 0.5 / default_price(431) == pytest.approx(431)
    assert 0.5 / default_price(70_651) == pytest.approx(0.07 * 70_651)
    assert FindConfig().pruning_config(70_651).price == default_price(70_651)
    assert FindConfig(target=0.98).pruning_config(70_651).edge_price(70_651) == pytest.approx(0.05 / 1413, rel=1e-3)


@pytest.mark.parametrize("ablation", ["interchange", "zero", "mean"])
def test_padding_is_invisible_where_attention_is_not_causal(network, ablation):
    model = network("no_norm")
    short, long = [5, 9, 11, 3], [7, 1, 2, 4, 8, 6, 10]
    other_short, other_long = [6, 9, 12, 3], [3, 1, 2, 5, 8, 9, 10]
    graph = CircuitGraph(model.config)
    both = make_examples([short, long], [other_short, other_long], [[3], [6]])
    alone = make_examples([short], [other_short], [[3]])
    kept_E = torch.rand(graph.num_edges, generator=torch.Generator().manual_seed(0)) < 0.6
    tasks = [Counterfactuals(MaskedModel(model, graph), each, ablation) for each in (both, alone)]
    if ablation == "mean":  # the mean is over all examples, so that only what they share can be compared
        tasks[1] = Counterfactuals(MaskedModel(model, graph), both, ablation)
        tasks[1].examples = both
    rows = [next(iter(task.run(kept_E.float())))[1][0] for task in tasks]
    assert torch.allclose(rows[0], rows[1], atol=1e-9)
    assert torch.allclose(tasks[0].full(torch.tensor([0])), tasks[1].full(torch.tensor([0])), atol=1e-9)


_SCORED = ("eap", "eap-ig", "eap-gp", "mask-ig", "nap", "relp", "atp-star")


@pytest.mark.parametrize(("kind", "ablation"), [("no_norm", "interchange"), ("gpt2", "interchange"), ("llama", "zero")])
@pytest.mark.parametrize("method", [*_SCORED, "ifr", "exact"])
def test_scores_of_an_example_do_not_depend_on_those_beside_it(network, kind, ablation, method):
    """Scores are means over examples, so those of a short and a long one are the mean of each alone; the long one
    answers at more places.
    """
    model = network(kind)
    graph = CircuitGraph(model.config)
    pairs = [([5, 9, 11, 3], [6, 9, 12, 3]), ([7, 1, 2, 4, 8, 6, 10], [3, 1, 2, 5, 8, 9, 10])]

    def scores(chosen):
        clean, corrupted = ([each[side] for each in chosen] for side in (0, 1))
        ends, count = [[1, 3] if len(each) == 4 else [2, 4, 6] for each in clean], len(chosen)
        examples = make_examples(clean, corrupted, ends, [4] * count, [9] * count)
        task = Counterfactuals(MaskedModel(model, graph), examples, ablation)
        return search(task, FindConfig(method=method, num_edges=5, ablation=ablation)).scores_E.double()

    alone = [scores([pair]) for pair in pairs]
    assert torch.allclose(scores(pairs), (alone[0] + alone[1]) / 2, atol=1e-9)
    assert float(alone[0].abs().max()) > 1e-6


def test_a_circuit_to_be_unlike_must_mean_the_same_by_its_edges(network, task_of):
    task = task_of(network("llama"))
    other = Circuit(task.masked.graph, torch.ones(task.masked.graph.num_edges, dtype=torch.bool), "zero")
    with pytest.raises(UserError, match="found under the ablation zero, this search goes by interchange"):
        find_circuit(task, FindConfig(), force=True, unlike=[other])


def test_a_page_of_a_large_circuit_is_written(tmp_path):
    shape = {"vocab_size": 11, "num_layers": 12, "d_model": 24, "num_heads": 12, "d_ff": 8, "max_seq_len": 8}
    graph = CircuitGraph(ModelConfig(**shape))
    assert graph.num_edges > 20_000
    for count in (4001, 21_000):
        kept_E = torch.arange(graph.num_edges) < count
        for scores_E in (None, torch.rand(graph.num_edges)):
            circuit_page(Circuit(graph, kept_E, "interchange", scores_E)).write(tmp_path / "page.html")
            assert "lmlab" in (tmp_path / "page.html").read_text()


_PAIR = {"clean": [1, 2, 3], "corrupted": [4, 2, 3]}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{**_PAIR, "answer": 61, "distractor": 5}], "line 1, answer: the token 61 lies beyond .* 61"),
        ([{**_PAIR, "answer": True, "distractor": 5}], "line 1, answer: .* not True"),
        ([{**_PAIR, "answer": -1, "distractor": 5}], "line 1, answer: -1 is no token"),
        ([{**_PAIR, "answer": 5, "distractor": 5}], "the same token"),
        ([{**_PAIR, "answer": 5}], "no distractor"),
        ([_PAIR, {**_PAIR, "answer": 5, "distractor": 6}], "line 1 has no answer, but .*line 2 has one"),
        ([{"clean": [1, 61], "corrupted": [2, 3]}], "line 1, clean: the token 61"),
        ([{"clean": [1, True], "corrupted": [2, 3]}], "line 1, clean: a list must hold token ids"),
        ([{"clean": [1] * 9, "corrupted": [2] * 9}], "it has 9 tokens; the model's table of positions has 8"),
        ([{**_PAIR, "positions": [True]}], "positions must be a list of whole numbers"),
        ([{**_PAIR, "positions": 2}], "positions must be a list"),
        ([{**_PAIR, "answer": 5, "distractor": 6, "answer_set": [5, 7]}], "the token 6 .* not in its answer_set"),
        ([{**_PAIR, "answer": 5, "distractor": 6, "answer_set": [5, 6, 99]}], "the token 99"),
        ([{**_PAIR, "answer": 5, "distractor": 6, "answer_set": [5, 6], "answers": [5]}], "both 'answers' and"),
        (
            [{**_PAIR, "answer": 5, "distractor": 6, "answer_set": [5, 6, 7], "answers": [7], "distractors": [6]}],
            "the answer must be one of 'answers'",
        ),
        ([{**_PAIR, "split": ["train"]}], r"line 1: the split must be a name, not \['train'\]"),
        ([{**_PAIR, "split": 1}], "the split must be a name, not 1"),
    ],
)
def test_wrong_examples_are_refused_by_line(tmp_path, rows, message):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(UserError, match=message):
        read_examples(path, vocab_size=61, max_seq_len=8)


@pytest.mark.parametrize(
    ("clean", "message"),
    [
        ("one <predict>two three", "not closed, or not opened"),
        ("one two</predict> three", "not closed, or not opened"),
        ("one <predict></predict> three", "nothing can be predicted"),
        ("<predict>one</predict> two three", "or the first of the prompt"),
    ],
)
def test_marks_that_predict_nothing_are_refused(tmp_path, clean, message):
    """They were read as text, or the last token was measured in their place."""
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"clean": clean, "corrupted": clean}) + "\n")
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel({"?": 0, "one": 1, "two": 2, "three": 3, "end": 4}, "?"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    with pytest.raises(UserError, match=message):
        read_examples(path, Tokenizer(backend, None, "end"))


def test_a_prompt_of_several_lines_is_not_on_both_sides(network, task_of, tmp_path):
    task = task_of(network("llama"), count=20)
    twice = task.examples.take(torch.arange(40) % 20)
    loaded = Loaded(task.masked.model, twice, None, (), {}).apart(TaskOptions())
    assert len(loaded.examples) + len(loaded.held_out) == 40 and len(loaded.held_out) in (8, 9)
    assert not set(loaded.examples.prompts) & set(loaded.held_out.prompts)
    same = Loaded(task.masked.model, task.examples.take(torch.zeros(12, dtype=torch.long)), None, (), {})
    assert same.apart(TaskOptions()).held_out is None


def test_the_corrupted_input_of_a_line_is_not_the_clean_one_of_a_line_held_out(network, task_of):
    """Pairs that stand in both directions, as many files have them, were held out in one of them alone."""
    task = task_of(network("llama"), count=20)
    examples, order = task.examples, torch.arange(40) % 20
    both = examples.take(order).corrupted_by(torch.cat([examples.corrupted, examples.clean]))
    both = replace(both, clean=torch.cat([examples.clean, examples.corrupted]))
    loaded = Loaded(task.masked.model, both, None, (), {}).apart(TaskOptions())
    sides = [{*each.prompts, *each.corrupted_prompts} for each in (loaded.examples, loaded.held_out)]
    assert len(loaded.held_out) == 8 and loaded.seen == 0 and not sides[0] & sides[1]
    # one corrupted input for all lines joins none of them
    same = examples.corrupted_by(examples.corrupted[:1].expand(20, -1))
    loaded = Loaded(task.masked.model, same, None, (), {}).apart(TaskOptions())
    assert len(loaded.held_out) == 4 and loaded.seen == 0
    # where each line is corrupted by the next, no line stands apart, which is told
    ring = examples.corrupted_by(examples.clean.roll(-1, 0))
    loaded = Loaded(task.masked.model, ring, None, (), {}).apart(TaskOptions())
    lines = {prompt: number for number, prompt in enumerate(examples.prompts)}
    held = {lines[prompt] for prompt in loaded.held_out.prompts}
    assert len(held) == 4 and loaded.seen == len({n for n in held if (n - 1) % 20 not in held}) > 0
    assert any(f"{loaded.seen} have a prompt of the search" in line for line in loaded.task("zero")[1])


def test_examples_that_are_not_corrupted_are_told(network, task_of):
    task = task_of(network("llama"))
    mixed = task.examples.corrupted_by(torch.cat([task.examples.clean[:2], task.examples.corrupted[2:]]))
    loaded = Loaded(task.masked.model, mixed, None, (), {})
    told = "Warning: in 2 of 6 examples the corrupted prompt is the clean one"
    assert any(told in line for line in loaded.task("interchange")[1])
    assert not any(told in line for line in loaded.task("zero")[1])


@pytest.mark.parametrize("metric", ["probability", "probability_difference", "accuracy"])
def test_no_metric_measures_faithfulness_to_a_model_that_does_worse_than_nothing(network, task_of, metric):
    """By any but the logit difference it was a number above 1 for the worst circuits, without a word."""
    model, examples = network("llama"), task_of(network("llama"), count=12).examples
    best = model(examples.corrupted).logits_BTV[:, -1].argmax(1)
    worst = model(examples.clean).logits_BTV[:, -1].argmax(1)
    differ = (best != worst).nonzero()[:, 0]
    examples = replace(examples, answers=best, distractors=worst).take(differ)
    ends = Ends.of(Counterfactuals(MaskedModel(model, CircuitGraph(model.config)), examples), metric)
    assert ends.full[metric] < ends.empty[metric]
    with pytest.raises(UserError, match=f"cannot do the task: its {metric.replace('_', ' ')} is"):
        ends.require_ability()
    ends.require_ability(force=True)
    assert "faithfulness to it means nothing" in ends.doubts()[0]


def test_weights_that_are_no_numbers_are_named(network, task_of):
    model = network("llama")
    with torch.no_grad():
        model.blocks[1].ffn.down.weight[0, 0] = torch.nan
    with pytest.raises(UserError, match="gives no finite numbers"):
        find_circuit(task_of(model), FindConfig(method="eap", num_edges=5), force=True)


def test_an_evaluation_tells_how_many_of_its_examples_the_search_saw(lmlab, network, tmp_path):
    model = network("llama").float()
    save_pretrained(model, tmp_path / "model")
    rows = [{"clean": [n, 2, 3], "corrupted": [60 - n, 5, 3]} for n in range(20)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "others.jsonl").write_text(json.dumps({"clean": [7, 8], "corrupted": [9, 8]}) + "\n")
    base, out = ("--model", tmp_path / "model"), tmp_path / "c.json"
    find = ("circuits", "find", *base, "--data", tmp_path / "rows.jsonl", "--method", "eap", "--num-edges", 20)
    assert lmlab(*find, "--out", out).code == 0
    for name, told, seen in (
        ("rows", "On 20 examples, of which the search saw 16:", 16),
        ("others", "On 1 example:", 0),
    ):
        figures = tmp_path / f"{name}-figures.json"
        done = lmlab("circuits", "evaluate", out, *base, "--data", tmp_path / f"{name}.jsonl", "--out", figures)
        assert done.code == 0 and told in done.out, done.err
        assert json.loads(figures.read_text())["seen"] == seen


@pytest.mark.parametrize("ablation", ["mean", "zero"])
def test_methods_that_are_compared_where_they_searched_are_not_called_held_out(lmlab, network, tmp_path, ablation):
    save_pretrained(network("llama").float(), tmp_path / "model")
    rows = [{"clean": [n, 2, 3], "corrupted": [60 - n, 5, 3]} for n in range(20)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    compare = ("circuits", "compare", "--model", tmp_path / "model", "--data", tmp_path / "rows.jsonl", "--method")
    options = ("eap", "--num-edges", 20, "--ablation", ablation)
    assert "5 examples that the searches saw" in lmlab(*compare, *options, "--examples", 5).out
    assert "4 examples held out from the searches" in lmlab(*compare, *options).out


def test_a_task_refuses_what_its_model_cannot_take(network, task_of):
    masked = task_of(network("gpt2")).masked
    with pytest.raises(UserError, match="table of positions has 48"):
        Counterfactuals(masked, make_examples([[1] * 49], [[2] * 49], [[48]]))
    with pytest.raises(UserError, match="answers beyond"):
        Counterfactuals(masked, make_examples([[1]], [[2]], [[0]], [61], [3]))


@pytest.mark.parametrize("method", ["eap", "edge-pruning"])
def test_a_mistyped_setting_of_the_training_is_refused_by_every_method(method):
    with pytest.raises(UserError, match=r"pruning.*steps"):
        FindConfig(method=method, num_edges=3, pruning={"stepz": 3})


def test_circuits_of_different_ablations_are_not_mixed(lmlab, tmp_path, network):
    graph = CircuitGraph(network("llama").config)
    kept_E = torch.ones(graph.num_edges, dtype=torch.bool)
    a, b = (Circuit(graph, kept_E, ablation) for ablation in ("interchange", "zero"))
    with pytest.raises(UserError, match="interchange and zero"):
        _ = a & b
    for name, circuit in (("a", a), ("b", b)):
        circuit.save(tmp_path / f"{name}.json")
    done = lmlab("circuits", "compare", tmp_path / "a.json", tmp_path / "b.json")
    assert done.code == 2 and "different ablations" in done.err
    done = lmlab("circuits", "compare", tmp_path / "a.json", tmp_path / "b.json", "--force")
    assert done.code == 0 and "Warning: pruned edges carry interchange" in done.out


def test_figures_come_with_their_error_and_count(network, task_of):
    task = task_of(network("llama"), count=12)
    kept_E = torch.rand(task.masked.graph.num_edges, generator=torch.Generator().manual_seed(0)) < 0.5
    each = measure_each(task, kept_E)
    found = Ends.of(task).summary(each)
    values = each["distance"].double()
    assert found["n"] == 12
    assert found["errors"]["distance"] == pytest.approx(float(values.std()) / 12**0.5)
    low, high = found["intervals"]["distance"]
    assert low < found["circuit"]["distance"] < high
    # for a mean of 12, the percentile interval is close to two standard errors to both sides
    assert high - low == pytest.approx(3.9 * found["errors"]["distance"], rel=0.25)
    assert found["worst"]["distance_max"] == pytest.approx(float(values.max()))
    assert set(found["intervals"]) >= {"faithfulness", "logit_difference"}


def test_a_search_holds_examples_out(network, task_of):
    task = task_of(network("llama"), count=20)
    loaded = Loaded(task.masked.model, task.examples, None, (), {})
    apart = loaded.apart(TaskOptions())
    assert len(apart.examples) == 16 and len(apart.held_out) == 4
    rows = {tuple(row) for each in (apart.examples, apart.held_out) for row in each.clean.tolist()}
    assert len(rows) == 20
    assert loaded.apart(TaskOptions(held_out=0)).held_out is None
    assert loaded.apart(TaskOptions(num_examples=5)).held_out is None
    small = Counterfactuals(task.masked, apart.examples, batch_size=16)
    circuit = find_circuit(
        small, FindConfig(method="eap", num_edges=30), force=True, held_out=apart.held_out_task(small, TaskOptions())
    )
    assert circuit.metrics["n"] == 16 and circuit.metrics["held_out"]["n"] == 4


def test_seeds_agree_or_it_is_told(network, task_of):
    task = task_of(network("llama"), count=4)
    circuits = [find_circuit(task, FindConfig(method="random", num_edges=40), seed, force=True) for seed in range(3)]
    steady = best_of(circuits).metrics["stability"]
    kept = [set(each.edges) for each in circuits]
    assert {tuple(edge) for edge in steady["core"]} == kept[0] & kept[1] & kept[2]
    assert steady["in_any"] == len(kept[0] | kept[1] | kept[2]) and steady["seeds"] == [0, 1, 2]
    assert 0 <= steady["jaccard"] < steady["node_jaccard"] <= 1


def test_several_right_answers_are_measured_as_the_literature_does(network, task_of):
    model = network("llama")
    answer_set, signs = list(range(10, 20)), [[-1] * 4 + [1] * 6, [-1] * 8 + [1] * 2]
    examples = make_examples([[1, 2], [3, 4]], [[5, 2], [6, 4]], [[1], [1]], [14, 18], [12, 16], answer_set, signs)
    task = Counterfactuals(MaskedModel(model, CircuitGraph(model.config)), examples)
    found = measure_each(task, torch.ones(task.masked.graph.num_edges))
    logits = model(examples.clean).logits_BTV[:, -1, answer_set]
    p, s = logits.softmax(1), torch.tensor(signs)
    assert torch.allclose(found["probability_difference"], (p * s).sum(1))
    assert torch.allclose(found["cutoff_sharpness"], torch.stack([p[0, 4] - p[0, 2], p[1, 8] - p[1, 6]]))
    assert found["rank_correlation"].tolist() == [1, 1]
    assert found["accuracy"].tolist() == [float(s[n, int(logits[n].argmax())] > 0) for n in range(2)]


def test_held_out_examples_that_the_model_cannot_do_are_told(network, task_of):
    """Faithfulness on them was printed first, of a model that does worse there than without edges."""
    task = task_of(network("llama"), count=12)
    ends = Ends.of(task)
    gains = ends.full_each["logit_difference"] - ends.empty_each["logit_difference"]
    able, unable = ((gains > 0).nonzero()[:, 0], (gains < 0).nonzero()[:, 0])
    config = FindConfig(method="eap", num_edges=20)
    found = find_circuit(task.on(task.examples.take(able)), config, held_out=task.on(task.examples.take(unable)))
    assert any(text.startswith("On the examples that are held out: the model's") for text in found.about["warnings"])
    found = find_circuit(task.on(task.examples.take(able[1:])), config, held_out=task.on(task.examples.take(able[:1])))
    assert not any("held out" in text for text in found.about["warnings"])


def test_a_model_that_answers_alike_with_and_without_edges_is_refused_even_by_force(network):
    """Faithfulness would be no number, which no file of JSON can hold."""
    model = network("llama")
    with torch.no_grad():
        model.embedding.weight[7] = model.embedding.weight[8]
    examples = make_examples([[1, 2], [3, 4]], [[5, 2], [6, 4]], [[1], [1]], [7, 7], [8, 8])
    task = Counterfactuals(MaskedModel(model, CircuitGraph(model.config)), examples)
    with pytest.raises(UserError, match="Faithfulness cannot be measured: the logit difference is 0"):
        find_circuit(task, FindConfig(method="eap", num_edges=5), force=True)


@pytest.mark.parametrize("method", ["edge-pruning", "node-pruning", "ugs"])
@pytest.mark.parametrize("more", [0, 1, 10**9])
def test_gates_for_as_many_edges_as_the_graph_has_are_refused_by_that_number(network, task_of, method, more):
    """What was named was a target that nobody had given, and below 0."""
    task = task_of(network("llama"))
    count = task.masked.graph.num_edges + more
    with pytest.raises(UserError, match=f"A circuit of {count:,} edges was asked for; the graph has"):
        search(task, FindConfig(method=method, num_edges=count))
