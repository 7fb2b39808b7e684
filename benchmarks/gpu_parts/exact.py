"""Whether lmlab computes on this device what it computes on a CPU: operations against fp64, whole models against fp32.

Errors are ‖a - b‖ / ‖b‖. Inputs are drawn on the CPU and rounded to the type before the reference sees them, so that
what is measured is the computation alone. The tolerances are several times what correct kernels give (fp32: 1e-6 for an
operation, 1e-5 through a model; bf16, whose unit is 4e-3: 5e-3 for an operation, 2e-2 through a model) and far below
what a wrong mask, scale or index gives.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from gpu_parts.session import Session
from gpu_parts.shapes import documents
from lmlab.models import (
    GenerationConfig,
    KVCache,
    ModelConfig,
    Targets,
    Transformer,
    fused_cross_entropy,
    generate,
    score_targets,
    token_log_probs,
)
from lmlab.models.attention.backends import attend
from lmlab.models.attention.visibility import Visibility, document_starts, padding_mask
from lmlab.models.moe.config import MoEConfig
from lmlab.models.moe.experts import run_experts
from lmlab.models.moe.router import pairs_of_tokens
from lmlab.train.prepare import compile_network

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
_OPERATION = {"fp32": 2e-5, "bf16": 1.5e-2}
_LOSS = {"fp32": 2e-5, "bf16": 1e-2}
_GRADIENT = {"fp32": 2e-4, "bf16": 6e-2}
_ROUTED = 0.25  # of gradients in bf16 with experts: rounding moves tokens that are near the border to another expert


def run(session: Session) -> None:
    """The cheapest first, so that what breaks is known early."""
    torch.manual_seed(0)
    for name, checks in {"attention": _attention, "experts": _experts, "losses": _losses}.items():
        if session.has(name, 2):
            checks(session)
    _models(session, compiled=False)
    if session.has("caches", 2):
        _caches(session)
    if session.is_cuda or session.only:  # on a processor the compiler takes minutes
        _models(session, compiled=True)
    _marked_tests(session)


def error(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """‖found - expected‖ / ‖expected‖ over all tensors together."""
    a = torch.cat([each.detach().cpu().double().flatten() for each in found])
    b = torch.cat([each.detach().cpu().double().flatten() for each in expected])
    return float((a - b).norm() / b.norm())


def _gradients(function: Callable[..., Tensor], inputs: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """What a function gives on the device, and the gradients of a random weighing of it with regard to its inputs."""
    leaves = [each.detach().to(device).requires_grad_() for each in inputs]
    out = function(*leaves)
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(7)).to(inputs[0].dtype)
    out.backward(weights.to(out.device, out.dtype))
    return [out, *(each.grad for each in leaves if each.grad is not None)]


# ---- attention


def _attention(session: Session) -> None:
    table = "attention, output and gradients against fp64 on a CPU"
    length = 48 if session.tiny else 320  # no multiple of a kernel's block
    for heads, kv_heads, width in ((6, 2, 64), (4, 4, 128)):
        shapes = [(3, heads, length, width), *[(3, kv_heads, length, width)] * 2]
        for dtype_name, dtype in _DTYPES.items():
            inputs = [torch.randn(each).to(dtype) for each in shapes]
            for what, visibility in _visibilities(length).items():
                expected = _gradients(
                    lambda q, k, v, seen=visibility: _plain_attention(q, k, v, seen.mask(q.device)),
                    [each.double() for each in inputs],
                    torch.device("cpu"),
                )
                for backend in _backends(session, dtype, visibility):
                    row = {
                        "back end": backend,
                        "type": dtype_name,
                        "heads": f"{heads}/{kv_heads} x {width}",
                        "sees": what,
                    }
                    with session.attempt(table, row):
                        moved = _moved(visibility, session.device)
                        found = _gradients(
                            lambda q, k, v, seen=moved, name=backend: attend(q, k, v, seen, name),
                            inputs,
                            session.device,
                        )
                        session.check(table, row, error(found, expected), _OPERATION[dtype_name])
    _newest_query(session)


def _visibilities(length: int) -> dict[str, Visibility]:
    valid = torch.ones(3, length, dtype=torch.bool)
    valid[1, : length // 3], valid[2, : length // 2] = False, False
    starts = document_starts(documents(3, length, 40, torch.device("cpu")))
    return {
        "all before": Visibility(length, length),
        "its document": Visibility(length, length, starts),
        "no padding": Visibility(length, length, mask_BTS=padding_mask(valid, length)),
    }


def _backends(session: Session, dtype: torch.dtype, visibility: Visibility) -> Iterator[str]:
    yield "auto"
    yield "sdpa"
    if not visibility.is_dense:
        yield "blocked"
        if session.is_cuda:
            yield "flex"
            if dtype != torch.float32:
                yield "varlen"


def _moved(visibility: Visibility, device: torch.device) -> Visibility:
    starts = visibility.starts_BT
    mask = visibility.mask(torch.device("cpu")).to(device) if visibility.is_dense else None
    return Visibility(
        visibility.num_queries, visibility.num_keys, None if starts is None else starts.to(device), mask_BTS=mask
    )


def _plain_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    scores = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).masked_fill(~mask, float("-inf"))
    return (scores.softmax(-1) @ v).transpose(1, 2)


@torch.no_grad()
def _newest_query(session: Session) -> None:
    """One query for each row over keys of a cache, as decoding has it."""
    table = "attention, output and gradients against fp64 on a CPU"
    for dtype_name, dtype in _DTYPES.items():
        q, k, v = (torch.randn(each).to(dtype) for each in ((3, 6, 1, 64), (3, 2, 77, 64), (3, 2, 77, 64)))
        valid = torch.ones(3, 77, dtype=torch.bool)
        valid[1, :20] = False
        mask = padding_mask(valid, 1)
        expected = _plain_attention(q.double(), k.double(), v.double(), mask)
        for backend in ("auto", "one query", "sdpa"):
            row = {"back end": backend, "type": dtype_name, "heads": "6/2 x 64", "sees": "a cache"}
            with session.attempt(table, row):
                seen = Visibility(1, 77, mask_BTS=mask.to(session.device))
                found = attend(*(each.to(session.device) for each in (q, k, v)), seen, backend)
                session.check(table, row, error([found], [expected]), _OPERATION[dtype_name])


# ---- experts and losses


def _experts(session: Session) -> None:
    table = "experts, output and gradients against fp64 on a CPU"
    tokens, experts, k, width, inner = (64, 8, 2, 32, 16) if session.tiny else (512, 16, 4, 128, 64)
    logits = torch.randn(tokens, experts)
    logits[:, 3] -= 100  # an expert without a token
    weights, indices = logits.softmax(-1).topk(k)
    config = MoEConfig(num_experts=experts, top_k=k, expert_hidden_size=inner)
    shapes = [(tokens, width), (experts, 2 * inner, width), (experts, width, inner)]
    for dtype_name, dtype in _DTYPES.items():
        x, gate_up, down = (torch.randn(each).mul(0.2).to(dtype) for each in shapes)

        def computed(
            x: Tensor, gate_up: Tensor, down: Tensor, weights: Tensor, backend: str, indices: Tensor = indices
        ) -> Tensor:
            pairs = pairs_of_tokens(weights, indices.to(x.device), config)
            return run_experts(x, pairs, gate_up, down, backend=backend)  # type: ignore[arg-type]

        expected = _gradients(
            lambda *inputs: _plain_experts(*inputs, indices),
            [each.double() for each in (x, gate_up, down, weights)],
            torch.device("cpu"),
        )
        for backend in ("auto", "grouped_mm", "loop", "reference"):
            row = {"back end": backend, "type": dtype_name}
            with session.attempt(table, row):
                found = _gradients(
                    lambda *inputs, name=backend: computed(*inputs, name), (x, gate_up, down, weights), session.device
                )
                session.check(table, row, error(found, expected), _OPERATION[dtype_name])


def _plain_experts(x: Tensor, gate_up: Tensor, down: Tensor, weights: Tensor, indices: Tensor) -> Tensor:
    gate, up = torch.einsum("md,egd->meg", x, gate_up).chunk(2, -1)
    outputs_MED = torch.einsum("mef,edf->med", F.silu(gate) * up, down)
    return (outputs_MED.gather(1, indices[..., None].expand(-1, -1, x.shape[1])) * weights[..., None]).sum(1)


def _losses(session: Session) -> None:
    table = "losses, values and gradients against fp64 on a CPU"
    tokens, width, vocabulary = (40, 16, 50) if session.tiny else (5000, 256, 5003)  # more than a block of a GPU's
    labels = torch.randint(0, vocabulary, (tokens,))
    labels[::7] = -100
    kept = labels >= 0
    for dtype_name, dtype in _DTYPES.items():
        hidden, weight = torch.randn(tokens, width).to(dtype), torch.randn(vocabulary, width).mul(0.05).to(dtype)
        target = labels.clamp(min=0)

        def plain(hidden: Tensor, weight: Tensor, target: Tensor = target) -> Tensor:
            logits = hidden @ weight.t()
            lost = F.cross_entropy(logits, target, reduction="none") + 1e-3 * logits.logsumexp(-1).square()
            return (lost * kept).sum()

        def plain_log_probs(hidden: Tensor, weight: Tensor, target: Tensor = target) -> Tensor:
            return (hidden @ weight.t()).log_softmax(-1).gather(1, target[:, None])[:, 0] * kept

        ours: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor]]] = {
            "fused cross-entropy": (
                lambda h, w: fused_cross_entropy(h, w, labels.to(h.device), z_loss=1e-3).sum,
                plain,
            ),
            "log-probabilities": (lambda h, w: token_log_probs(h, w, labels.to(h.device)), plain_log_probs),
        }
        for name, (function, reference) in ours.items():
            row = {"loss": name, "type": dtype_name}
            with session.attempt(table, row):
                expected = _gradients(reference, [hidden.double(), weight.double()], torch.device("cpu"))
                found = _gradients(function, [hidden, weight], session.device)
                session.check(table, row, error(found, expected), _OPERATION[dtype_name])
        row = {"loss": "scores of targets", "type": dtype_name}
        with session.attempt(table, row):
            places = torch.arange(0, tokens, 3)
            targets = Targets(torch.zeros_like(places), places, target[places])
            moved = Targets(*(each.to(session.device) for each in (targets.row_N, targets.position_N, targets.label_N)))
            found_scores = score_targets(hidden[None].to(session.device), weight.to(session.device), moved)
            log_probs = (hidden.double() @ weight.double().t()).log_softmax(-1)[places, target[places]]
            session.check(table, row, error([found_scores.log_probs_N], [log_probs]), _OPERATION[dtype_name])


# ---- whole models


def _families() -> dict[str, ModelConfig]:
    small: dict[str, Any] = {"vocab_size": 300, "num_layers": 3, "d_model": 128, "num_heads": 4, "max_seq_len": 256}
    moe = {"num_experts": 8, "top_k": 2, "expert_hidden_size": 64}
    gpt = {"norm": "layernorm", "norm_bias": True, "positions": "learned", "gated": False, "activation": "gelu_tanh"}
    gpt |= {"qkv_bias": True, "attention_output_bias": True, "ffn_bias": True}
    return {
        "Llama": ModelConfig(**small, num_kv_heads=2),
        "Qwen 3": ModelConfig(**small, num_kv_heads=2, qk_norm="head", vocab_multiple=64),
        "GPT-2": ModelConfig(**small, **gpt),
        "OLMo 2": ModelConfig(**small, qk_norm="full", norm_position="reordered", tie_embeddings=False),
        "OLMoE": ModelConfig(**small, ffn="moe", moe=moe),
    }


def _models(session: Session, compiled: bool) -> None:
    table = f"models{', compiled' if compiled else ''}: loss and gradients against fp32 on a CPU"
    for name, config in _families().items():
        reference = Transformer(config).initialize(0).train()
        for rows_name, batch in _batches(config).items():
            if compiled and (rows_name == "padded" or name in ("GPT-2", "Qwen 3")):
                continue
            expected = _loss_and_gradients(reference, batch, torch.float32)
            for dtype_name, dtype in _DTYPES.items():
                if not session.has(f"model {name}{' compiled' * compiled}", 20 if compiled else 1):
                    return
                row = {"model": name, "rows": rows_name, "type": dtype_name}
                with session.attempt(table, row):
                    model = Transformer(config).initialize(0).train().to(session.device)
                    if compiled:
                        compile_network(model)
                    model.recompute_blocks = 1 if rows_name == "packed" and dtype_name == "bf16" else 0
                    moved = {key: value.to(session.device) for key, value in batch.items()}
                    found = _loss_and_gradients(model, moved, dtype)
                    tolerance = _ROUTED if config.moe and dtype_name == "bf16" else _GRADIENT[dtype_name]
                    loss = abs(float(found[0]) / float(expected[0]) - 1)
                    session.check(table, {**row, "of": "loss"}, loss, _LOSS[dtype_name])
                    session.check(table, {**row, "of": "gradients"}, error(found[1:], expected[1:]), tolerance)


def _batches(config: ModelConfig) -> dict[str, dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(0, config.vocab_size, (3, 97), generator=generator)
    plain = {"input_ids_BT": ids[:, :-1].contiguous(), "labels_BT": ids[:, 1:].contiguous()}
    valid = torch.ones(3, 96, dtype=torch.bool)
    valid[0, :30] = False
    padded = {**plain, "attention_mask_BT": valid, "labels_BT": plain["labels_BT"].masked_fill(~valid, -100)}
    packed = {**plain, "document_ids_BT": documents(3, 96, 20, torch.device("cpu"))}
    return {"plain": plain, "packed": packed, "padded": padded}


def _loss_and_gradients(model: Transformer, batch: dict[str, Tensor], dtype: torch.dtype) -> list[Tensor]:
    device = batch["input_ids_BT"].device
    model.zero_grad()
    with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        out = model(**batch)
    assert out.loss is not None
    loss = out.loss.mean if out.router_losses is None else out.loss.mean + out.router_losses.total
    loss.backward()
    model.router_accounts.end_step()  # else the loads of this step would count in the next
    return [loss.detach(), *(each.grad for each in model.parameters() if each.grad is not None)]


# ---- caches


@torch.inference_mode()
def _caches(session: Session) -> None:
    """Logits of tokens that are fed piece by piece, against those of whole texts on the CPU."""
    table = "caches: logits of tokens fed piece by piece against whole texts in fp32 on a CPU"
    config = _families()["Llama"]
    reference = Transformer(config).initialize(0).eval()
    ids = torch.randint(0, config.vocab_size, (3, 40), generator=torch.Generator().manual_seed(5))
    valid = torch.ones(3, 40, dtype=torch.bool)
    valid[1, :9] = False
    expected = {
        "whole rows": reference(ids).logits_BTV[:, 29:],
        "rows padded on the left": reference(ids, attention_mask_BT=valid).logits_BTV[:, 29:],
    }
    expected["a shared beginning"] = reference(torch.cat((ids[:1, :30].expand(3, -1), ids[:, 30:]), 1)).logits_BTV[
        :, 30:
    ]
    for dtype_name, dtype in _DTYPES.items():
        model = Transformer(config).initialize(0).eval().to(session.device, dtype)
        for what, logits in expected.items():
            row = {"cache": what, "type": dtype_name}
            with session.attempt(table, row):
                moved = ids.to(session.device)
                mask = valid.to(session.device) if "padded" in what else None
                if what == "a shared beginning":
                    prefix = KVCache(config, 1, 30, dtype, session.device)
                    model(moved[:1, :30], cache=prefix, logits="none")
                    cache, pieces = prefix.fork(3, 10), []
                else:
                    cache = KVCache(config, 3, 40, dtype, session.device)
                    first = model(moved[:, :30], attention_mask_BT=None if mask is None else mask[:, :30], cache=cache)
                    pieces = [first.logits_BTV[:, -1:]]
                pieces += [model(moved[:, at : at + 1], cache=cache).logits_BTV for at in range(30, 40)]
                found = torch.cat(pieces, 1)
                session.check(table, row, error([found], [logits]), 1e-4 if dtype_name == "fp32" else 3e-2)
    row = {"cache": "greedy continuations that are the same", "type": "fp32"}
    with session.attempt(table, row):
        prompts = [row_.tolist()[: 5 + 7 * number] for number, row_ in enumerate(ids)]
        settings = GenerationConfig(max_new_tokens=24, temperature=0)
        model = Transformer(config).initialize(0).eval().to(session.device)
        ours = [each.ids for (each,) in generate(model, prompts, settings)]
        theirs = [each.ids for (each,) in generate(reference, prompts, settings)]
        differ = sum(a != b for a, b in zip(ours, theirs, strict=True)) / len(prompts)
        session.check(table, row, differ, 0.0)


# ---- the tests that need a GPU


def _marked_tests(session: Session) -> None:
    """Those of tests/ that are marked `gpu`; files without the mark are not collected, for the time that it takes."""
    tests = Path(__file__).resolve().parent.parent.parent / "tests"
    if not session.is_cuda or not session.has("tests marked gpu", 20):
        return
    if importlib.util.find_spec("pytest") is None or not tests.is_dir():
        session.record.note("the tests marked gpu were not run: pytest or tests/ is missing")
        return
    files = [str(each) for each in tests.rglob("test_*.py") if "mark.gpu" in each.read_text(encoding="utf-8")]
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", *files]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=max(20, session.left()), cwd=tests.parent, env=os.environ
        )
    except subprocess.TimeoutExpired:
        session.record.note("the tests marked gpu did not end in time")
        return
    last = (done.stdout.strip().splitlines() or [done.stderr.strip()[-200:]])[-1]
    session.wrong += done.returncode != 0
    session.record.row("tests marked gpu", {"files": len(files), "result": last})
    if done.returncode:
        session.record.content["pytest"] = (done.stdout + done.stderr)[-8000:]
        print(done.stdout[-4000:], flush=True)
