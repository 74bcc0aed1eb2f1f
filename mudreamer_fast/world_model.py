"""The world model: features, beliefs, predictions, and the loss that trains them.

MuDreamer (arXiv 2405.15083), section 3: no reconstruction; rewards, values, continuations and the
agent's own past actions are what the model must know. Each of these can be left out, and
reconstruction put in, which makes DreamerV3 (arXiv 2301.04104v1) of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mudreamer_fast.config import BehaviourConfig, ModelConfig
from mudreamer_fast.machine.ranks import ALONE, Ranks
from mudreamer_fast.networks import (
    ActionHead,
    ContinueHead,
    Decoder,
    Encoder,
    Rssm,
    ScalarHead,
    VectorDecoder,
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
    """() the decoder's own loss, where there is one that teaches the model nothing."""


class WorldModel(nn.Module):
    """Encoder, RSSM and heads.

    Args:
        config: the model's configuration.
        behaviour: gives the value targets' discount and lambda.
        shapes: shape of each observation.
        action_size: A.
        continuous: whether actions are continuous.
        ops: the operations, reference or fused.
        ranks: the processes that train it.
    """

    def __init__(
        self,
        config: ModelConfig,
        behaviour: BehaviourConfig,
        shapes: Mapping[str, tuple[int, ...]],
        action_size: int,
        continuous: bool,
        ops: Operations,
        ranks: Ranks = ALONE,
    ) -> None:
        super().__init__()
        self.config = config
        self._ranks = ranks
        self.discount, self.lam = behaviour.discount, behaviour.lam
        self.ops = ops
        self.encoder = Encoder(config, shapes, ranks)
        self.rssm = Rssm(config, self.encoder.size, action_size, ops, ranks)
        size = self.rssm.feature_size
        self.reward = ScalarHead(config, size, ops)
        self.cont = ContinueHead(config, size, ops)
        self.value = ScalarHead(config, size, ops) if config.value_predictor else None
        self.slow_value = None if self.value is None else self.value.frozen_copy()
        self.action = (
            ActionHead(config, self.encoder.size + size, action_size, continuous, ops)
            if config.action_predictor
            else None
        )
        decodes = config.decoder or config.reconstruction
        self.decoder = (
            Decoder(config, size, shapes["image"]) if decodes and "image" in shapes else None
        )
        self.vector_decoder = (
            VectorDecoder(config, size, shapes["vector"][0], ops)
            if config.reconstruction and "vector" in shapes
            else None
        )

    def trained_parameters(self) -> list[nn.Parameter]:
        """What the world-model loss trains: no slow value head, and no decoder beside the model."""
        apart = ("slow_value.",) if self.config.reconstruction else ("slow_value.", "decoder.")
        return [
            parameter for name, parameter in self.named_parameters() if not name.startswith(apart)
        ]

    def loss(self, batch: Mapping[str, Tensor], uniforms: Tensor) -> WorldModelLoss:
        """Filter a batch of sequences and score every prediction (arXiv 2405.15083, eq. 3 to 6).

        With several ranks the mean of their losses is the loss of their batches joined.

        Args:
            batch: observations (B, T, ...), action (B, T, A), reward, is_first, is_terminal (B, T).
            uniforms: (B, T, G), the latents' randomness, those of all ranks' rows.
        """
        is_first = batch["is_first"]
        embed = self.encoder(batch)
        seen = self.rssm.observe(embed, batch["action"], is_first, uniforms)
        feature = seen.state.feature
        reward = self.reward.loss(self.reward(feature), batch["reward"]).mean()
        cont = self.cont.loss(self.cont(feature), batch["is_terminal"]).mean()
        value = self._value_loss(feature, batch)
        decoder = self._decoder_loss(feature, batch)
        action = reconstruction = reward.new_zeros(())
        if self.action is not None:
            read = torch.cat([embed, seen.previous.feature], dim=-1)
            log_prob = self.action(read).log_prob(batch["action"])
            action = -self._masked_mean(log_prob, ~is_first)
        dynamics, representation, divergence = self._kl_losses(seen.posterior, seen.prior)
        config = self.config
        if config.reconstruction and decoder is not None:
            reconstruction = decoder
        total = (
            config.prediction_scale * (reward + cont + value + action + reconstruction)
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
        if decoder is not None:
            metrics["loss_decoder"] = decoder
        own = None if config.reconstruction else decoder
        return WorldModelLoss(total, seen.state, metrics, own)

    def _decoder_loss(self, feature: Tensor, batch: Mapping[str, Tensor]) -> Tensor | None:
        """Squared error of all that is decoded; without reconstruction the model learns nothing."""
        if not self.config.reconstruction:
            feature = feature.detach()
        losses = []
        if self.decoder is not None:
            losses.append(self.decoder.loss(feature, batch["image"]).mean())
        if self.vector_decoder is not None:
            losses.append(self.vector_decoder.loss(feature, batch["vector"]).mean())
        return sum(losses[1:], start=losses[0]) if losses else None

    def _value_loss(self, feature: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        """Cross entropy of the value head to lambda-returns along the replayed sequence."""
        is_first = batch["is_first"]
        if self.value is None or self.slow_value is None or is_first.shape[1] == 1:
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
        return self._masked_mean(each, ~is_first[:, 1:])

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
            "feature_std": self._spread(embed.flatten(0, 1)),
            "stoch_std": self._spread(probs),
            "posterior_entropy": self.ops.categorical_entropy(posterior, unimix).mean(),
            "prior_entropy": self.ops.categorical_entropy(prior, unimix).mean(),
        }

    def _spread(self, rows: Tensor) -> Tensor:
        """Mean over the columns of the standard deviation over all ranks' rows."""
        if self._ranks.size == 1:
            return rows.std(0, correction=0).mean()
        mean = self._ranks.mean(rows.mean(0))
        return self._ranks.mean((rows - mean).square().mean(0)).sqrt().mean()

    def _masked_mean(self, x: Tensor, mask: Tensor) -> Tensor:
        """Mean of `x` where `mask` holds; zero where it holds nowhere.

        A rank's own share of the mean over all ranks: their mean is that.
        """
        kept = mask.to(x.dtype)
        ranks = self._ranks
        return (x * kept).sum() / ranks.mean(kept.sum()).clamp(min=1.0 / ranks.size)
