"""A wheel of the repository runs where the repository is not."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
_SHAPE = "vocab_size: 512, num_layers: 1, num_heads: 2, max_seq_len: 512"
_SHORT = (  # every stage of the demo on a small corpus, with models as small as the ladder's arithmetic allows
    "tokenizer.vocab_size=512",
    "questions.items_per_domain=5",
    "words.items_per_domain=20",
    "baselines.order=2",
    "ladder.seq_len=64",
    f"ladder.sizes={{{', '.join(f'd{width}: {{{_SHAPE}, d_model: {width}}}' for width in (16, 24, 32))}}}",
    "ladder.lengths=[8K, 16K, 32K]",
    "ladder.limit=20",
    f"ladder.target.model={{{_SHAPE}, d_model: 48}}",
    "ladder.target.tokens=65536",
    "model.seq_len=64",
    f"model.model={{{_SHAPE}, d_model: 48}}",
    "model.trainer.steps=64",
    "model.trainer.evaluate_every=32",
    "model.tasks_limit=20",
    "evaluation.window=64",
    "samples.max_new_tokens=4",
)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return next(folder.glob("*.whl"))


@pytest.mark.slow
def test_the_wheel_holds_recipes_faces_and_data(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    source = ROOT / "src"
    wanted = {str(each.relative_to(source)) for each in (source / "lmlab").rglob("*.pyi")}
    wanted |= {f"lmlab/recipes/{each.name}" for each in (ROOT / "recipes").glob("*.yaml")}
    kinds = ("*.html", "*.css", "*.js", "*.yaml", "*.json", "*.toml", "py.typed")
    wanted |= {str(each.relative_to(source)) for kind in kinds for each in (source / "lmlab").rglob(kind)}
    assert wanted <= names


@pytest.mark.slow
def test_the_demo_runs_from_a_wheel_in_another_folder(wheel, tmp_path):
    """What lmlab needs comes from this environment, so that nothing is downloaded; lmlab from the wheel."""
    venv.create(tmp_path / "env", with_pip=False)
    python = tmp_path / "env" / "bin" / "python"
    place = {"base": str(tmp_path / "env"), "platbase": str(tmp_path / "env")}
    packages = Path(sysconfig.get_path("purelib", vars=place))
    zipfile.ZipFile(wheel).extractall(packages)
    theirs = [each for each in sys.path if each.endswith("site-packages")]
    (packages / "borrowed.pth").write_text("\n".join(theirs) + "\n")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {
        "LMLAB_CACHE": str(tmp_path / "cache"),
        "OMP_NUM_THREADS": "1",
    }

    def call(*arguments):
        command = [str(python), *arguments]
        done = subprocess.run(command, cwd=elsewhere, env=environment, capture_output=True, text=True, timeout=900)
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout + done.stderr  # plans and progress go to the second

    assert call("-c", "import lmlab; print(lmlab.__file__)").strip() == str(packages / "lmlab" / "__init__.py")
    assert "model" in call("-m", "lmlab", "demo", "--dry-run")
    library = tmp_path / "library"
    library.mkdir()
    for name in ("argparse", "ast", "calendar", "configparser", "difflib", "inspect", "textwrap", "typing"):
        (library / f"{name}.py").write_bytes(Path(sysconfig.get_paths()["stdlib"], f"{name}.py").read_bytes())
    sources = f"documents.sources=[{{kind: python_library, path: {library}}}]"
    call("-m", "lmlab", "demo", *(word for each in (sources, *_SHORT) for word in ("--set", each)))
    assert (elsewhere / "runs" / "demo" / "report.html").is_file()
    assert (elsewhere / "runs" / "demo" / "export" / "hf" / "model.safetensors").is_file()
