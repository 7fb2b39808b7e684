"""Optional packages that are not installed: one sentence that names the extra, in every command."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from lmlab.errors import EXTRAS, from_unforeseen

ROOT = Path(__file__).parents[1]
WITHOUT = """
import sys
from importlib.abc import MetaPathFinder


class Without(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == MISSING:
            raise ModuleNotFoundError(f"No module named '{name}'", name=name)


sys.meta_path.insert(0, Without())
sys.argv[0] = "lmlab"
from lmlab import cli

cli.main()
"""


def test_the_map_says_what_the_package_declares():
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    packages = {
        extra: {each.partition(">")[0].partition("[")[0].partition("=")[0] for each in listed}
        for extra, listed in declared.items()
        if extra not in ("dev", "docs")
    }
    for module, (package, extras) in EXTRAS.items():
        assert set(extras) == {extra for extra, listed in packages.items() if package in listed}, module
    assert {package for package, _ in EXTRAS.values()} == set().union(*packages.values())


@pytest.mark.parametrize(
    ("without", "arguments", "extra"),
    [
        ("pyarrow", ["quality", "plan", "--in", "rated.jsonl", "--metric", "x", "--tokens", "1M"], "quality"),
        ("pyarrow", ["tokenize", "x.parquet"], "data"),
        ("tenacity", ["ask", "i.jsonl", "--endpoint", "openai:x", "--out", "o.jsonl"], "judge"),
        ("uvicorn", ["serve", "model"], "serve"),
    ],
)
def test_a_command_names_the_extra(tmp_path, without, arguments, extra):
    (tmp_path / "rated.jsonl").write_text('{"text": "a", "x": 1.0}\n')
    (tmp_path / "x.parquet").write_bytes(b"PAR1")
    (tmp_path / "i.jsonl").write_text('{"prompt": "a"}\n')
    script = f"MISSING = {without!r}\n{WITHOUT}"
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 2, done.stderr
    assert f"pip install 'lmlab[{extra}]'" in done.stderr
    assert "fault" not in done.stderr and "Traceback" not in done.stderr


def test_what_needs_a_package_is_a_sentence_and_the_extra_is_one_that_brings_it():
    """The arguments of `missing_extra` are strings, which no type tells apart."""
    calls = [
        [getattr(each, "value", None) for each in node.args]
        for path in (ROOT / "src").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "missing_extra"
    ]
    assert len(calls) > 20
    for module, purpose, *extra in calls:
        assert not isinstance(module, str) or module in EXTRAS
        assert not isinstance(purpose, str) or " " in purpose or purpose.isupper(), purpose
        assert not any(extra) or any(extra[0] in extras for _, extras in EXTRAS.values())


def test_any_other_package_is_named():
    told = str(from_unforeseen(ModuleNotFoundError("No module named 'pandas.core'", name="pandas.core"), (), "lmlab x"))
    assert told == "lmlab x needs the package 'pandas', which is not installed.\n  Run: pip install pandas"
