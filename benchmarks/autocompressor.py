"""AutoCompressors: what the method claims, measured here.

    python benchmarks/autocompressor.py recall --out runs/recall              # a known answer: an hour on two cores
    python benchmarks/autocompressor.py text --out runs/text                  # real text, three seeds
    python benchmarks/autocompressor.py text --start MODEL --out runs/lora    # the same by adapters beside a real model
    python benchmarks/autocompressor.py step --reference DIR --python PYTHON  # a training step beside the reference's
    python benchmarks/autocompressor.py cost                                  # time and memory at 2K and 8K of context

Every part goes on where it was cut off. The load of the machine is printed with each figure that is a time.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from dataclasses import fields
from pathlib import Path
from typing import Any

from compressor_parts.step import WAYS, measure_step
from compressor_parts.text import TextSettings, measure_text


def recall(out: Path, seeds: int, steps: int, kinds: list[Any]) -> None:
    """Pairs are asked for when only summaries are left (a known answer; chance is 1/8)."""
    from lmlab.methods.autocompressor.training.recall import recall_trainer

    for kind in kinds:
        for seed in range(seeds):
            place = out / f"{kind}-{seed}"
            recall_trainer(kind, seed, steps, str(place), evaluate_every=100, checkpoint_every=50).fit()
            rows = [row for row in _metrics(place) if "heldout_accuracy" in row]
            found = " ".join(f"{row['step']}:{row['heldout_accuracy']:.3f}" for row in rows)
            print(f"{kind:10} seed {seed}  {found}", flush=True)


def cost(layers: int, width: int, kappa: int, segment: int, precision: str) -> None:
    """Reading behind vectors against reading behind the whole context, and compressing against one plain pass, in one
    run, with weights that were drawn: time does not depend on what they say.
    """
    import torch

    from lmlab.hardware.gemm import fast_inference
    from lmlab.methods.autocompressor import AutoCompressor, CompressorConfig
    from lmlab.models import GenerationConfig, ModelConfig, Transformer

    shape = {"vocab_size": 8192, "num_layers": layers, "d_model": width, "num_heads": width // 64, "max_seq_len": 10240}
    model = Transformer(ModelConfig.model_validate(shape)).initialize(0).eval()
    model = model.to(torch.bfloat16 if precision == "bf16" else torch.float32)
    compressor = AutoCompressor(model, CompressorConfig(summary_length=kappa)).eval()
    row = (
        2 * model.embedding.weight.element_size() * layers * model.config.num_kv_heads * model.config.head_dim
    )  # bytes of keys and values of a position
    size = f"{model.config.num_parameters():,} parameters"
    print(f"{size}, {precision}, {kappa} vectors for {segment} tokens", flush=True)
    settings = GenerationConfig(max_new_tokens=33, temperature=0)
    for context in (2048, 8192):
        ids = torch.randint(0, 8192, (1, context), generator=torch.Generator().manual_seed(0))
        vectors = compressor.compress(ids, segment_lengths=segment)
        told = {}
        for name, prompt, before in (
            ("full", [*ids[0].tolist(), 1], None),
            ("vectors", [1], vectors.soft_prompt),
        ):
            found = [_decode(model, prompt, before, settings) for _ in range(3)]
            one, each = (min(times) for times in zip(*found, strict=True))
            told[name] = (one, 1000 * each, row * (context if before is None else vectors.length))
        for name, (first, each, held) in told.items():
            print(f"context {context} {name:8} first token {first:.3f} s, {each:.2f} ms a token, {held:,} bytes held")
        ratios = [a / b for a, b in zip(told["full"], told["vectors"], strict=True)]
        print(f"context {context} full / vectors: {', '.join(f'{ratio:.1f}' for ratio in ratios)}", flush=True)
    ids = torch.randint(0, 8192, (8, 512), generator=torch.Generator().manual_seed(1))
    with torch.no_grad(), fast_inference():
        plain = _seconds(lambda: model(ids, logits="none"))
        packed = _seconds(lambda: compressor.compress(ids, segment_lengths=512))
    rates = f"{8 / packed:.2f} a second compressed, {8 / plain:.2f} read"
    print(f"8 documents of 512 tokens: {rates}: ratio {packed / plain:.3f}")
    print(f"1 + kappa / m is {1 + kappa / 512:.3f}; load {os.getloadavg()[0]:.2f}")


def _decode(model: Any, prompt: Any, before: Any, settings: Any) -> tuple[float, float]:
    """Seconds to the first token, and of each further one."""
    from lmlab.models import Decoding, DecodingConfig

    decoding, begun = Decoding(model), time.perf_counter()
    decoding.add([(prompt, DecodingConfig.model_validate(settings.model_dump()))], soft_prompt=before)
    first, steps = time.perf_counter(), 0
    while decoding.live:
        decoding.step()
        steps += 1
    return first - begun, (time.perf_counter() - first) / steps


def _seconds(call: Any, times: int = 3) -> float:
    """The least of several runs: what others do to the machine only adds."""
    found = []
    for _ in range(times):
        begun = time.perf_counter()
        call()
        found.append(time.perf_counter() - begun)
    return min(found)


def _metrics(place: Path) -> list[dict[str, Any]]:
    path = place / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parts = parser.add_subparsers(dest="part", required=True)
    part = parts.add_parser("recall")
    part.add_argument("--out", type=Path, default=Path("runs/recall"))
    part.add_argument("--seeds", type=int, default=3)
    part.add_argument("--steps", type=int, default=2500)
    part.add_argument("--kinds", nargs="+", default=["accumulate", "replace", "none"])
    part = parts.add_parser("text")
    part.add_argument("--out", type=Path, default=Path("runs/text"))
    part.add_argument("--start", type=Path)
    part.add_argument("--kinds", nargs="+", default=["accumulate", "replace", "plain"])
    part.add_argument("--seeds", type=int, default=3)
    part.add_argument("--steps", type=int, default=150)
    part.add_argument("--base-steps", type=int, default=250)
    part.add_argument("--warm-steps", type=int, default=0)
    part.add_argument("--rows", type=int, default=2)
    part.add_argument("--at-once", type=int, default=2)
    part.add_argument("--segment", type=int, default=256)
    part.add_argument("--kappa", type=int, default=8)
    part.add_argument("--vector-scale", default=1.0, type=lambda given: given if given == "embedding" else float(given))
    part.add_argument("--layers", type=int, default=3)
    part.add_argument("--width", type=int, default=160)
    part.add_argument("--vocabulary", type=int, default=2048)
    part.add_argument("--sources", type=Path, help="a directory of further Python sources to learn from")
    part.add_argument("--blocks", type=int, default=1)
    part.add_argument("--depth", type=int, default=0)
    part.add_argument("--optimizer", default="muon")
    part.add_argument("--rate", type=float, default=3e-3)
    part.add_argument("--base-rate", type=float, default=4e-3)
    part.add_argument("--summary-rate", type=float, default=2e-2)
    part.add_argument("--precision", default="bf16")
    part.add_argument("--domains", nargs="+", default=["papers", "code"])
    part.add_argument("--documents", type=int, default=40)
    part = parts.add_parser("cost")
    part.add_argument("--layers", type=int, default=4)
    part.add_argument("--width", type=int, default=256)
    part.add_argument("--kappa", type=int, default=50)
    part.add_argument("--segment", type=int, default=2048)
    part.add_argument("--precision", default="fp32", choices=("fp32", "bf16"))
    part = parts.add_parser("step")
    part.add_argument("--reference", type=Path, help="a checkout of princeton-nlp/AutoCompressors")
    part.add_argument("--python", default="python3", help="an interpreter with torch and transformers 4.34")
    part.add_argument("--ways", nargs="+", default=["block", "full"], choices=WAYS)
    part.add_argument("--contenders", nargs="+", default=["lmlab", "reference"], choices=["lmlab", "reference"])
    part.add_argument("--length", type=int, default=2048)
    part.add_argument("--kappa", type=int, default=50)
    part.add_argument("--steps", type=int, default=2)
    part.add_argument("--threads", type=int, default=1)
    part.add_argument("--precision", default="fp32", choices=("fp32", "bf16"))
    given = parser.parse_args()
    print(f"load {os.getloadavg()[0]:.2f} on {os.cpu_count()} cores", flush=True)
    if given.part == "recall":
        recall(given.out, given.seeds, given.steps, given.kinds)
    elif given.part == "cost":
        cost(given.layers, given.width, given.kappa, given.segment, given.precision)
    elif given.part == "step":
        measure_step(given.reference, given.python, given)
    elif given.part == "text":
        settings = {field.name: getattr(given, field.name) for field in fields(TextSettings)}
        measure_text(
            given.out, TextSettings(**settings | {"kinds": tuple(given.kinds), "domains": tuple(given.domains)})
        )


if __name__ == "__main__":
    main()
