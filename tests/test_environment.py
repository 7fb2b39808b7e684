"""What the command line sets in the environment."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

NAMES = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")


@pytest.mark.parametrize("given", [None, *NAMES])
def test_the_allocator_of_a_gpu_is_set_unless_the_user_did(given):
    code = f"""
import os, sys
from lmlab.cli import main
sys.argv = ["lmlab", "--help"]
try:
    main()
finally:
    print("found", [os.environ.get(name) for name in {NAMES!r}], file=sys.stderr)
"""
    environment = {name: value for name, value in os.environ.items() if name not in NAMES}
    mine = {given: "max_split_size_mb:64"} if given else {}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**environment, **mine})
    expected = [mine.get(name) for name in NAMES] if given else ["expandable_segments:True", None]
    assert f"found {expected}" in done.stderr, done.stderr
