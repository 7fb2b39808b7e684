"""Which kind of sandbox is used, and a sentence where none can be."""

from __future__ import annotations

from collections.abc import Sequence

from lmlab.errors import UserError, did_you_mean
from lmlab.plugins import load
from lmlab.sandbox.session import Executor, ExecutorInfo

EXECUTORS = {
    "bubblewrap": "lmlab.sandbox.bubblewrap:Bubblewrap",
    "docker": "lmlab.sandbox.docker:Docker",
    "local": "lmlab.sandbox.local:Local",
}
_ISOLATED = [name for name in EXECUTORS if name != "local"]


def probe_all() -> list[ExecutorInfo]:
    """What each kind can do here."""
    return [load(place)().probe() for place in EXECUTORS.values()]


def choose_executor(name: str = "auto", unsafe: bool = False, require: Sequence[str] = ()) -> Executor:
    """An executor that is available.

    Arguments:
        name: `auto` is the first isolated one.
        unsafe: the caller says that the code is trusted; else `local` is refused.
        require: limits that something must hold, such as memory and processes.

    Raises:
        UserError: there is none, the named one is not available, or it cannot hold a limit.
    """
    if name != "auto" and name not in EXECUTORS:
        raise UserError(f"Unknown executor '{name}'. {did_you_mean(name, EXECUTORS)}")
    if name == "local" and not unsafe:
        raise UserError(
            "The executor 'local' has no walls: model-written code could do anything to this machine.",
            "Use another one, or say --unsafe-no-sandbox for patches that you trust.",
        )
    reasons = []
    for each in _ISOLATED if name == "auto" else [name]:
        executor: Executor = load(EXECUTORS[each])()
        info = executor.probe()
        if not info.available:
            reasons.append(f"{each}: {info.reason}")
            continue
        if missing := [limit for limit in require if limit not in info.enforced]:
            reasons.append(f"{each}: nothing holds the limits of {', '.join(missing)}")
            continue
        return executor
    if name == "auto" and unsafe:
        return load(EXECUTORS["local"])()
    raise UserError(
        f"No isolated executor: {'; '.join(reasons)}.",
        "Install one, or use --unsafe-no-sandbox for patches that you trust.",
    )
