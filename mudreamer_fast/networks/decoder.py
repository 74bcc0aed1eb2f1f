"""Pictures of what the model knows; it reads stopped gradients and teaches nothing."""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mudreamer_fast.config import ModelConfig
from mudreamer_fast.networks.encoder import CONV_LAYERS, IMAGE_SIZE
from mudreamer_fast.networks.layers import LinearParameters, init_weight


class Decoder(nn.Module):
    """The encoder's mirror: a linear map to 4x4 pixels, then four transposed convolutions.

    Args:
        config: the model's configuration.
        inputs: F, width of the model state.
        channels: of the images.
    """

    def __init__(self, config: ModelConfig, inputs: int, channels: int) -> None:
        super().__init__()
        depth = config.dimensions.conv
        widths = [depth * 2**i for i in reversed(range(CONV_LAYERS))] + [channels]
        self.edge = IMAGE_SIZE // 2**CONV_LAYERS
        self.project = LinearParameters(inputs, widths[0] * self.edge**2, "normal")
        self.kernels = nn.ParameterList(
            init_weight(torch.empty(a, b, 4, 4), "normal") for a, b in itertools.pairwise(widths)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(w, eps=config.norm_eps) for w in widths[1:-1])
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, feature: Tensor) -> Tensor:
        """Map model states (..., F) to images (..., c, 64, 64), about [-0.5, 0.5]."""
        rows = feature.detach().flatten(0, -2)
        x = F.linear(rows, *self.project.tensors()).view(len(rows), -1, self.edge, self.edge)
        for kernel, norm in zip(self.kernels, self.norms, strict=False):
            x = F.conv_transpose2d(x, kernel, stride=2, padding=1)
            x = F.silu(norm(x.permute(0, 2, 3, 1))).permute(0, 3, 1, 2)
        x = F.conv_transpose2d(x, self.kernels[-1], self.bias, stride=2, padding=1)
        return x.view(*feature.shape[:-1], *x.shape[1:])

    def loss(self, feature: Tensor, image: Tensor) -> Tensor:
        """Squared error (...), summed over pixels, to uint8 images (..., c, 64, 64)."""
        target = image.to(feature.dtype) / 255.0 - 0.5
        image_error: Tensor = self(feature) - target
        return image_error.square().sum((-3, -2, -1))
