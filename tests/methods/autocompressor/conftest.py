from __future__ import annotations

import pytest
import torch
from compressors import small

from lmlab.methods.autocompressor import AutoCompressor


@pytest.fixture
def ids() -> torch.Tensor:
    return torch.randint(0, 37, (2, 24), generator=torch.Generator().manual_seed(3))


@pytest.fixture(params=["opt", "llama", "gqa", "moe", "gpt2"])
def each(request: pytest.FixtureRequest) -> AutoCompressor:
    """A compressor of every kind of decoder."""
    return small(request.param)
