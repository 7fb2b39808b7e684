from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import hypergeom

from lmlab.errors import LmlabError, UserError
from lmlab.methods.edge_pruning import (
    Counterfactuals,
    EdgePruningConfig,
    Ends,
    FindConfig,
    areas,
    attribute,
    auroc,
    completeness,
    curve,
    exact_effects,
    find_by_pruning,
    find_circuit,
    minimality,
    overlap,
    stability,
    top_edges,
)  # fmt: skip
from lmlab.methods.edge_pruning.masking.gates import Gates
from lmlab.methods.edge_pruning.search.prune import decide


def test_figures_of_the_whole_model_and_of_nothing(network, task_of):
    task = task_of(network("gpt2"))
    ends = Ends.of(task)
    assert ends.full["distance"] == pytest.approx(0, abs=1e-12) and ends.full["exact_match"] == 1
    model, examples = task.masked.model, task.examples
    logits = model(examples.corrupted).logits_BTV[:, -1]
    expected = logits.gather(1, examples.answers[:, None]) - logits.gather(1, examples.distractors[:, None])
    assert ends.empty["logit_difference"] == pytest.approx(float(expected.mean()))
    assert ends.empty["accuracy"] == float((logits.argmax(1) == examples.answers).float().mean())
    assert ends.faithfulness(ends.full) == 1 and ends.faithfulness(ends.empty) == 0


def test_the_empty_circuit_of_a_falling_metric_has_no_negative_zero():
    ends = Ends({"distance": 0.0}, {"distance": 0.5})
    assert f"{ends.faithfulness({'distance': 0.5}):.4g}" == "0"


def test_the_distance_is_the_kl_over_the_answer_set_and_all_positions(network, task_of):
    task = task_of(network("llama"))
    examples = replace(task.examples, answer_ids=(3, 5, 8))
    task = Counterfactuals(task.masked, examples)
    index = torch.arange(4)
    full, empty = (
        task.masked.model(tokens[index]).logits_BTV[:, [4, 6]][..., [3, 5, 8]].log_softmax(-1)
        for tokens in (examples.clean, examples.corrupted)
    )
    expected = (full.exp() * (full - empty)).sum(-1).mean(1)
    found = task.distance(task.masked(task.inputs(index), 0 * task.masked.ones()), index)
    assert torch.allclose(found, expected)


def test_attribution_is_the_slope_of_the_metric_and_exact_effects_are_single_removals(network, task_of):
    task = task_of(network("llama"))
    scores_E, effects_E = attribute(task, "eap"), exact_effects(task)
    ones = torch.ones(task.masked.graph.num_edges, dtype=torch.float64)
    for edge in (0, 17, 60, 81):
        less, without = ones.clone(), ones.clone()
        less[edge], without[edge] = 1 - 1e-5, 0
        logits = [
            torch.cat([task.masked(task.inputs(index), z[None]) for index in task.batches()])[:, -1]
            for z in (ones, less)
        ]
        values = [
            (each.gather(1, task.examples.answers[:, None]) - each.gather(1, task.examples.distractors[:, None])).mean()
            for each in logits
        ]
        assert float(scores_E[edge]) == pytest.approx(float(values[0] - values[1]) / 1e-5, rel=1e-2, abs=1e-5)
        distance = torch.cat(
            [task.distance(task.masked(task.inputs(index), without[None]), index) for index in task.batches()]
        ).mean()
        assert float(effects_E[edge]) == pytest.approx(float(distance), rel=1e-6, abs=1e-12)


def test_integrated_gradients_of_one_step_begin_at_the_corrupted_embeddings(network, task_of):
    task = task_of(network("gpt2"))
    one, many = attribute(task, "eap-ig", steps=1), attribute(task, "eap-ig", steps=5)
    assert not torch.allclose(one, many) and not torch.allclose(many, attribute(task, "eap"))
    direct = [
        number
        for number, (writer, reader) in enumerate(task.masked.graph.edges())
        if reader == "resid_post" and writer == "m1"
    ]
    assert abs(float(many[direct[0]])) > 0


