"""Whether fused operations agree with the reference on a device.

They are compared at small, odd sizes, and at those of a run.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
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
UNIMIX, EPS, DISCOUNT, LAMBDA = 0.01, 1e-3, 0.99, 0.95
TF32_OUTPUT_LIMIT, TF32_GRADIENT_LIMIT = 1.5e-3, 3e-3
"""The same limits where products are taken in TF32."""
OWN_ERRORS, MOST_LIMITS = 3.0, 10.0
"""At a run's sizes sums are longer: an operation may be off by this many times the error of the
reference in the same precision, but never by more than this many limits."""


@dataclass(frozen=True)
class Sizes:
    """What the operations are given."""

    rows: int
    """B, sequences."""
    steps: int
    """T, steps in each."""
    envs: int
    """Environments that act side by side, a step at a time."""
    starts: int
    """N, imagined rollouts."""
    horizon: int
    """H, their steps."""
    embed: int
    """E."""
    actions: int
    """A."""
    bins: int
    """Of a two-hot distribution."""
    deter: int
    """D."""
    hidden: int
    """U."""
    layers: int
    """Hidden layers of an MLP."""
    groups: int
    """G."""
    classes: int
    """C."""
    tf32: bool = False
    """Whether a GPU multiplies in TF32; here it does for operands of bfloat16, too."""
    continuous: bool | None = None
    """Kind of the actions; None for one after the other."""
    dynamics: bool | None = None
    """Whether the actor's gradient goes through the dynamics; None likewise."""
    batch_norm: bool | None = None
    """Whether the posterior has batch norm; None likewise."""


SMALL = Sizes(
    rows=3, steps=3, envs=3, starts=3, horizon=3, embed=7, actions=2, bins=21, deter=9, hidden=12,
    layers=2, groups=3, classes=5,
)  # fmt: skip
"""Sizes at which every way of every operation is checked."""


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


def check_ops(
    fused: ModuleType,
    reference: ModuleType,
    device: torch.device,
    ops: Sequence[str] | None = None,
    sizes: Sizes = SMALL,
) -> list[Agreement]:
    """Run operations of two modules on the same numbers, forward and backward.

    Args:
        fused: computes in float32.
        reference: computes in float64, on the same device. `<op>_persistent` is compared with
            its `<op>`.
        device: where.
        ops: names in `fused`; None for all of the reference's.
        sizes: of what they are given.
    """
    by_op = _cases_by_op(sizes)
    with _precision("high" if sizes.tf32 else "highest"), torch.enable_grad():
        return [
            _compare(case, op, fused, reference, device, sizes)
            for op in (by_op if ops is None else ops)
            for case in by_op[op.removesuffix("_persistent")]
        ]


@functools.lru_cache(2)  # those of a run are large, and asked for by operation
def _cases_by_op(sizes: Sizes) -> dict[str, list[Case]]:
    by_op: dict[str, list[Case]] = {}
    for case in cases(sizes):
        by_op.setdefault(case.op, []).append(case)
    return by_op


def cases(sizes: Sizes = SMALL) -> Iterator[Case]:
    """What is run, the same numbers each time."""
    draw = _Draw(SEED, sizes)
    model = _rssm_weights(draw, sizes)
    yield from _layers(draw, model, sizes)
    yield from _distributions(draw, sizes)
    yield from _rollouts(draw, model, sizes)


def _layers(draw: _Draw, model: RssmWeights, sizes: Sizes) -> Iterator[Case]:
    x, inputs = draw.normal(sizes.rows, sizes.hidden), draw.normal(sizes.rows, sizes.embed)
    layer, head = draw.norm_linear(sizes.hidden, sizes.embed), draw.mlp(sizes.embed, sizes.actions)
    yield Case("linear_norm_act", x=inputs, layer=layer, eps=EPS)
    yield Case("mlp", x=inputs, weights=head, eps=EPS)
    yield Case(
        "layernorm_gru", u=x, h=draw.normal(sizes.rows, sizes.deter), layer=model.gru, eps=EPS
    )
    for how, state in draw.batch_norms().items():
        layer = model.posterior_hidden
        yield Case(f"batchnorm_posterior, {how}", x=x, layer=layer, state=state, eps=EPS)


