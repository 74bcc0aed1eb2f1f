"""Actor and critic, and their losses on imagined trajectories."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mudreamer_fast.config import BehaviourConfig, ModelConfig
from mudreamer_fast.imagination import Trajectory
from mudreamer_fast.machine.ranks import ALONE, Ranks
from mudreamer_fast.networks import ActionHead, ScalarHead
from mudreamer_fast.ops.operations import Operations


class ReturnScale(nn.Module):
    """Moving averages of the 5th and 95th percentile of returns.

    `S = max(1, P95 - P5)` (DreamerV3, arXiv 2301.04104v1, eq. 12): large returns are scaled down,
    small ones are not scaled up, so that noise in sparse rewards is not amplified.

    Args:
        decay: weight of the past in each update.
        ranks: whose returns are taken together.
    """

    low: Tensor
    high: Tensor

    def __init__(self, decay: float, ranks: Ranks = ALONE) -> None:
        super().__init__()
        self.decay = decay
        self._ranks = ranks
        self.register_buffer("low", torch.zeros(()))
        self.register_buffer("high", torch.zeros(()))

    @torch.no_grad()
    def update(self, returns: Tensor) -> Tensor:
        """Move the averages towards the percentiles of `returns` and give the new scale ()."""
        # Numbers sent from the host would be waited for, and could not be part of a CUDA graph.
        levels = torch.linspace(0.05, 0.95, 2, dtype=returns.dtype, device=returns.device)
        returns = self._ranks.joined(returns.detach().flatten())
        low, high = torch.quantile(returns, levels)
        for average, new in ((self.low, low), (self.high, high)):
            # An average that has once taken in a NaN would never lose it again.
            average.lerp_(torch.where(new.isfinite(), new, average), 1.0 - self.decay)
        return self.scale

    @property
    def scale(self) -> Tensor:
        """`max(1, P95 - P5)` of the averages, a scalar."""
        return (self.high - self.low).clamp(min=1.0)


@dataclass(frozen=True)
class BehaviourLoss:
    """Losses of a set of trajectories."""

    actor: Tensor
    """()."""
    critic: Tensor
    """()."""
    metrics: dict[str, Tensor]
    """Scalars to log."""


class ActorCritic(nn.Module):
    """The policy, the critic that judges it, the critic's moving average, and the return scale.

    Args:
        config: the model's configuration.
        behaviour: the behaviour's configuration.
        feature_size: F, width of the model state.
        action_size: A.
        continuous: whether actions are continuous.
        ops: the operations, reference or fused.
        ranks: the processes that train it.
    """

    def __init__(
        self,
        config: ModelConfig,
        behaviour: BehaviourConfig,
        feature_size: int,
        action_size: int,
        continuous: bool,
        ops: Operations,
        ranks: Ranks = ALONE,
    ) -> None:
        super().__init__()
        self.config = behaviour
        self.ops = ops
        self.actor = ActionHead(config, feature_size, action_size, continuous, ops)
        self.critic = ScalarHead(config, feature_size, ops)
        self.slow_critic = self.critic.frozen_copy()
        self.scale = ReturnScale(behaviour.return_decay, ranks)
        gradient = behaviour.actor_gradient
        self.through_dynamics = gradient == "dynamics" or (gradient == "auto" and continuous)

    def loss(self, trajectory: Trajectory) -> BehaviourLoss:
        """Losses of actor and critic (DreamerV3, arXiv 2301.04104v1, eq. 8 to 11).

        The actor's is the scaled advantage, followed through the dynamics or by REINFORCE, and
        the policy's entropy; the critic's is the cross entropy to the lambda-returns and to its
        own moving average. One pass of the critic serves both losses: each optimiser takes the
        gradients of its own parameters only.
        """
        config = self.config
        logits = self.critic(trajectory.feature)
        value = self.critic.mean(logits)
        returns = self.ops.lambda_return(
            trajectory.reward, trajectory.cont, value, config.discount, config.lam
        )[:, :-1]
        weight = trajectory.weight[:, :-1]
        scale = self.scale.update(returns)
        advantage = (returns - value[:, :-1]) / scale
        policy = self.actor.distribution(trajectory.policy)
        entropy = policy.entropy()
        if self.through_dynamics:
            gain = advantage
        else:
            gain = policy.log_prob(trajectory.action.detach()) * advantage.detach()
        actor = -(weight * (gain + config.entropy_scale * entropy)).mean()
        critic = self._critic_loss(trajectory.feature.detach(), logits[:, :-1], returns)
        metrics = {
            "actor_loss": actor,
            "critic_loss": (weight * critic).mean(),
            "entropy": entropy.mean(),
            "return": returns.mean(),
            "return_scale": scale,
            "value": value.mean(),
            "imagined_reward": trajectory.reward.mean(),
            "advantage": advantage.mean(),
        }
        return BehaviourLoss(actor, metrics["critic_loss"], metrics)

    def _critic_loss(self, feature: Tensor, logits: Tensor, returns: Tensor) -> Tensor:
        """Cross entropy (N, H) to the returns, and to the moving average's values."""
        slow = self.slow_critic.mean(self.slow_critic(feature)).detach()
        to_slow = self.critic.loss(logits, slow[:, :-1])
        return self.critic.loss(logits, returns) + self.config.slow_critic_scale * to_slow
