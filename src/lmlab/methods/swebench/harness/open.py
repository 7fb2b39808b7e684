"""A judge from settings."""

from __future__ import annotations

from pathlib import Path

from lmlab.files import cache_directory
from lmlab.methods.swebench.config import SandboxConfig, WorkspaceConfig
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
    limits = Limits(
        timeout_s=settings.timeout_s,
        memory_mib=settings.memory_mib,
        processes=settings.processes,
        cpus=settings.cpus,
    )
    images = executor.probe().isolation == "container"
    environments = Environments(cache_of(settings) / "envs", images, settings.base_image)
    return Judge(
        executor,
        open_workspaces(settings, trees, images),
        environments,
        limits,
        settings.control,
        settings.reuse,
    )


def open_workspaces(settings: WorkspaceConfig, trees: Path, images: bool = False) -> Workspaces:
    """Unpacked trees, from the folder with the packed ones.

    Arguments:
        images: trees of instances that bring none along are taken out of their images.
    """
    return Workspaces(cache_of(settings) / "workspaces", TreeStore(trees), settings.repositories, images)


def cache_of(settings: WorkspaceConfig) -> Path:
    """The folder for environments and unpacked trees."""
    return settings.cache or cache_directory() / "swe"


def trees_beside(instances: str | Path) -> Path:
    """Where the trees of a file or folder of instances are."""
    path = Path(instances)
    return (path if path.is_dir() else path.parent) / TREES
