"""The numbers of `dmc_vision`, each with where the papers say it."""

from __future__ import annotations

from typing import Any

import pytest

from mudreamer_fast.config import PRESETS, SIZES, Config, Dimensions, ModelConfig
from tests.tiny import settings

MU = "MuDreamer (arXiv 2405.15083)"
V3 = "DreamerV3 (arXiv 2301.04104v1)"
MU_LOSS = f"{MU}, world-model loss: weights of its terms and KL balancing"
MU_NORM = f"{MU}, batch normalisation of the representation network"
MU_VALUE = f"{MU}, value predictor: lambda-returns from a moving average of it"
MU_DMC = f"{MU}, DeepMind Control experiments: as in {V3}"
V3_MODEL = f"{V3}, hyper-parameters: world model"
V3_ACTOR_CRITIC = f"{V3}, hyper-parameters: actor critic"
V3_GENERAL = f"{V3}, hyper-parameters: general"
V3_BENCHMARKS = f"{V3}, overview of the benchmarks: visual control"
V3_ATARI = f"{V3}, the published program: Atari 100k"
V3_SIZES = f"{V3}, model sizes"

PINNED: dict[str, tuple[Any, str]] = {
    "model.size": ("S", MU_DMC),
    **dict.fromkeys(
        ("model.deter", "model.hidden", "model.conv", "model.layers"), (None, "the size's")
    ),
    "model.groups": (32, V3_MODEL),
    "model.classes": (32, V3_MODEL),
    "model.unimix": (0.01, f"{V3}, robust predictions: 1% uniform in every categorical"),
    "model.bins": (255, f"{V3}, symlog predictions: 255 buckets from -20 to 20"),
    "model.batch_norm": ("posterior", MU_NORM),
    "model.batch_norm_statistics": ("step", f"{MU_NORM}; our reading"),
    "model.batch_norm_update": ("pooled", f"{MU_NORM}; our reading"),
    "model.batch_norm_momentum": (0.1, f"{MU_NORM}; our reading"),
    "model.norm_eps": (1e-3, f"{V3}, the published program: of all norms"),
    "model.decoder": (False, f"{MU}, without reconstruction"),
    "model.reconstruction": (False, f"{MU}, without reconstruction"),
    "model.value_predictor": (True, f"{MU}, value predictor"),
    "model.action_predictor": (True, f"{MU}, action predictor"),
    "model.free_nats": (1.0, f"{V3}, world-model loss: free bits of 1 nat"),
    "model.prediction_scale": (1.0, MU_LOSS),
    "model.dynamics_scale": (0.95, MU_LOSS),
    "model.representation_scale": (0.05, MU_LOSS),
    "model.slow_value_decay": (0.98, f"{MU_VALUE}; our reading: {V3}'s of the critic"),
    "model.learning_rate": (1e-4, V3_MODEL),
    "model.adam_eps": (1e-8, V3_MODEL),
    "model.clip_norm": (1000.0, V3_MODEL),
    "behaviour.horizon": (15, V3_ACTOR_CRITIC),
    "behaviour.discount": (0.997, f"{V3_ACTOR_CRITIC}: a horizon of 333"),
    "behaviour.lam": (0.95, V3_ACTOR_CRITIC),
    "behaviour.actor_gradient": ("auto", f"{V3}, actor loss: by the kind of actions"),
    "behaviour.entropy_scale": (3e-4, V3_ACTOR_CRITIC),
    "behaviour.return_decay": (0.99, V3_ACTOR_CRITIC),
    "behaviour.slow_critic_decay": (0.98, V3_ACTOR_CRITIC),
    "behaviour.slow_critic_scale": (1.0, V3_ACTOR_CRITIC),
    "behaviour.actor_learning_rate": (3e-5, V3_ACTOR_CRITIC),
    "behaviour.critic_learning_rate": (3e-5, V3_ACTOR_CRITIC),
    "behaviour.adam_eps": (1e-5, V3_ACTOR_CRITIC),
    "behaviour.clip_norm": (100.0, V3_ACTOR_CRITIC),
    "env.observation": ("pixels", MU_DMC),
    "env.background": ("none", MU_DMC),
    "env.image_size": (64, MU_DMC),
    "env.image_width": (None, MU_DMC),
    "env.action_repeat": (2, V3_BENCHMARKS),
    "env.num_envs": (4, V3_BENCHMARKS),
    "env.camera": (None, f"{V3}, the published program: 0, of the quadruped 2"),
    "env.atari_noops": (30, V3_ATARI),
    "env.atari_sticky": (0.0, V3_ATARI),
    "env.atari_life_loss": (False, V3_ATARI),
    "env.atari_sign_rewards": (False, V3_ATARI),
    "replay.capacity_steps": (1_000_000, V3_GENERAL),
    "replay.batch_size": (16, V3_GENERAL),
    "replay.batch_length": (64, V3_GENERAL),
    "train.env_steps": (1_000_000, MU_DMC),
    "train.train_ratio": (512.0, V3_BENCHMARKS),
    "train.eval_policy": ("sample", f"{MU} and {V3}, the published programs: scores are sampled"),
}
"""The paper's number of each setting, and its source."""

