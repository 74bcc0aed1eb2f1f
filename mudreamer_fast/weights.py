"""The tensors that the RSSM operations take, by name, whichever implementation runs them."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


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
