from __future__ import annotations

import pytest
import torch

from mudreamer_fast.networks import Encoder
from mudreamer_fast.networks.encoder import NormAct, embed_size
from tests import tiny
from tests.tolerances import HAND, REORDERED, assert_close

SHAPES = {"image": (3, 64, 64), "vector": (5,)}


def observation(rows: int = 3, steps: int = 2) -> dict[str, torch.Tensor]:
    return {
        "image": torch.randint(0, 256, (rows, steps, 3, 64, 64), dtype=torch.uint8),
        "vector": torch.randn(rows, steps, 5),
    }


@pytest.mark.parametrize("seen", [("image",), ("vector",), ("image", "vector")])
def test_encoder_maps_pixels_vectors_or_both_to_its_stated_width(seen: tuple[str, ...]) -> None:
    shapes = {name: SHAPES[name] for name in seen}
    encoder = Encoder(tiny.model_config(), shapes)
    # Pixels: 4 * 4 positions of 8 c channels with c = 2; vectors: the hidden width 7.
    width = {"image": 4 * 4 * 8 * 2, "vector": 7}
    assert encoder.size == embed_size(tiny.model_config(), shapes)
    assert encoder.size == sum(width[name] for name in seen)
    data = {name: observation()[name] for name in seen}
    assert encoder(data).shape == (3, 2, encoder.size)
    assert encoder({name: x[:1, :1] for name, x in data.items()}).shape == (1, 1, encoder.size)


@pytest.mark.parametrize(
    ("size", "last", "layers"),
    [
        ((64, 64), (4, 4), 4),
        ((84, 84), (5, 5), 4),
        ((96, 96), (6, 6), 4),
        ((128, 128), (4, 4), 5),
        ((96, 64), (6, 4), 4),
        ((64, 128), (4, 8), 4),
        ((130, 131), (4, 4), 5),
    ],
)
def test_image_encoder_has_as_many_layers_as_leave_four_pixels_of_the_shorter_side(
    size: tuple[int, int], last: tuple[int, int], layers: int
) -> None:
    shapes = {"image": (3, *size)}
    encoder = Encoder(tiny.model_config(conv=2), shapes)
    image = torch.randint(0, 256, (2, 1, 3, *size), dtype=torch.uint8)
    features = encoder({"image": image})
    assert len(encoder.image.kernels) == layers
    assert features.shape == (2, 1, 2 ** (layers - 1) * 2 * last[0] * last[1])
    assert encoder.size == features.shape[-1] == embed_size(tiny.model_config(conv=2), shapes)
    # the whole image is seen, to its corners
    for row, column in ((0, 0), (-3, -3)):
        other = image.clone()
        other[..., row, column] ^= 255
        assert not torch.equal(encoder({"image": other}), features)


def test_image_encoder_refuses_images_that_cannot_be_halved() -> None:
    with pytest.raises(ValueError, match="sides of images must be 8 or more, got 64 x 7"):
        Encoder(tiny.model_config(), {"image": (3, 64, 7)})


def test_encoder_puts_pixels_before_vectors() -> None:
    encoder = Encoder(tiny.model_config(), SHAPES)
    data = observation()
    both = encoder(data)
    assert torch.equal(both[..., : encoder.image.size], encoder.image(data["image"]))
    assert torch.equal(both[..., encoder.image.size :], encoder.vector(data["vector"]))


def test_encoder_reads_each_step_alone_under_layer_norm() -> None:
    encoder = Encoder(tiny.model_config(batch_norm="none"), SHAPES)
    data = observation()
    one = encoder({name: x[1:2, 1:2] for name, x in data.items()})
    assert_close(one[0, 0], encoder(data)[1, 1], REORDERED)


def test_encoder_refuses_unknown_or_missing_observations() -> None:
    for shapes in ({}, {"sound": (3,)}):
        with pytest.raises(ValueError, match="observations must be image, vector or both, got"):
            Encoder(tiny.model_config(), shapes)


def test_image_encoder_is_four_strided_convolutions_of_scaled_pixels() -> None:
    encoder = Encoder(tiny.model_config(), {"image": SHAPES["image"]})
    tiny.randomise(encoder)
    image = observation()["image"]
    x = image.flatten(0, 1).float() / 255 - 0.5
    for kernel, norm in zip(encoder.image.kernels, encoder.image.norms, strict=True):
        x = torch.nn.functional.conv2d(x, kernel, stride=2, padding=1)
        mean = x.mean(1, keepdim=True)  # over channels, at each position
        var = (x - mean).square().mean(1, keepdim=True)
        y = (x - mean) / (var + 1e-3).sqrt() * norm.weight.view(-1, 1, 1)
        y = y + norm.bias.view(-1, 1, 1)
        x = y * y.sigmoid()
    assert x.shape[1:] == (16, 4, 4)
    assert_close(encoder({"image": image}), x.reshape(3, 2, -1), REORDERED)


def test_vector_encoder_is_normed_layers_on_the_symlog() -> None:
    encoder = Encoder(tiny.model_config(layers=2, norm_eps=0.1), {"vector": (5,)})
    tiny.randomise(encoder)
    vector = 1e3 * torch.randn(3, 5)
    x = torch.sign(vector) * torch.log1p(vector.abs())
    for weight, norm in zip(encoder.vector.weights, encoder.vector.norms, strict=True):
        x = x @ weight.T
        mean = x.mean(1, keepdim=True)
        var = (x - mean).square().mean(1, keepdim=True)
        y = (x - mean) / (var + 0.1).sqrt() * norm.weight + norm.bias
        x = y * y.sigmoid()
    assert x.shape == (3, 7)
    assert_close(encoder({"vector": vector}), x, REORDERED)


@pytest.mark.parametrize("placement", ["posterior", "encoder", "both", "none"])
def test_encoder_has_batch_norm_only_where_it_is_asked_for(placement: str) -> None:
    encoder = Encoder(tiny.model_config(batch_norm=placement), SHAPES)
    norms = [module for module in encoder.modules() if isinstance(module, NormAct)]
    assert len(norms) == 4 + 1
    expected = placement in ("encoder", "both")
    assert all((norm.running is not None) == expected for norm in norms)


def test_encoder_batch_norm_takes_rows_in_training_and_running_averages_after() -> None:
    norm = NormAct(3, batch_norm=True, momentum=0.5, eps=1.0).double()
    x = torch.randn(5, 2, 3, dtype=torch.float64)
    rows = x.view(10, 3)
    mean, var = rows.mean(0), rows.var(0, correction=0)
    y = (x - mean) / (var + 1.0).sqrt()
    assert_close(norm(x).detach(), y * y.sigmoid(), HAND)
    # From (0, 1), half way to the rows' own, the variance as an unbiased estimate.
    running_var = (1 + var * 10 / 9) / 2
    assert_close(norm.running.mean, mean / 2, HAND)
    assert_close(norm.running.var, running_var, HAND)

    norm.eval()
    y = (x - mean / 2) / (running_var + 1.0).sqrt()
    assert_close(norm(x).detach(), y * y.sigmoid(), HAND)
    assert_close(norm.running.mean, mean / 2, HAND)
