"""Speed and memory of a training step (forward, backward, AdamW), beside transformers and, where it is installed,
litgpt.

    python benchmarks/training.py [--shapes smollm2 small] [--precisions fp32 bf16] [--threads 1 2] [--rows N] [--rounds
    N] [--compile]

Each contender is a process of its own, and all train the same weights on the same rows with the same optimizer. They
take turns, a step each, so that all meet the same state of the machine; the medians of the rounds are printed, and the
ratio to lmlab's. Memory is the peak of a process less what it held before the model was made. A contender marked
`+reuse` runs with the allocator setting that lmlab's commands use (`lmlab.hardware.reuse_memory`). The last lines say
how near lmlab's step comes to the measured speed of large matrix products, and what the rest of its time goes to.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

SHAPES: dict[str, tuple[dict[str, Any], int, int]] = {  # configuration, rows, tokens of a row
    "smollm2": ({"preset": "SmolLM2-135M"}, 1, 512),
    "small": (
        {"vocab_size": 2048, "num_layers": 8, "d_model": 256, "num_heads": 4, "d_ff": 704, "max_seq_len": 512},
        8,
        512,
    ),
    "llama-1b": ({"preset": "Llama-3.2-1B"}, 1, 2048),
}
LMLAB = "lmlab"
_PRODUCTS = (
    "aten::mm",
    "aten::addmm",
    "aten::bmm",
    "mkldnn::_linear_pointwise",
    "aten::_scaled_dot_product",
    "lmlab::onednn_linear",
)


def main() -> None:
    """Start a process for each contender of each case, and print what they measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=["smollm2", "small"], choices=SHAPES)
    parser.add_argument("--precisions", nargs="+", default=["fp32", "bf16"], choices=["fp32", "bf16"])
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--rows", type=int, help="rows of a batch, in place of those of the shape")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument(
        "--contenders",
        nargs="+",
        metavar="NAME",
        help="only these, beside lmlab: each takes memory as long as the case lasts",
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--compile", action="store_true", help="torch.compile for all contenders")
    parser.add_argument(
        "--profile", action="store_true", help="also print the operators that take the most time of lmlab's step"
    )
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker is not None:
        work(json.loads(arguments.worker))
        return
    for shape in arguments.shapes:
        for precision in arguments.precisions:
            for threads in arguments.threads if arguments.device == "cpu" else arguments.threads[:1]:
                _measure_case(shape, precision, threads, arguments)


