"""AutoCompressors: what the method claims, measured here.

    python benchmarks/autocompressor.py recall --out runs/recall              # a known answer: an hour on two cores
    python benchmarks/autocompressor.py text --out runs/text                  # real text, three seeds
    python benchmarks/autocompressor.py cost                                  # time and memory at 2K and 8K of context

Every part goes on where it was cut off. The load of the machine is printed with each figure that is a time.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any


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


def text(out: Path, seeds: int, steps: int, base_steps: int) -> None:
    """Research papers by a small model: what the last 256 tokens gain from 1 to 3 compressed segments, beside as many
    plain tokens, full attention, replaced vectors, another paper's vectors.
    """
    from lmlab.data import Tokenizer, read_documents
    from lmlab.evals.long.texts import papers
    from lmlab.files import write_jsonl
    from lmlab.methods.autocompressor import AutoCompressor
    from lmlab.methods.autocompressor.measure.ppl import Measurement, PplSettings, measure_ppl, table
    from lmlab.runs import Recipe, run_recipe

    out.mkdir(parents=True, exist_ok=True)
    bodies = [{"id": f"paper-{n}", "text": paper.body, "domain": "papers"} for n, paper in enumerate(papers())]
    train, heldout = bodies[: len(bodies) * 11 // 13], bodies[len(bodies) * 11 // 13 :]
    for name, rows in (("train", train), ("heldout", heldout)):
        if not (out / f"{name}.jsonl").exists():
            write_jsonl(out / f"{name}.jsonl", rows)
    print(f"{len(train)} papers to learn from, {len(heldout)} held out", flush=True)
    for seed in range(seeds):
        run = out / f"seed-{seed}"
        run_recipe(Recipe.parse(_text_recipe(out, seed, steps, base_steps), "the benchmark"), run)
        models = {name: AutoCompressor.load(run / name) for name in ("accumulate", "replace")}
        plain = AutoCompressor.from_base(run / "plain", summary_length=0, init="noise")
        tokenizer = Tokenizer.load(run / "accumulate" / "model")
        texts = [(each.id, tokenizer.encode_prompt(each.text)) for each in read_documents(out / "heldout.jsonl")]
        settings = PplSettings((0, 256, 512, 768), 256, 256, ("shuffled", "truncate", "full", "rmt", "base"), 1000)
        others = {"rmt": models["replace"], "base": plain}
        found = measure_ppl(Measurement(models["accumulate"], settings, others), texts, run / "ppl")
        print(f"seed {seed}: {found['texts']} papers", flush=True)
        for row in table(found):
            print("  ".join(f"{cell:>30}" if i > 2 else f"{cell:>10}" for i, cell in enumerate(row)), flush=True)
        print("gain retained", json.dumps(found["gain_retained"]), flush=True)


def _text_recipe(out: Path, seed: int, steps: int, base_steps: int) -> dict[str, Any]:
    def trainer(length: int, rows: int, rate: float) -> dict[str, Any]:
        groups = [{"match": "summary_embedding", "learning_rate": 10 * rate, "weight_decay": 0.0}]
        return {
            "steps": length,
            "batch_size": rows,
            "precision": "fp32",
            "device": "cpu",
            "checkpoint_every": 25,
            "log_every": 25,
            "optimizer": {"learning_rate": rate, "weight_decay": 0.01, "groups": groups},
        }

    adapted = {"kind": "compress_train", "start": "base", "tokens": "tokens", "seq_len": 1024}
    adapted |= {"heldout_tokens": "heldout_tokens", "heldout_rows": 16, "trainer": trainer(steps, 4, 1e-3)}
    shape = {
        "vocab_size": 4096,
        "num_layers": 4,
        "d_model": 160,
        "num_heads": 4,
        "num_kv_heads": 2,
        "max_seq_len": 1152,
    }
    return {
        "name": "text",
        "seed": seed,
        "stages": {
            "tokenizer": {"kind": "train_tokenizer", "documents": str(out / "train.jsonl"), "vocab_size": 2048},
            "tokens": {"kind": "tokenize", "documents": str(out / "train.jsonl"), "tokenizer": "tokenizer"},
            "heldout_tokens": {"kind": "tokenize", "documents": str(out / "heldout.jsonl"), "tokenizer": "tokenizer"},
            "base": {
                "kind": "train",
                "tokens": "tokens",
                "tokenizer": "tokenizer",
                "seq_len": 1024,
                "max_epochs": 100,
                "model": shape,
                "trainer": trainer(base_steps, 4, 2e-3) | {"optimizer": {"learning_rate": 2e-3}},
            },
            "accumulate": adapted | {"compressor": {"summary_length": 8}},
            "replace": adapted | {"compressor": {"summary_length": 8, "accumulate": False}},
            "plain": {
                "kind": "train",
                "start": "base",
                "tokens": "tokens",
                "seq_len": 256,
                "max_epochs": 100,
                "trainer": trainer(steps, 16, 1e-3) | {"optimizer": {"learning_rate": 1e-3, "weight_decay": 0.01}},
            },
        },
    }


def cost(layers: int, width: int, kappa: int, segment: int) -> None:
    """Reading behind vectors against reading behind the whole context, and compressing against one plain pass, in one
    run, with weights that were drawn: time does not depend on what they say.
    """
    import torch

    from lmlab.hardware.gemm import fast_inference
    from lmlab.methods.autocompressor import AutoCompressor, CompressorConfig
    from lmlab.models import GenerationConfig, ModelConfig, Transformer

    shape = {"vocab_size": 8192, "num_layers": layers, "d_model": width, "num_heads": width // 64, "max_seq_len": 10240}
    model = Transformer(ModelConfig.model_validate(shape)).initialize(0).eval()
    compressor = AutoCompressor(model, CompressorConfig(summary_length=kappa)).eval()
    row = 2 * 4 * layers * model.config.num_kv_heads * model.config.head_dim  # bytes of keys and values of a position
    print(f"{model.config.num_parameters():,} parameters, {kappa} vectors for {segment} tokens", flush=True)
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
    part.add_argument("--seeds", type=int, default=3)
    part.add_argument("--steps", type=int, default=400)
    part.add_argument("--base-steps", type=int, default=600)
    part = parts.add_parser("cost")
    part.add_argument("--layers", type=int, default=4)
    part.add_argument("--width", type=int, default=256)
    part.add_argument("--kappa", type=int, default=50)
    part.add_argument("--segment", type=int, default=2048)
    given = parser.parse_args()
    print(f"load {os.getloadavg()[0]:.2f} on {os.cpu_count()} cores", flush=True)
    if given.part == "recall":
        recall(given.out, given.seeds, given.steps, given.kinds)
    elif given.part == "cost":
        cost(given.layers, given.width, given.kappa, given.segment)
    elif given.part == "text":
        text(given.out, given.seeds, given.steps, given.base_steps)


if __name__ == "__main__":
    main()
