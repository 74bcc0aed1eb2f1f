"""The imagination rollout: the actor in the world model, with no observation."""

from __future__ import annotations

import torch
from torch import Tensor

from mudreamer_fast.ops.distributions import policy_distribution
from mudreamer_fast.ops.signatures import Imagined, MlpWeights, RssmWeights
from mudreamer_fast.reference.categorical import categorical_sample
from mudreamer_fast.reference.linear_norm_act import mlp
from mudreamer_fast.reference.rssm_step import rssm_prior, rssm_sequence


def rssm_imagine(
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
    """Roll the actor out: `a_t ~ pi(a | sg(s_t))`, `s_{t+1} ~ p(s | s_t, a_t)`.

    Source: DreamerV3 (arXiv 2301.04104v1), section "Actor critic learning".

    Args:
        deter: (N, D), where to start; no gradient flows to it.
        stoch: (N, G, C), likewise.
        weights: parameters of the RSSM; no gradient flows to them.
        actor: parameters of the actor.
        uniforms: (N, H, G), the latents' randomness, in [0, 1).
        action_noise: (N, H, A) standard normal, or (N, H, 1) uniform for discrete actions.
        continuous: whether actions are normal or one-hot.
        through_dynamics: whether later states carry a gradient to earlier actions.
        unimix: share of the uniform distribution in every categorical.
        eps: added to the variances.

    Example:
        >>> from mudreamer_fast import reference
        >>> from mudreamer_fast.config import ModelConfig
        >>> from mudreamer_fast.networks import ActionHead, Rssm
        >>> config = ModelConfig(deter=16, hidden=16, groups=4, classes=8)
        >>> rssm = Rssm(config, embed_size=32, action_size=2, ops=reference)
        >>> actor = ActionHead(config, rssm.feature_size, 2, continuous=True, ops=reference)
        >>> weights, policy, noise = rssm.tensors(), actor.mlp.tensors(), torch.randn(3, 15, 2)
        >>> dreams = rssm_imagine(
        ...     *rssm.empty_state(rows=3), weights, policy, torch.rand(3, 15, 4), noise,
        ...     continuous=True, through_dynamics=True, unimix=0.01, eps=1e-3,
        ... )
        >>> dreams.action.shape, dreams.state.feature.shape
        (torch.Size([3, 15, 2]), torch.Size([3, 16, 48]))
    """
    groups = stoch.shape[-2]
    weights = _detach_weights(weights)
    deter, stoch = deter.detach(), stoch.detach()
    deters, stochs, actions, outputs = [deter], [stoch], [], []
    for t in range(uniforms.shape[1]):
        features = torch.cat([deter, stoch.flatten(-2)], dim=-1).detach()
        output = mlp(features, actor, eps)
        action = policy_distribution(output, continuous, unimix).sample(action_noise[:, t])
        if not through_dynamics:
            action = action.detach()
        deter = rssm_sequence(deter, stoch, action, weights, eps)
        prior = rssm_prior(deter, weights, groups, eps)
        stoch = categorical_sample(prior, uniforms[:, t], unimix)
        deters.append(deter)
        stochs.append(stoch)
        actions.append(action)
        outputs.append(output)
    return Imagined(
        torch.stack(deters, 1),
        torch.stack(stochs, 1),
        torch.stack(actions, 1),
        torch.stack(outputs, 1),
    )


def _detach_weights(weights: RssmWeights) -> RssmWeights:
    """The same parameters, shared, cut off from the graph."""

    def cut(part: Tensor | tuple[Tensor, ...]) -> Tensor | tuple[Tensor, ...]:
        if isinstance(part, Tensor):
            return part.detach()
        return type(part)(*(tensor.detach() for tensor in part))

    return RssmWeights(*(cut(part) for part in weights))  # type: ignore[arg-type]
