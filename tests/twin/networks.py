"""The networks, as functions of weights by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.twin.maths import layer_norm, moments_of, moved_statistics, normalise, silu, symlog

Weights = dict[str, Tensor]
Settings = Mapping[str, Any]
"""Hyper-parameters by the names of the configuration's fields."""


def linear(w: Weights, name: str, x: Tensor) -> Tensor:
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def hidden(w: Weights, name: str, x: Tensor, eps: float) -> Tensor:
    """`SiLU(LN(W x))`."""
    scale, shift = w[f"{name}.norm_weight"], w[f"{name}.norm_bias"]
    return silu(layer_norm(x @ w[f"{name}.weight"].T, scale, shift, eps))


def mlp(w: Weights, name: str, x: Tensor, model: Settings) -> Tensor:
    for layer in range(model["layers"]):
        x = hidden(w, f"{name}.mlp.hidden.{layer}", x, model["norm_eps"])
    return linear(w, f"{name}.mlp.out", x)


def norm_act(w: Weights, name: str, rows: Tensor, model: Settings, statistics: Weights) -> Tensor:
    """`SiLU(norm(x))` in the encoder; batch norm notes its running averages in `statistics`."""
    scale, shift, eps = w[f"{name}.weight"], w[f"{name}.bias"], model["norm_eps"]
    if model["batch_norm"] not in ("encoder", "both"):
        return silu(layer_norm(rows, scale, shift, eps))
    mean, var = f"{name}.running.mean", f"{name}.running.var"
    statistics[mean], statistics[var] = moved_statistics(
        (w[mean], w[var]), rows, model["batch_norm_momentum"]
    )
    return silu(normalise(rows, *moments_of(rows), scale, shift, eps))


def encode(w: Weights, batch: Mapping[str, Tensor], model: Settings) -> tuple[Tensor, Weights]:
    """Features (B, T, E) of all that is observed, and the running averages after it."""
    lead = batch["is_first"].shape
    parts: list[Tensor] = []
    statistics: Weights = {}
    if "image" in batch:
        x = batch["image"].flatten(0, 1).double().contiguous() / 255 - 0.5
        for i in range(4):
            x = F.conv2d(x, w[f"encoder.image.kernels.{i}"], stride=2, padding=1)
            n, c, height, width = x.shape
            pixels = x.permute(0, 2, 3, 1).reshape(-1, c)
            pixels = norm_act(w, f"encoder.image.norms.{i}", pixels, model, statistics)
            x = pixels.view(n, height, width, c).permute(0, 3, 1, 2).contiguous()
        parts.append(x.view(*lead, -1))
    if "vector" in batch:
        rows = symlog(batch["vector"].flatten(0, 1).double())
        for i in range(model["layers"]):
            rows = rows @ w[f"encoder.vector.weights.{i}"].T
            rows = norm_act(w, f"encoder.vector.norms.{i}", rows, model, statistics)
        parts.append(rows.view(*lead, -1))
    return torch.cat(parts, -1), statistics


def decode(w: Weights, features: Tensor, model: Settings) -> Tensor:
    """Images (N, c, 64, 64) of states (N, F)."""
    x = linear(w, "decoder.project", features).view(len(features), -1, 4, 4)
    for i in range(3):
        x = F.conv_transpose2d(x, w[f"decoder.kernels.{i}"], stride=2, padding=1)
        scale, shift = w[f"decoder.norms.{i}.weight"], w[f"decoder.norms.{i}.bias"]
        x = silu(layer_norm(x.permute(0, 2, 3, 1), scale, shift, model["norm_eps"]))
        x = x.permute(0, 3, 1, 2).contiguous()
    x = F.conv_transpose2d(x, w["decoder.kernels.3"], stride=2, padding=1)
    return x + w["decoder.bias"][:, None, None]


def prior(w: Weights, h: Tensor, model: Settings) -> Tensor:
    """Logits (..., G, C) of the latents from h (..., D)."""
    out = linear(w, "rssm.prior_out", hidden(w, "rssm.prior_hidden", h, model["norm_eps"]))
    return out.view(*h.shape[:-1], model["groups"], model["classes"])


def recur(w: Weights, h: Tensor, z: Tensor, action: Tensor, model: Settings) -> Tensor:
    """`h' = f(h, z, a)` for h (N, D), z (N, G, C), a (N, A)."""
    bounded = action / action.detach().abs().clamp(min=1)
    u = hidden(w, "rssm.input", torch.cat([z.flatten(1), bounded], 1), model["norm_eps"])
    p = layer_norm(
        torch.cat([u, h], 1) @ w["rssm.gru.weight"].T,
        w["rssm.gru.norm_weight"],
        w["rssm.gru.norm_bias"],
        model["norm_eps"],
    )
    size = h.shape[1]
    reset, candidate, update = p[:, :size], p[:, size : 2 * size], p[:, 2 * size :]
    c = torch.tanh(torch.sigmoid(reset) * candidate)
    g = torch.sigmoid(update - 1)
    return g * c + (1 - g) * h


def state(h: Tensor, z: Tensor) -> Tensor:
    """s = (h, z), as one vector (..., F)."""
    return torch.cat([h, z.flatten(-2)], -1)
