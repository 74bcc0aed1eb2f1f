from __future__ import annotations

import pytest
import torch

from mudreamer_fast import reference
from mudreamer_fast.actor_critic import ActorCritic
from mudreamer_fast.config import SIZES, BehaviourConfig, ModelConfig, SizeName
from mudreamer_fast.world_model import WorldModel

ACTIONS = 6


def counts(config: ModelConfig, height: int = 64, width: int = 64) -> dict[str, int]:
    """Parameters of each part on DMC pixels, built without memory."""
    with torch.device("meta"):
        world_model = WorldModel(
            config, BehaviourConfig(), {"image": (3, height, width)}, ACTIONS, True, reference
        )
        behaviour = ActorCritic(
            config, BehaviourConfig(), world_model.rssm.feature_size, ACTIONS, True, reference
        )
    parts = dict(world_model.named_children()) | dict(behaviour.named_children())
    return {
        name: sum(parameter.numel() for parameter in part.parameters())
        for name, part in parts.items()
    }


def test_size_s_has_the_parameters_of_the_published_dreamerv3_part_by_part() -> None:
    ours = counts(ModelConfig(size="S"))
    # The counts of a public DreamerV3 of the paper's first author on the same task.
    assert {
        name: ours[name] for name in ("encoder", "rssm", "reward", "value", "cont", "actor")
    } == {
        "encoder": 690_624,
        "rssm": 5_778_944,
        "reward": 1_181_439,
        "value": 1_181_439,
        "cont": 1_051_137,
        "actor": 1_056_780,
    }


@pytest.mark.parametrize(
    ("size", "millions"), [("XS", 8), ("S", 18), ("M", 37), ("L", 77), ("XL", 200)]
)
def test_what_reconstructs_has_the_sizes_of_dreamerv3(size: SizeName, millions: int) -> None:
    """arXiv 2301.04104v1, model sizes; the moving averages are no parameters there."""
    config = ModelConfig(
        size=size, batch_norm="none", reconstruction=True, value_predictor=False,
        action_predictor=False,
    )  # fmt: skip
    parts = counts(config)
    assert parts.keys() == {
        "encoder", "rssm", "reward", "cont", "decoder", "actor", "critic", "slow_critic", "scale",
    }  # fmt: skip
    total = sum(parts.values()) - parts["slow_critic"]
    assert total / 1e6 == pytest.approx(millions, rel=0.05)


def test_size_s_parts_of_mudreamer_alone_are_built_like_those_it_shares() -> None:
    ours = counts(ModelConfig(size="S"))
    # There "value" is the actor-critic's and the only one; here the world model has its own as
    # well, so the critic and both moving averages are the same network again.
    assert ours["critic"] == ours["slow_critic"] == ours["slow_value"] == ours["value"]
    # DreamerV3 has no action predictor. It is the actor with features (4 * 4 * 256) beside the
    # model state in its first layer of 512.
    assert ours["action"] == ours["actor"] + 4 * 4 * 256 * 512
    # Nor does MuDreamer have DreamerV3's decoder, unless pictures are asked for.
    assert "decoder" not in ours
    # It mirrors the encoder: from the model state to 4 x 4 pixels of 256 channels, and back to 3.
    kernels = 16 * (256 * 128 + 128 * 64 + 64 * 32 + 32 * 3)
    norms, biases = 2 * (128 + 64 + 32), 3
    project = (512 + 32 * 32 + 1) * 4 * 4 * 256
    assert counts(ModelConfig(size="S", decoder=True))["decoder"] == (
        project + kernels + norms + biases
    )


@pytest.mark.parametrize("size", SIZES)
def test_every_size_builds_and_is_larger_than_the_one_before(size: SizeName) -> None:
    config = ModelConfig(size=size)
    deter, hidden, latents = config.dimensions.deter, config.dimensions.hidden, 32 * 32
    ours = counts(config)
    # By hand from the widths: weights, two norm vectors behind each, biases of the outputs.
    embed = 4 * 4 * 8 * config.dimensions.conv
    assert ours["rssm"] == (
        deter
        + (latents + ACTIONS + 2) * hidden
        + (hidden + deter + 2) * 3 * deter
        + (deter + 2) * hidden
        + (embed + deter + 2) * hidden
        + 2 * (hidden + 1) * latents
    )
    names = list(SIZES)
    if size != names[0]:
        smaller = counts(ModelConfig(size=names[names.index(size) - 1]))
        assert sum(ours.values()) > sum(smaller.values())


@pytest.mark.parametrize(
    ("size", "encoder", "pixels", "channels"),
    [
        # of S: kernels of 16 x 3 x 32, 32 x 64, ... and two norm vectors behind each
        ((64, 64), 690_624, 4 * 4, 256),
        ((84, 84), 690_624, 5 * 5, 256),
        ((96, 96), 690_624, 6 * 6, 256),
        ((128, 128), 690_624 + 16 * 256 * 512 + 2 * 512, 4 * 4, 512),
        ((128, 96), 690_624, 8 * 6, 256),
    ],
)
def test_parameters_follow_the_size_of_the_images(
    size: tuple[int, int], encoder: int, pixels: int, channels: int
) -> None:
    config = ModelConfig(size="S", decoder=True)
    ours, at_64 = counts(config, *size), counts(config)
    more = pixels * channels - 4 * 4 * 256
    assert ours["encoder"] == encoder
    # features are read by the posterior and the action predictor alone
    assert ours["rssm"] == at_64["rssm"] + 512 * more
    assert ours["action"] == at_64["action"] + 512 * more
    kernels = 16 * 512 * 256 + 2 * 256 if channels == 512 else 0
    assert ours["decoder"] == at_64["decoder"] + (512 + 32 * 32 + 1) * more + kernels
    others = ours.keys() - {"encoder", "rssm", "action", "decoder"}
    assert {name: ours[name] for name in others} == {name: at_64[name] for name in others}
