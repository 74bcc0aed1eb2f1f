"""The world model along a batch of sequences, and its loss."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from tests.twin.maths import (
    divergence,
    draw,
    entropy,
    lambda_return,
    layer_norm,
    log_softmax,
    margin,
    masked_mean,
    mixed,
    moments_of,
    moved_statistics,
    normalise,
    silu,
    symlog,
    two_hot_loss,
    two_hot_mean,
)
from tests.twin.networks import Settings, Weights, decode, encode, linear, mlp, prior, recur, state
from tests.twin.policy import Policy


@dataclass(frozen=True)
class Seen:
    """What one batch makes of the world model."""

    loss: Tensor
    decoder_loss: Tensor | None
    deter: Tensor
    """(B, T, D)."""
    stoch: Tensor
    """(B, T, G, C)."""
    statistics: Weights
    """Running averages after the batch, by name."""
    metrics: dict[str, Tensor]
    divergence: Tensor
    """(B, T)."""
    margin: float
    """Of the draw that came nearest to another class."""


@dataclass(frozen=True)
class Beliefs:
    deter: Tensor
    stoch: Tensor
    posterior: Tensor
    """(B, T, G, C), logits."""
    previous: Tensor
    """(B, T, F), the state that each step came from."""
    rows: Tensor
    """(T, B, U), what the posterior's norm is given."""


def filter_sequences(
    w: Weights, x: Tensor, batch: Mapping[str, Tensor], uniforms: Tensor, model: Settings
) -> Beliefs:
    """`h_t = f(h_{t-1}, z_{t-1}, a_{t-1})`, `z_t ~ q(z | h_t, x_t)`."""
    first_h = torch.tanh(w["rssm.initial"])
    first_logits = prior(w, first_h, model)
    first_z = (first_logits == first_logits.max(-1, keepdim=True).values).double()
    assert batch["is_first"][:, 0].all(), "replay marks the first step of each sequence"
    h, z = first_h.expand(len(x), -1), first_z.expand(len(x), -1, -1)
    hs, zs, posteriors, previous, rows = [], [], [], [], []
    for t in range(x.shape[1]):
        begins = batch["is_first"][:, t]
        h = torch.where(begins[:, None], first_h, h)
        z = torch.where(begins[:, None, None], first_z, z)
        action = batch["action"][:, t].double() * (~begins)[:, None]
        previous.append(state(h, z))
        h = recur(w, h, z, action, model)
        y = torch.cat([x[:, t], h], 1) @ w["rssm.posterior_hidden.weight"].T
        rows.append(y)
        logits = linear(w, "rssm.posterior_out", silu(posterior_norm(w, y, model)))
        logits = logits.view(len(x), model["groups"], model["classes"])
        z = draw(mixed(logits, model["unimix"]), uniforms[:, t])
        hs.append(h)
        zs.append(z)
        posteriors.append(logits)
    return Beliefs(
        torch.stack(hs, 1),
        torch.stack(zs, 1),
        torch.stack(posteriors, 1),
        torch.stack(previous, 1),
        torch.stack(rows).detach(),
    )


def posterior_norm(w: Weights, y: Tensor, model: Settings) -> Tensor:
    """Batch norm over the rows (B, U) of one step, or layer norm."""
    scale, shift = w["rssm.posterior_hidden.norm_weight"], w["rssm.posterior_hidden.norm_bias"]
    if model["batch_norm"] not in ("posterior", "both"):
        return layer_norm(y, scale, shift, model["norm_eps"])
    if model["batch_norm_statistics"] == "running":
        mean, var = w["rssm.running.mean"], w["rssm.running.var"]
    else:
        mean, var = moments_of(y)
    return normalise(y, mean, var, scale, shift, model["norm_eps"])


def posterior_statistics(w: Weights, rows: Tensor, model: Settings) -> Weights:
    """The posterior's running averages after rows (T, B, U)."""
    if model["batch_norm"] not in ("posterior", "both"):
        return {}
    running = w["rssm.running.mean"], w["rssm.running.var"]
    groups = [rows.flatten(0, 1)] if model["batch_norm_update"] == "pooled" else list(rows)
    for group in groups:
        running = moved_statistics(running, group, model["batch_norm_momentum"])
    return {"rssm.running.mean": running[0], "rssm.running.var": running[1]}


