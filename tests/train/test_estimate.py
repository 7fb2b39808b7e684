"""Plans on paper beside what a training really holds."""

from __future__ import annotations

import pytest
import torch

from lmlab.distributed import World
from lmlab.models import ModelConfig, Transformer
from lmlab.train import OptimizerConfig, Optimizers, TrainerConfig, estimate

_ROWS, _TOKENS = 2, 256
_SHAPE = ModelConfig(vocab_size=1024, num_layers=4, d_model=128, num_heads=4, num_kv_heads=2, max_seq_len=_TOKENS)


def _step(model: Transformer, dtype: torch.dtype) -> tuple[torch.Tensor, int]:
    """A loss, and the bytes that its backward pass keeps beside the weights."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    ids = torch.randint(0, _SHAPE.vocab_size, (_ROWS, _TOKENS), generator=torch.Generator().manual_seed(0))
    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        torch.autocast("cpu", dtype, enabled=dtype != torch.float32),
    ):
        loss = model(ids, labels_BT=ids, document_ids_BT=torch.zeros_like(ids)).loss.sum
    return loss, sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_weights_gradients_and_moments_are_as_estimated(name):
    config = TrainerConfig(steps=1, batch_size=_ROWS, optimizer=OptimizerConfig(name=name))
    model = Transformer(_SHAPE).initialize(0)
    optimizers = Optimizers(model, config.optimizer)
    _step(model, torch.float32)[0].backward()
    gradients = sum(parameter.grad.nbytes for parameter in model.parameters())
    optimizers.step()
    moments = sum(tensor.nbytes for tensor in optimizers.state_tensors().values() if tensor.dim())
    found = estimate(_SHAPE, _TOKENS, config, World(), torch.float32)
    assert (found.weights, found.gradients) == (sum(parameter.nbytes for parameter in model.parameters()), gradients)
    assert found.optimizer == pytest.approx(moments, rel=0.01)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_activations_are_estimated_on_the_safe_side(dtype):
    kept = _step(Transformer(_SHAPE).initialize(0), dtype)[1]
    found = estimate(_SHAPE, _TOKENS, TrainerConfig(steps=1, batch_size=_ROWS), World(), dtype)
    assert kept < found.activations < 2.5 * kept


def test_shares_of_many_processes_add_up():
    """To gather n bytes among s processes each receives n (s - 1) / s; a sum within copies takes as much, one between
    copies twice as much.
    """
    batch = 64
    sizes = {"fsdp": (1, 16), "data": (16, 1), "hybrid": (2, 8)}
    parameters = _SHAPE.num_parameters()
    for kind, (copies, shares) in sizes.items():
        config = TrainerConfig(steps=1, batch_size=batch, micro_batch_size=2, parallel={"kind": kind})
        found = estimate(_SHAPE, _TOKENS, config, World(0, 16, 0, 8), torch.bfloat16)
        assert found.weights == 4 * parameters // shares
        micro_batches, received = batch // 16 // 2, parameters * (shares - 1) // shares
        assert found.gather_bytes == 2 * 2 * micro_batches * received
        assert found.reduce_bytes == pytest.approx(
            4 * micro_batches * received + 4 * 2 * parameters / shares * (copies - 1) / copies, rel=1e-3
        )
        assert found.flops == _SHAPE.flops_per_token(_TOKENS) * batch * _TOKENS / 16
