"""The documentation says what the code says: tables, the picture of the house, code blocks, extras."""

from __future__ import annotations

import importlib.util
import re
import tomllib
from pathlib import Path

import pytest
import yaml

import lmlab
from lmlab import plugins
from lmlab.commands.doctor import extras

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def tables():
    return _script("tables")


def _script(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("page", "folder"), [("README.md", "docs/"), ("docs/index.md", "")])
def test_the_table_of_methods_is_that_of_the_manifests(tables, page, folder):
    text = (ROOT / page).read_text("utf-8")
    assert tables.filled(text, "methods", tables.methods_table(folder)) == text, "run: python docs/tables.py"
    for method in plugins.methods().values():
        assert f"`lmlab {method.command}`" in text and (ROOT / "docs" / method.page).is_file()


def test_the_picture_has_the_rooms_and_arrows_of_the_code(tables):
    pytest.importorskip("grimp")
    drawn = tables.house()
    assert (ROOT / "docs" / "images" / "house.svg").read_text("utf-8") == drawn, "run: python docs/tables.py"
    assert "images/house.svg" in (ROOT / "docs" / "architecture.md").read_text("utf-8")
    assert "<script" not in drawn and drawn.count("http") == 1  # the name space alone: it is seen without a network


def test_arrows_point_down_and_a_circle_is_no_picture(tables):
    picture = tables.draw(["a", "b", "c"], [("a", "b"), ("b", "c"), ("a", "c")])
    heights = [int(re.search(rf'y="(\d+)"[^>]*>{name}</text>', picture)[1]) for name in "abc"]
    assert heights == sorted(set(heights)) and picture.count("marker-end") == 3
    with pytest.raises(ValueError, match="a circle: a, b"):
        tables.draw(["a", "b"], [("a", "b"), ("b", "a")])


def test_doctor_knows_the_extras_of_the_package():
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    names = {
        extra: sorted(re.match(r"[\w.-]+", each)[0] for each in found)
        for extra, found in declared.items()
        if extra not in ("dev", "docs")
    }
    assert {extra: sorted(found) for extra, found in extras().items()} == names
    assert {extra for method in plugins.methods().values() for extra in method.extras} <= set(declared)


def test_doctor_writes_speeds_as_the_reports_do(lmlab, monkeypatch):
    monkeypatch.setattr("lmlab.hardware.gemm_flops", lambda *_: 1.82e11)
    done = lmlab("doctor")
    assert done.code == 0 and done.out.count("182 GFLOP/s") == 2


def test_the_citation_names_this_version():
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))["version"] == lmlab.__version__


def test_prose_keeps_to_the_width_of_the_code():
    house = _script("house")
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / ".github").rglob("*.md")]
    found = {page.relative_to(ROOT): house.prose(page.read_text("utf-8")) for page in pages}
    too_long = [f"{page}: {line[:60]}" for page, lines in found.items() for line in lines if len(line) > house.WIDTH]
    assert len(pages) > 20 and not too_long


def test_a_note_of_a_page_is_a_quote():
    """A `!!!` block shows as raw text where the files are read, and loses its body on the site without indentation."""
    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]:
        assert not re.findall(r"^!!!.*", page.read_text("utf-8"), re.MULTILINE), page
