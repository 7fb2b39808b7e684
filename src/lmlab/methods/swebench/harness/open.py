"""A judge from settings."""

from __future__ import annotations

from pathlib import Path

from lmlab.files import cache_directory
from lmlab.methods.swebench.config import SandboxConfig
from lmlab.methods.swebench.harness.environment import Environments
from lmlab.methods.swebench.harness.judge import Judge
from lmlab.methods.swebench.harness.workspaces.trees import TreeStore
from lmlab.methods.swebench.harness.workspaces.workspace import Workspaces
from lmlab.sandbox import Limits, choose_executor

TREES = "trees"


def open_judge(settings: SandboxConfig, trees: Path) -> Judge:
    """The judge that settings describe.

    Arguments:
        trees: the folder with the trees of instances.

    Raises:
        UserError: there is no executor that may be used.
    """
    required = [each.strip() for each in (settings.require_limits or "").split(",") if each.strip()]
    executor = choose_executor(settings.executor, settings.unsafe, required)
    cache = settings.cache or cache_directory() / "swe"
    limits = Limits(
        timeout_s=settings.timeout_s,
        memory_mib=settings.memory_mib,
        processes=settings.processes,
        cpus=settings.cpus,
    )
    workspaces = Workspaces(cache / "workspaces", TreeStore(trees), settings.repositories)
    return Judge(executor, workspaces, Environments(cache / "envs"), limits, settings.control)


def trees_beside(instances: str | Path) -> Path:
    """Where the trees of a file or folder of instances are."""
    path = Path(instances)
    return (path if path.is_dir() else path.parent) / TREES
