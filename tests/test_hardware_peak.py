"""The yardstick of utilization: the best peak that this hardware has shown, however busy it is now."""

from __future__ import annotations

import json

import pytest
import torch

from lmlab.hardware import devices, gemm_flops, machine_load
from lmlab.hardware.devices import _peak_key


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LMLAB_CACHE", str(tmp_path))
    gemm_flops.cache_clear()
    yield tmp_path / "gemm_peaks.json"
    gemm_flops.cache_clear()


def test_a_better_peak_of_the_past_stays_the_yardstick(cache):
    measured = gemm_flops("cpu", torch.float32, 0.05)
    key = _peak_key("cpu", torch.float32)
    assert json.loads(cache.read_text()) == {key: measured} and measured > 1e8
    cache.write_text(json.dumps({key: 1e15, "another machine": 1e18}))
    gemm_flops.cache_clear()
    assert gemm_flops("cpu", torch.float32, 0.05) == 1e15
    cache.write_text(json.dumps({key: 1.0}))
    gemm_flops.cache_clear()
    assert gemm_flops("cpu", torch.float32, 0.05) > 1e8
    assert json.loads(cache.read_text())[key] > 1e8


def test_products_that_would_take_a_minute_are_told_by_small_ones(cache, monkeypatch):
    """bf16 on a processor without instructions for it: every training waited for two products of 40 s each."""
    sides, now = [], [0.0]

    def slow(a, b):
        sides.append(len(a))
        now[0] += 2 * len(a) ** 3 / 5e8

    monkeypatch.setattr(devices, "mm", slow)
    monkeypatch.setattr(devices.time, "perf_counter", lambda: now[0])
    assert devices._measure_gemm("cpu", torch.bfloat16, 0.3) == pytest.approx(5e8)
    assert set(sides) == {256} and now[0] < 1.0
    monkeypatch.setattr(devices, "mm", lambda a, b: (sides.append(len(a)), now.__setitem__(0, now[0] + 1e-3)))
    assert devices._measure_gemm("cpu", torch.float32, 0.01) == pytest.approx(2 * 2048**3 / 1e-3)


@pytest.mark.parametrize("content", ["[]", "{", '{"a": 1}', "null"])
def test_a_damaged_cache_is_none(cache, content):
    cache.write_text(content)
    assert gemm_flops("cpu", torch.float32, 0.05) > 1e8


def test_the_key_tells_threads_and_types_apart():
    keys = {_peak_key("cpu", dtype) for dtype in (torch.float32, torch.bfloat16)}
    assert len(keys) == 2 and all(f"torch {torch.__version__}" in key for key in keys)


def test_the_load_is_a_share_of_the_cores():
    load = machine_load()
    assert load is None or load >= 0
