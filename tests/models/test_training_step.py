"""What a step of training does, whatever computes it: compiled, in bf16, in fp32."""

from __future__ import annotations

import pytest
import torch

from lmlab.models import ModelConfig, Transformer

SIZES = {
    "vocab_size": 97,
    "num_layers": 2,
    "d_model": 64,
    "num_heads": 4,
    "num_kv_heads": 2,
    "d_ff": 96,
    "max_seq_len": 64,
}


def losses(compiled: bool, precision: str, steps: int, packed: bool = False, **changes) -> list[float]:
    model = Transformer(ModelConfig(**SIZES, **changes)).initialize(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    generator = torch.Generator().manual_seed(1)
    rows = torch.randint(0, 97, (4, 65), generator=generator)
    documents = (torch.rand(4, 64, generator=generator) < 0.1).cumsum(1) if packed else None

    def forward():
        return model(rows[:, :-1], labels_BT=rows[:, 1:], document_ids_BT=documents, z_loss=1e-4).loss.mean

    step = torch.compile(forward, fullgraph=True) if compiled else forward
    found = []
    for _ in range(steps):
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            loss = step()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        found.append(loss.item())
    return found


@pytest.mark.slow
@pytest.mark.parametrize("packed", [False, True], ids=["whole", "packed"])
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-5), ("bf16", 2e-3)])
def test_a_compiled_step_has_no_graph_breaks_and_gives_the_same_losses(precision, tolerance, packed):
    torch._dynamo.reset()
    compiled, plain = (losses(each, precision, 4, packed) for each in (True, False))
    torch.testing.assert_close(compiled, plain, atol=tolerance, rtol=tolerance)


@pytest.mark.slow
@pytest.mark.parametrize(
    "features",
    [{"qk_norm": "head", "qkv_bias": True}, {"norm": "layernorm", "positions": "learned", "gated": False}],
    ids=str,
)
def test_other_features_compile_too(features):
    torch._dynamo.reset()
    compiled, plain = (losses(each, "fp32", 2, **features) for each in (True, False))
    torch.testing.assert_close(compiled, plain, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_training_learns_its_batch(precision):
    found = losses(False, precision, 120)
    assert found[0] == pytest.approx(4.6, abs=0.1)  # about ln 97
    assert found[-1] < 1.0


def test_bf16_follows_fp32():
    torch.testing.assert_close(losses(False, "bf16", 20), losses(False, "fp32", 20), atol=0.02, rtol=0.01)
