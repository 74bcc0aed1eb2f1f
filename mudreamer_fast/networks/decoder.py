"""From model states back to what was observed: pictures of what the model knows, or its teacher."""

from __future__ import annotations

import itertools
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mudreamer_fast.config import ModelConfig
from mudreamer_fast.networks.encoder import halvings
from mudreamer_fast.networks.layers import LinearParameters, Mlp, init_weight
from mudreamer_fast.ops.operations import Operations
from mudreamer_fast.ops.symlog import symlog


class Decoder(nn.Module):
    """The encoder's mirror: a linear map to its last pixels, then transposed convolutions.

    Args:
        config: the model's configuration.
        inputs: F, width of the model state.
        shape: (c, h, w) of the images.
    """

    def __init__(self, config: ModelConfig, inputs: int, shape: tuple[int, ...]) -> None:
        super().__init__()
        depth, channels = config.dimensions.conv, shape[0]
        self.edges, *sizes = reversed(halvings(*shape[1:]))
        # a side that was halved with a pixel left over has that added again
        self.left_over = [(height % 2, width % 2) for height, width in sizes]
        widths = [depth * 2**i for i in reversed(range(len(sizes)))] + [channels]
        self.project = LinearParameters(inputs, widths[0] * math.prod(self.edges), "normal")
        self.kernels = nn.ParameterList(
            init_weight(torch.empty(a, b, 4, 4), "normal") for a, b in itertools.pairwise(widths)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(w, eps=config.norm_eps) for w in widths[1:-1])
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, feature: Tensor) -> Tensor:
        """Map model states (..., F) to images (..., c, h, w), about [-0.5, 0.5]."""
        rows = feature.flatten(0, -2)
        x = F.linear(rows, *self.project.tensors()).view(len(rows), -1, *self.edges)
        *left_over, last = self.left_over
        for kernel, norm, pixels in zip(self.kernels, self.norms, left_over, strict=False):
            x = F.conv_transpose2d(x, kernel, None, 2, 1, pixels)
            x = F.silu(norm(x.permute(0, 2, 3, 1))).permute(0, 3, 1, 2)
        x = F.conv_transpose2d(x, self.kernels[-1], self.bias, 2, 1, last)
        return x.view(*feature.shape[:-1], *x.shape[1:])

    def loss(self, feature: Tensor, image: Tensor) -> Tensor:
        """Squared error (...), summed over pixels, to uint8 images (..., c, h, w)."""
        target = image.to(feature.dtype) / 255.0 - 0.5
        image_error: Tensor = self(feature) - target
        return image_error.square().sum((-3, -2, -1))


class VectorDecoder(nn.Module):
    """The simulator's state vector, under symlog (arXiv 2301.04104v1, symlog predictions).

    Args:
        config: the model's configuration.
        inputs: F, width of the model state.
        outputs: width of the vector.
        ops: the operations, reference or fused.
    """

    def __init__(self, config: ModelConfig, inputs: int, outputs: int, ops: Operations) -> None:
        super().__init__()
        dims = config.dimensions
        self.mlp = Mlp(inputs, dims.hidden, dims.layers, outputs, ops, config.norm_eps)

    def loss(self, feature: Tensor, vector: Tensor) -> Tensor:
        """Squared error (...), summed over the vector, to symlog of vectors (..., n)."""
        error: Tensor = self.mlp(feature) - symlog(vector)
        return error.square().sum(-1)
