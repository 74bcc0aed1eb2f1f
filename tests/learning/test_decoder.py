"""The decoder learns to draw."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from mudreamer_fast.networks import Decoder
from tests import tiny
from tests.learning.training import MARGIN, train
from tests.tolerances import DRAWS_SQUARE

PLACES, SIDE = 4, 16
"""Squares stand on a grid of 4 x 4 places, each of 16 pixels."""


def drawings(rows: int) -> tuple[Tensor, Tensor]:
    """Codes (rows, 8), one-hot row and column, and images (rows, 1, 64, 64) of a white square."""
    place = torch.randint(0, PLACES, (2, rows))
    code = torch.cat(list(F.one_hot(place, PLACES)), -1).float()
    row, column = (F.one_hot(p, PLACES).repeat_interleave(SIDE, 1) for p in place)
    return code, (255 * row[:, None, :, None] * column[:, None, None, :]).to(torch.uint8)


def error(scrambled: bool = False) -> float:
    """Squared error of what is drawn, as a share of the pixels' variance."""
    decoder = Decoder(tiny.model_config(conv=4), 2 * PLACES, shape=(1, 64, 64))

    def loss() -> Tensor:
        code, image = drawings(8)
        return decoder.loss(code, image).mean()

    train(loss, [decoder], 100, 1e-2, [decoder] if scrambled else [])
    code, image = drawings(64)
    with torch.no_grad():
        left = decoder.loss(code, image).mean() / image[0].numel()
    return (left / (image / 255.0).var()).item()


def test_decoder_learns_to_draw_a_square_where_the_code_says() -> None:
    assert error() < DRAWS_SQUARE


def test_decoder_with_scrambled_gradients_draws_no_square() -> None:
    assert error(scrambled=True) > MARGIN * DRAWS_SQUARE
