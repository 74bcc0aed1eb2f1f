"""The recurrent state-space model: its parameters, and the operations over them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mudreamer_fast.config import ModelConfig
from mudreamer_fast.machine.ranks import ALONE, Ranks
from mudreamer_fast.networks.layers import (
    LinearParameters,
    NormLinearParameters,
    RunningStatistics,
)
from mudreamer_fast.ops.distributions import bound_action
from mudreamer_fast.ops.operations import Operations
from mudreamer_fast.ops.signatures import Imagined, MlpWeights, Observed, RssmWeights, State


class Rssm(nn.Module):
    """Deterministic state h and categorical state z, advanced by a GRU.

    Args:
        config: the model's configuration.
        embed_size: E, width of the encoder's features.
        action_size: A.
        ops: the operations, reference or fused.
        ranks: the processes that train it.
    """

    def __init__(
        self,
        config: ModelConfig,
        embed_size: int,
        action_size: int,
        ops: Operations,
        ranks: Ranks = ALONE,
    ) -> None:
        super().__init__()
        dims = config.dimensions
        self.config = config
        self.ops = ops
        self._ranks = ranks
        self.deter_size = dims.deter
        self.feature_size = dims.deter + config.groups * config.classes
        latents = config.groups * config.classes
        self.initial = nn.Parameter(torch.zeros(dims.deter))
        self.input = NormLinearParameters(latents + action_size, dims.hidden)
        self.gru = NormLinearParameters(dims.hidden + dims.deter, 3 * dims.deter)
        self.prior_hidden = NormLinearParameters(dims.deter, dims.hidden)
        self.prior_out = LinearParameters(dims.hidden, latents)
        self.posterior_hidden = NormLinearParameters(embed_size + dims.deter, dims.hidden)
        self.posterior_out = LinearParameters(dims.hidden, latents)
        self.running = (
            RunningStatistics(dims.hidden, config.batch_norm_momentum)
            if config.batch_norm in ("posterior", "both")
            else None
        )

    def tensors(self) -> RssmWeights:
        """The parameters as the operations take them."""
        return RssmWeights(
            self.initial,
            self.input.tensors(),
            self.gru.tensors(),
            self.prior_hidden.tensors(),
            self.prior_out.tensors(),
            self.posterior_hidden.tensors(),
            self.posterior_out.tensors(),
        )

    def empty_state(self, rows: int) -> State:
        """Zeros (rows,): a state to be replaced at the first reset."""
        config = self.config
        return State(
            self.initial.new_zeros(rows, self.deter_size),
            self.initial.new_zeros(rows, config.groups, config.classes),
        )

    def observe(
        self,
        embed: Tensor,
        action: Tensor,
        is_first: Tensor,
        uniforms: Tensor,
        state: State | None = None,
    ) -> Observed:
        """Filter sequences: `rssm_observe` with this model's parameters.

        In training the batch norm's running statistics follow the batch. Its statistics are those
        of all ranks' rows: each rank filters all of them, and keeps its own. A step of so few rows
        is over before the ranks could have told one another what theirs come to, twice a step.

        Args:
            embed: (B, T, E).
            action: (B, T, A), the action that led to each step.
            is_first: (B, T) bool.
            uniforms: (B, T, G) in [0, 1); in training those of all ranks' rows.
            state: before the first step, (B,); None for an empty one.
        """
        config, ranks = self.config, self._ranks
        together = self.training and self.running is not None
        if together:
            embed, action, is_first = map(ranks.joined, (embed, action, is_first))
        elif self.training:
            uniforms = ranks.own(uniforms)
        norm = None
        if self.running is not None:
            use_batch = self.training and config.batch_norm_statistics == "step"
            norm = self.running.state(use_batch)
        observed = self.ops.rssm_observe(
            embed,
            action,
            is_first,
            uniforms,
            state or self.empty_state(len(embed)),
            self.tensors(),
            norm,
            config.unimix,
            config.norm_eps,
        )
        if self.running is not None and self.training:
            pooled = config.batch_norm_update == "pooled"
            self.running.update(observed.batch_mean, observed.batch_var, len(embed), pooled)
        if not together or ranks.size == 1:
            return observed
        *sequences, batch_mean, batch_var = observed
        return Observed._make([*map(ranks.own, sequences), batch_mean, batch_var])

    def foresee(self, start: State, action: Tensor, uniforms: Tensor) -> State:
        """Go on without seeing: `h_t = f(h_{t-1}, z_{t-1}, a_{t-1})`, `z_t ~ p(z | h_t)`.

        Args:
            start: before the first step, (B,).
            action: (B, T, A), the action that led to each step.
            uniforms: (B, T, G) in [0, 1).

        Returns:
            (B, T).
        """
        config, ops = self.config, self.ops
        weights, eps = self.tensors(), config.norm_eps
        deter, stoch = start
        states = []
        for led_here, draws in zip(action.unbind(1), uniforms.unbind(1), strict=True):
            inputs = torch.cat([stoch.flatten(-2), bound_action(led_here)], dim=-1)
            hidden = ops.linear_norm_act(inputs, weights.input, eps)
            deter = ops.layernorm_gru(hidden, deter, weights.gru, eps)
            hidden = ops.linear_norm_act(deter, weights.prior_hidden, eps)
            logits = F.linear(hidden, *weights.prior_out).view_as(stoch)
            stoch = ops.categorical_sample(logits, draws, config.unimix)
            states.append(State(deter, stoch))
        return State(*(torch.stack(parts, 1) for parts in zip(*states, strict=True)))

    def imagine(
        self,
        start: State,
        actor: MlpWeights,
        uniforms: Tensor,
        action_noise: Tensor,
        continuous: bool,
        through_dynamics: bool,
    ) -> Imagined:
        """Roll an actor out from states (N,): `rssm_imagine` with these parameters."""
        return self.ops.rssm_imagine(
            *start,
            self.tensors(),
            actor,
            uniforms,
            action_noise,
            continuous,
            through_dynamics,
            self.config.unimix,
            self.config.norm_eps,
        )
