"""`lmlab doctor`: what is installed, and how fast this machine is."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from typing import Annotated

import typer

from lmlab.commandline.options import example

app = typer.Typer()

_REQUIREMENT = re.compile(r"""([\w.-]+)[^;]*;.*\bextra\s*==\s*['"]([\w.-]+)['"]""")
_BUSY = 0.3  # the load of a machine on which figures of speed mean little
_DEVELOPERS = ("dev", "docs")  # extras that no user of a command needs


@app.command(epilog=example("lmlab doctor", "lmlab doctor --tune"))
def doctor(
    tune: Annotated[
        bool,
        typer.Option(
            "--tune",
            help="Measure which of several equal ways this processor computes fastest by, in 40 seconds, and keep"
            " the answers for all later runs on it with as many threads. The machine must be idle meanwhile.",
        ),
    ] = False,
) -> None:
    """Show versions, hardware, measured speed of matrix products, and which extras are installed."""
    if tune:
        _tune()
        return
    import torch
    from rich.table import Table

    from lmlab import plugins
    from lmlab.hardware import environment, gemm_flops, select_device, ways
    from lmlab.progress import with_unit
    from lmlab.reports import format_bytes
    from lmlab.terminal import Terminal

    found = environment()
    table = Table(show_header=False)
    for key in ("lmlab", "python", "platform", "processor", "cores"):
        table.add_row(key, str(found[key]))
    table.add_row("memory", format_bytes(found["memory_bytes"]) if found["memory_bytes"] else "unknown")
    table.add_row("GPUs", ", ".join(found["gpus"]) or "none")
    told = f"measured; {_others(ways.known())}" if ways.was_tuned() else "the defaults; lmlab doctor --tune measures"
    table.add_row("ways to compute", told)
    device = select_device()
    for dtype in (torch.float32, torch.bfloat16):
        table.add_row(
            f"{str(dtype).removeprefix('torch.')} products on {device}",
            with_unit(gemm_flops(str(device), dtype), "FLOP/s"),
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


def _tune() -> None:
    """Measure the ways to compute, show what was found, and keep it."""
    from rich.table import Table

    from lmlab.errors import UserError
    from lmlab.files import require_writable
    from lmlab.hardware import machine_load, reuse_memory, ways
    from lmlab.hardware.threads import TOO_LONG, settle
    from lmlab.models.tune import crowd, measure
    from lmlab.progress import progress
    from lmlab.terminal import Terminal

    reuse_memory()  # as commands that train do
    settle()
    load, found = machine_load(), []
    try:
        require_writable(ways.place_of_answers())
    except OSError as error:
        raise _not_kept(error) from None
    if (waiting := crowd()) > TOO_LONG:
        raise UserError(
            f"Other programs take the cores ({waiting:.1f} threads wait for one on average): what would be measured"
            " beside them is chance.",
            # not `sudo lmlab`, which would keep the answers in the cache of the administrator
            "Measure when the machine is idle, or with a higher priority than theirs: sudo renice -n -5 $$, and again.",
        )
    with progress("measure", len(ways.QUESTIONS), "questions") as advance:
        for each in measure():
            found.append(each)
            advance(1)
    table = Table("what", "milliseconds of each way", "taken")
    for each in found:
        told = ", ".join(f"{way} {1000 * seconds:.2f}" for way, seconds in each.seconds.items())
        question = ways.QUESTIONS[each.question]
        default = "" if each.answer == question.default else f" (default {question.default})"
        table.add_row(question.about, told, each.answer + default + (" (disturbed)" if each.disturbed else ""))
    terminal = Terminal()
    terminal.print(table)
    answers = {each.question: each.answer for each in found}
    terminal.print(f"{len(found)} questions: {_others(answers)}.")
    if disturbed := sum(each.disturbed for each in found):
        terminal.print(
            f"{disturbed} disturbed by other programs: they stay as they were. Measure again when it is idle."
        )
    elif load is not None and load > _BUSY:
        terminal.print(f"Before, {load:.0%} of the machine's cores were asked for: measure again when it is idle.")
    try:
        ways.remember({each.question: each.seconds for each in found}, answers)
    except OSError as error:
        raise _not_kept(error) from None
    terminal.print(
        "Kept for this processor, this number of threads and this version of PyTorch; runs that have begun go on as"
        " they began."
    )


def _not_kept(error: OSError) -> Exception:
    from lmlab.errors import UserError

    return UserError(f"The answers cannot be kept: {error}.", "Set LMLAB_CACHE to a directory that can be written.")


def _others(answers: Mapping[str, str]) -> str:
    """How many answers are not the defaults, in words."""
    from lmlab.hardware import ways

    number = sum(ways.QUESTIONS[name].default != answer for name, answer in answers.items())
    return f"{number} answered otherwise than by default" if number else "all answered as by default"


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
