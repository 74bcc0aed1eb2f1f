"""The world model: features, beliefs, predictions, and the loss that trains them.

MuDreamer (arXiv 2405.15083), section 3: no reconstruction; rewards, values, continuations and the
agent's own past actions are what the model must know.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mudreamer_fast.config import BehaviourConfig, ModelConfig
from mudreamer_fast.networks import (
    ActionHead,
    ContinueHead,
    Decoder,
    Encoder,
    Rssm,
    ScalarHead,
)
from mudreamer_fast.ops.operations import Operations
from mudreamer_fast.ops.signatures import State


@dataclass(frozen=True)
class WorldModelLoss:
    """The loss of a batch, and what the rest of the update needs of it."""

    total: Tensor
    """() the weighted sum."""
    state: State
    """(B, T), of the posterior."""
    metrics: dict[str, Tensor]
    """Scalars to log."""
    decoder: Tensor | None
    """() the decoder's own loss, where there is one."""


class WorldModel(nn.Module):
    """Encoder, RSSM and heads.

    Args:
        config: the model's configuration.
        behaviour: gives the value targets' discount and lambda.
        shapes: shape of each observation.
        action_size: A.
        continuous: whether actions are continuous.
        ops: the operations, reference or fused.
    """

    def __init__(
        self,
        config: ModelConfig,
        behaviour: BehaviourConfig,
        shapes: Mapping[str, tuple[int, ...]],
        action_size: int,
        continuous: bool,
        ops: Operations,
    ) -> None:
        super().__init__()
        self.config = config
        self.discount, self.lam = behaviour.discount, behaviour.lam
        self.ops = ops
        self.encoder = Encoder(config, shapes)
        self.rssm = Rssm(config, self.encoder.size, action_size, ops)
        size = self.rssm.feature_size
        self.reward = ScalarHead(config, size, ops)
        self.cont = ContinueHead(config, size, ops)
        self.value = ScalarHead(config, size, ops)
        self.slow_value = self.value.frozen_copy()
        self.action = (
            ActionHead(config, self.encoder.size + size, action_size, continuous, ops)
            if config.action_predictor
            else None
        )
        self.decoder = (
            Decoder(config, size, shapes["image"]) if config.decoder and "image" in shapes else None
        )

    def trained_parameters(self) -> list[nn.Parameter]:
        """What the world-model loss trains: all but the decoder and the slow value head."""
        return [
            parameter
            for name, parameter in self.named_parameters()
            if not name.startswith(("decoder.", "slow_value."))
        ]

    def loss(self, batch: Mapping[str, Tensor], uniforms: Tensor) -> WorldModelLoss:
        """Filter a batch of sequences and score every prediction (arXiv 2405.15083, eq. 3 to 6).

        Args:
            batch: observations (B, T, ...), action (B, T, A), reward, is_first, is_terminal (B, T).
            uniforms: (B, T, G), the latents' randomness.
        """
        is_first = batch["is_first"]
        embed = self.encoder(batch)
        seen = self.rssm.observe(embed, batch["action"], is_first, uniforms)
        feature = seen.state.feature
        reward = self.reward.loss(self.reward(feature), batch["reward"]).mean()
        cont = self.cont.loss(self.cont(feature), batch["is_terminal"]).mean()
        value = self._value_loss(feature, batch)
        action = reward.new_zeros(())
        if self.action is not None:
            read = torch.cat([embed, seen.previous.feature], dim=-1)
            log_prob = self.action(read).log_prob(batch["action"])
            action = -_masked_mean(log_prob, ~is_first)
        dynamics, representation, divergence = self._kl_losses(seen.posterior, seen.prior)
        config = self.config
        total = (
            config.prediction_scale * (reward + cont + value + action)
            + config.dynamics_scale * dynamics
            + config.representation_scale * representation
        )
        metrics = {
            "loss": total,
            "loss_reward": reward,
            "loss_continue": cont,
            "loss_value": value,
            "loss_action": action,
            "loss_dynamics": dynamics,
            "kl": divergence,
            **self._health(embed, seen.posterior, seen.prior),
        }
        decoder = None
        if self.decoder is not None:
            decoder = self.decoder.loss(feature, batch["image"]).mean()
            metrics["loss_decoder"] = decoder
        return WorldModelLoss(total, seen.state, metrics, decoder)

    def _value_loss(self, feature: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        """Cross entropy of the value head to lambda-returns along the replayed sequence."""
        is_first = batch["is_first"]
        if is_first.shape[1] == 1:
            return feature.new_zeros(())
        with torch.no_grad():
            bootstrap = self.slow_value.mean(self.slow_value(feature))
            target = self.ops.lambda_return(
                batch["reward"],
                1.0 - batch["is_terminal"].to(feature.dtype),
                bootstrap,
                self.discount,
                self.lam,
                is_first,
            )[:, :-1]
        each = self.value.loss(self.value(feature)[:, :-1], target)
        # A step before a first one, like the last of all, has no return of its own.
        return _masked_mean(each, ~is_first[:, 1:])

    def _kl_losses(self, posterior: Tensor, prior: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """`max(free, KL(sg(q) || p))`, `max(free, KL(q || sg(p)))`, and the plain KL, as means."""
        config = self.config
        dynamics = self.ops.categorical_kl(posterior.detach(), prior, config.unimix)
        representation = self.ops.categorical_kl(posterior, prior.detach(), config.unimix)
        return (
            dynamics.clamp(min=config.free_nats).mean(),
            representation.clamp(min=config.free_nats).mean(),
            dynamics.detach().mean(),
        )

    @torch.no_grad()
    def _health(self, embed: Tensor, posterior: Tensor, prior: Tensor) -> dict[str, Tensor]:
        """What shows a collapse: spread of the features, entropy and spread of the latents."""
        unimix = self.config.unimix
        probs = posterior.softmax(-1).flatten(0, 1)
        return {
            "feature_std": embed.flatten(0, 1).std(0, correction=0).mean(),
            "stoch_std": probs.std(0, correction=0).mean(),
            "posterior_entropy": self.ops.categorical_entropy(posterior, unimix).mean(),
            "prior_entropy": self.ops.categorical_entropy(prior, unimix).mean(),
        }


def _masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean of `x` where `mask` holds; zero where it holds nowhere."""
    kept = mask.to(x.dtype)
    return (x * kept).sum() / kept.sum().clamp(min=1.0)
