"""A step of training beside the reference implementation's, each in a process and with an interpreter of its own.

The reference's code is read where it lies (a checkout), and needs transformers 4.34; its Llama file, which needs CUDA,
is not. Run by the reference's interpreter, this file imports nothing of lmlab.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

# OPT-125M
_SHAPE = {
    "vocab_size": 50272,
    "num_layers": 12,
    "d_model": 768,
    "num_heads": 12,
    "d_ff": 3072,
    "max_seq_len": 2048,
    "positions": "learned",
    "position_offset": 2,
    "norm": "layernorm",
    "norm_bias": True,
    "activation": "relu",
    "gated": False,
    "qkv_bias": True,
    "attention_output_bias": True,
    "ffn_bias": True,
}
# blocks and segments of a row, and whether a segment keeps only its input for the backward pass
WAYS = {"block": (2, 2, False), "full": (1, 4, False), "block+again": (2, 2, True), "full+again": (1, 4, True)}


def measure_step(reference: Path | None, python: str, arguments: argparse.Namespace) -> None:
    """Print seconds and peak memory of each contender, in turns."""
    from lmlab.files import read_mapping, write_json
    from lmlab.methods.autocompressor import AutoCompressor, CompressorConfig
    from lmlab.methods.autocompressor.compressor.convert import write_reference
    from lmlab.models import ModelConfig, Transformer

    with tempfile.TemporaryDirectory() as folder:
        model = Transformer(ModelConfig.model_validate(_SHAPE)).initialize(0)
        compressor = AutoCompressor(model, CompressorConfig(summary_length=arguments.kappa))
        compressor.initialize_summary("eos", 0.02, 2, 0)
        compressor.save(Path(folder) / "lmlab")
        count = sum(each.numel() for each in compressor.parameters())
        contenders = [f"lmlab {way}" for way in arguments.ways if "lmlab" in arguments.contenders]
        if reference is not None:
            write_reference(compressor, Path(folder) / "reference")
            settings = read_mapping(Path(folder) / "reference" / "config.json")
            write_json(Path(folder) / "reference" / "config.json", settings | {"eos_token_id": 2})  # it asks for one
            contenders += [f"reference {way}" for way in arguments.ways if "reference" in arguments.contenders]
        del model, compressor
        case = {"folder": folder, "reference": str(reference), "precision": arguments.precision}
        case |= {"length": arguments.length, "threads": arguments.threads}
        print(f"{count:,} parameters, a row of {arguments.length} tokens in 4 segments, {arguments.kappa} vectors each")
        print(f"{arguments.precision}, {arguments.threads} threads", flush=True)
        rows = []
        for name in contenders:  # one after the other: what one holds is not the next one's peak
            interpreter = sys.executable if name.startswith("lmlab") else python
            told = json.dumps(case | {"contender": name, "steps": arguments.steps})
            worker = subprocess.run([interpreter, "-P", __file__, told], stdout=subprocess.PIPE, text=True, check=True)
            rows.append({"name": name, **json.loads(worker.stdout.splitlines()[-1])})
            print(_told(rows[-1]), flush=True)
    by_name = {row["name"]: row for row in rows}
    for way in arguments.ways:
        ours, theirs = by_name.get(f"lmlab {way}"), by_name.get(f"reference {way}")
        if ours is not None and theirs is not None:
            print(
                f"{way}: {theirs['process'] / ours['process']:.2f} times as fast,"
                f" {ours['peak'] / theirs['peak']:.0%} of the peak,"
                f" {ours['activations'] / theirs['activations']:.0%} of what is held beside weights, gradients and"
                f" moments; losses differ by {abs(ours['loss'] - theirs['loss']):.1e}"
            )


def _told(row: dict[str, Any]) -> str:
    return (
        f"{row['name']:22} {row['process']:8.2f} s of processor a step, {row['wall']:8.2f} s of wall,"
        f" peak {row['peak'] / 2**20:8,.0f} MiB, {row['activations'] / 2**20:8,.0f} MiB beside weights, gradients and"
        f" moments, loss {row['loss']:.5f}"
    )


def _work(case: dict[str, Any]) -> None:
    """Take steps, the first of which warms up; print what they took."""
    import torch

    who, way = case["contender"].split()
    blocks, segments, again = WAYS[way]
    torch.set_num_threads(case["threads"])
    make = _lmlab if who == "lmlab" else _reference
    before = _memory("VmRSS")
    model, step = make(case, blocks, segments, again)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    ids_BT = torch.randint(3, _SHAPE["vocab_size"], (1, case["length"]), generator=torch.Generator().manual_seed(0))
    found, loss = [], 0.0
    for number in range(case["steps"] + 1):
        wall, process = time.perf_counter(), time.process_time()
        with torch.autocast("cpu", torch.bfloat16, enabled=case["precision"] == "bf16"):
            value = step(ids_BT)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if number:
            found.append((time.perf_counter() - wall, time.process_time() - process))
        else:
            loss = value
    peak = _memory("VmHWM") - before
    held = 16 * sum(each.numel() for each in model.parameters())  # weights, gradients and two moments
    print(
        json.dumps(
            {
                "loss": loss,
                "wall": statistics.median(each[0] for each in found),
                "process": statistics.median(each[1] for each in found),
                "peak": peak,
                "activations": peak - held,
            }
        )
    )


def _lmlab(case: dict[str, Any], blocks: int, segments: int, again: bool) -> tuple[Any, Callable[[Any], float]]:
    import torch

    from lmlab.hardware import reuse_memory
    from lmlab.methods.autocompressor import AutoCompressor
    from lmlab.methods.autocompressor.config import SegmentsConfig
    from lmlab.methods.autocompressor.training.step import CompressorStep

    reuse_memory()
    compressor = AutoCompressor.load(Path(case["folder"]) / "lmlab").train()
    # the reference's loss: so that both compute the same
    step = CompressorStep(
        SegmentsConfig(
            blocks=blocks,
            segments=segments,
            random=False,
            checkpoint_segments=again,
            sum_blocks=True,
            drop_border=True,
        )
    )

    def run(ids_BT: Any) -> float:
        labels_BT = torch.cat((ids_BT[:, 1:], torch.full_like(ids_BT[:, :1], -100)), 1)
        return float(step(compressor, {"input_ids": ids_BT, "labels": labels_BT}).loss_sum)

    return compressor, run


def _reference(case: dict[str, Any], blocks: int, segments: int, again: bool) -> tuple[Any, Callable[[Any], float]]:
    import transformers

    # Its file of Llama needs kernels for CUDA; OPT needs nothing of it.
    stub = types.ModuleType("modeling_flash_llama")
    stub.LlamaForCausalLM = transformers.LlamaForCausalLM  # type: ignore[attr-defined]
    sys.modules["modeling_flash_llama"] = stub
    sys.path.insert(0, case["reference"])
    from auto_compressor import OPTAutoCompressorModel

    model = OPTAutoCompressorModel.from_pretrained(Path(case["folder"]) / "reference").train()
    model.config.segment_gradient_checkpointing = again
    model.config.dropout = 0.0
    for module in model.modules():  # OPT's own dropout of 0.1: the other side has none
        if hasattr(module, "dropout") and isinstance(module.dropout, float):
            module.dropout = 0.0

    def run(ids_BT: Any) -> float:
        length, total, prompt = ids_BT.shape[1], 0.0, None
        for number in range(blocks):
            part = ids_BT[:, length * number // blocks : length * (number + 1) // blocks]
            out = model(
                part,
                labels=part,
                softprompt=prompt,
                segment_lengths=part.shape[1] // segments,
                use_cache=False,
                output_softprompt=True,
            )
            out.loss.backward()
            prompt, total = out.softprompt.detach(), total + float(out.loss)
        return total

    return model, run


def _memory(key: str) -> int:
    with open("/proc/self/status", encoding="utf-8") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(key))


if __name__ == "__main__":
    _work(json.loads(sys.argv[1]))
