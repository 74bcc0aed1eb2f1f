"""The encoder learns to see."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mudreamer_fast.networks import Encoder
from tests import tiny
from tests.learning.training import MARGIN, train
from tests.tolerances import SEES

Placement = Literal["posterior", "encoder"]

SIDE, PERIOD = 12, 4
PIXELS = torch.arange(64)


def patches(rows: int) -> tuple[Tensor, Tensor]:
    """Grey images (rows, 3, 64, 64) with a patch striped across and one striped along.

    They are as bright as their surroundings, and only their stripes tell them apart. The targets
    (rows, 2) are where the first is, in [-1, 1].
    """
    bright = PIXELS % PERIOD < PERIOD // 2
    stripes = 255 * bright.to(torch.uint8)
    first, second = torch.randint(0, 64 - SIDE + 1, (2, rows, 2))
    images = torch.full((rows, 64, 64), 128, dtype=torch.uint8)
    images = torch.where(inside(second), stripes, images)
    images = torch.where(inside(first), stripes[:, None], images)
    return images[:, None].expand(-1, 3, -1, -1), first / (64 - SIDE) * 2 - 1


def inside(corner: Tensor) -> Tensor:
    """Whether each pixel (rows, 64, 64) is in the patch at a corner (rows, 2)."""
    row, column = ((PIXELS - c[:, None]).div(SIDE, rounding_mode="floor") == 0 for c in corner.T)
    return row[:, :, None] & column[:, None, :]


def angles(rows: int) -> tuple[Tensor, Tensor]:
    """Two angles as vectors (rows, 4), one large and one small, and waves over both (rows, 2)."""
    a, b = torch.rand(2, rows) * 2 * math.pi
    vector = torch.stack([a.cos(), a.sin(), 10 * b.cos(), 10 * b.sin()], 1)
    return vector, torch.stack([(2 * a).sin(), (a - b).cos()], 1)


class Task(NamedTuple):
    """What an encoder is to see."""

    draw: Callable[[int], tuple[Tensor, Tensor]]
    """Observations and targets (rows, 2), for a number of rows."""
    shape: tuple[int, ...]
    rows: int
    """In a batch."""
    updates: int
    learning_rate: float


TASKS = {
    "image": Task(patches, (3, 64, 64), 16, 150, 3e-3),
    "vector": Task(angles, (4,), 64, 300, 1e-2),
}


def error(name: str, batch_norm: Placement, scrambled: bool = False) -> float:
    """What a linear map misses that is trained with the encoder, as a share of the variance."""
    task = TASKS[name]
    config = tiny.model_config(conv=4, hidden=32, layers=2, batch_norm=batch_norm)
    encoder = Encoder(config, {name: task.shape})
    reader = nn.Linear(encoder.size, 2)

    def loss(rows: int = task.rows) -> Tensor:
        observation, target = task.draw(rows)
        return F.mse_loss(reader(encoder({name: observation})), target) / target.var()

    parts = [encoder, reader]
    train(loss, parts, task.updates, task.learning_rate, [encoder] if scrambled else [])
    encoder.eval()
    with torch.no_grad():
        return loss(rows=512).item()


@pytest.mark.parametrize("batch_norm", ["posterior", "encoder"])
@pytest.mark.parametrize("name", TASKS)
def test_encoder_learns_to_see(name: str, batch_norm: Placement) -> None:
    assert error(name, batch_norm) < SEES[name]


@pytest.mark.parametrize("name", TASKS)
def test_encoder_with_scrambled_gradients_does_not(name: str) -> None:
    assert error(name, "posterior", scrambled=True) > MARGIN * SEES[name]
