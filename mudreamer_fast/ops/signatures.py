"""What the RSSM operations take and give, by name, whichever implementation runs them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class State(NamedTuple):
    """States of the model, s = (h, z), of any leading shape."""

    deter: Tensor
    """(..., D), h."""
    stoch: Tensor
    """(..., G, C), z."""

    @property
    def feature(self) -> Tensor:
        """Both as one vector (..., F), which heads, actor and critic read."""
        return torch.cat([self.deter, self.stoch.flatten(-2)], dim=-1)

    def rows(self) -> State:
        """The same without gradient, its two leading axes (B, T) made one (B T)."""
        return State(*(part.detach().flatten(0, 1) for part in self))


class NormLinear(NamedTuple):
    """A linear map without bias, and the scale and shift of the norm behind it."""

    weight: Tensor
    """(out, in)."""
    norm_weight: Tensor
    """(out,)."""
    norm_bias: Tensor
    """(out,)."""


class Linear(NamedTuple):
    """A linear map with a bias."""

    weight: Tensor
    """(out, in)."""
    bias: Tensor
    """(out,)."""


class MlpWeights(NamedTuple):
    """Hidden layers `SiLU(LN(W x))` and a linear output."""

    hidden: tuple[NormLinear, ...]
    out: Linear


class RssmWeights(NamedTuple):
    """All parameters of the recurrent state-space model."""

    initial: Tensor
    """(D,), the learned initial state before its tanh."""
    input: NormLinear
    """(U, G*C + A), reads the flattened latents and the action."""
    gru: NormLinear
    """(3D, U + D), rows in the order reset, candidate, update."""
    prior_hidden: NormLinear
    """(U, D)."""
    prior_out: Linear
    """(G*C, U)."""
    posterior_hidden: NormLinear
    """(U, E + D), reads the embedding and the recurrent state; its norm is batch or layer norm."""
    posterior_out: Linear
    """(G*C, U)."""


class BatchNormState(NamedTuple):
    """What the posterior's batch norm normalises with."""

    running_mean: Tensor
    """(U,)."""
    running_var: Tensor
    """(U,)."""
    use_batch: bool
    """True: statistics of the rows at hand; False: the running ones."""


class Observed(NamedTuple):
    """Beliefs along a sequence."""

    deter: Tensor
    """(B, T, D), h."""
    stoch: Tensor
    """(B, T, G, C), z, one-hot with a straight-through gradient."""
    posterior: Tensor
    """(B, T, G, C), logits of z given h and the observation."""
    prior: Tensor
    """(B, T, G, C), logits of z given h alone."""
    previous_deter: Tensor
    """(B, T, D), the state that each step started from, after resets."""
    previous_stoch: Tensor
    """(B, T, G, C)."""
    batch_mean: Tensor
    """(T, U), mean over the rows of each step where batch norm stands; (T, 0) under layer norm."""
    batch_var: Tensor
    """(T, U), biased."""

    @property
    def state(self) -> State:
        """After each step, (B, T)."""
        return State(self.deter, self.stoch)

    @property
    def previous(self) -> State:
        """Before each step, after resets, (B, T)."""
        return State(self.previous_deter, self.previous_stoch)


class Imagined(NamedTuple):
    """Rollouts of H steps from N starts."""

    deter: Tensor
    """(N, H + 1, D), the start included."""
    stoch: Tensor
    """(N, H + 1, G, C), one-hot."""
    action: Tensor
    """(N, H, A), as the actor drew them, before they are bounded."""
    policy: Tensor
    """(N, H, 2A or A), the actor's raw outputs, with a gradient to its weights."""

    @property
    def state(self) -> State:
        """The starts and what follows, (N, H + 1)."""
        return State(self.deter, self.stoch)
