"""Scores of edges beside their definitions, written anew on plain passes, without gates, stores or trials."""

from __future__ import annotations

import pytest
import torch
from tests.methods.edge_pruning.path_patching import CLOSE, difference, patched
from torch.nn import functional as F

from lmlab.methods.edge_pruning import (
    acdc,
    attribute,
    exact_effects,
    information_flow,
)

KINDS = ("gpt2", "llama", "neox")


@pytest.fixture
def small(network, task_of):
    """A task on a network with few edges."""

    def make(kind, **changes):
        sizes = {"d_model": 16, "num_heads": 2, "d_ff": 24} | ({"num_kv_heads": 1} if kind == "llama" else {})
        return task_of(network(kind, **{**sizes, **changes}), count=3)

    return make


def _ones(task):
    return torch.ones(task.masked.graph.num_edges, dtype=torch.float64)


def _kl(task, index, logits):
    """Of the model's distribution and that of other logits, a mean over the positions, [B]."""
    full, _, _ = patched(task, index, _ones(task))
    p = full.log_softmax(-1)
    return (p.exp() * (p - logits.log_softmax(-1))).sum(-1).mean(1)


def _slopes_of_readers(task, index, embeddings):
    """The gradient of the summed logit difference for what each reader reads, [B, T, D] each."""
    _, clean, _ = patched(task, index, _ones(task))
    nudges = {name: torch.zeros_like(clean["m0"]).requires_grad_() for name in task.masked.graph.readers}
    logits, _, _ = patched(task, index, _ones(task), nudges=nudges, embeddings=embeddings)
    last = logits[:, -1].gather(1, torch.stack((task.examples.answers, task.examples.distractors), 1)[index])
    found = torch.autograd.grad((last[:, 0] - last[:, 1]).sum(), list(nudges.values()))
    return dict(zip(nudges, found, strict=True))


def _summed(task, slopes, index):
    _, clean, corrupt = patched(task, index, _ones(task))
    return torch.stack([(slopes[r] * (clean[w] - corrupt[w])).sum() for w, r in task.masked.graph.edges()])


