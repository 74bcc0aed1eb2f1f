"""Small supervised tasks for one part at a time, with its own gradients or with scrambled ones.

A task gives an error that a part which learns brings far below its bound. The same task under
`ScrambledAdam` shows that the bound can fail: there the error stays far above.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from mudreamer_fast.optim import ClippedAdam

MARGIN = 3.0
"""How far above its bound, at least, the error of a part with scrambled gradients must stay."""


class ScrambledAdam(ClippedAdam):
    """Takes the gradient of each weight for that of another weight of the same tensor.

    Args:
        parameters: what is trained.
        learning_rate: Adam's step size.
        scrambled: the parameters among them whose gradients are mixed up, always in one order.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        learning_rate: float,
        scrambled: Iterable[nn.Parameter],
    ) -> None:
        super().__init__(parameters, learning_rate, eps=1e-8, clip_norm=1e3)
        generator = torch.Generator().manual_seed(0)
        self.order = {id(p): torch.randperm(p.numel(), generator=generator) for p in scrambled}

    def apply(self, gradients: Iterable[Tensor | None]) -> Tensor:
        pairs = zip(self.parameters, gradients, strict=True)
        return super().apply(
            gradient
            if gradient is None or id(parameter) not in self.order
            else gradient.flatten()[self.order[id(parameter)]].view(gradient.shape)
            for parameter, gradient in pairs
        )


def adam(
    parts: Iterable[nn.Module], learning_rate: float, scrambled: Iterable[nn.Module] = ()
) -> ClippedAdam:
    """The project's optimiser for some modules; the gradients of some of them may be mixed up."""
    trained = [p for part in parts for p in part.parameters() if p.requires_grad]
    mixed = [p for part in scrambled for p in part.parameters()]
    if mixed:
        return ScrambledAdam(trained, learning_rate, mixed)
    return ClippedAdam(trained, learning_rate, eps=1e-8, clip_norm=1e3)


def train(
    loss: Callable[[], Tensor],
    parts: Iterable[nn.Module],
    updates: int,
    learning_rate: float,
    scrambled: Iterable[nn.Module] = (),
) -> None:
    """Take steps down a loss.

    Args:
        loss: of a batch that is drawn anew at each call ().
        parts: what is trained.
        updates: number of steps.
        learning_rate: of Adam.
        scrambled: parts whose gradients are mixed up.
    """
    optimiser = adam(parts, learning_rate, scrambled)
    for _ in range(updates):
        optimiser.step(loss())
