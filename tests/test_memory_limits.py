"""How much memory there is for this process."""

from __future__ import annotations

import pytest

from lmlab.hardware import groups as hardware_groups
from lmlab.hardware import memory

GIB = 1 << 30
V2, V1 = "memory.max", "memory/memory.limit_in_bytes"


@pytest.mark.parametrize(
    ("own", "limits", "granted"),
    [
        ("0::/\n", {}, None),
        ("0::/\n", {V2: "max\n"}, None),
        ("0::/\n", {V2: f"{GIB}\n"}, GIB),  # a container that sees its own group
        ("0::/a/b\n", {f"a/b/{V2}": "max\n", f"a/{V2}": f"{GIB}\n"}, GIB),
        ("0::/a/b\n", {f"a/b/{V2}": f"{GIB}\n", f"a/{V2}": f"{2 * GIB}\n", f"other/{V2}": "4096\n"}, GIB),
        ("5:cpu:/x\n4:cpu,memory:/job\n0::/\n", {"memory/job/memory.limit_in_bytes": f"{GIB}\n"}, GIB),
        ("4:memory:/gone\n", {V1: f"{GIB}\n"}, GIB),
        ("4:memory:/\n", {V1: f"{2**63 - 4096}\n"}, None),  # version 1 without a limit
        ("0::/../../elsewhere\n", {V2: "?\n"}, None),
        (None, {V2: f"{GIB}\n"}, GIB),
    ],
)
def test_a_limit_of_any_control_group_counts(own, limits, granted, tmp_path, monkeypatch):
    groups = tmp_path / "cgroup"
    for name, text in limits.items():
        (groups / name).parent.mkdir(parents=True, exist_ok=True)
        (groups / name).write_text(text)
    if own is not None:
        (tmp_path / "own").write_text(own)
    monkeypatch.setattr(hardware_groups, "_GROUPS", groups)
    monkeypatch.setattr(hardware_groups, "_OWN_GROUPS", tmp_path / "own")
    physical = 8 * GIB
    monkeypatch.setattr(
        memory.os, "sysconf", lambda name: {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": physical // 4096}[name]
    )
    assert memory.memory_bytes() == (physical if granted is None else granted)