@pytest.mark.parametrize("kind", KINDS)
def test_mask_ig_is_the_mean_gradient_over_levels_of_all_masks(small, kind):
    task, steps = small(kind), 4
    index, total_E = torch.arange(3), 0
    for k in range(1, steps + 1):
        z_E = (_ones(task) * k / steps).requires_grad_()
        total_E += torch.autograd.grad(difference(task, patched(task, index, z_E)[0]).mean(), z_E)[0] / steps
    assert torch.allclose(attribute(task, "mask-ig", steps), total_E, atol=CLOSE[kind], rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_eap_gp_goes_along_the_gradient_of_the_squared_gap_in_steps_of_a_part_of_the_straight_way(small, kind):
    task, steps = small(kind), 3
    name, total_E = task.masked.graph.embedding_names[0], 0
    for row in range(3):
        index = torch.tensor([row])
        _, clean, corrupt = patched(task, index, _ones(task))
        target, _, _ = patched(task, index, 0 * _ones(task))
        point, stride = clean[name], (clean[name] - corrupt[name]).norm() / steps
        for _ in range(steps):
            total_E += _summed(task, _slopes_of_readers(task, index, {name: point}), index) / steps / 3
            point = point.detach().requires_grad_()
            logits, _, _ = patched(task, index, _ones(task), embeddings={name: point})
            (slope,) = torch.autograd.grad((logits - target.detach()).square().sum(), point)
            point = point - stride * slope / slope.norm()
    assert torch.allclose(attribute(task, "eap-gp", steps), total_E, atol=10 * CLOSE[kind], rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("steps", [1, 3])
def test_the_score_of_a_writer_is_the_gradient_for_all_that_read_it(small, kind, steps):
    """By a nudge that all readers of a writer get alike, at the model (one step) or on inputs between."""
    task = small(kind)
    index, graph, found = torch.arange(3), task.masked.graph, {}
    _, clean, corrupt = patched(task, index, _ones(task))
    for writer in graph.writers:
        found[writer] = 0.0
        readers = [reader for name, reader in graph.edges() if name == writer]
        for k in range(steps):
            between = {
                each: corrupt[each] + k / steps * (clean[each] - corrupt[each]) for each in graph.embedding_names
            }
            nudge = torch.zeros_like(clean["m0"]).requires_grad_()
            nudges = {reader: nudge if reader in readers else 0.0 for reader in graph.readers}
            given = None if steps == 1 else between
            logits, _, _ = patched(task, index, _ones(task), nudges=nudges, embeddings=given)
            (slope,) = torch.autograd.grad(difference(task, logits).mean(), nudge)
            found[writer] += float((slope * (clean[writer] - corrupt[writer])).sum()) / steps
    expected_E = torch.tensor([found[writer] for writer, _ in graph.edges()], dtype=torch.float64)
    scores_E = attribute(task, "nap" if steps == 1 else "nap-ig", steps)
    assert torch.allclose(scores_E, expected_E, atol=CLOSE[kind], rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_exact_effects_are_those_of_runs_without_the_edge(small, kind):
    task = small(kind)
    index, whole = torch.arange(3), difference(task, patched(task, torch.arange(3), _ones(task))[0]).mean()
    distances_E, falls_E = 0 * _ones(task), 0 * _ones(task)
    with torch.no_grad():
        for edge in range(len(distances_E)):
            z_E = _ones(task)
            z_E[edge] = 0
            logits, _, _ = patched(task, index, z_E)
            distances_E[edge] = _kl(task, index, logits).mean()
            falls_E[edge] = whole - difference(task, logits).mean()
    assert torch.allclose(exact_effects(task), distances_E, atol=CLOSE[kind], rtol=1e-5)
    assert torch.allclose(exact_effects(task.by("logit_difference"), rows=5), falls_E, atol=CLOSE[kind], rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_acdc_takes_out_one_edge_after_another_from_the_output_back(small, kind):
    task = small(kind)
    index, edges, readers = torch.arange(3), task.masked.graph.edges(), task.masked.graph.readers
    share = task.masked.graph.config.num_heads // task.masked.graph.config.num_kv_heads

    def distance(kept):
        z_E = torch.tensor([float(edge in kept) for edge in edges], dtype=torch.float64)
        return float(_kl(task, index, patched(task, index, z_E)[0]).mean())

    def is_read(reader, kept):
        if reader == "resid_post":
            return True
        name, _, part = reader.rpartition(".")
        heads = [reader]
        if part == "q":
            heads = [name]
        elif part in ("k", "v"):
            layer, head = name.split(".h")
            heads = [f"{layer}.h{n}" for n in range(int(head) * share, (int(head) + 1) * share)]
        return any(writer in heads for writer, _ in kept)

    threshold = 0.1 * task.empty_distance
    with torch.no_grad():
        kept = set(edges)
        # readers of a group see the same writers, so that their order within it is a choice; each is gone through from
        # the last writer to the first
        blocks = [[r for r in readers if r[: r.find(".")] == f"a{layer}"] for layer in range(2)]
        order = ["resid_post", "m1", *blocks[1], "m0", *blocks[0]]
        current = distance(kept)
        for reader in order:
            for edge in [each for each in reversed(edges) if each[1] == reader]:
                without = distance(kept - {edge}) if is_read(reader, kept) else current
                if without - current < threshold:
                    kept, current = kept - {edge}, without
    found_E, _ = acdc(task, threshold)
    assert {edge for edge, there in zip(edges, found_E.tolist(), strict=True) if there} == kept
    assert 0 < len(kept) < len(edges)


def _near(parts, whole):
    """How near each part is to the whole, over all parts (Ferrando and Voita 2024, section 2.2)."""
    near = [max(0.0, float(whole.abs().sum() - (whole - part).abs().sum())) for part in parts]
    near = near if sum(near) > 0 else [float(part.abs().sum()) for part in parts]
    return [each / sum(near) for each in near]


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_flow_is_handed_from_the_output_back_token_by_token(small, kind):
    task = small(kind)
    model, graph, config = task.masked.model, task.masked.graph, task.masked.model.config
    weights, share = dict(model.named_parameters()), config.num_heads // config.num_kv_heads
    total = dict.fromkeys(graph.edges(), 0.0)
    for row in range(3):
        index = torch.tensor([row])
        with torch.no_grad():
            _, written, _ = patched(task, index, _ones(task))
        length = task.examples.clean.shape[1]
        flow = {writer: [0.0] * length for writer in graph.writers}

        def hand_on(reader, place, amount, flow=flow, written=written):
            writers = [writer for writer, name in graph.edges() if name == reader]
            parts = [written[writer][0, place] for writer in writers]
            for writer, part in zip(writers, _near(parts, sum(parts)), strict=True):
                total[writer, reader] += amount * part / 3
                flow[writer][place] += amount * part

        def norm(x, name):
            if config.norm == "layernorm":
                return F.layer_norm(
                    x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"], config.norm_eps
                )
            return x * (x.square().mean(-1, keepdim=True) + config.norm_eps).rsqrt() * weights[f"{name}.weight"]

        places = task.examples.positions[row].tolist()
        for place in places:
            hand_on("resid_post", place, 1 / len(places))
        for layer in reversed(range(config.num_layers)):
            for place in range(length):
                hand_on(f"m{layer}", place, flow[f"m{layer}"][place])
            stream = sum(written[w][0] for w, name in graph.edges() if name == f"a{layer}.h0.q")
            normed = norm(stream, f"blocks.{layer}.attention_norm")
            own = [list(flow[f"a{layer}.h{head}"]) for head in range(config.num_heads)]
            for head in range(config.num_heads):

                def part(name, number, layer=layer, normed=normed):
                    rows = slice(number * config.head_dim, (number + 1) * config.head_dim)
                    which = f"blocks.{layer}.attention.{name}"
                    bias = weights[f"{which}.bias"][rows] if config.qkv_bias else 0
                    return normed @ weights[f"{which}.weight"][rows].T + bias

                def turned(x, length=length):
                    if config.positions != "rotary":
                        return x
                    half = config.head_dim // 2
                    angles = torch.arange(length)[:, None] * config.rope_theta ** (-torch.arange(half) / half)
                    cos, sin, (a, b) = angles.cos().double(), angles.sin().double(), x.split(half, 1)
                    return torch.cat((a * cos - b * sin, b * cos + a * sin), 1)

                query, key, value = (
                    turned(part("query", head)),
                    turned(part("key", head // share)),
                    part("value", head // share),
                )
                scores = query @ key.T * (config.attention_scale or config.head_dim**-0.5)
                pattern = scores.masked_fill(torch.ones(length, length).triu(1).bool(), -torch.inf).softmax(1)
                columns = slice(head * config.head_dim, (head + 1) * config.head_dim)
                added = value @ weights[f"blocks.{layer}.attention.output.weight"][:, columns].T
                for place in range(length):
                    amount = own[head][place]
                    parts = [pattern[place, each] * added[each] for each in range(length)]
                    hand_on(f"a{layer}.h{head}.q", place, amount / 3)
                    for each, near in enumerate(_near(parts, sum(parts))):
                        hand_on(f"a{layer}.h{head // share}.k", each, amount * near / 3)
                        hand_on(f"a{layer}.h{head // share}.v", each, amount * near / 3)
    expected_E = torch.tensor([total[edge] for edge in graph.edges()], dtype=torch.float64)
    assert torch.allclose(information_flow(task), expected_E, atol=1e-8)
