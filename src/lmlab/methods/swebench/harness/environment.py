"""Environments by content: a lean virtual environment, or an image, for each list of requirements, built once and then
only read.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock

from lmlab.config import Config
from lmlab.errors import LmlabError
from lmlab.files import read_mapping, sha256_json, write_json

_READY = "ready.json"
_TIMEOUT_S = 900  # of one command: packages that are compiled take minutes, what hangs is never done


class EnvironmentSpec(Config):
    """What tests run in.

    Attributes:
        requirements: as pip takes them; pinned when they come from a validated instance.
        install: how the repository itself is found: `path` puts it and its src/ on PYTHONPATH.
        env: further variables.
        python: the interpreter's version, such as 3.11, which the machine's own must be; or the path of an interpreter
            whose environment is taken as it is.
        system_packages: of Debian, for environments in containers.
        index_cut_off: nothing that was published later is installed (a date, for indexes that know dates).
    """

    requirements: tuple[str, ...] = ("pytest",)
    install: Literal["path"] = "path"
    env: Mapping[str, str] = {}
    python: str = f"{sys.version_info.major}.{sys.version_info.minor}"
    system_packages: tuple[str, ...] = ()
    index_cut_off: str | None = None

    @property
    def id(self) -> str:
        """SHA-256 of all of it."""
        told = self.model_dump(mode="json")
        if not self.system_packages:  # the field came later, and other environments are what they were
            del told["system_packages"]
        return sha256_json(told)


class EnvironmentFailure(LmlabError):
    """An environment cannot be built; its instances have no verdict."""


@dataclass(frozen=True)
class Environment:
    """A built environment.

    Attributes:
        python: its interpreter; None in an image.
        lock: what is installed, as `pip freeze` tells it.
        bytes: that it takes on disk.
        image: that holds it.
    """

    spec: EnvironmentSpec
    python: Path | None
    lock: tuple[str, ...]
    bytes: int
    image: str = ""


class Environments:
    """Environments below a folder.

    Arguments:
        images: they are images of Docker, for an executor that runs containers.
        base_image: what those begin with, by default python:VERSION-slim.
    """

    def __init__(self, folder: str | Path, images: bool = False, base_image: str | None = None) -> None:
        self.folder = Path(folder)
        self.images, self.base_image = images, base_image

    def ensure(self, spec: EnvironmentSpec) -> Environment:
        """The environment, built if it is not there. It is built where the network is, outside of any sandbox.

        Raises:
            EnvironmentFailure: it cannot be built; the message names what pip said.
        """
        if self.images:
            return _image(spec, self.folder, self.base_image)
        if "/" in spec.python:
            return _existing(spec)
        if spec.system_packages:
            raise EnvironmentFailure(
                f"The environment needs {', '.join(spec.system_packages)} of the system.", "Use: --executor docker"
            )
        place = self.folder / spec.id[:32]
        self.folder.mkdir(parents=True, exist_ok=True)
        if not (place / _READY).exists():
            with FileLock(f"{place}.lock"):
                if not (place / _READY).exists():
                    _build(spec, place)
        told: dict[str, Any] = read_mapping(place / _READY)
        return Environment(spec, place / "bin" / "python", tuple(told["lock"]), int(told["bytes"]))

    def list(self) -> list[dict[str, Any]]:
        """All that were built, with size and requirements."""
        ready = sorted(self.folder.glob(f"*/{_READY}"))
        return [{"id": each.parent.name, **read_mapping(each)} for each in ready]

    def prune(self, keep: set[str]) -> int:
        """Remove all but some, by the first 32 digits of their ids; how many."""
        gone = [each for each in self.list() if each["id"] not in keep]
        for each in gone:
            shutil.rmtree(self.folder / each["id"])
        return len(gone)


def _existing(spec: EnvironmentSpec) -> Environment:
    python = Path(spec.python)
    if not python.exists():
        raise EnvironmentFailure(f"There is no interpreter at '{python}'.")
    installed = python.parent.parent.glob("lib/*/site-packages/*.dist-info")
    names = [each.name.removesuffix(".dist-info") for each in installed]
    return Environment(spec, python, tuple(sorted(name.replace("-", "==", 1) for name in names)), 0)


def _image(spec: EnvironmentSpec, folder: Path, base: str | None) -> Environment:
    from lmlab.sandbox.docker import build_image, has_image, image_bytes, run_in_image

    if "/" in spec.python:
        raise EnvironmentFailure(f"A container cannot use the interpreter '{spec.python}' of this machine.")
    text = dockerfile(spec, base)
    tag = f"lmlab-swe:{hashlib.sha256(text.encode()).hexdigest()[:32]}"
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / f"{tag.partition(':')[2]}.image.lock"):
            if not has_image(tag):
                build_image(tag, text)
        lock = run_in_image(tag, ["python", "-m", "pip", "freeze", "--all"]).splitlines()
        return Environment(spec, None, tuple(lock), image_bytes(tag), tag)
    except EnvironmentFailure:
        raise
    except LmlabError as failure:
        raise EnvironmentFailure(failure.message) from None


def dockerfile(spec: EnvironmentSpec, base: str | None = None) -> str:
    """The Dockerfile of an environment. Names of packages are no part of a line that a shell reads."""
    system = json.dumps(["apt-get", "install", "-y", "--no-install-recommends", "git", "patch", *spec.system_packages])
    pip = ["python", "-m", "pip", "install", "--no-cache-dir", "--disable-pip-version-check", "--no-input"]
    lines = [f"FROM {base or f'python:{spec.python}-slim'}", 'RUN ["apt-get", "update"]', f"RUN {system}"]
    if spec.requirements:
        lines.append(f"RUN {json.dumps([*pip, *spec.requirements])}")
    return "\n".join(lines) + "\n"


def _build(spec: EnvironmentSpec, place: Path) -> None:
    own = f"{sys.version_info.major}.{sys.version_info.minor}"
    if spec.python != own:
        raise EnvironmentFailure(f"The environment needs Python {spec.python}; lmlab runs on {own}.")
    shutil.rmtree(place, ignore_errors=True)
    _run([sys.executable, "-m", "venv", "--without-pip", str(place)], "make a virtual environment")
    python = str(place / "bin" / "python")
    pip = [sys.executable, "-m", "pip", "--python", python, "--disable-pip-version-check", "--no-input"]
    if spec.requirements:
        _run([*pip, "install", "--quiet", "--no-warn-script-location", *spec.requirements], "install the requirements")
    lock = _run([*pip, "freeze", "--all"], "list what is installed").splitlines()
    # Nothing of it is ever written again: compiled now, as a sandbox cannot
    subprocess.run([python, "-m", "compileall", "-q", str(place / "lib")], check=False, capture_output=True, cwd="/")
    size = sum(each.lstat().st_blocks * 512 for each in place.rglob("*"))
    write_json(place / _READY, {"lock": lock, "bytes": size, "spec": spec.model_dump(mode="json")})


def _run(command: list[str], what: str) -> str:
    variables = {**os.environ, "PYTHONDONTWRITEBYTECODE": ""}
    variables.pop("PYTHONPATH", None)
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, env=variables, timeout=_TIMEOUT_S, check=False, cwd="/"
        )
    except subprocess.TimeoutExpired:
        raise EnvironmentFailure(f"It took more than {_TIMEOUT_S} s to {what}.") from None
    if done.returncode != 0:
        said = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()
        raise EnvironmentFailure(f"pip could not {what}: {said[-1][:300] if said else done.returncode}.")
    return done.stdout
