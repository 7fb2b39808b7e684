"""What the loop costs beside the bare step, its checkpoints and its resume, and the same work by the Trainer of
transformers.

python benchmarks/trainer.py [--steps 12] [--precision bf16] [--model small|smollm2]
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SHAPES = {
    "small": ({"vocab_size": 2048, "num_layers": 8, "d_model": 256, "num_heads": 4, "max_seq_len": 512}, 8),
    "smollm2": (
        {
            "vocab_size": 49152,
            "num_layers": 30,
            "d_model": 576,
            "num_heads": 9,
            "num_kv_heads": 3,
            "d_ff": 1536,
            "max_seq_len": 512,
        },
        1,
    ),
}
SEQ_LEN = 512


def rows(vocab_size: int):
    import numpy as np

    class Random:
        def __len__(self) -> int:
            return 512

        def __getitem__(self, index: int):
            tokens = np.random.default_rng(index).integers(0, vocab_size, SEQ_LEN + 1)
            zeros = np.zeros(SEQ_LEN, np.int64)
            return {"input_ids": tokens[:-1], "labels": tokens[1:], "document_ids": zeros, "domain_ids": zeros}

    return Random()


def build(options: argparse.Namespace, directory: Path, **settings):
    from lmlab.data import Loader
    from lmlab.models import ModelConfig, Transformer
    from lmlab.train import Trainer, TrainerConfig, language_model_step_by_domain

    shape, batch = SHAPES[options.model]
    config = ModelConfig(**shape)
    settings = {
        "steps": options.steps,
        "batch_size": batch,
        "precision": options.precision,
        "device": "cpu",
        "checkpoint_every": 10**6,
        **settings,
    }
    loader = Loader(rows(config.vocab_size), batch, 0)
    flops = config.flops_per_token(SEQ_LEN)
    return Trainer(
        Transformer(config).initialize(0),
        language_model_step_by_domain(["text"]),
        loader,
        TrainerConfig(**settings),
        directory,
        flops_per_token=flops,
    )


def run_bare(options: argparse.Namespace, directory: Path) -> dict:
    """Forward, backward, clipping and AdamW by hand, on batches that are there already."""
    import itertools

    import torch

    from lmlab.hardware import reuse_memory
    from lmlab.train import Optimizers

    reuse_memory()
    trainer = build(options, directory)
    model, optimizers = trainer.model, Optimizers(trainer.model, trainer.config.optimizer)
    times = []
    for batch in list(itertools.islice(trainer.loader, options.steps)):
        start = time.perf_counter()
        with trainer._autocast():
            loss = model(batch["input_ids"], labels_BT=batch["labels"], document_ids_BT=batch["document_ids"]).loss
        (loss.sum / loss.count).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizers.step()
        optimizers.zero_grad()
        times.append(time.perf_counter() - start)
    return {"step_seconds": times}


def run_lmlab(options: argparse.Namespace, directory: Path) -> dict:
    from lmlab.hardware import reuse_memory
    from lmlab.train import read_metrics

    reuse_memory()
    trainer = build(options, directory, log_every=1)
    stamps = [time.perf_counter()]
    write = trainer._train_step

    def timed(batch, stop):
        stamps.append(time.perf_counter())
        return write(batch, stop)

    trainer._train_step = timed
    start = time.perf_counter()
    summary = trainer.fit()
    end = time.perf_counter()
    between = [b - a for a, b in zip(stamps[1:], [*stamps[2:]], strict=False)]
    return {
        "step_seconds": between,
        "whole_seconds": end - start - summary["checkpoint_pause_seconds"],
        "wait": summary["data_wait_seconds"] / summary["seconds"],
        "pause": summary["checkpoint_pause_seconds"],
        "rows": len(read_metrics(directory / "metrics.jsonl")),
    }


def run_checkpoints(options: argparse.Namespace, directory: Path) -> dict:
    """The pause that a checkpoint makes, in the foreground and in the background, and the time from a start to the
    first step of a resumed run.
    """
    from lmlab.hardware import reuse_memory

    reuse_memory()
    found = {}
    for name in ("foreground", "background"):
        place = directory / name
        trainer = build(options, place, steps=4, checkpoint_every=1, background_checkpoints=name == "background")
        trainer.fit()
        found[name] = trainer.pace.paused / 4
        del trainer
    size = sum(path.stat().st_size for path in (directory / "foreground" / "checkpoints" / "step-00000004").iterdir())
    trainer = build(options, directory / "foreground", steps=4)
    start = time.perf_counter()
    trainer._resume()
    return {**found, "resume": time.perf_counter() - start, "bytes": size}


def run_transformers(options: argparse.Namespace, directory: Path) -> dict:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments

    shape, batch = SHAPES[options.model]
    from lmlab.models import ModelConfig

    config = ModelConfig(**shape)
    torch.manual_seed(0)
    network = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.d_model,
            intermediate_size=config.d_ff,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            num_key_value_heads=config.num_kv_heads,
            max_position_embeddings=config.max_seq_len,
            tie_word_embeddings=True,
        )
    )
    source = rows(config.vocab_size)

    class Data(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return len(source)

        def __getitem__(self, index: int):
            row = source[index]
            return {"input_ids": torch.from_numpy(row["input_ids"]), "labels": torch.from_numpy(row["input_ids"])}

    stamps = []

    class Clock(TrainerCallback):
        def on_step_begin(self, *args, **kwargs):
            stamps.append(time.perf_counter())

    arguments = TrainingArguments(
        output_dir=str(directory),
        per_device_train_batch_size=batch,
        max_steps=options.steps,
        learning_rate=1e-3,
        lr_scheduler_type="cosine",
        weight_decay=0.1,
        adam_beta2=0.95,
        max_grad_norm=1.0,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        bf16=options.precision == "bf16",
        disable_tqdm=True,
    )
    start = time.perf_counter()
    Trainer(model=network, args=arguments, train_dataset=Data(), callbacks=[Clock()]).train()
    return {
        "step_seconds": [b - a for a, b in itertools.pairwise(stamps)],
        "whole_seconds": time.perf_counter() - start,
    }


WORKERS = {"bare": run_bare, "lmlab": run_lmlab, "transformers": run_transformers, "checkpoints": run_checkpoints}


def call(name: str, arguments: list[str]) -> dict:
    done = subprocess.run([sys.executable, __file__, "--worker", name, *arguments], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--precision", default="bf16", choices=["bf16", "fp32"])
    parser.add_argument("--model", default="small", choices=SHAPES)
    parser.add_argument("--worker", choices=WORKERS)
    options = parser.parse_args()
    if options.worker:
        with tempfile.TemporaryDirectory() as directory:
            print(json.dumps(WORKERS[options.worker](options, Path(directory))))
        return
    arguments = ["--steps", str(options.steps), "--precision", options.precision, "--model", options.model]
    best: dict[str, float] = {}
    medians: dict[str, list[float]] = {}
    wait = []
    for _ in range(options.rounds):
        for name in ("bare", "lmlab", "transformers"):
            found = call(name, arguments)
            medians.setdefault(name, []).extend(found["step_seconds"][2:])
            wait += [found["wait"]] if "wait" in found else []
    for name, times in medians.items():
        best[name] = sorted(times)[len(times) // 2]
    tokens = SHAPES[options.model][1] * SEQ_LEN
    print(
        f"{options.model}, {options.precision}, {SHAPES[options.model][1]} x {SEQ_LEN} tokens a step, median of"
        f" {len(medians['bare'])} steps"
    )
    for name, seconds in best.items():
        print(f"  {name:14s} {seconds * 1000:8.1f} ms a step {tokens / seconds:10,.0f} tokens/s")
    print(
        f"  overhead of the loop over the bare step: {best['lmlab'] / best['bare'] - 1:+.1%}; waiting for data:"
        f" {max(wait):.3%} of the time"
    )
    print(f"  lmlab / transformers: {best['transformers'] / best['lmlab']:.2f}x")
    found = call("checkpoints", arguments)
    print(
        f"  checkpoint of {found['bytes'] / 1e6:,.0f} MB: pause {found['foreground']:.2f} s in the foreground,"
        f" {found['background']:.2f} s in the background; resume {found['resume']:.2f} s"
    )


if __name__ == "__main__":
    main()