def _measure_case(shape: str, precision: str, threads: int, arguments: argparse.Namespace) -> None:
    from lmlab.models import ModelConfig, Transformer, save_pretrained

    settings, rows, length = SHAPES[shape]
    rows, config = arguments.rows or rows, ModelConfig(**settings)
    contenders = [LMLAB, "transformers"] + (
        ["litgpt"] if importlib.util.find_spec("litgpt") and not config.rope_scaling else []
    )
    if arguments.device == "cpu":
        contenders += [f"{each}+reuse" for each in contenders[1:]]
    if arguments.contenders:
        contenders = [LMLAB, *(each for each in contenders[1:] if each in arguments.contenders)]
    with tempfile.TemporaryDirectory() as directory:
        save_pretrained(Transformer(config).initialize(0), Path(directory))
        case = {"directory": directory, "precision": precision, "threads": threads, "rows": rows, "length": length}
        case |= {"device": arguments.device, "compile": arguments.compile, "profile": arguments.profile}
        workers = {name: _Worker({**case, "contender": name}) for name in contenders}
        first = {name: worker.ask("warm up") for name, worker in workers.items()}
        found: dict[str, list[dict[str, float]]] = {name: [] for name in workers}
        for _ in range(arguments.rounds):
            for name, worker in workers.items():
                found[name].append(worker.ask("step"))
        ends = {name: worker.ask("end") for name, worker in workers.items()}
    where = arguments.device if arguments.device != "cpu" else f"{threads} thread{'s'[: threads > 1]}"
    how = f"{precision}, {where}{', compiled' if arguments.compile else ''}"
    print(f"\n{shape}, {rows} x {length} tokens, {how}, {config.num_parameters():,} parameters")
    spread = max(abs(each["loss"] - first[LMLAB]["loss"]) for each in first.values())
    print(f"loss of the first step {first[LMLAB]['loss']:.4f}, largest difference between contenders {spread:.1e}")
    print(
        "| contender | tokens/s | lmlab is | process s/step | lmlab needs | peak MiB | lmlab needs"
        " |\n|---|---|---|---|---|---|---|"
    )
    medians = {
        name: {key: statistics.median(each[key] for each in steps) for key in ("wall", "process")}
        for name, steps in found.items()
    }
    for name, median in medians.items():
        cells = [
            f"{rows * length / median['wall']:,.0f}",
            f"{median['wall'] / medians[LMLAB]['wall']:.2f}x faster",
            f"{median['process']:.3f}",
        ]
        cells += [f"{medians[LMLAB]['process'] / median['process']:.0%}", f"{ends[name]['memory'] / 2**20:,.0f}"]
        cells += [f"{ends[LMLAB]['memory'] / ends[name]['memory']:.0%}"]
        print(f"| {name} | " + " | ".join(cells) + " |")
    end, wall = ends[LMLAB], medians[LMLAB]["wall"]
    rate = config.flops_per_token(length) * rows * length / wall
    print(
        f"lmlab: {rate / 1e9:,.0f} GFLOP/s, {rate / end['peak']:.0%} of the measured peak of matrix products"
        f" ({end['peak'] / 1e9:,.0f} GFLOP/s)"
    )
    print("share of a step: " + ", ".join(f"{name} {share:.0%}" for name, share in end["shares"].items()), flush=True)
    if arguments.profile:
        print(end["operators"])


class _Worker:
    """A contender in a process of its own, which does nothing until it is asked."""

    def __init__(self, case: dict[str, Any]) -> None:
        command = [sys.executable, __file__, "--worker", json.dumps(case)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, what: str) -> dict[str, Any]:
        """Send a word, return the answer."""
        assert self._process.stdin is not None and self._process.stdout is not None
        print(what, file=self._process.stdin, flush=True)
        for line in self._process.stdout:
            if line.startswith("answer "):
                return json.loads(line.removeprefix("answer "))
        raise SystemExit(f"a contender ended with status {self._process.wait()}")


