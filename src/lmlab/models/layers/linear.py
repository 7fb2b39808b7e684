"""The linear layer of all networks."""

from __future__ import annotations

from torch import Tensor, nn

from lmlab.hardware.gemm import linear


class Linear(nn.Linear):
    """`torch.nn.Linear`, by the faster library of a CPU."""

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., in_features] to [..., out_features]."""
        return linear(x, self.weight, self.bias)


def has_dropout(module: nn.Module) -> bool:
    """Whether some layer within drops inputs at random while training, as adapters may: what is computed again must
    drop the same ones.
    """
    return any(getattr(each, "dropout", 0.0) for each in module.modules())