def test_areas_are_trapezoids():
    rows = [
        {"fraction": 0.1, "faithfulness": 0.5},
        {"fraction": 0.5, "faithfulness": 1.2},
        {"fraction": 1.0, "faithfulness": 1.0},
    ]
    assert areas(rows)["cpr"] == pytest.approx(0.4 * 0.85 + 0.5 * 1.1)
    assert areas(rows)["cmd"] == pytest.approx(0.4 * 0.35 + 0.5 * 0.1)


def test_a_curve_ends_at_the_whole_model(network, task_of):
    task = task_of(network("llama"))
    ends = Ends.of(task)
    rows = curve(task, attribute(task, "eap"), ends, (0.1, 1.0))
    assert rows[-1]["edges"] == task.masked.graph.num_edges and rows[-1]["faithfulness"] == pytest.approx(1)
    assert rows[0]["edges"] <= round(0.1 * task.masked.graph.num_edges)


def test_auroc_is_the_share_of_pairs_in_order():
    scores, truth = torch.tensor([3.0, 1.0, 2.0, 2.0]), torch.tensor([True, False, True, False])
    assert auroc(scores, truth) == pytest.approx((1 + 1 + 1 + 0.5) / 4)


def test_overlap_and_stability():
    a, b = torch.zeros(40, dtype=torch.bool), torch.zeros(40, dtype=torch.bool)
    a[:10], b[5:13] = True, True
    found = overlap(a, b)
    assert (
        found["intersection"] == 5
        and found["jaccard"] == pytest.approx(5 / 13)
        and found["share_of_smaller"] == pytest.approx(5 / 8)
    )
    assert found["p"] == pytest.approx(float(hypergeom.sf(4, 40, 10, 8))) and found["expected_by_chance"] == 2
    steady = stability([a, a, b])
    assert (
        steady["jaccard"] == pytest.approx((1 + 2 * 5 / 13) / 3)
        and steady["frequency"][5] == 1
        and steady["frequency"][0] == pytest.approx(2 / 3)
    )


def test_completeness_and_minimality_of_a_known_circuit(tracr_task):
    read, task = tracr_task("xproportion")
    ends, known_E = Ends.of(task), task.masked.graph.mask(read.ground_truth["zero"])
    assert completeness(task, known_E, ends, share=0.0)["completeness_gap"] == pytest.approx(0, abs=1e-6)
    assert completeness(task, known_E, ends)["completeness_gap"] < 0.5
    found = minimality(task, known_E)
    assert len(found["effects"]) == 5 and min(found["effects"].values()) > 1e-3 and found["superfluous"] == 0
    more_E = known_E.clone()
    more_E[(~known_E).nonzero()[0]] = True
    assert minimality(task, more_E)["superfluous"] == pytest.approx(1 / 6)


def test_a_model_that_cannot_do_the_task_is_refused_unless_forced(network, task_of):
    task = task_of(network("llama"))
    turned = replace(task.examples, answers=task.examples.distractors, distractors=task.examples.answers)
    swapped = Counterfactuals(task.masked, turned)
    able, unable = (
        (task, swapped)
        if Ends.of(task).full["logit_difference"] > Ends.of(task).empty["logit_difference"]
        else (swapped, task)
    )
    config = FindConfig(method="eap", num_edges=10)
    assert find_circuit(able, config).num_edges <= 10
    with pytest.raises(UserError, match="cannot do the task: its logit difference is") as error:
        find_circuit(unable, config)
    assert "--force" in error.value.remedy
    assert find_circuit(unable, config, force=True).num_edges <= 10


def test_a_model_that_answers_by_chance_is_told(network, task_of):
    task = task_of(network("llama"), count=24)
    model_prefers = Ends.of(task).full_each["prefers_answer"]
    assert not Ends({}, {}, {"prefers_answer": torch.ones(24)}).doubts() and not Ends({}, {}).doubts()
    # a random model prefers either of two random tokens
    assert 5 < int(model_prefers.sum()) < 18
    circuit = find_circuit(task, FindConfig(method="random", num_edges=20), force=True)
    text = f"prefers the answer in {int(model_prefers.sum())} of 24 examples"
    assert any(text in warning for warning in circuit.about["warnings"])


