"""`lmlab doctor`: what is installed, and how fast this machine is."""

from __future__ import annotations

import re
from collections import defaultdict

import typer

from lmlab.commandline.options import example

app = typer.Typer()

_REQUIREMENT = re.compile(r"""([\w.-]+)[^;]*;.*\bextra\s*==\s*['"]([\w.-]+)['"]""")
_DEVELOPERS = ("dev", "docs")  # extras that no user of a command needs


@app.command(epilog=example("lmlab doctor"))
def doctor() -> None:
    """Show versions, hardware, measured speed of matrix products, and which extras are installed."""
    import torch
    from rich.table import Table

    from lmlab import plugins
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
    needed = {name: [m.command for m in plugins.methods().values() if name in m.extras] for name in extras()}
    for extra, packages in extras().items():
        missing = [package for package in packages if not _installed(package)]
        told = f"missing {', '.join(missing)}: pip install 'lmlab[{extra}]'" if missing else "installed"
        used = f" (lmlab {', lmlab '.join(needed[extra])})" if needed[extra] else ""
        table.add_row(f"extra '{extra}'{used}", told)
    Terminal().print(table)


def extras() -> dict[str, list[str]]:
    """The packages of each extra, as the installed package itself declares them."""
    from importlib.metadata import requires

    found = defaultdict[str, list[str]](list)
    for requirement in requires("lmlab") or ():
        if (read := _REQUIREMENT.match(requirement)) and read[2] not in _DEVELOPERS:
            found[read[2]].append(read[1])
    return dict(sorted(found.items()))


def _installed(package: str) -> bool:
    from importlib.metadata import PackageNotFoundError, version

    try:
        version(package)
    except PackageNotFoundError:
        return False
    return True
