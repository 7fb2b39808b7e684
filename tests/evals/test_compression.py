"""Facts about the xz baseline, checked against the `xz` command."""

import random
import shutil
import subprocess
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lmlab.evals.baselines import compression
from lmlab.evals.baselines.compression import xz_bits, xz_bits_after

STDLIB = Path(sysconfig.get_path("stdlib"))


@pytest.fixture(scope="module")
def source() -> bytes:
    return b"".join((STDLIB / name).read_bytes() for name in ("argparse.py", "ast.py", "datetime.py"))


@pytest.mark.skipif(shutil.which("xz") is None, reason="needs the xz command to compare with")
@pytest.mark.parametrize("size", [0, 1, 5_000, 150_000])
def test_size_is_that_of_the_file_the_xz_command_writes(source: bytes, tmp_path: Path, size: int) -> None:
    path = tmp_path / "text"
    path.write_bytes(source[:size])
    subprocess.run(["xz", "-9e", "-k", str(path)], check=True)
    assert xz_bits(source[:size]) / 8 == pytest.approx((tmp_path / "text.xz").stat().st_size, abs=16)


def test_random_bytes_do_not_compress() -> None:
    noise = random.Random(0).randbytes(10_000)
    assert 80_000 <= xz_bits(noise) <= 80_000 + 8 * 128


def test_a_text_is_nearly_free_after_itself(source: bytes) -> None:
    assert xz_bits_after(source, source) < 0.01 * xz_bits(source)


def test_related_text_helps_and_unrelated_text_does_not(source: bytes) -> None:
    text = (STDLIB / "optparse.py").read_bytes()
    assert xz_bits_after(source, text) < 0.9 * xz_bits(text)
    assert xz_bits_after(random.Random(0).randbytes(50_000), text) == pytest.approx(xz_bits(text), rel=0.05)


def test_bits_after_nothing_are_the_bits_less_the_empty_file(source: bytes) -> None:
    assert xz_bits_after(b"", source) == xz_bits(source) - xz_bits(b"")
    assert xz_bits_after(source, b"") == 0


def test_the_dictionary_grows_to_reach_the_whole_prefix(source: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    # The preset's 64 MiB, scaled down: a dictionary of 64 KiB forgets a text that lies 100 kB back.
    text, filler = source[:20_000], random.Random(0).randbytes(100_000)
    monkeypatch.setattr(compression, "PRESET_DICTIONARY", 1 << 16)
    short = xz_bits(text + filler + text) - xz_bits(text + filler)
    assert xz_bits_after(text + filler, text) < 0.2 * short


def test_more_than_the_compressor_can_remember_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compression, "MAX_DICTIONARY", 10)
    assert xz_bits_after(b"12345", b"67890") >= 0
    with pytest.raises(ValueError, match=r"11 bytes together.*shorter prefix"):
        xz_bits_after(b"12345", b"678901")


def test_threads_give_the_same_figures(source: bytes) -> None:
    texts = [source[start : start + 10_000] for start in range(0, 80_000, 10_000)]
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(xz_bits, texts)) == [xz_bits(text) for text in texts]
