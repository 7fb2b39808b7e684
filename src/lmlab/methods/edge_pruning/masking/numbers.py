"""Examples as the training loop sees them."""

from __future__ import annotations

from typing import Any

import numpy as np


class Numbers:
    """Rows that only say which example they are."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"example": np.int64(index)}
