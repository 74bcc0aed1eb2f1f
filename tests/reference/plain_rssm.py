"""The RSSM and its rollouts written out step by step, in the plainest terms, to compare with.

Nothing of the package's operations is used, and gradients pass the latents by the textbook
identity `z = onehot + p - sg(p)`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mudreamer_fast.ops.signatures import BatchNormState, MlpWeights, NormLinear, RssmWeights

Outputs = dict[str, Tensor]


def sigmoid(x: Tensor) -> Tensor:
    return 1 / (1 + torch.exp(-x))


def normalise(x: Tensor, mean: Tensor, var: Tensor, layer: NormLinear, eps: float) -> Tensor:
    return layer.norm_weight * (x - mean) / torch.sqrt(var + eps) + layer.norm_bias


def layer_norm(x: Tensor, layer: NormLinear, eps: float) -> Tensor:
    mean = x.sum(-1, keepdim=True) / x.shape[-1]
    var = ((x - mean) ** 2).sum(-1, keepdim=True) / x.shape[-1]
    return normalise(x, mean, var, layer, eps)


def dense(x: Tensor, layer: NormLinear, eps: float) -> Tensor:
    y = layer_norm(x @ layer.weight.T, layer, eps)
    return y * sigmoid(y)


def mlp(x: Tensor, weights: MlpWeights, eps: float) -> Tensor:
    for layer in weights.hidden:
        x = dense(x, layer, eps)
    return x @ weights.out.weight.T + weights.out.bias


def probabilities(logits: Tensor, unimix: float) -> Tensor:
    exps = torch.exp(logits)
    return (1 - unimix) * exps / exps.sum(-1, keepdim=True) + unimix / logits.shape[-1]


def draw(probs: Tensor, uniforms: Tensor) -> Tensor:
    """One-hot draws, one at a time: walk over the classes until their sum passes the uniform."""
    one_hot = torch.zeros_like(probs)
    flat, rows = one_hot.view(-1, probs.shape[-1]), probs.detach().reshape(-1, probs.shape[-1])
    for i, u in enumerate(uniforms.reshape(-1).tolist()):
        total, k = 0.0, -1
        while total <= u:
            k += 1
            total += rows[i, k].item()
        flat[i, k] = 1.0
    return one_hot


def straight_through(one_hot: Tensor, probs: Tensor) -> Tensor:
    return one_hot + probs - probs.detach()


def bounded(action: Tensor) -> Tensor:
    return action / torch.maximum(torch.ones_like(action), action.abs()).detach()


def recur(h: Tensor, z: Tensor, action: Tensor, weights: RssmWeights, eps: float) -> Tensor:
    """`h' = f(h, z, a)` on (N, D), (N, G, C), (N, A), with actions that are bounded already."""
    u = dense(torch.cat([z.reshape(len(z), -1), action], 1), weights.input, eps)
    p = layer_norm(torch.cat([u, h], 1) @ weights.gru.weight.T, weights.gru, eps)
    size = h.shape[1]
    reset, update = sigmoid(p[:, :size]), sigmoid(p[:, 2 * size :] - 1)
    candidate = torch.tanh(reset * p[:, size : 2 * size])
    return update * candidate + (1 - update) * h


def prior_logits(h: Tensor, weights: RssmWeights, groups: int, eps: float) -> Tensor:
    hidden = dense(h, weights.prior_hidden, eps)
    logits = hidden @ weights.prior_out.weight.T + weights.prior_out.bias
    return logits.view(*h.shape[:-1], groups, -1)


def start(weights: RssmWeights, groups: int, eps: float) -> tuple[Tensor, Tensor]:
    h = torch.tanh(weights.initial)
    logits = prior_logits(h, weights, groups, eps)
    z = torch.zeros_like(logits)
    for group in range(groups):
        z[group, int(logits[group].argmax())] = 1.0
    return h, z.detach()


def observe(
    embed: Tensor,
    action: Tensor,
    is_first: Tensor,
    uniforms: Tensor,
    state: tuple[Tensor, Tensor],
    weights: RssmWeights,
    batch_norm: BatchNormState | None,
    unimix: float,
    eps: float,
) -> Outputs:
    rows, steps, groups = uniforms.shape
    layer = weights.posterior_hidden
    first_h, first_z = start(weights, groups, eps)
    h, z = state
    columns: dict[str, list[Tensor]] = {name: [] for name in (
        "deter", "stoch", "posterior", "prior", "previous_deter", "previous_stoch",
        "batch_mean", "batch_var",
    )}  # fmt: skip
    for t in range(steps):
        first = [bool(is_first[row, t]) for row in range(rows)]
        h = torch.stack([first_h if first[row] else h[row] for row in range(rows)])
        z = torch.stack([first_z if first[row] else z[row] for row in range(rows)])
        still = torch.zeros_like(action[0, 0])
        a = torch.stack([still if first[row] else action[row, t] for row in range(rows)])
        columns["previous_deter"].append(h)
        columns["previous_stoch"].append(z)
        h = recur(h, z, bounded(a), weights, eps)
        y = torch.cat([embed[:, t], h], 1) @ layer.weight.T
        if batch_norm is None:
            normed = layer_norm(y, layer, eps)
        else:
            mean = y.sum(0) / rows
            var = ((y - mean) ** 2).sum(0) / rows
            columns["batch_mean"].append(mean.detach())
            columns["batch_var"].append(var.detach())
            if not batch_norm.use_batch:
                mean, var = batch_norm.running_mean, batch_norm.running_var
            normed = normalise(y, mean, var, layer, eps)
        hidden = normed * sigmoid(normed)
        logits = hidden @ weights.posterior_out.weight.T + weights.posterior_out.bias
        logits = logits.view(rows, groups, -1)
        probs = probabilities(logits, unimix)
        z = straight_through(draw(probs, uniforms[:, t]), probs)
        columns["deter"].append(h)
        columns["stoch"].append(z)
        columns["posterior"].append(logits)
        columns["prior"].append(prior_logits(h, weights, groups, eps))
    empty = embed.new_empty(steps, 0)
    return {
        name: (torch.stack(column, 0 if name.startswith("batch") else 1) if column else empty)
        for name, column in columns.items()
    }


def act(output: Tensor, noise: Tensor, continuous: bool, unimix: float) -> Tensor:
    if continuous:
        mean, std = output[:, : output.shape[1] // 2], output[:, output.shape[1] // 2 :]
        return torch.tanh(mean) + (0.9 * sigmoid(std + 2) + 0.1) * noise
    probs = probabilities(output, unimix)
    return straight_through(draw(probs, noise[:, 0]), probs)


def imagine(
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
) -> Outputs:
    groups = stoch.shape[1]
    h, z = deter, stoch
    columns: dict[str, list[Tensor]] = {"deter": [h], "stoch": [z], "action": [], "policy": []}
    for t in range(uniforms.shape[1]):
        s = torch.cat([h, z.reshape(len(z), -1)], 1).detach()
        output = mlp(s, actor, eps)
        action = act(output, action_noise[:, t], continuous, unimix)
        if not through_dynamics:
            action = action.detach()
        h = recur(h, z, bounded(action), weights, eps)
        probs = probabilities(prior_logits(h, weights, groups, eps), unimix)
        z = straight_through(draw(probs, uniforms[:, t]), probs)
        for name, value in zip(columns, (h, z, action, output), strict=True):
            columns[name].append(value)
    return {name: torch.stack(column, 1) for name, column in columns.items()}
