"""From observations to features: convolutions for pixels, an MLP for vectors."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mudreamer_fast.config import ModelConfig
from mudreamer_fast.machine.ranks import ALONE, Ranks
from mudreamer_fast.networks.layers import RunningStatistics, init_weight
from mudreamer_fast.ops.symlog import symlog

SMALLEST_EDGE = 4
"""Pixels that the last convolution leaves of the shorter side, at least."""


def halvings(height: int, width: int) -> list[tuple[int, int]]:
    """Height and width of an image and of what each convolution of the encoder makes of it.

    Each halves both, rounded down, and there are as many as leave `SMALLEST_EDGE` pixels of the
    shorter side: four from 64 (to 4 pixels), 84 (to 5) and 96 (to 6), five from 128 (to 4).

    Raises:
        ValueError: an image too small for a single one.
    """
    sizes = [(height, width)]
    while min(sizes[-1]) >= 2 * SMALLEST_EDGE:
        sizes.append((sizes[-1][0] // 2, sizes[-1][1] // 2))
    if len(sizes) == 1:
        raise ValueError(
            f"sides of images must be {2 * SMALLEST_EDGE} or more, got {height} x {width}"
        )
    return sizes


def embed_size(config: ModelConfig, shapes: Mapping[str, tuple[int, ...]]) -> int:
    """E, the width of an encoder's features."""
    dims = config.dimensions
    size = dims.hidden if "vector" in shapes else 0
    if "image" in shapes:
        sizes = halvings(*shapes["image"][1:])
        size += dims.conv * 2 ** (len(sizes) - 2) * math.prod(sizes[-1])
    return size


class NormAct(nn.Module):
    """`SiLU(norm(x))` over the last axis; the norm is layer norm, or batch norm over all rows.

    Args:
        size: width of the last axis.
        batch_norm: whether rows are normalised together, by column.
        momentum: of the running statistics.
        eps: added to the variance.
        ranks: whose rows are normalised together.
    """

    def __init__(
        self, size: int, batch_norm: bool, momentum: float, eps: float, ranks: Ranks = ALONE
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.bias = nn.Parameter(torch.zeros(size))
        self.running = RunningStatistics(size, momentum) if batch_norm else None
        self.eps = eps
        self._ranks = ranks

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., size) to the same shape."""
        if self.running is None:
            return F.silu(F.layer_norm(x, x.shape[-1:], self.weight, self.bias, self.eps))
        rows = x.reshape(-1, x.shape[-1])
        if self.training:
            normed, mean, var = self._normed_together(rows)
            all_rows = len(rows) * self._ranks.size
            self.running.update(mean.detach()[None], var.detach()[None], all_rows, pooled=True)
        else:
            mean, var = self.running.mean, self.running.var
            normed = F.batch_norm(rows, mean, var, self.weight, self.bias, False, 0.0, self.eps)
        return F.silu(normed.view_as(x))

    def _normed_together(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Rows (N, size) normalised with those of all ranks, and the mean and variance (size,)."""
        if self._ranks.size == 1:
            # F.batch_norm would hide its statistics, and a second pass costs more than the norm.
            normed, mean, inverse_std = torch.native_batch_norm(
                rows, self.weight, self.bias, None, None, True, 0.0, self.eps
            )
            return normed, mean, inverse_std.detach().pow(-2) - self.eps
        mean = self._ranks.mean(rows.mean(0))
        centred = rows - mean
        var = self._ranks.mean(centred.square().mean(0))
        return centred * (var + self.eps).rsqrt() * self.weight + self.bias, mean, var


class ConvEncoder(nn.Module):
    """Convolutions of kernel 4 and stride 2, such as 64 -> 32 -> 16 -> 8 -> 4 pixels: `halvings`.

    Each has twice the channels of the one before.

    Args:
        config: the model's configuration.
        shape: (c, h, w) of the images.
        ranks: the processes that train it.
    """

    def __init__(self, config: ModelConfig, shape: tuple[int, ...], ranks: Ranks = ALONE) -> None:
        super().__init__()
        depth, sizes = config.dimensions.conv, halvings(*shape[1:])
        widths = [shape[0]] + [depth * 2**i for i in range(len(sizes) - 1)]
        self.kernels = nn.ParameterList(
            init_weight(torch.empty(b, a, 4, 4), "normal") for a, b in itertools.pairwise(widths)
        )
        batch_norm = config.batch_norm in ("encoder", "both")
        self.norms = nn.ModuleList(
            NormAct(width, batch_norm, config.batch_norm_momentum, config.norm_eps, ranks)
            for width in widths[1:]
        )
        self.size = widths[-1] * math.prod(sizes[-1])

    def forward(self, image: Tensor) -> Tensor:
        """Map uint8 images (..., c, h, w) to features (..., 128 c') at 64 x 64."""
        x = image.flatten(0, -4).to(
            self.kernels[0].dtype, memory_format=torch.channels_last, copy=True
        )
        x = x.div_(255.0).sub_(0.5)
        for kernel, norm in zip(self.kernels, self.norms, strict=True):
            x = F.conv2d(x, kernel, stride=2, padding=1)
            x = norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return x.reshape(*image.shape[:-3], self.size)


class VectorEncoder(nn.Module):
    """Hidden layers `SiLU(norm(W x))` on the symlog of the simulator's state vector.

    Args:
        config: the model's configuration.
        inputs: width of the vector.
        ranks: the processes that train it.
    """

    def __init__(self, config: ModelConfig, inputs: int, ranks: Ranks = ALONE) -> None:
        super().__init__()
        dims = config.dimensions
        widths = [inputs, *[dims.hidden] * dims.layers]
        self.weights = nn.ParameterList(
            init_weight(torch.empty(b, a), "normal") for a, b in itertools.pairwise(widths)
        )
        batch_norm = config.batch_norm in ("encoder", "both")
        self.norms = nn.ModuleList(
            NormAct(width, batch_norm, config.batch_norm_momentum, config.norm_eps, ranks)
            for width in widths[1:]
        )
        self.size = dims.hidden

    def forward(self, vector: Tensor) -> Tensor:
        """Map (..., n) to features (..., U)."""
        x = symlog(vector)
        for weight, norm in zip(self.weights, self.norms, strict=True):
            x = norm(F.linear(x, weight))
        return x


class Encoder(nn.Module):
    """Features of all that is observed, side by side.

    Args:
        config: the model's configuration.
        shapes: shape of each observation, "image" or "vector".
        ranks: the processes that train it.
    """

    def __init__(
        self, config: ModelConfig, shapes: Mapping[str, tuple[int, ...]], ranks: Ranks = ALONE
    ) -> None:
        super().__init__()
        unknown = set(shapes) - {"image", "vector"}
        if unknown or not shapes:
            raise ValueError(f"observations must be image, vector or both, got {sorted(shapes)}")
        self.image = ConvEncoder(config, shapes["image"], ranks) if "image" in shapes else None
        self.vector = (
            VectorEncoder(config, shapes["vector"][0], ranks) if "vector" in shapes else None
        )
        self.size = sum(part.size for part in (self.image, self.vector) if part is not None)

    def forward(self, observation: Mapping[str, Tensor]) -> Tensor:
        """Map observations (..., *shape) to x (..., E)."""
        parts = []
        if self.image is not None:
            parts.append(self.image(observation["image"]))
        if self.vector is not None:
            parts.append(self.vector(observation["vector"]))
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)
