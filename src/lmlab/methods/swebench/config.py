"""Settings of the method: where patches are run, what they may use, and which issues."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from lmlab.config import NO_INFLUENCE, Config, Flag
from lmlab.distributed.backend import Backend
from lmlab.runs import VocabularyInput


class WorkspaceConfig(Config):
    """Where trees of repositories come from, and where unpacked ones are kept.

    Attributes:
        cache: folder for environments and unpacked trees, by default lmlab's cache.
        repositories: folder with repositories OWNER__NAME, for instances that bring no tree along.
    """

    cache: Annotated[Path | None, NO_INFLUENCE] = None
    repositories: Path | None = None


class SandboxConfig(WorkspaceConfig):
    """Where code is run, and what it may use.

    Attributes:
        executor: bubblewrap, docker, local, or auto for the first isolated one.
        unsafe: take the executor `local`, which has no walls. For patches that you trust.
        require_limits: limits that something must hold, such as memory,processes.
        timeout_s: seconds of one test run.
        memory_mib: of all its processes.
        processes: that live at once.
        cpus: cores that it keeps busy.
        base_image: what environments in containers begin with, by default python:VERSION-slim.
        control: repeat a run that would count as a pass with tests that must fail; without it a pass can be forged.
        reuse: take the control of the same changes from before: of validation for the reference solution, and of an
            equal patch.
    """

    executor: str = "auto"
    unsafe: Annotated[bool, Flag(("--unsafe-no-sandbox",))] = False
    require_limits: str | None = None
    timeout_s: PositiveFloat = 1800.0
    memory_mib: PositiveInt = 4096
    processes: PositiveInt = 512
    cpus: PositiveFloat = 2.0
    base_image: str | None = None
    control: Annotated[bool, Flag(("--control/--no-control",))] = True
    reuse: Annotated[bool, Flag(("--reuse-control/--every-control",))] = True


class EvaluateConfig(SandboxConfig):
    """How patches are judged.

    Attributes:
        repair: what is mended in patches: raw, recount, minimal or anchor. It changes scores.
        workers: runs at once.
        full_suite: run all tests of the repository on patches that resolve their issue, and note those that break.
        backend: processes (of this machine) or ray (a cluster that shares its folders).
    """

    repair: Literal["raw", "recount", "minimal", "anchor"] = "raw"
    workers: Annotated[PositiveInt, Flag(("--workers", "-w")), NO_INFLUENCE] = 1
    full_suite: bool = False
    backend: Annotated[Backend, NO_INFLUENCE] = "processes"


class AgentConfig(Config):
    """How a model works on an issue by commands.

    Attributes:
        steps: most answers to one issue.
        max_tokens: of one answer.
        temperature: 0 takes the likeliest token.
    """

    steps: PositiveInt = 30
    max_tokens: PositiveInt = 1024
    temperature: float = Field(default=0.0, ge=0)


class InstancesConfig(Config):
    """Which issues.

    Attributes:
        instances: a .jsonl, .json or .parquet file, a folder, a task repository, or full, lite, verified.
        split: of the instances; by default test where there are several.
        ids: only this instance; may be repeated.
        created_since: only issues from this date on, such as that of a model's training data, as 2024-01-01.
        created_before: only issues before this date.
    """

    instances: Annotated[str, Flag(("--instances", "-i"))]
    split: str | None = None
    ids: Annotated[tuple[str, ...] | None, Flag(("--id",))] = None
    created_since: str | None = None
    created_before: str | None = None


class CountingConfig(Config):
    """How tokens of prompts are counted.

    Attributes:
        tokenizer: whose tokens count, a directory of a tokenizer or model; without it four bytes are a token.
    """

    tokenizer: VocabularyInput | None = None


class RequiredConfig(Config):
    """What stands in an environment beside the package and pytest.

    Attributes:
        requirements: a package that the tests need; may be repeated.
        declared: also what the repository's own files name for its tests; pip installs it, so for those that you trust.
    """

    requirements: Annotated[tuple[str, ...], Flag(("--require",))] = ()
    declared: Annotated[bool, Flag(("--declared",))] = False


class NamedConfig(Config):
    """What a repository is called.

    Attributes:
        name: OWNER/NAME, by default of the remote or folder.
    """

    name: str | None = None