def work(case: dict[str, Any]) -> None:
    """Make the model, then take a step each time that a line comes."""
    import torch

    from lmlab.hardware import gemm_flops, reuse_memory

    name, device = case["contender"], case["device"]
    torch.set_num_threads(case["threads"])
    if name == LMLAB or name.endswith("+reuse"):
        reuse_memory()
    make = {"lmlab": _lmlab, "transformers": _transformers, "litgpt": _litgpt}[name.removesuffix("+reuse")]
    ids = torch.randint(
        0, _vocab_size(case), (case["rows"], case["length"]), generator=torch.Generator().manual_seed(0)
    ).to(device)
    labels = torch.cat((ids[:, 1:], torch.full_like(ids[:, :1], -100)), 1)
    make_loss = make(case)
    before = _resident()
    model, loss_of = make_loss()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    if case["compile"]:
        loss_of = torch.compile(loss_of)

    def step() -> float:
        with torch.autocast(device, torch.bfloat16, enabled=case["precision"] == "bf16"):
            loss = loss_of(ids, labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    for line in sys.stdin:
        answer: dict[str, Any]
        if line.strip() == "warm up":
            answer = {"loss": step()}
            for _ in range(2):
                step()
        elif line.strip() == "step":
            wall, process = time.perf_counter(), time.process_time()
            step()
            answer = {"wall": time.perf_counter() - wall, "process": time.process_time() - process}
        else:
            answer = {"memory": torch.cuda.max_memory_allocated() if device != "cpu" else _peak() - before}
            if name == LMLAB:
                answer |= _profile(step, case["profile"])
                answer["peak"] = gemm_flops(device, torch.bfloat16 if case["precision"] == "bf16" else torch.float32)
        print("answer " + json.dumps(answer), flush=True)
        if "memory" in answer:
            return


def _lmlab(case: dict[str, Any]) -> Callable[[], Any]:
    from lmlab.models import from_pretrained

    def make() -> Any:
        model = from_pretrained(case["directory"], case["device"])
        return model, lambda ids, labels: model(ids, labels_BT=labels).loss.mean

    return make


def _transformers(case: dict[str, Any]) -> Callable[[], Any]:
    from transformers import LlamaForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()

    def make() -> Any:
        model = (
            LlamaForCausalLM.from_pretrained(case["directory"], attn_implementation="sdpa", use_cache=False)
            .to(case["device"])
            .train()
        )
        return model, lambda ids, labels: model(input_ids=ids, labels=ids).loss  # it shifts the labels itself

    return make


def litgpt_config(known: Mapping[str, Any], length: int) -> Any:
    """The shape of a Llama as litgpt names it.

    Arguments:
        known: the fields of `LlamaConfig`.
        length: of the longest row.
    """
    from litgpt.config import Config

    return Config(
        block_size=length,
        vocab_size=known["vocab_size"],
        padded_vocab_size=known["vocab_size"],
        n_layer=known["num_hidden_layers"],
        n_embd=known["hidden_size"],
        n_head=known["num_attention_heads"],
        n_query_groups=known["num_key_value_heads"],
        intermediate_size=known["intermediate_size"],
        rotary_percentage=1.0,
        rope_base=int((known.get("rope_parameters") or known)["rope_theta"]),
        parallel_residual=False,
        bias=False,
        norm_class_name="RMSNorm",
        norm_eps=known["rms_norm_eps"],
        mlp_class_name="LLaMAMLP",
    )


def _litgpt(case: dict[str, Any]) -> Callable[[], Any]:
    import torch
    from litgpt.model import GPT
    from litgpt.scripts.convert_hf_checkpoint import copy_weights_hf_llama
    from litgpt.utils import chunked_cross_entropy
    from safetensors.torch import load_file

    from lmlab.files import read_json

    config = litgpt_config(read_json(Path(case["directory"], "config.json")), case["length"])

    def make() -> Any:
        model = GPT(config).to(case["device"])
        weights: dict[str, torch.Tensor] = {}
        copy_weights_hf_llama(config, {}, weights, dict(load_file(Path(case["directory"], "model.safetensors"))))
        weights.setdefault("lm_head.weight", weights["transformer.wte.weight"])
        model.load_state_dict(weights, strict=False)
        model.lm_head.weight = model.transformer.wte.weight
        weights.clear()
        return model, lambda ids, labels: chunked_cross_entropy(model(ids), labels)

    return make


def _vocab_size(case: dict[str, Any]) -> int:
    from lmlab.files import read_json

    size: int = read_json(Path(case["directory"], "config.json"))["vocab_size"]
    return size


def _profile(step: Callable[[], float], table: bool) -> dict[str, Any]:
    import torch

    with torch.profiler.profile() as profiler:
        step()
    events = profiler.key_averages()
    key = "self_device_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
    total = sum(getattr(event, key) for event in events) or 1.0
    kinds = {"matrix products": 0.0, "AdamW": 0.0, "softmax and exponentials": 0.0, "copies": 0.0, "the rest": 0.0}
    for event in events:
        lower = event.key.lower()
        kind = (
            "matrix products"
            if event.key.startswith(_PRODUCTS) or "gemm" in lower
            else (
                "AdamW"
                if "adam" in lower
                else (
                    "softmax and exponentials"
                    if "softmax" in lower or "aten::exp" in lower
                    else "copies"
                    if "copy" in lower
                    else "the rest"
                )
            )
        )
        kinds[kind] += getattr(event, key) / total
    found: dict[str, Any] = {"shares": kinds}
    if table:
        found["operators"] = events.table(sort_by=key, row_limit=20, max_name_column_width=50)
    return found


def _resident() -> int:
    with open("/proc/self/status", encoding="utf-8") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmRSS"))


def _peak() -> int:
    with open("/proc/self/status", encoding="utf-8") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM"))


if __name__ == "__main__":
    main()