def test_a_corruption_that_changes_nothing_is_refused(network, task_of):
    task = task_of(network("llama"))
    same = Counterfactuals(task.masked, replace(task.examples, corrupted=task.examples.clean))
    with pytest.raises(UserError, match="corrupted inputs do not change the output"):
        find_circuit(same, FindConfig(method="eap", num_edges=10), force=True)


def test_unequal_shapes_are_refused(network, task_of):
    task = task_of(network("llama"))
    with pytest.raises(UserError, match=r"\(6, 7\), corrupted ones \(6, 6\)"):
        Counterfactuals(task.masked, replace(task.examples, corrupted=task.examples.corrupted[:, :-1]))


def _gates(task, values):
    return Gates(values, task.masked.graph.edge_writers)


def test_doubtful_trainings_are_marked(network, task_of):
    task = task_of(network("llama"))
    edges, config = task.masked.graph.num_edges, EdgePruningConfig(target=0.5, polish=False)
    equal = decide(task, config, _gates(task, torch.full((edges,), 3.0)))
    assert not equal.converged and any("All gates are equal" in text for text in equal.warnings)
    spread = torch.linspace(-10.6, 7.4, edges)
    assert not any("sparsity reached" in text for text in decide(task, config, _gates(task, spread)).warnings)
    missed = decide(task, config.model_copy(update={"target": 0.9}), _gates(task, spread))
    assert not missed.converged and any("the target 0.9" in text for text in missed.warnings)
    wild = _gates(task, spread)
    with torch.no_grad():
        wild.edge_constraint.multipliers.fill_(5000.0)
    assert any("ran away" in text and "lambda_learning_rate" in text for text in decide(task, config, wild).warnings)
    with pytest.raises(LmlabError, match="not finite"):
        decide(task, config, _gates(task, torch.full((edges,), torch.nan)))


def test_a_collapse_and_a_gap_between_gates_and_edges_are_told(network, task_of):
    task = task_of(network("llama"))
    edges = task.masked.graph.num_edges
    values = torch.full((edges,), -9.0)
    values[0] = 9.0
    collapsed = decide(task, EdgePruningConfig(price=0.01, polish=False), _gates(task, values))
    assert any("no better than the empty one" in text and "another seed" in text for text in collapsed.warnings)
    torn = decide(
        task, EdgePruningConfig(price=0.01, polish=False, num_edges=2), _gates(task, torch.linspace(8, 9, edges))
    )
    assert any("much worse than its gates" in text and "polish" in text for text in torn.warnings)


def test_top_edges_come_cleaned(network, task_of):
    task = task_of(network("llama"))
    scores = torch.linspace(1, 0, task.masked.graph.num_edges)
    raw, cleaned = (top_edges(task, scores, 20, cleaned=each) for each in (False, True))
    assert int(raw.sum()) == 20 and int(cleaned.sum()) < 20


def test_settings_that_exclude_each_other_are_named():
    with pytest.raises(ValueError, match="either target or price"):
        EdgePruningConfig(target=0.9, price=0.1)
    with pytest.raises(ValueError, match="node_target needs"):
        EdgePruningConfig(target=0.9, node_target=0.5)
    with pytest.raises(ValueError, match="log needs a target below 1"):
        EdgePruningConfig(target=1.1, sparsity_schedule="log")


def test_the_papers_settings_run(network, task_of):
    config = FindConfig(preset="paper", target=0.5, pruning={"steps": 3}).pruning_config(82)
    assert (config.learning_rate, config.weight_decay, config.init_log_alpha, config.mask_samples) == (
        0.8,
        0.01,
        10.0,
        "per_step",
    )
    found = find_by_pruning(task_of(network("llama")), config)
    assert np.isfinite(found.figures["distance"])
    with pytest.raises(UserError, match="pruning: unknown key 'stepz'"):
        FindConfig(target=0.5, pruning={"stepz": 3}).pruning_config(82)
