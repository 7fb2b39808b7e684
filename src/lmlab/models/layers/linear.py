"""The linear layer and the table of vectors of all networks.

On the meta device, where a network is built before its weights are read, nothing is drawn for them: PyTorch would
import its compiler for that, two seconds of a processor.
"""

from __future__ import annotations

from torch import Tensor, nn

from lmlab.hardware.gemm import linear


class Linear(nn.Linear):
    """`torch.nn.Linear`, by the faster library of a CPU."""

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., in_features] to [..., out_features]."""
        return linear(x, self.weight, self.bias)

    def reset_parameters(self) -> None:
        """As `torch.nn.Linear` draws them."""
        if not self.weight.is_meta:
            super().reset_parameters()


class Embedding(nn.Embedding):
    """`torch.nn.Embedding`."""

    def reset_parameters(self) -> None:
        """As `torch.nn.Embedding` draws them."""
        if not self.weight.is_meta:
            super().reset_parameters()


def has_dropout(module: nn.Module) -> bool:
    """Whether some layer within drops inputs at random while training, as adapters may: what is computed again must
    drop the same ones.
    """
    return any(getattr(each, "dropout", 0.0) for each in module.modules())
