"""A method made from templates/method is found, its stage runs, its report appears; and it goes without a trace."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TEMPLATE = ROOT / "templates" / "method"


@pytest.fixture
def site(tmp_path):
    """A folder of packages with the template installed as `pip` would: its files, and its metadata beside them."""
    folder = tmp_path / "site"
    shutil.copytree(TEMPLATE / "lmlab_words", folder / "lmlab_words", ignore=shutil.ignore_patterns("__pycache__"))
    project = tomllib.loads((TEMPLATE / "pyproject.toml").read_text("utf-8"))["project"]
    metadata = folder / f"lmlab_words-{project['version']}.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    )
    groups = project["entry-points"].items()
    lines = [f"[{group}]\n" + "".join(f"{name} = {place}\n" for name, place in each.items()) for group, each in groups]
    (metadata / "entry_points.txt").write_text("\n".join(lines))
    return folder


def call(folder, cwd, *arguments):
    environment = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    done = subprocess.run([sys.executable, *arguments], cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_a_method_from_the_template_is_found_runs_reports_and_goes(site, tmp_path):
    assert "the most frequent words of documents" in call(site, tmp_path, "-m", "lmlab", "--help")
    texts = tmp_path / "texts"
    texts.mkdir()
    draw = random.Random(0)
    for number in range(30):  # so many that some are held out and most are not
        words = draw.choices(["river", "stone", "garden", "window", "letter"], [8, 4, 1, 1, 1], k=200)
        (texts / f"{number}.txt").write_text(" ".join(words))
    shutil.copy(TEMPLATE / "recipe.yaml", tmp_path)
    call(site, tmp_path, "-m", "lmlab", "run", "recipe.yaml", "--out", "run")
    page = (tmp_path / "run" / "report.html").read_text("utf-8")
    assert "The most frequent words." in page and "river" in page
    told = call(site, tmp_path, "-m", "lmlab", "words", "count", "run", "--most", "2")
    assert [line.split()[1] for line in told.splitlines()] == ["river", "stone"]
    assert call(site, tmp_path, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(TEMPLATE / "tests"))
    shutil.rmtree(site)
    assert "words" not in call(site, tmp_path, "-m", "lmlab", "--help")