def value_loss(
    w: Weights, s: Tensor, batch: Mapping[str, Tensor], model: Settings, behaviour: Settings
) -> Tensor:
    """Cross entropy to lambda-returns of the data, but for the steps that have none."""
    slow = two_hot_mean(mlp(w, "slow_value", s, model)).detach()
    cont = 1 - batch["is_terminal"].double()
    target = lambda_return(
        batch["reward"].double(), cont, slow, batch["is_first"],
        behaviour["discount"], behaviour["lam"],
    )  # fmt: skip
    each = two_hot_loss(mlp(w, "value", s, model), target)
    return masked_mean(each[:, :-1], ~batch["is_first"][:, 1:])


def continue_loss(w: Weights, s: Tensor, is_terminal: Tensor, model: Settings) -> Tensor:
    p = torch.sigmoid(mlp(w, "cont", s, model)[..., 0])
    return -torch.where(is_terminal, 1 - p, p).log().mean()


def image_loss(w: Weights, s: Tensor, image: Tensor, model: Settings) -> Tensor:
    target = image.double().flatten(0, 1) / 255 - 0.5
    error = decode(w, s.flatten(0, 1), model) - target
    return (error**2).sum((1, 2, 3)).mean()


def reconstruction_loss(
    w: Weights, s: Tensor, batch: Mapping[str, Tensor], model: Settings
) -> Tensor:
    """DreamerV3's: squared errors, summed, of the image and of the vector's symlog."""
    loss = torch.zeros((), dtype=torch.float64)
    if "image" in batch:
        loss = loss + image_loss(w, s, batch["image"], model)
    if "vector" in batch:
        error = mlp(w, "vector_decoder", s, model) - symlog(batch["vector"].double())
        loss = loss + (error**2).sum(-1).mean()
    return loss


def world_model_loss(
    w: Weights,
    batch: Mapping[str, Tensor],
    uniforms: Tensor,
    model: Settings,
    behaviour: Settings,
    continuous: bool,
) -> Seen:
    """`b_pred (L_reward + L_continue + L_value + L_action) + b_dyn L_dyn + b_rep L_rep`."""
    x, statistics = encode(w, batch, model)
    seen = filter_sequences(w, x, batch, uniforms, model)
    statistics |= posterior_statistics(w, seen.rows, model)
    s = state(seen.deter, seen.stoch)
    reward = two_hot_loss(mlp(w, "reward", s, model), batch["reward"].double()).mean()
    cont = continue_loss(w, s, batch["is_terminal"], model)
    action = value = reconstruction = torch.zeros((), dtype=torch.float64)
    if model["value_predictor"]:
        value = value_loss(w, s, batch, model, behaviour)
    if model["reconstruction"]:
        reconstruction = reconstruction_loss(w, s, batch, model)
    if model["action_predictor"]:
        out = mlp(w, "action", torch.cat([x, seen.previous], -1), model)
        guess = Policy(out, continuous, model["unimix"])
        action = masked_mean(-guess.log_prob(batch["action"].double()), ~batch["is_first"])
    q = mixed(seen.posterior, model["unimix"])
    p = mixed(prior(w, seen.deter, model), model["unimix"])
    dynamics, representation = divergence(q.detach(), p), divergence(q, p.detach())
    free = torch.tensor(float(model["free_nats"]), dtype=torch.float64)
    loss = (
        model["prediction_scale"] * (reward + cont + value + action + reconstruction)
        + model["dynamics_scale"] * torch.maximum(free, dynamics).mean()
        + model["representation_scale"] * torch.maximum(free, representation).mean()
    )
    metrics = {
        "loss": loss,
        "loss_reward": reward,
        "loss_continue": cont,
        "loss_value": value,
        "loss_action": action,
        "loss_dynamics": torch.maximum(free, dynamics).mean(),
        "kl": dynamics.mean(),
        "feature_std": spread(x.flatten(0, 1)),
        "stoch_std": spread(log_softmax(seen.posterior).exp().flatten(0, 1)),
        "posterior_entropy": entropy(q).mean(),
        "prior_entropy": entropy(p).mean(),
    }
    decoder = None
    if model["reconstruction"]:
        metrics["loss_decoder"] = reconstruction
    elif model["decoder"] and "image" in batch:
        decoder = metrics["loss_decoder"] = image_loss(w, s.detach(), batch["image"], model)
    return Seen(
        loss, decoder, seen.deter.detach(), seen.stoch.detach(), statistics, metrics,
        dynamics.detach(), margin(q, uniforms),
    )  # fmt: skip


def spread(rows: Tensor) -> Tensor:
    """Standard deviation over the rows, averaged over all columns."""
    return moments_of(rows)[1].sqrt().mean()
