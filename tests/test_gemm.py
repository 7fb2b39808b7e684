from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch.nn import functional as F

from lmlab.hardware import gemm, ways
from lmlab.models.layers.feed_forward import gated_product


@pytest.fixture(params=[True, False], ids=["by oneDNN", "by the default library"])
def library(request):
    if request.param and not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        pytest.skip("this build of PyTorch has no oneDNN")
    with ways.using({"products fp32": "onednn" if request.param else "default"}):
        yield


def operands(*lead, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    shapes = ((*lead, 24), (40, 24), (40,))
    return [torch.randn(shape, generator=generator, dtype=dtype).requires_grad_() for shape in shapes]


@pytest.mark.parametrize("lead", [(5,), (3, 7), (2, 3, 4), (1, 1)], ids=str)
@pytest.mark.parametrize("with_bias", [True, False])
def test_products_and_gradients_are_those_of_torch(library, lead, with_bias):
    x, weight, bias = operands(*lead)
    inputs = (x, weight, bias) if with_bias else (x, weight)
    ours, theirs = gemm.linear(*inputs), F.linear(*inputs)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    grads = [torch.autograd.grad(out.square().sum(), inputs) for out in (ours, theirs)]
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("way", ["columns", "rows"])
@pytest.mark.parametrize("lead", [(1,), (2,), (3, 5), (24,), (25,), (0,)], ids=str)
@pytest.mark.parametrize("with_bias", [True, False])
def test_few_rows_in_half_precision_are_those_of_more(way, lead, with_bias):
    x, weight, bias = (each.detach().bfloat16() for each in operands(*lead))
    inputs = (x, weight, bias) if with_bias else (x, weight)
    exact = F.linear(*(each.double() for each in inputs))
    with ways.using({"rows bf16": way, "row bf16": {"columns": "vector", "rows": "product"}[way]}):
        found = gemm.linear(*inputs)
    assert found.dtype == x.dtype and found.is_contiguous() and found.shape == exact.shape
    torch.testing.assert_close(found.double(), exact, atol=2e-2, rtol=1e-2)
    few = gemm.are_few_half_rows(x, weight)
    assert few == (lead in [(1,), (2,), (3, 5), (24,)])


@pytest.fixture
def ordered():
    """A weight in bf16 that is kept in order too."""
    if not ways.QUESTIONS["step bf16"].possible("ordered"):
        pytest.skip("this processor, or this build of PyTorch, has no products in bf16 by oneDNN")
    weight = torch.nn.Parameter(operands(1)[1].detach().bfloat16())
    gemm.keep_in_order(weight, [weight])
    return weight


@pytest.mark.parametrize("rows", [1, 2, 24])
def test_a_weight_that_is_kept_in_order_gives_the_same_products(ordered, rows):
    x = operands(rows)[0].detach().bfloat16()
    assert gemm._in_order(ordered) is not None
    with torch.inference_mode():
        found = gemm.linear(x, ordered)
    torch.testing.assert_close(found.double(), x.double() @ ordered.detach().double().t(), atol=2e-2, rtol=1e-2)


def test_what_was_written_to_a_weight_since_is_seen(ordered):
    x, written = operands(1)[0].detach().bfloat16(), torch.ones(40, 24).bfloat16()
    with torch.no_grad():
        ordered.copy_(written)
        found = gemm.linear(x, ordered)
    assert gemm._in_order(ordered) is None
    torch.testing.assert_close(found, F.linear(x, written))


def test_a_weight_kept_in_order_is_not_mistaken_for_another_at_its_place(ordered):
    square = torch.nn.Parameter(torch.randn(24, 24, generator=torch.Generator().manual_seed(0)).bfloat16())
    gemm.keep_in_order(square, [square])
    x = operands(1)[0].detach().bfloat16()
    with torch.no_grad():
        torch.testing.assert_close(gemm.linear(x, square.t()), F.linear(x, square.t()), atol=2e-2, rtol=1e-2)
    kept = len(gemm._ordered)
    del square
    assert len(gemm._ordered) == kept - 1  # with the memory, which others get


@pytest.mark.parametrize("how", ["fused", "foreach", None])
def test_what_an_optimizer_wrote_to_a_weight_is_seen(ordered, how):
    """Fused optimizers do not count as writes."""
    optimizer = torch.optim.AdamW([ordered], lr=1.0, **({} if how is None else {how: True}))
    ordered.grad = torch.ones_like(ordered)
    optimizer.step()
    assert all(source.parameter() is not ordered for each in gemm._ordered.values() for source in each.made_of)
    x = operands(1)[0].detach().bfloat16()
    with torch.no_grad():
        torch.testing.assert_close(gemm.linear(x, ordered), F.linear(x, ordered), atol=2e-2, rtol=1e-2)


def test_an_optimizer_of_others_leaves_a_weight_in_order(ordered):
    other = torch.nn.Parameter(torch.ones(3))
    other.grad = torch.ones(3)
    torch.optim.SGD([other], lr=1.0).step()
    assert gemm._in_order(ordered) is not None


def test_other_memory_at_the_same_place_is_another_weight(ordered):
    """As what `.to()` or an assignment to `.data` may get, after the memory of before was freed."""
    numbers = bytearray(ordered.nbytes)
    ordered.data = torch.frombuffer(numbers, dtype=torch.bfloat16).view(40, 24).fill_(1.0)
    gemm.keep_in_order(ordered, [ordered])
    place, writes = ordered.data_ptr(), ordered._version
    ordered.data = torch.frombuffer(numbers, dtype=torch.bfloat16).view(40, 24).fill_(2.0)
    assert (ordered.data_ptr(), ordered._version) == (place, writes)
    with torch.no_grad():
        found = gemm.linear(torch.ones(1, 24).bfloat16(), ordered)
    assert (found == 48.0).all()


def test_a_weight_in_order_that_lives_until_python_ends_goes_in_silence():
    if not ways.QUESTIONS["step bf16"].possible("ordered"):
        pytest.skip("this processor, or this build of PyTorch, has no products in bf16 by oneDNN")
    code = "import torch\nfrom lmlab.hardware import gemm\n"
    code += "kept = [torch.nn.Parameter(torch.ones(8, 8).bfloat16()) for _ in range(3)]\n"
    code += "for each in kept: gemm.keep_in_order(each, [each])\n"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not done.stderr


def test_weights_without_memory_of_their_own_are_multiplied_beside_one_in_order(ordered):
    x = operands(1)[0].detach().bfloat16()
    weights = torch.stack([ordered.detach(), 2 * ordered.detach()])
    with torch.no_grad():
        found = torch.func.vmap(lambda weight: gemm.linear(x, weight))(weights)
    torch.testing.assert_close(found, torch.stack([F.linear(x, weight) for weight in weights]), atol=2e-2, rtol=1e-2)


def test_copies_of_weights_that_moved_are_given_back(ordered, monkeypatch):
    monkeypatch.setattr(gemm, "_ordered", {})
    gemm.keep_in_order(ordered, [ordered])
    assert gemm.bytes_in_order() == ordered.nbytes
    ordered.data = ordered.detach().clone()
    gemm.keep_in_order(ordered, [ordered])
    assert gemm.bytes_in_order() == ordered.nbytes and gemm._in_order(ordered) is not None


def test_what_other_processes_may_write_is_not_kept_in_order(ordered, monkeypatch):
    monkeypatch.setattr(gemm, "_ordered", {})
    ordered.share_memory_()
    gemm.keep_in_order(ordered, [ordered])
    assert not gemm._ordered


def test_inputs_need_not_lie_in_order(library):
    x, weight, _ = operands(6, 5)
    strange = x.transpose(0, 1)
    torch.testing.assert_close(gemm.linear(strange, weight), F.linear(strange, weight), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(gemm.mm(weight, weight.t()), weight @ weight.t(), atol=1e-5, rtol=1e-5)


def test_gradients_of_gradients(library):
    x, weight, _ = operands(5)
    values = []
    for product in (gemm.linear, F.linear):
        (grad,) = torch.autograd.grad(product(x, weight).pow(3).sum(), x, create_graph=True)
        values.append(torch.autograd.grad(grad.square().sum(), (x, weight)))
    for a, b in zip(*values, strict=True):
        torch.testing.assert_close(a, b, atol=1e-1, rtol=1e-4)


def test_only_what_needs_a_gradient_gets_one(library):
    x, weight, bias = operands(5)
    weight.requires_grad_(False)
    gemm.linear(x, weight, bias).sum().backward()
    assert weight.grad is None
    torch.testing.assert_close(bias.grad, torch.full((40,), 5.0))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_types_go_through_unchanged(library, dtype):
    x, weight, bias = operands(5, dtype=dtype)
    assert torch.equal(gemm.linear(x, weight, bias), F.linear(x, weight, bias))


def test_products_without_gradients_are_those_of_torch_bit_for_bit(library):
    x, weight, bias = operands(5)
    with torch.no_grad():
        assert torch.equal(gemm.linear(x, weight, bias), F.linear(x, weight, bias))
        with gemm.fast_inference():
            torch.testing.assert_close(gemm.linear(x, weight, bias), F.linear(x, weight, bias), atol=1e-5, rtol=1e-5)


def test_autocast_has_the_last_word(library):
    x, weight, _ = operands(5)
    with torch.autocast("cpu", torch.bfloat16):
        assert gemm.linear(x, weight).dtype == torch.bfloat16


@pytest.mark.parametrize(("way", "rows"), [("onednn", 5), ("onednn", 2100), ("default", 2100)])
def test_gradients_in_fp32_are_not_rounded_by_autocast_around_the_backward_pass(way, rows):
    if not ways.QUESTIONS["products fp32"].possible(way):
        pytest.skip("this build of PyTorch has no oneDNN")
    x, weight, _ = operands(rows)
    with ways.using({"products fp32": way, "weights fp32": "split"}):
        out = gemm.linear(x, weight)
        with torch.autocast("cpu", torch.bfloat16):
            found = torch.autograd.grad(out, (x, weight), out.detach())
    wanted = torch.autograd.grad(F.linear(x, weight), (x, weight), out.detach())
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, atol=1e-2, rtol=1e-4)


def test_gradients_of_gates_are_not_rounded_by_autocast_around_the_backward_pass(library):
    gate, _, _ = operands(7)
    up, _, _ = operands(7)
    down = torch.randn(10, 24, generator=torch.Generator().manual_seed(1)).requires_grad_()
    with ways.using({"gate fp32": "again"}):
        out = gated_product(gate, up, down, "silu")
        with torch.autocast("cpu", torch.bfloat16):
            found = torch.autograd.grad(out, (gate, up, down), out.detach())
    plain = F.linear(F.silu(gate) * up, down)
    for a, b in zip(found, torch.autograd.grad(plain, (gate, up, down), out.detach()), strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("rows", [2048, 4099, 9000])
@pytest.mark.parametrize("frozen", ["nothing", "weight", "x"])
def test_gradients_from_many_rows_are_those_of_torch(rows, frozen):
    """Of a sum in parts, also where the rows are no multiple of them and where not all is learned."""
    x, weight, bias = (each.detach() for each in operands(rows))
    inputs = [each.requires_grad_() for name, each in (("x", x), ("weight", weight), ("bias", bias)) if name != frozen]
    with ways.using({"weights fp32": "split", "products fp32": "default"}):
        ours = gemm.linear(x, weight, bias)
        assert "SplitLinear" in ours.grad_fn.name() or "SplitLinear" in ours.grad_fn.next_functions[0][0].name()
        found = torch.autograd.grad(ours.square().sum(), inputs)
        torch.testing.assert_close(
            gemm.outer(x.detach(), ours.detach()), x.detach().t() @ ours.detach(), atol=1e-2, rtol=1e-4
        )
    wanted = torch.autograd.grad(F.linear(x, weight, bias).square().sum(), inputs)
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, atol=5e-2, rtol=1e-4)


def test_gradients_of_gradients_from_many_rows():
    x, weight, _ = operands(2100)
    values = []
    for product in (gemm.linear, F.linear):
        with ways.using({"weights fp32": "split", "products fp32": "default"}):
            (grad,) = torch.autograd.grad(product(x, weight).pow(3).sum(), weight, create_graph=True)
            values.append(torch.autograd.grad(grad.mean(), (x, weight)))
    for a, b in zip(*values, strict=True):
        torch.testing.assert_close(a, b, atol=1e-1, rtol=1e-3)
