"""Atari 2600 games on EnvPool, whose package brings the games: all of them on C++ threads."""

from __future__ import annotations

import difflib
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from mudreamer_fast.config import ConfigError, EnvConfig
from mudreamer_fast.envs.envpool_env import opened
from mudreamer_fast.envs.tasks import ATARI
from mudreamer_fast.envs.vector_env import (
    ActionSpec,
    Array,
    FloatArray,
    Frames,
    VectorStep,
    check_action,
    check_render,
    check_seed,
    observation_specs,
)

EPISODE_FRAMES = 108_000
"""Half an hour at 60 frames a second, after which a game's time is up."""


class AtariEnv:
    """N environments of one game; see `VectorEnv`.

    The agent sees the colours of every `action_repeat`-th frame, each pixel the larger of that
    frame and the one before, reduced to the image's size by area. It chooses among the buttons
    that the game knows.

    Args:
        config: game, image size, and the settings that begin with `atari`.
        num_envs: N.
        seed: of environment 0; environment i takes seed + i.

    Raises:
        ConfigError: a game that does not exist, or observations other than images.
    """

    def __init__(self, config: EnvConfig, num_envs: int, seed: int) -> None:
        check_seed(seed, num_envs)
        if config.observation != "pixels":
            raise ConfigError(
                f"{config.task} shows images alone, got observation {config.observation!r}"
            )
        self._name, self._shape = config.task, config.image_shape
        self._life_loss = config.atari_life_loss
        self._process = os.getpid()
        self._pool: Any = _make_pool(config, num_envs, seed)
        self.num_envs = num_envs
        self.render_profile: str | None = None
        self.action_spec = ActionSpec(int(self._pool.action_space.n), continuous=False)
        self.observation_spec = observation_specs(True, self._shape, 0)
        self._is_last = np.zeros(num_envs, bool)
        self._lives = np.zeros(num_envs, np.int32)
        self._frames: Frames = np.zeros((num_envs, 3, *self._shape), np.uint8)

    def reset(self) -> VectorStep:
        """Starts a new episode everywhere; see `VectorEnv.reset`."""
        image, info = self._open_pool().reset()
        zeros, no = np.zeros(self.num_envs, np.float32), np.zeros(self.num_envs, bool)
        self._is_last, self._lives = no, info["lives"].copy()
        return VectorStep(self._seen(image), zeros, ~no, no.copy(), no.copy())

    def step(self, action: FloatArray) -> VectorStep:
        """Advances every environment by one policy step; see `VectorEnv.step`."""
        pool = self._open_pool()
        check_action(action, self.num_envs, self.action_spec)
        image, reward, ended, cut, info = pool.step(action.argmax(1).astype(np.int32))
        is_first = self._is_last
        # the step that resets brings the last reward once more
        reward = np.where(is_first, 0, reward).astype(np.float32)
        is_terminal = ended & ~cut & ~is_first
        if self._life_loss:
            is_terminal |= (info["lives"] < self._lives) & ~is_first
        self._lives = info["lives"].copy()
        self._is_last = (ended | cut) & ~is_first
        return VectorStep(self._seen(image), reward, is_first, self._is_last.copy(), is_terminal)

    def _seen(self, image: Array) -> dict[str, Array]:
        self._frames = image.copy()
        return {"image": image}

    def render(self, size: int | None = None, indices: Sequence[int] | None = None) -> Frames:
        """What was seen last, enlarged; see `VectorEnv.render`."""
        self._open_pool()
        size = self._shape[0] if size is None else size
        chosen = range(self.num_envs) if indices is None else indices
        check_render(size, chosen, self.num_envs)
        down, across = (np.arange(size) * side // size for side in self._shape)
        large = self._frames[list(chosen)][:, :, down][..., across]
        return np.ascontiguousarray(large.transpose(0, 2, 3, 1))

    def take_notices(self) -> list[str]:
        """Nothing: a game that fails is not replaced, but ends the run."""
        return []

    def close(self) -> None:
        """Ends the games; a second call does nothing."""
        self._pool = None

    def _open_pool(self) -> Any:
        return opened(self._pool, self._process, self._name)


def _make_pool(config: EnvConfig, num_envs: int, seed: int) -> Any:
    import envpool
    from envpool.atari.registration import atari_game_list

    games = [f"{ATARI}{name}" for name in atari_game_list]
    if config.task not in games:
        close = difflib.get_close_matches(config.task, games, n=3, cutoff=0.5)
        hint = f": did you mean {' or '.join(close)}?" if close else ""
        raise ConfigError(f"there is no game {config.task!r}{hint}")
    words = config.task.removeprefix(ATARI).split("_")
    return envpool.make_gymnasium(
        "".join(word.capitalize() for word in words) + "-v5",
        num_envs=num_envs,
        num_threads=config.simulator_threads or 0,
        seed=seed,
        img_height=config.image_shape[0],
        img_width=config.image_shape[1],
        stack_num=1,
        gray_scale=False,
        use_inter_area_resize=True,
        frame_skip=config.action_repeat,
        max_episode_steps=max(1, EPISODE_FRAMES // config.action_repeat),
        noop_max=config.atari_noops,
        use_fire_reset=False,
        repeat_action_probability=config.atari_sticky,
        reward_clip=config.atari_sign_rewards,
    )
