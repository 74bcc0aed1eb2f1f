"""Whether fused operations agree with the reference on a device: all of them, at small sizes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from mudreamer_fast.ops.signatures import (
    BatchNormState,
    Linear,
    MlpWeights,
    NormLinear,
    RssmWeights,
)

OUTPUT_LIMIT, GRADIENT_LIMIT = 5e-6, 1e-5
"""Largest relative errors (Frobenius norm) of float32 operations against the reference in float64,
on the same numbers: several times what rounding makes of them."""
ROUNDING = 2e-6
"""Elements that are no further off than this agree, however small all of them are: some tens of
units in the last place of numbers of order one."""
SEED = 9
"""Draws all inputs. No latent or action that they lead to lies so close to another class that
rounding could decide."""
ROWS, STEPS, EMBED, ACTIONS, BINS = 3, 3, 7, 2, 21
DETER, HIDDEN, GROUPS, CLASSES = 9, 12, 3, 5
UNIMIX, EPS, DISCOUNT, LAMBDA = 0.01, 1e-3, 0.99, 0.95


@dataclass(frozen=True)
class Agreement:
    """How one operation compares with its reference."""

    op: str
    """Its name, and in which way it was used where there are several."""
    worst: str
    """The output or the gradient that is nearest to its limit, or furthest beyond."""
    error: float
    """Its relative error."""
    limit: float
    """The largest that it may have."""
    trouble: str = ""
    """What kept the operation from giving anything."""

    @property
    def ok(self) -> bool:
        """Whether the operation gives what it should."""
        return not self.trouble and self.error <= self.limit

    def __str__(self) -> str:
        if self.trouble:
            return f"{self.op}: {self.trouble}"
        return f"{self.op}: {self.worst} is off by {self.error:.1e} of {self.limit:.0e} allowed"


class Case:
    """One use of an operation.

    Args:
        name: the operation's, and after a comma in which way it is used.
        arguments: by name: float32 tensors, with `requires_grad` where there is a gradient to
            compare, tuples of them, and numbers.
    """

    def __init__(self, name: str, **arguments: Any) -> None:
        self.name, self.op = name, name.split(",")[0]
        self.arguments = arguments


def check_ops(fused: ModuleType, reference: ModuleType, device: torch.device) -> list[Agreement]:
    """Run every operation of two modules on the same numbers, forward and backward.

    Args:
        fused: computes in float32.
        reference: computes in float64, on the same device.
        device: where.
    """
    with _full_precision(), torch.enable_grad():
        return [_compare(case, fused, reference, device) for case in cases()]


def cases() -> Iterator[Case]:
    """What is run, the same numbers each time."""
    draw = _Draw(SEED)
    model = _rssm_weights(draw)
    yield from _layers(draw, model)
    yield from _distributions(draw)
    yield from _rollouts(draw, model)


def _layers(draw: _Draw, model: RssmWeights) -> Iterator[Case]:
    x, inputs = draw.normal(ROWS, HIDDEN), draw.normal(ROWS, EMBED)
    layer, head = draw.norm_linear(HIDDEN, EMBED), draw.mlp(EMBED, ACTIONS)
    yield Case("linear_norm_act", x=inputs, layer=layer, eps=EPS)
    yield Case("mlp", x=inputs, weights=head, eps=EPS)
    yield Case("layernorm_gru", u=x, h=draw.normal(ROWS, DETER), layer=model.gru, eps=EPS)
    for how, state in draw.batch_norms().items():
        layer = model.posterior_hidden
        yield Case(f"batchnorm_posterior, {how}", x=x, layer=layer, state=state, eps=EPS)


def _distributions(draw: _Draw) -> Iterator[Case]:
    logits, other = (draw.normal(ROWS, GROUPS, CLASSES) for _ in range(2))
    uniforms = draw.uniform(ROWS, GROUPS)
    yield Case("categorical_sample", logits=logits, uniforms=uniforms, unimix=UNIMIX)
    yield Case("categorical_entropy", logits=logits, unimix=UNIMIX)
    yield Case("categorical_kl", posterior=logits, prior=other, unimix=UNIMIX)
    bins, target = draw.normal(ROWS, STEPS, BINS), draw.normal(ROWS, STEPS, grad=False)
    yield Case("two_hot_loss", logits=bins, target=target)
    yield Case("two_hot_mean", logits=bins)
    reward, cont, value = (draw.normal(ROWS, STEPS) for _ in range(3))
    along = {"reward": reward, "cont": cont, "value": value, "discount": DISCOUNT, "lam": LAMBDA}
    yield Case("lambda_return", **along)
    yield Case("lambda_return, with resets", **along, is_first=_resets())


def _rollouts(draw: _Draw, model: RssmWeights) -> Iterator[Case]:
    yield Case("rssm_initial", weights=model, groups=GROUPS, eps=EPS)
    fixed = {"weights": model, "unimix": UNIMIX, "eps": EPS}
    state = draw.normal(ROWS, DETER), draw.one_hot(ROWS, GROUPS, CLASSES)
    for how, norm in (draw.batch_norms() | {"layer norm": None}).items():
        yield Case(
            f"rssm_observe, {how}",
            embed=draw.normal(ROWS, STEPS, EMBED),
            action=draw.normal(ROWS, STEPS, ACTIONS, grad=False),
            is_first=_resets(),
            uniforms=draw.uniform(ROWS, STEPS, GROUPS),
            state=state,
            batch_norm=norm,
            **fixed,
        )
    features = DETER + GROUPS * CLASSES
    for kind in ("continuous", "discrete"):
        normal = kind == "continuous"
        for gradient in ("dynamics", "reinforce"):
            yield Case(
                f"rssm_imagine, {kind}, {gradient}",
                deter=state[0],
                stoch=state[1],
                actor=draw.mlp(features, 2 * ACTIONS if normal else ACTIONS),
                uniforms=draw.uniform(ROWS, STEPS, GROUPS),
                action_noise=draw.normal(ROWS, STEPS, ACTIONS, grad=False)
                if normal
                else draw.uniform(ROWS, STEPS, 1),
                continuous=normal,
                through_dynamics=gradient == "dynamics",
                **fixed,
            )


def _resets() -> Tensor:
    is_first = torch.zeros(ROWS, STEPS, dtype=torch.bool)
    is_first[0, 0] = is_first[1, 2] = True
    return is_first


def evaluate(
    ops: ModuleType, case: Case, dtype: torch.dtype, device: torch.device
) -> dict[str, Tensor]:
    """Outputs of a case by name, and as `gradient of <argument>` those of a fixed sum of them."""
    leaves: dict[str, Tensor] = {}
    given = _given(case.arguments, dtype, device, leaves)
    results = _named(getattr(ops, case.op)(**given))
    draw = torch.Generator().manual_seed(SEED)
    loss = torch.zeros((), dtype=dtype, device=device)
    for tensor in results.values():
        weight = torch.randn(tensor.shape, generator=draw)
        if tensor.requires_grad:
            loss = loss + (tensor * weight.to(device, dtype)).sum()
    grads = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
    for (name, leaf), grad in zip(leaves.items(), grads, strict=True):
        results[f"gradient of {name}"] = torch.zeros_like(leaf) if grad is None else grad
    return {name: tensor.detach() for name, tensor in results.items()}


def _compare(
    case: Case, fused: ModuleType, reference: ModuleType, device: torch.device
) -> Agreement:
    truth = evaluate(reference, case, torch.float64, device)
    try:
        results = evaluate(fused, case, torch.float32, device)
        errors = {name: _error(name, results[name], expected) for name, expected in truth.items()}
    except Exception as error:  # a compiler or a driver that is not up to it, whatever it raises
        said = f"{type(error).__name__}: {error}".strip().splitlines()[0]
        return Agreement(case.name, "", math.inf, 0.0, said)
    worst = max(errors, key=lambda name: errors[name] / _limit(name))
    return Agreement(case.name, worst, errors[worst], _limit(worst))


def _limit(name: str) -> float:
    return GRADIENT_LIMIT if name.startswith("gradient of ") else OUTPUT_LIMIT


def _error(name: str, actual: Tensor, truth: Tensor) -> float:
    """Frobenius norm of the difference over that of the truth; at most the limit in rounding."""
    if actual.shape != truth.shape:
        return math.inf
    difference = actual.double() - truth
    if not difference.isfinite().all():
        return math.inf
    relative: float = (difference.norm() / truth.norm().clamp(min=1e-30)).item()
    rounding = not difference.numel() or difference.abs().max() <= ROUNDING
    return min(relative, _limit(name)) if rounding else relative


def _given(
    value: Any, dtype: torch.dtype, device: torch.device, leaves: Any, name: str = ""
) -> Any:
    """Arguments on a device and in a dtype; those with a gradient are put into `leaves` by name."""
    if isinstance(value, Tensor):
        moved = value.detach().to(device, dtype if value.is_floating_point() else None, copy=True)
        if value.requires_grad:
            leaves[name] = moved.requires_grad_()
        return moved
    if isinstance(value, dict):
        return {key: _given(part, dtype, device, leaves, key) for key, part in value.items()}
    if isinstance(value, tuple):
        fields = getattr(value, "_fields", range(len(value)))
        parts = [
            _given(part, dtype, device, leaves, f"{name}.{field}")
            for field, part in zip(fields, value, strict=True)
        ]
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    return value


def _named(result: Any) -> dict[str, Tensor]:
    if isinstance(result, Tensor):
        return {"the output": result}
    fields = getattr(result, "_fields", [f"output {i}" for i in range(len(result))])
    return dict(zip(fields, result, strict=True))


@contextmanager
def _full_precision() -> Iterator[None]:
    """No TF32: its products would be further apart than the operations may be."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


