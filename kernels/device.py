"""Where kernels run: on a CUDA device, or on the CPU under Triton's interpreter."""

from __future__ import annotations

import os

import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET", "0") not in ("", "0")
"""Whether kernels are interpreted on the CPU; Triton decides it when they are defined."""


def runs_on(device: torch.device) -> bool:
    """Whether kernels can be launched on tensors of `device`."""
    return device.type == "cuda" or (INTERPRETED and device.type == "cpu")