def _distributions(draw: _Draw, sizes: Sizes) -> Iterator[Case]:
    rows, steps = sizes.rows, sizes.steps
    logits, other = (draw.normal(rows, sizes.groups, sizes.classes) for _ in range(2))
    uniforms = draw.uniform(rows, sizes.groups)
    yield Case("categorical_sample", logits=logits, uniforms=uniforms, unimix=UNIMIX)
    yield Case("categorical_entropy", logits=logits, unimix=UNIMIX)
    yield Case("categorical_kl", posterior=logits, prior=other, unimix=UNIMIX)
    bins, target = draw.normal(rows, steps, sizes.bins), draw.normal(rows, steps, grad=False)
    yield Case("two_hot_loss", logits=bins, target=target)
    yield Case("two_hot_mean", logits=bins)
    reward, cont, value = (draw.normal(rows, steps) for _ in range(3))
    along = {"reward": reward, "cont": cont, "value": value, "discount": DISCOUNT, "lam": LAMBDA}
    yield Case("lambda_return", **along)
    yield Case("lambda_return, with resets", **along, is_first=_resets(rows, steps))


def _rollouts(draw: _Draw, model: RssmWeights, sizes: Sizes) -> Iterator[Case]:
    yield Case("rssm_initial", weights=model, groups=sizes.groups, eps=EPS)
    fixed = {"weights": model, "unimix": UNIMIX, "eps": EPS}
    state = draw.state(sizes.rows)
    norms: dict[str, BatchNormState | None] = {}
    if sizes.batch_norm is not False:
        norms |= draw.batch_norms()
    if not sizes.batch_norm:
        norms |= {"layer norm": None}
    for how, norm in norms.items():
        yield Case(
            f"rssm_observe, {how}",
            embed=draw.normal(sizes.rows, sizes.steps, sizes.embed),
            action=draw.normal(sizes.rows, sizes.steps, sizes.actions, grad=False),
            is_first=_resets(sizes.rows, sizes.steps),
            uniforms=draw.uniform(sizes.rows, sizes.steps, sizes.groups),
            state=state,
            batch_norm=norm,
            **fixed,
        )
    features = sizes.deter + sizes.groups * sizes.classes
    start = state if sizes.starts == sizes.rows else draw.state(sizes.starts)
    for kind in ("continuous", "discrete"):
        normal = kind == "continuous"
        if sizes.continuous not in (None, normal):
            continue
        for gradient in ("dynamics", "reinforce"):
            if sizes.dynamics not in (None, gradient == "dynamics"):
                continue
            noise = sizes.starts, sizes.horizon
            yield Case(
                f"rssm_imagine, {kind}, {gradient}",
                deter=start[0],
                stoch=start[1],
                actor=draw.mlp(features, 2 * sizes.actions if normal else sizes.actions),
                uniforms=draw.uniform(*noise, sizes.groups),
                action_noise=draw.normal(*noise, sizes.actions, grad=False)
                if normal
                else draw.uniform(*noise, 1),
                continuous=normal,
                through_dynamics=gradient == "dynamics",
                **fixed,
            )
    if sizes is SMALL:
        return
    # What a run does with other rows than a batch has.
    states = sizes.starts, sizes.horizon
    bins = draw.normal(*states, sizes.bins)
    x, head = draw.normal(*states, features), draw.mlp(features, sizes.bins)
    yield Case("mlp, imagined", x=x, weights=head, eps=EPS)
    yield Case("two_hot_loss, imagined", logits=bins, target=draw.normal(*states, grad=False))
    yield Case("two_hot_mean, imagined", logits=bins)
    reward, cont, value = (draw.normal(*states) for _ in range(3))
    along = {"reward": reward, "cont": cont, "value": value, "discount": DISCOUNT, "lam": LAMBDA}
    yield Case("lambda_return, imagined", **along)
    acting = [norm for norm in norms.values() if norm is None or not norm.use_batch]
    yield Case(
        "rssm_observe, acting",
        embed=draw.normal(sizes.envs, 1, sizes.embed),
        action=draw.normal(sizes.envs, 1, sizes.actions, grad=False),
        is_first=_resets(sizes.envs, 1),
        uniforms=draw.uniform(sizes.envs, 1, sizes.groups),
        state=draw.state(sizes.envs),
        batch_norm=acting[0],
        **fixed,
    )


