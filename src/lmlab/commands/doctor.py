"""`lmlab doctor`: what is installed, and how fast this machine is."""

from __future__ import annotations

import typer

from lmlab.commandline.options import example

app = typer.Typer()


@app.command(epilog=example("lmlab doctor"))
def doctor() -> None:
    """Show versions, hardware, measured speed of matrix products, and which extras are installed."""
    import importlib.util

    import torch
    from rich.table import Table

    from lmlab.hardware import environment, gemm_flops, select_device
    from lmlab.progress import short
    from lmlab.reports import format_bytes
    from lmlab.terminal import Terminal

    found = environment()
    table = Table(show_header=False)
    for key in ("lmlab", "python", "platform", "processor", "cores"):
        table.add_row(key, str(found[key]))
    table.add_row("memory", format_bytes(found["memory_bytes"]) if found["memory_bytes"] else "unknown")
    table.add_row("GPUs", ", ".join(found["gpus"]) or "none")
    device = select_device()
    for dtype in (torch.float32, torch.bfloat16):
        table.add_row(
            f"{str(dtype).removeprefix('torch.')} products on {device}",
            f"{short(gemm_flops(str(device), dtype))}FLOP/s",
        )
    for name, version in found["packages"].items():
        table.add_row(name, version)
    extras = {
        "data": ("datasketch", "zstandard", "pyarrow"),
        "hf": ("transformers",),
        "gguf": ("transformers", "gguf", "accelerate"),
        "s3": ("s3fs",),
        "eval": ("lm_eval", "rouge_score"),
        "track": ("tensorboard", "wandb"),
        "ray": ("ray",),
        "judge": ("httpx", "tenacity"),
        "serve": ("starlette", "uvicorn"),
    }
    for extra, modules in extras.items():
        missing = [module for module in modules if importlib.util.find_spec(module) is None]
        told = f"missing {', '.join(missing)}: pip install 'lmlab[{extra}]'" if missing else "installed"
        table.add_row(f"extra '{extra}'", told)
    Terminal().print(table)
