"""The masked pass written anew from the weights, edge by edge, for families that it is compared with."""

from __future__ import annotations

from functools import partial

import torch
from torch.nn import functional as F

CLOSE = {"gpt2": 1e-10, "neox": 1e-10, "llama": 1e-9, "granite": 1e-9}
"""The core rounds angles of rotary positions to fp32."""
WRITTEN_ANEW = list(CLOSE)
"""Families that `patch_paths` knows."""


def patch_paths(
    model, graph, clean, corrupted, z_E, positions, nudges=None, embeddings=None, straight=False, dropped=None
):
    """GPT-2, GPT-NeoX, Llama and Granite, written anew from the weights: every reader adds up, edge by edge, the
    outputs of each writer on both inputs, mixed by z.

    Returns the logits, and what the writers gave in the masked and in the corrupted run; `nudges` are added to what
    readers read, `embeddings` take the place of those of the clean input. With `straight`, gradients are those of RelP;
    no gradient passes through the layer that is `dropped`.
    """
    held = (lambda x: x.detach()) if straight else (lambda x: x)

    def bent(x, activation):
        return x * (activation(x) / x).detach() if straight else activation(x)

    weights, config = dict(model.named_parameters()), model.config
    share = config.num_heads // config.num_kv_heads

    def norm(x, name):
        if config.norm == "layernorm" and straight:
            apart = x - x.mean(-1, keepdim=True)
            scale = held((apart.square().mean(-1, keepdim=True) + config.norm_eps).rsqrt())
            return apart * scale * weights[f"{name}.weight"] + weights[f"{name}.bias"]
        if config.norm == "layernorm":
            return F.layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"], config.norm_eps)
        return x * held((x.square().mean(-1, keepdim=True) + config.norm_eps).rsqrt()) * weights[f"{name}.weight"]

    def project(x, layer, part, head):
        rows = slice(head * config.head_dim, (head + 1) * config.head_dim)
        name = f"blocks.{layer}.attention.{part}"
        bias = weights[f"{name}.bias"][rows] if config.qkv_bias else 0
        return norm(x, f"blocks.{layer}.attention_norm") @ weights[f"{name}.weight"][rows].T + bias

    def rotate(x):
        if config.positions != "rotary":
            return x
        half = config.head_dim // 2
        angles = torch.arange(x.shape[1]).float()[:, None] * config.rope_theta ** (-torch.arange(half).float() / half)
        cos, sin = angles.cos().double(), angles.sin().double()
        a, b = x[..., :half], x[..., half:]
        return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)

    def run(tokens, read, embeddings=None):
        written = {}
        if config.positions == "learned":
            written["tok_embeds"] = weights["embedding.weight"][tokens]
            written["pos_embeds"] = weights["position_embedding.weight"][: tokens.shape[1]].expand(len(tokens), -1, -1)
        else:
            written["embeds"] = weights["embedding.weight"][tokens] * config.embedding_scale
        written |= embeddings or {}
        hidden = torch.ones(tokens.shape[1], tokens.shape[1], dtype=torch.bool).triu(1)
        for layer in range(config.num_layers):
            before = dict(written)
            for head in range(config.num_heads):
                q = rotate(project(read(before, f"a{layer}.h{head}.q"), layer, "query", head))
                k = rotate(project(read(before, f"a{layer}.h{head // share}.k"), layer, "key", head // share))
                v = project(read(before, f"a{layer}.h{head // share}.v"), layer, "value", head // share)
                scores = (q @ k.transpose(1, 2) * (config.attention_scale or config.head_dim**-0.5)).masked_fill(
                    hidden, -torch.inf
                )
                columns = slice(head * config.head_dim, (head + 1) * config.head_dim)
                out = held(scores.softmax(-1)) @ v @ weights[f"blocks.{layer}.attention.output.weight"][:, columns].T
                out = out + (
                    weights[f"blocks.{layer}.attention.output.bias"] / config.num_heads if config.qkv_bias else 0
                )
                written[f"a{layer}.h{head}"] = out * config.residual_multiplier
            seen = before if config.parallel_residual else written
            x, name = norm(read(seen, f"m{layer}"), f"blocks.{layer}.ffn_norm"), f"blocks.{layer}.ffn"
            if config.gated:
                inner = bent(x @ weights[f"{name}.gate.weight"].T, F.silu) * (x @ weights[f"{name}.up.weight"].T)
                inner = inner / 2 + inner.detach() / 2 if straight else inner
                written[f"m{layer}"] = inner @ weights[f"{name}.down.weight"].T
            else:
                inner = bent(
                    x @ weights[f"{name}.up.weight"].T + weights[f"{name}.up.bias"],
                    partial(F.gelu, approximate="tanh"),
                )
                written[f"m{layer}"] = inner @ weights[f"{name}.down.weight"].T + weights[f"{name}.down.bias"]
            written[f"m{layer}"] = written[f"m{layer}"] * config.residual_multiplier
        logits = norm(read(written, "resid_post"), "final_norm") @ weights["embedding.weight"].T * config.logit_scale
        return logits, written

    _, corrupt = run(corrupted, lambda written, reader: sum(written.values()))
    masks = dict(zip(graph.edges(), z_E, strict=True))

    def read(written, reader):
        mixed = sum(
            masks[writer, reader] * value + (1 - masks[writer, reader]) * corrupt[writer]
            for writer, value in written.items()
        )
        if dropped is not None and reader.startswith((f"a{dropped}.", f"m{dropped}")):
            mixed = mixed.detach()
        return mixed if nudges is None else mixed + nudges[reader]

    logits, written = run(clean, read, embeddings)
    return logits[torch.arange(len(clean))[:, None], positions], written, corrupt


def patched(task, index, z_E, **changes):
    """`patch_paths` on some examples of a task."""
    examples = task.examples
    return patch_paths(
        task.masked.model,
        task.masked.graph,
        examples.clean[index],
        examples.corrupted[index],
        z_E,
        examples.positions[index],
        **changes,
    )


def difference(task, logits):
    """The logit difference of all examples at the last position, [B]."""
    last = logits[:, -1]
    return (last.gather(1, task.examples.answers[:, None]) - last.gather(1, task.examples.distractors[:, None]))[:, 0]
