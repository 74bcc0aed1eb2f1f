from __future__ import annotations

import pytest
import torch

from mudreamer_fast.networks import Decoder, Encoder
from tests import tiny
from tests.tolerances import REORDERED, assert_close


@pytest.mark.parametrize("size", [(64, 64), (84, 84), (96, 96), (128, 128), (84, 128), (70, 33)])
def test_decoder_draws_images_of_the_encoders_size(size: tuple[int, int]) -> None:
    decoder = Decoder(tiny.model_config(), inputs=11, shape=(3, *size))
    assert decoder(torch.randn(5, 2, 11)).shape == (5, 2, 3, *size)
    assert decoder(torch.randn(1, 1, 11)).shape == (1, 1, 3, *size)
    # as many convolutions as the encoder, from as many numbers
    encoder = Encoder(tiny.model_config(), {"image": (3, *size)})
    assert len(decoder.kernels) == len(encoder.image.kernels)
    assert len(decoder.project.weight) == encoder.size


def test_decoder_sends_gradients_to_all_its_weights_and_to_what_it_reads() -> None:
    decoder = Decoder(tiny.model_config(), inputs=11, shape=(3, 64, 64))
    feature = torch.randn(2, 3, 11, requires_grad=True)
    image = torch.randint(0, 256, (2, 3, 3, 64, 64), dtype=torch.uint8)
    decoder.loss(feature, image).mean().backward()
    assert feature.grad is not None
    assert (feature.grad != 0).all()
    assert all((parameter.grad != 0).any() for parameter in decoder.parameters())


def test_decoder_loss_is_the_squared_error_summed_over_pixels() -> None:
    decoder = Decoder(tiny.model_config(), inputs=11, shape=(3, 64, 64))
    with torch.no_grad():
        decoder.kernels[-1].zero_()
        decoder.bias.copy_(torch.tensor([0.5, -0.5, 0.0]))
    image = torch.tensor([255, 0, 0], dtype=torch.uint8).view(1, 1, 3, 1, 1)
    # The first two channels are exact; the third is 0.5 off at each of its 64 * 64 pixels.
    loss = decoder.loss(torch.randn(1, 1, 11), image.expand(1, 1, 3, 64, 64))
    assert_close(loss, torch.full((1, 1), 0.25 * 64 * 64), REORDERED)
