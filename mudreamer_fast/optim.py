"""Adam on one group of parameters, with its global gradient norm clipped."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adam import adam

from mudreamer_fast.machine.ranks import ALONE, Ranks

BETAS = 0.9, 0.999
"""Shares of the past in Adam's two moments."""


class ClippedAdam:
    """Adam with a bound on the global gradient norm.

    PyTorch's own step, without its `Optimizer`, which would import its compiler first: 2 seconds.

    Args:
        parameters: what is trained.
        learning_rate: Adam's step size.
        eps: Adam's epsilon.
        clip_norm: the largest global norm a gradient keeps.
        ranks: whose losses are averaged.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        learning_rate: float,
        eps: float,
        clip_norm: float,
        ranks: Ranks = ALONE,
    ) -> None:
        self.parameters = list(parameters)
        self.learning_rate, self.eps, self.clip_norm = learning_rate, eps, clip_norm
        self.state: dict[Tensor, dict[str, Tensor]] = {}
        """By parameter, from its first step on: `exp_avg`, `exp_avg_sq` and the number `step`."""
        self._ranks = ranks

    def step(self, loss: Tensor, retain_graph: bool = False) -> Tensor:
        """Take one step down `loss` () and give the gradient's norm before clipping ().

        Only the gradients of this optimiser's own parameters are computed.
        """
        return self.apply(self.gradients(loss, retain_graph))

    def gradients(self, loss: Tensor, retain_graph: bool = False) -> tuple[Tensor | None, ...]:
        """Gradients of `loss` () for this optimiser's parameters, None where it has no say.

        With several ranks those of the mean of their losses.
        """
        return self._ranks.average(
            torch.autograd.grad(loss, self.parameters, retain_graph=retain_graph, allow_unused=True)
        )

    def apply(self, gradients: Iterable[Tensor | None]) -> Tensor:
        """Take one step along given gradients and give their norm before clipping ().

        Fused Adam walks raw memory, so a gradient must lie as its parameter does; one that does
        not is copied. Where the norm is not finite, parameters and moments stay as they are; the
        device sees to that alone.
        """
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = None if gradient is None else _laid_out_like(gradient, parameter)
        norm = nn.utils.clip_grad_norm_(self.parameters, self.clip_norm)
        self._move(1.0 - norm.isfinite().float())
        return norm

    @torch.no_grad()
    def _move(self, overflow: Tensor | None) -> None:
        """Adam's step along the parameters' gradients, which are gone then; none for an overflow.

        Args:
            overflow: 1 or 0, as `torch.amp.GradScaler` tells of overflows; None for 0.
        """
        moved = [parameter for parameter in self.parameters if parameter.grad is not None]
        for parameter in moved:
            if parameter not in self.state:
                self.state[parameter] = _first_state(parameter)
        states = [self.state[parameter] for parameter in moved]
        adam(
            moved,  # type: ignore[arg-type]
            [parameter.grad for parameter in moved],  # type: ignore[misc]
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            fused=True,
            found_inf=overflow,
            amsgrad=False,
            beta1=BETAS[0],
            beta2=BETAS[1],
            lr=self.learning_rate,
            weight_decay=0.0,
            eps=self.eps,
            maximize=False,
        )
        for parameter in moved:
            parameter.grad = None

    def state_dict(self) -> dict[str, Any]:
        """Moments and step counts, as `torch.optim.Adam` numbers and names them."""
        numbered = dict(enumerate(self.parameters))
        return {
            "state": {i: dict(self.state[p]) for i, p in numbered.items() if p in self.state},
            "param_groups": [{"params": list(numbered)}],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over copies of moments and step counts, wherever and however they lay in memory.

        Raises:
            ValueError: they are of other parameters.
            KeyError: they are no moments.
        """
        (group,) = state["param_groups"]
        if len(group["params"]) != len(self.parameters):
            raise ValueError(
                f"moments of {len(group['params'])} parameters, expected {len(self.parameters)}"
            )
        taken = {}
        for number, saved in state["state"].items():
            parameter = self.parameters[number]
            taken[parameter] = _first_state(parameter)
            for name, value in taken[parameter].items():
                if saved[name].shape != value.shape:
                    raise ValueError(
                        f"{name} of parameter {number} has shape {tuple(saved[name].shape)}, "
                        f"expected {tuple(value.shape)}"
                    )
                value.copy_(saved[name])
        self.state = taken


def _first_state(parameter: Tensor) -> dict[str, Tensor]:
    return {
        "step": torch.zeros((), device=parameter.device),
        "exp_avg": torch.zeros_like(parameter, requires_grad=False),
        "exp_avg_sq": torch.zeros_like(parameter, requires_grad=False),
    }


def _laid_out_like(gradient: Tensor, parameter: Tensor) -> Tensor:
    """`gradient` in the memory layout of `parameter`: itself where it has that already."""
    if gradient.stride() == parameter.stride():
        return gradient
    return torch.empty_like(parameter).copy_(gradient)


@torch.no_grad()
def move_average(average: nn.Module, current: nn.Module, decay: float) -> None:
    """Move the parameters of `average` towards `current`: `w' <- d w' + (1 - d) w`."""
    slow: list[Tensor] = list(average.parameters())
    torch._foreach_lerp_(slow, list(current.parameters()), 1.0 - decay)
