"""The operations of the model, as every implementation offers them.

`mudreamer_fast.reference` states each one's equation, arguments and results; `kernels` has the
fused twins. Networks are handed one implementation and do not ask which.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from mudreamer_fast.ops.signatures import (
    BatchNormState,
    Imagined,
    MlpWeights,
    NormLinear,
    Observed,
    RssmWeights,
)


class Operations(Protocol):
    """A module of operations: `reference`, `kernels`, or one made of them by `load_ops`."""

    def linear_norm_act(self, x: Tensor, layer: NormLinear, eps: float) -> Tensor:
        """`SiLU(LN(W x))`."""

    def mlp(self, x: Tensor, weights: MlpWeights, eps: float) -> Tensor:
        """Hidden layers `SiLU(LN(W x))`, then a linear output."""

    def layernorm_gru(self, u: Tensor, h: Tensor, layer: NormLinear, eps: float) -> Tensor:
        """One step of the recurrent state."""

    def batchnorm_posterior(
        self, x: Tensor, layer: NormLinear, state: BatchNormState, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """`SiLU(BN(x))` over the rows of one time step, with the statistics used."""

    def categorical_sample(self, logits: Tensor, uniforms: Tensor, unimix: float) -> Tensor:
        """One-hot draws with a straight-through gradient."""

    def categorical_entropy(self, logits: Tensor, unimix: float) -> Tensor:
        """Entropy in nats."""

    def categorical_kl(self, posterior: Tensor, prior: Tensor, unimix: float) -> Tensor:
        """Divergence in nats, summed over the groups."""

    def two_hot_loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """Cross entropy to a two-hot target."""

    def two_hot_mean(self, logits: Tensor) -> Tensor:
        """The scalar that two-hot logits say."""

    def lambda_return(
        self,
        reward: Tensor,
        cont: Tensor,
        value: Tensor,
        discount: float,
        lam: float,
        is_first: Tensor | None = None,
    ) -> Tensor:
        """Lambda-returns along sequences."""

    def rssm_initial(self, weights: RssmWeights, groups: int, eps: float) -> tuple[Tensor, Tensor]:
        """The learned start of an episode."""

    def rssm_observe(
        self,
        embed: Tensor,
        action: Tensor,
        is_first: Tensor,
        uniforms: Tensor,
        state: tuple[Tensor, Tensor],
        weights: RssmWeights,
        batch_norm: BatchNormState | None,
        unimix: float,
        eps: float,
    ) -> Observed:
        """Filter sequences."""

    def rssm_imagine(
        self,
        deter: Tensor,
        stoch: Tensor,
        weights: RssmWeights,
        actor: MlpWeights,
        uniforms: Tensor,
        action_noise: Tensor,
        continuous: bool,
        through_dynamics: bool,
        unimix: float,
        eps: float,
    ) -> Imagined:
        """Roll an actor out."""