def _resets(rows: int, steps: int) -> Tensor:
    is_first = torch.zeros(rows, steps, dtype=torch.bool)
    is_first[0, 0] = is_first[rows // 2, steps - 1] = True
    return is_first


def with_clear_draws(case: Case, reference: ModuleType, device: torch.device) -> Case:
    """The case with uniforms that lie far from where another class begins.

    Of the many draws of a long rollout some would else lie so close that rounding decides, and all
    that follows would be another rollout. Each uniform is moved to the middle of its class's share,
    and where that share is below average to the middle of the largest one.
    """
    arguments = _given(case.arguments, torch.float64, device, {})
    with torch.no_grad():
        if case.op == "categorical_sample":
            found = {"uniforms": _clear(arguments["logits"], arguments["uniforms"])}
        elif case.op == "rssm_observe":
            found = _clear_observe(arguments, reference)
        elif case.op == "rssm_imagine":
            found = _clear_imagine(arguments, reference)
        else:
            return case
    changed = {name: tensor.float().cpu() for name, tensor in found.items()}
    return Case(case.name, **(case.arguments | changed))


def _clear(logits: Tensor, uniforms: Tensor) -> Tensor:
    """Uniforms (...) moved to the middle of shares of the classes with `logits` (..., C)."""
    probs = (1.0 - UNIMIX) * logits.softmax(-1) + UNIMIX / logits.shape[-1]
    ends = probs.cumsum(-1)
    index = (ends <= uniforms[..., None]).sum(-1, keepdim=True).clamp(max=logits.shape[-1] - 1)
    small = probs.gather(-1, index) < 1.0 / logits.shape[-1]
    index = torch.where(small, probs.argmax(-1, keepdim=True), index)
    return (ends.gather(-1, index) - probs.gather(-1, index) / 2)[..., 0]


def _clear_observe(arguments: dict[str, Any], reference: ModuleType) -> dict[str, Tensor]:
    along = ("embed", "action", "is_first", "uniforms")
    state, clear = arguments["state"], []
    for t in range(arguments["uniforms"].shape[1]):
        step = arguments | {name: arguments[name][:, t : t + 1] for name in along}
        seen = reference.rssm_observe(**(step | {"state": state}))
        clear.append(_clear(seen.posterior, step["uniforms"]))
        seen = reference.rssm_observe(**(step | {"state": state, "uniforms": clear[-1]}))
        state = seen.deter[:, 0], seen.stoch[:, 0]
    return {"uniforms": torch.cat(clear, 1)}


def _clear_imagine(arguments: dict[str, Any], reference: ModuleType) -> dict[str, Tensor]:
    weights, groups = arguments["weights"], arguments["stoch"].shape[1:]
    deter, stoch = arguments["deter"], arguments["stoch"]
    clear: dict[str, list[Tensor]] = {"uniforms": [], "action_noise": []}
    for t in range(arguments["uniforms"].shape[1]):
        step = arguments | {name: arguments[name][:, t : t + 1] for name in clear}
        step |= {"deter": deter, "stoch": stoch}
        if not arguments["continuous"]:
            policy = reference.rssm_imagine(**step).policy
            step["action_noise"] = _clear(policy, step["action_noise"][..., 0])[..., None]
        reached = reference.rssm_imagine(**step).deter[:, 1:]
        hidden = reference.linear_norm_act(reached, weights.prior_hidden, arguments["eps"])
        logits = F.linear(hidden, *weights.prior_out)
        logits = logits.view(*logits.shape[:-1], *groups)
        step["uniforms"] = _clear(logits, step["uniforms"])
        ended = reference.rssm_imagine(**step)
        deter, stoch = ended.deter[:, 1], ended.stoch[:, 1]
        for name, parts in clear.items():
            parts.append(step[name])
    return {name: torch.cat(parts, 1) for name, parts in clear.items()}


def evaluate(
    ops: ModuleType, case: Case, dtype: torch.dtype, device: torch.device, op: str = ""
) -> dict[str, Tensor]:
    """Outputs of a case by name, and as `gradient of <argument>` those of a fixed sum of them."""
    leaves: dict[str, Tensor] = {}
    given = _given(case.arguments, dtype, device, leaves)
    results = _named(getattr(ops, op or case.op)(**given))
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
    case: Case,
    op: str,
    fused: ModuleType,
    reference: ModuleType,
    device: torch.device,
    sizes: Sizes,
) -> Agreement:
    name = case.name.replace(case.op, op, 1)
    try:
        own: dict[str, float] = {}
        if sizes is not SMALL:
            name += ", the run's sizes"
            case = with_clear_draws(case, reference, device)
        truth = evaluate(reference, case, torch.float64, device)
        if sizes is not SMALL:
            plain = evaluate(reference, case, torch.float32, device)
            own = {part: _error(plain[part], truth[part], 0.0) for part in truth}
        limits = {part: _limit(part, sizes.tf32, own.get(part, 0.0)) for part in truth}
        results = evaluate(fused, case, torch.float32, device, op)
        errors = {
            part: _error(results[part], expected, limits[part]) for part, expected in truth.items()
        }
    except Exception as error:  # a compiler or a driver that is not up to it, whatever it raises
        said = f"{type(error).__name__}: {error}".strip().splitlines()[0]
        return Agreement(name, "", math.inf, 0.0, said)
    worst = max(errors, key=lambda part: errors[part] / limits[part])
    return Agreement(name, worst, errors[worst], limits[worst])