class _Draw:
    """Random inputs on the CPU, in float32."""

    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)

    def normal(self, *shape: int, grad: bool = True) -> Tensor:
        return torch.randn(shape, generator=self._generator).requires_grad_(grad)

    def uniform(self, *shape: int) -> Tensor:
        return torch.rand(shape, generator=self._generator)

    def one_hot(self, *shape: int) -> Tensor:
        index = torch.randint(shape[-1], shape[:-1], generator=self._generator)
        return torch.eye(shape[-1])[index].requires_grad_()

    def batch_norms(self) -> dict[str, BatchNormState | None]:
        mean, var = self.normal(HIDDEN, grad=False), 0.5 + self.uniform(HIDDEN)
        return {
            "the batch's statistics": BatchNormState(mean, var, True),
            "running statistics": BatchNormState(mean, var, False),
        }

    def weight(self, outputs: int, inputs: int) -> Tensor:
        drawn = self.normal(outputs, inputs, grad=False) / math.sqrt(inputs)
        return drawn.requires_grad_()

    def linear(self, outputs: int, inputs: int) -> Linear:
        return Linear(self.weight(outputs, inputs), self.normal(outputs))

    def norm_linear(self, outputs: int, inputs: int) -> NormLinear:
        scale = (0.5 + self.uniform(outputs)).requires_grad_()
        return NormLinear(self.weight(outputs, inputs), scale, self.normal(outputs))

    def mlp(self, inputs: int, outputs: int) -> MlpWeights:
        hidden = (self.norm_linear(HIDDEN, inputs), self.norm_linear(HIDDEN, HIDDEN))
        return MlpWeights(hidden, self.linear(outputs, HIDDEN))


def _rssm_weights(draw: _Draw) -> RssmWeights:
    latents = GROUPS * CLASSES
    return RssmWeights(
        draw.normal(DETER),
        draw.norm_linear(HIDDEN, latents + ACTIONS),
        draw.norm_linear(3 * DETER, HIDDEN + DETER),
        draw.norm_linear(HIDDEN, DETER),
        draw.linear(latents, HIDDEN),
        draw.norm_linear(HIDDEN, EMBED + DETER),
        draw.linear(latents, HIDDEN),
    )
