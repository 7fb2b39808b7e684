from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from random_models import SIZES, random_model

from lmlab.models import Transformer


@pytest.fixture
def make_model() -> Callable[..., Transformer]:
    return random_model


@pytest.fixture
def ids() -> torch.Tensor:
    return torch.randint(0, SIZES["vocab_size"], (3, 17), generator=torch.Generator().manual_seed(5))
