"""Products from operands of fewer bits, and all else in float32."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from mudreamer_fast.agent import Agent
from mudreamer_fast.backend import precision as module
from mudreamer_fast.backend.precision import products_in, to_bfloat16, to_tf32
from mudreamer_fast.config import ConfigError
from mudreamer_fast.envs import ArraySpec
from mudreamer_fast.kernels.device import INTERPRETED
from tests import tiny
from tests.kernels.agreement import relative_error

CPU = torch.device("cpu")
ROUNDED = {"tf32": to_tf32, "bfloat16": to_bfloat16}
BITS = {"tf32": 10, "bfloat16": 7}


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("precision", ROUNDED)
def test_operands_keep_their_bits_and_are_rounded_to_nearest_ties_to_even(precision: str) -> None:
    rounding, bits = ROUNDED[precision], BITS[precision]
    x = torch.cat([numbers(5000), 1e-3 * numbers(5000, seed=1), torch.tensor([0.0, -0.0])])
    mantissa, exponent = np.frexp(x.double().numpy())
    expected = np.ldexp(np.round(mantissa * 2.0 ** (bits + 1)), exponent - bits - 1)
    np.testing.assert_array_equal(rounding(x).double().numpy(), expected)
    half = 2.0 ** -(bits + 1)
    ties = torch.tensor([1 + half, 1 + 3 * half, -1 - half])
    assert rounding(ties).tolist() == [1, 1 + 4 * half, -1]
    strange = torch.tensor([float("inf"), float("-inf"), float("nan")])
    torch.testing.assert_close(rounding(strange), strange, equal_nan=True, rtol=0, atol=0)
    turned = numbers(4, 6).t()
    assert torch.equal(rounding(turned), rounding(turned.contiguous()))


def gradients(of: Any, *inputs: Tensor, seed: Tensor) -> list[Tensor]:
    leaves = [tensor.clone().requires_grad_() for tensor in inputs]
    out = of(*leaves)
    return [out.detach(), *torch.autograd.grad(out, leaves, seed)]


@pytest.mark.parametrize("precision", ROUNDED)
def test_layers_and_convolutions_round_what_they_multiply_forward_and_backward(
    precision: Any,
) -> None:
    r = ROUNDED[precision]
    products = products_in(precision, CPU, "reference")
    x, w, b, g = numbers(9, 5), numbers(4, 5, seed=1), numbers(4, seed=2), numbers(9, 4, seed=3)
    with products():
        found = gradients(lambda x, w, b: F.linear(x, w, b), x, w, b, seed=g)
    expected = [F.linear(r(x), r(w), b), r(g) @ r(w), r(g).t() @ r(x), g.sum(0)]
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)
    image, kernel = numbers(2, 3, 8, 8), numbers(4, 3, 4, 4, seed=1)
    g = numbers(2, 4, 4, 4, seed=2)

    def convolve(image: Tensor, kernel: Tensor) -> Tensor:
        return F.conv2d(image, kernel, stride=2, padding=1)

    with products():
        found = gradients(convolve, image, kernel, seed=g)
    expected = gradients(convolve, r(image), r(kernel), seed=r(g))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    plain = gradients(convolve, image, kernel, seed=g)
    assert all(relative_error(a, b.double()) > 1e-5 for a, b in zip(found, plain, strict=True))


def test_what_is_no_product_is_left_alone() -> None:
    x, y = numbers(6, 5), numbers(6, 5, seed=1)
    with products_in("bfloat16", CPU, "reference")():
        found = [x * y, x.softmax(-1), x.sum(0), x @ y[0], x.double() @ y.double().t()]
    expected = [x * y, x.softmax(-1), x.sum(0), x @ y[0], x.double() @ y.double().t()]
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    assert torch.equal(x @ y.t(), numbers(6, 5) @ numbers(6, 5, seed=1).t())


class Seen(TorchDispatchMode):
    """The types of what products are given, as far as any get."""

    def __init__(self) -> None:
        super().__init__()
        self.types: Counter[Any] = Counter()
        self.casts: Counter[tuple[int, ...]] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        packet = func._overloadpacket
        for place in module.OPERANDS.get(packet, ()):
            self.types[args[place].dtype] += 1
        result = func(*args, **(kwargs or {}))
        if packet == module.aten._to_copy and result.dtype == torch.bfloat16:
            self.casts[tuple(result.shape)] += 1
        return result


def test_a_gpu_multiplies_bfloat16_gives_float32_and_casts_a_weight_once() -> None:
    meta = torch.device("meta")
    x, w = torch.empty(9, 5, device=meta), torch.empty(4, 5, device=meta, requires_grad=True)
    bias, out = torch.empty(4, device=meta), torch.empty(9, 4, device=meta)
    image = torch.empty(2, 3, 8, 8, device=meta)
    kernel = torch.empty(4, 3, 4, 4, device=meta, requires_grad=True)
    with Seen() as seen, products_in("bfloat16", meta, "fused")():
        for _ in range(3):
            y = F.linear(x, w, bias) + x @ w.t()
        torch.mm(x, w.detach().t(), out=out)
        torch.addmm(out, x, w.detach().t(), out=out)
        z = F.conv2d(image, kernel, stride=2, padding=1)
        given = torch.autograd.grad([y, z], [w, kernel], [torch.empty_like(y), torch.empty_like(z)])
    assert {y.dtype, z.dtype, out.dtype, *(grad.dtype for grad in given)} == {torch.float32}
    assert set(seen.types) == {torch.bfloat16}
    assert seen.casts[(5, 4)] == 1  # the weight, as it comes


def update(precision: Any, backend: Any = "reference") -> tuple[dict[str, float], list[Tensor]]:
    config = tiny.config({"batch_norm": "both"})
    train = replace(config.train, precision=precision, backend=backend)
    seen = {"image": ArraySpec((3, 64, 64), np.dtype(np.uint8))}
    agent = Agent(replace(config, train=train), seen, tiny.CONTINUOUS, CPU)
    metrics = agent.update(tiny.batch(seen, tiny.CONTINUOUS, rows=3, steps=4))
    weights = [*agent.world_model.parameters(), *agent.behaviour.parameters()]
    return dict(metrics), [weight.detach() for weight in weights]


def test_an_update_multiplies_as_it_is_told() -> None:
    found = {precision: update(precision)[0] for precision in ("float32", "tf32", "bfloat16")}
    exact = found["float32"]
    loss = "world_model/loss"
    off = {
        precision: abs(metrics[loss] - exact[loss]) / abs(exact[loss])
        for precision, metrics in found.items()
    }
    assert 0 < off["tf32"] < off["bfloat16"] < 1e-2
    assert found["bfloat16"].keys() == exact.keys()


@pytest.mark.skipif(not INTERPRETED, reason="on a GPU its own products are taken")
def test_fused_operations_round_as_the_reference_does() -> None:
    plain, fused = (update("bfloat16", backend)[0] for backend in ("reference", "fused"))
    exact = update("float32")[0]
    # what rounds differently in the last place may be rounded to another of the fewer bits
    for name in ("world_model/loss", "world_model/kl", "behaviour/critic_loss"):
        assert fused[name] == pytest.approx(plain[name], rel=1e-3)
        assert fused[name] != pytest.approx(exact[name], rel=1e-6)


@pytest.mark.parametrize(("precision", "backend"), [("bfloat16", "compiled"), ("tf32", "compiled")])
def test_what_passes_by_the_rounding_is_refused(precision: Any, backend: str) -> None:
    with pytest.raises(ConfigError, match=f"precision {precision}.* takes backend reference or fu"):
        products_in(precision, CPU, backend)
    assert products_in("tf32", torch.device("cuda"), backend)().__class__.__name__ == "nullcontext"
