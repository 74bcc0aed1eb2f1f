"""What both programs are given: sizes, weights by name, batches, and equal draws. NumPy alone."""

from __future__ import annotations

import zlib
from typing import Any, Literal

import numpy as np

Kind = Literal["continuous", "discrete"]
KINDS: tuple[Kind, ...] = ("continuous", "discrete")

SIZES: dict[str, int] = {
    "deter": 24, "hidden": 20, "conv": 4, "layers": 2, "groups": 4, "classes": 6, "bins": 255,
}  # fmt: skip
ACTIONS, VECTOR = 3, 5
ROWS, STEPS, HORIZON, UPDATES = 4, 6, 5, 3
HALF, NOISE = 0.5, 0.3
"""Every uniform draw, and every normal one."""
SURE = 15.0
"""Added to the bias of the head that tells whether episodes go on, so that a chance of going on and
its most likely outcome, which DreamerV3's program imagines with, are the same."""


def stream(name: str, use: int) -> np.random.Generator:
    """Random numbers of a parameter's own."""
    return np.random.default_rng([use, zlib.crc32(name.encode())])


def weight(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """A parameter: nothing at zero or one, outputs of order one."""
    drawn = stream(name, 0).normal(size=shape)
    if len(shape) > 1:
        drawn /= np.sqrt(np.prod(shape[1:]))
    else:
        drawn *= 0.3
        drawn += 1.0 if name.endswith(("norm_weight", "weight")) else 0.0
        drawn += SURE if name == "world_model.cont.mlp.out.bias" else 0.0
    return drawn.astype(np.float32)


def batch(number: int, kind: Kind) -> dict[str, np.ndarray]:
    """Sequences with resets and endings; `action` is the one that led to each step."""
    rng = np.random.default_rng([1, number])
    is_first = rng.random((ROWS, STEPS)) < 0.2
    is_first[:, 0] = True
    if kind == "discrete":
        action = np.eye(ACTIONS)[rng.integers(0, ACTIONS, (ROWS, STEPS))]
    else:
        action = rng.uniform(-1.3, 1.3, (ROWS, STEPS, ACTIONS))
    return {
        "image": rng.integers(0, 256, (ROWS, STEPS, 3, 64, 64), dtype=np.uint8),
        "vector": (3 * rng.normal(size=(ROWS, STEPS, VECTOR))).astype(np.float32),
        "action": action.astype(np.float32),
        "reward": (3 * rng.normal(size=(ROWS, STEPS))).astype(np.float32),
        "is_first": is_first,
        "is_terminal": rng.random((ROWS, STEPS)) < 0.2,
    }


def digest(name: str, value: Any) -> list[float]:
    """Norm of an array, and its product with a direction of the parameter's own.

    The norm alone would not tell one order of the elements from another.
    """
    flat = np.asarray(value, np.float64).ravel()
    direction = stream(name, 2).normal(size=flat.shape)
    return [float(np.linalg.norm(flat)), float(flat @ direction)]