PROJECTS_OWN = {
    "env.task", "env.backend", "env.render_profile", "env.simulator_threads",
    "env.background_videos", "env.background_set", "env.background_mask", "env.background_start",
    "env.background_advance", "env.background_grey", "env.background_max_videos",
    "env.background_max_frames", "env.color_shift", "env.camera_shift", "env.moving_shifts",
    "replay.gather_threads", "replay.batches_ahead", "replay.storage",
    "replay.flush_every_seconds",
    "train.prefill_steps", "train.eval_every_env_steps", "train.log_every_seconds",
    "train.checkpoint_every_seconds", "train.save_replay", "train.max_minutes", "train.device",
    "train.backend", "train.cuda_graph", "train.precision", "train.threads", "train.overlap",
    "train.seed", "train.tracker", "train.tracker_project", "train.eval_episodes",
    "train.keep_checkpoints", "train.exact_resume",
}  # fmt: skip
"""Settings that the papers have no number for."""

DIMENSIONS = {
    # deter, hidden, conv, layers
    "XS": Dimensions(256, 256, 24, 1),
    "S": Dimensions(512, 512, 32, 2),
    "M": Dimensions(1024, 640, 48, 3),
    "L": Dimensions(2048, 768, 64, 4),
    "XL": Dimensions(4096, 1024, 96, 5),
}
"""From V3_SIZES."""


@pytest.mark.parametrize("setting", PINNED)
def test_dmc_vision_has_the_papers_number(setting: str) -> None:
    expected, _ = PINNED[setting]
    found = settings(PRESETS["dmc_vision"][1])[setting]
    assert (type(found), found) == (type(expected), expected)


def test_every_setting_is_pinned_or_the_projects_own() -> None:
    known = settings(Config())
    assert PINNED.keys() | PROJECTS_OWN == known.keys()
    assert not PINNED.keys() & PROJECTS_OWN
    # What is learned, and how, is all the papers' to say.
    assert not [name for name in PROJECTS_OWN if name.startswith(("model.", "behaviour."))]


def test_every_pinned_number_has_a_source() -> None:
    assert all(
        V3 in source or MU in source or source == "the size's" for _, source in PINNED.values()
    )


def test_sizes_are_the_papers() -> None:
    assert SIZES == DIMENSIONS
    for size, dimensions in DIMENSIONS.items():
        assert ModelConfig(size=size).dimensions == dimensions  # type: ignore[arg-type]


def test_dmc_vision_replays_512_steps_for_each_policy_step() -> None:
    # A batch of 16 x 64 for every second policy step.
    assert PRESETS["dmc_vision"][1].updates_per_policy_step == 0.5


DIFFERENT = {
    # a video for each episode, its first 20 seconds at 30 frames a second, a frame a simulator step
    "dmc_vision_backgrounds": {
        "env.background": "video",
        "env.background_advance": "simulator_step",
        "env.background_max_frames": 600,
    },
    # arXiv 2301.04104v1: symlog or squared errors of what is observed, KL weights 0.5 and 0.1
    "dmc_vision_dreamerv3": {
        "model.reconstruction": True,
        "model.value_predictor": False,
        "model.action_predictor": False,
        "model.batch_norm": "none",
        "model.dynamics_scale": 0.5,
        "model.representation_scale": 0.1,
    },
    # 26 games, each for 400,000 frames (Kaiser et al., arXiv 1903.00374), repeated 4 times
    "atari100k": {
        "env.task": "atari/pong",
        "env.action_repeat": 4,
        "env.num_envs": 1,
        "train.env_steps": 400_000,
        "train.train_ratio": 1024.0,
    },
    # DreamerPro (arXiv 2110.14565), its program: at most 100 videos and 1000 frames of each
    "dmc_vision_dreamerpro": {"env.background": "video", "env.background_start": "random"},
}


@pytest.mark.parametrize("preset", DIFFERENT)
def test_presets_of_dmc_vision_differ_in_these_alone(preset: str) -> None:
    plain, other = (settings(PRESETS[name][1]) for name in ("dmc_vision", preset))
    assert {name: other[name] for name in plain if plain[name] != other[name]} == DIFFERENT[preset]
    assert other["env.background_max_videos"] == 100


def test_dmc_proprio_differs_in_what_is_seen_alone() -> None:
    vision, proprio = (settings(PRESETS[name][1]) for name in ("dmc_vision", "dmc_proprio"))
    assert {name for name in vision if vision[name] != proprio[name]} == {"env.observation"}
    assert proprio["env.observation"] == "vector"