def _limit(name: str, tf32: bool, own: float) -> float:
    """Of an output or a gradient, for which the reference has an error in the same precision."""
    if name.startswith("gradient of "):
        limit = TF32_GRADIENT_LIMIT if tf32 else GRADIENT_LIMIT
    else:
        limit = TF32_OUTPUT_LIMIT if tf32 else OUTPUT_LIMIT
    return min(max(limit, OWN_ERRORS * own), MOST_LIMITS * limit)


def _error(actual: Tensor, truth: Tensor, limit: float) -> float:
    """Frobenius norm of the difference over that of the truth; at most the limit in rounding."""
    if actual.shape != truth.shape:
        return math.inf
    difference = actual.double() - truth
    if not difference.isfinite().all():
        return math.inf
    relative: float = (difference.norm() / truth.norm().clamp(min=1e-30)).item()
    rounding = not difference.numel() or difference.abs().max() <= ROUNDING
    return min(relative, limit) if rounding else relative


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
def _precision(name: str) -> Iterator[None]:
    """Products of float32 in a precision of PyTorch's, the one before restored behind it."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(name)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


class _Draw:
    """Random inputs on the CPU, in float32."""

    def __init__(self, seed: int, sizes: Sizes) -> None:
        self._generator = torch.Generator().manual_seed(seed)
        self._sizes = sizes

    def normal(self, *shape: int, grad: bool = True) -> Tensor:
        return torch.randn(shape, generator=self._generator).requires_grad_(grad)

    def uniform(self, *shape: int) -> Tensor:
        return torch.rand(shape, generator=self._generator)

    def one_hot(self, *shape: int) -> Tensor:
        index = torch.randint(shape[-1], shape[:-1], generator=self._generator)
        return torch.eye(shape[-1])[index].requires_grad_()

    def state(self, rows: int) -> tuple[Tensor, Tensor]:
        sizes = self._sizes
        return self.normal(rows, sizes.deter), self.one_hot(rows, sizes.groups, sizes.classes)

    def batch_norms(self) -> dict[str, BatchNormState | None]:
        hidden = self._sizes.hidden
        mean, var = self.normal(hidden, grad=False), 0.5 + self.uniform(hidden)
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
        hidden = self._sizes.hidden
        widths = [inputs, *[hidden] * self._sizes.layers]
        layers = (self.norm_linear(b, a) for a, b in itertools.pairwise(widths))
        return MlpWeights(tuple(layers), self.linear(outputs, hidden))


def _rssm_weights(draw: _Draw, sizes: Sizes) -> RssmWeights:
    latents, deter, hidden = sizes.groups * sizes.classes, sizes.deter, sizes.hidden
    return RssmWeights(
        draw.normal(deter),
        draw.norm_linear(hidden, latents + sizes.actions),
        draw.norm_linear(3 * deter, hidden + deter),
        draw.norm_linear(hidden, deter),
        draw.linear(latents, hidden),
        draw.norm_linear(hidden, sizes.embed + deter),
        draw.linear(latents, hidden),
    )
