"""What a public operation checks of its tensors before a kernel reads their memory."""

from __future__ import annotations

import torch
from torch import Tensor

from mudreamer_fast.kernels.device import runs_on

FLOATS = (torch.float32, torch.bfloat16)


def check(name: str, tensor: Tensor, *shape: int | None, like: Tensor | None = None) -> None:
    """Refuse a tensor that a kernel would read wrongly.

    Args:
        name: what the caller calls it.
        tensor: the tensor.
        shape: its last sizes, None for any; no sizes check nothing.
        like: has the dtype and the device that it must have; None allows any float dtype that
            kernels take, on any device that they run on.

    Raises:
        ValueError: shape, memory layout or device are not as needed.
        TypeError: the dtype is not.
    """
    last = tuple(tensor.shape[-len(shape) :]) if shape else ()
    if len(last) != len(shape) or any(b not in (a, None) for a, b in zip(last, shape, strict=True)):
        wanted = ", ".join("any" if size is None else str(size) for size in shape)
        raise ValueError(f"{name} must end in shape ({wanted}), got {tuple(tensor.shape)}")
    if not tensor.is_contiguous():
        raise ValueError(
            f"{name} must be contiguous, got shape {tuple(tensor.shape)} with strides "
            f"{tensor.stride()}"
        )
    if like is None:
        if tensor.dtype not in FLOATS:
            raise TypeError(f"{name} must be float32 or bfloat16, got {tensor.dtype}")
        if not runs_on(tensor.device):
            raise ValueError(f"{name} must be on a CUDA device, got {tensor.device}")
        return
    if tensor.dtype != like.dtype:
        raise TypeError(f"{name} must be {like.dtype}, got {tensor.dtype}")
    if tensor.device != like.device:
        raise ValueError(f"{name} must be on {like.device}, got {tensor.device}")
