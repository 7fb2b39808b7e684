"""What tests of the method share and import."""

from __future__ import annotations

import importlib.metadata
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmlab.methods.swebench.instances.instance import Instance


@dataclass(frozen=True)
class PublishedLog:
    """A real log, and what `swebench` 5.0.2 says of it."""

    name: str
    data: bytes
    expected: dict[str, Any]
    instance: Instance


BASE = {
    "calc/__init__.py": '''"""Arithmetic."""


def add(a, b):
    """The sum."""
    return a - b


def mul(a, b):
    return a * b


def parse(text):
    return int(text)
''',
    "tests/__init__.py": "",
    "tests/common.py": """import unittest


class Common:
    def test_mul_inherited(self):
        self.assertEqual(self.mul(2, 5), 10)
""",
    "tests/test_calc.py": """import unittest

import pytest

import calc
from tests.common import Common


def test_mul():
    assert calc.mul(2, 3) == 6


class TestParse(Common, unittest.TestCase):
    mul = staticmethod(calc.mul)

    def test_number(self):
        self.assertEqual(calc.parse("3"), 3)
""",
    "setup.cfg": "[metadata]\nname = calc\n",
    "README.md": "# calc\n",
}
FIXED = {
    "calc/__init__.py": BASE["calc/__init__.py"]
    .replace("return a - b", "return a + b")
    .replace(
        "    return int(text)", '    if not text:\n        raise ValueError("empty")\n    return int(text.strip())'
    ),
    "tests/test_calc.py": BASE["tests/test_calc.py"]
    + """
    def test_sum(self):
        self.assertEqual(calc.add(1, 2), 3)


@pytest.mark.parametrize("a", [1, 2])
def test_add(a):
    assert calc.mul(a, 1) == a
    assert calc.add(a, 1) == a + 1


def test_empty():
    with pytest.raises(ValueError, match="empty"):
        calc.parse("")
""",
}


def write_tree(folder: Path, files: dict[str, str]) -> None:
    """Write files below a folder."""
    for path, text in files.items():
        place = folder / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)


def lean_environment(folder: Path) -> Path:
    """An interpreter of a virtual environment that has pytest and what it needs, without the network."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    (packages,) = (folder / "lib").glob("python*/site-packages")
    for name in ("pytest", "pluggy", "iniconfig", "packaging", "pygments"):
        for file in importlib.metadata.files(name) or ():
            source = Path(str(file.locate()))
            if ".." not in file.parts and "__pycache__" not in file.parts and source.is_file():
                target = packages / file
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, target)
    subprocess.run([str(folder / "bin" / "python"), "-m", "compileall", "-q", str(packages)], check=True)
    return folder / "bin" / "python"
