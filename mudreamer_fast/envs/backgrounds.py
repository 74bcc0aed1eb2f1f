"""Backgrounds that distract: what is behind the robot is replaced by something that moves.

The paper's experiments with natural backgrounds, and the simpler distractions beside them. The
layer looks at pictures alone, so every simulator's environments take it alike.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, TypeAlias

import numpy as np

from mudreamer_fast.config import ConfigError, EnvConfig
from mudreamer_fast.envs.footage import Clip, clips
from mudreamer_fast.envs.vector_env import (
    ActionSpec,
    ArraySpec,
    BoolArray,
    FloatArray,
    Frames,
    VectorEnv,
    VectorStep,
)

Mask: TypeAlias = Literal["blue", "chroma"]

_STREAM = 0xBAC6
"""Keeps the draws of backgrounds apart from others of the same seed."""


def is_background(image: Frames, axis: int, mask: Mask = "blue") -> BoolArray:
    """Which pixels count as background.

    Args:
        image: uint8.
        axis: of its three colours.
        mask: blue takes those with more blue than red and than green, the paper's rule; chroma
            those that have been drawn in green, in light or shadow.
    """
    red, green, blue = np.moveaxis(image, axis, 0)
    background: BoolArray
    if mask == "blue":
        background = (blue > red) & (blue > green)
    else:
        little = green // 4
        background = (red < little) & (blue < little)
    return background


class _Scene:
    """What is behind one environment's robot, frame by frame."""

    def __init__(self, config: EnvConfig, footage: list[Clip], seed: int) -> None:
        self._rng = np.random.default_rng([seed, _STREAM])
        self._shape = 3, *config.image_shape
        self._begin, self._move = {
            "video": (self._begin_video, self._play),
            "noise": (self._flicker, self._flicker),
            "color": (self._fill, lambda: None),
        }[config.background]
        self._footage = footage
        self._random_start = config.background_start == "random"
        in_simulator_steps = config.background_advance == "simulator_step"
        self._pace = config.action_repeat if in_simulator_steps else 1
        self._clip, self._place = np.zeros((1, *self._shape), np.uint8), 0

    def next(self, is_first: bool) -> Frames:
        """(3, size, size) for the next picture; an episode begins with another scene."""
        move: Callable[[], None] = self._begin if is_first else self._move
        move()
        frame: Frames = self._clip[self._place]
        return frame

    def _begin_video(self) -> None:
        self._clip = self._footage[self._rng.integers(len(self._footage))]
        self._place = int(self._rng.integers(len(self._clip))) if self._random_start else 0

    def _play(self) -> None:
        self._place += self._pace
        if self._place >= len(self._clip):  # another one follows, from its first frame
            self._clip = self._footage[self._rng.integers(len(self._footage))]
            self._place = 0

    def _flicker(self) -> None:
        noise = np.frombuffer(self._rng.bytes(int(np.prod(self._shape))), np.uint8)
        self._clip = noise.reshape(1, *self._shape)

    def _fill(self) -> None:
        colour = self._rng.integers(256, size=(3, 1, 1), dtype=np.uint8)
        self._clip = np.broadcast_to(colour, (1, *self._shape))


class BackgroundEnv:
    """Environments whose background is another one, drawn anew for each episode; see `VectorEnv`.

    Args:
        env: N environments that show images.
        config: what is behind the robot (`background` and the settings that begin with it).
        seed: of environment 0; environment i takes seed + i.

    Raises:
        ConfigError: no images are observed, or the videos are not what they should be.
    """

    def __init__(self, env: VectorEnv, config: EnvConfig, seed: int) -> None:
        if "image" not in env.observation_spec:
            raise ConfigError(
                f"background {config.background} needs images, got observation "
                f"{config.observation!r}"
            )
        self.behind = env
        """The environments as they are."""
        footage = clips(config) if config.background == "video" else []
        self._scenes = [_Scene(config, footage, seed + i) for i in range(env.num_envs)]
        self._mask: Mask = config.background_mask
        self._notices: list[str] = []
        drawn = config.background == "video" and config.background_videos is None
        if drawn and config.background_set == "train":  # once a run, not with each of its scores
            self._notices.append(
                "the videos in the background are drawn by the program: "
                "--env.background-videos takes a folder of others"
            )
        self._frames = np.zeros((env.num_envs, *env.observation_spec["image"].shape), np.uint8)

    @property
    def num_envs(self) -> int:
        """N."""
        return self.behind.num_envs

    @property
    def observation_spec(self) -> dict[str, ArraySpec]:
        """See `VectorEnv`."""
        return self.behind.observation_spec

    @property
    def action_spec(self) -> ActionSpec:
        """See `VectorEnv`."""
        return self.behind.action_spec

    @property
    def render_profile(self) -> str | None:
        """See `VectorEnv`."""
        return self.behind.render_profile

    @property
    def backgrounds(self) -> Frames:
        """(N, 3, height, width): what is behind each robot now, hidden parts included."""
        frames: Frames = self._frames.copy()
        return frames

    def reset(self) -> VectorStep:
        """Starts a new episode everywhere; see `VectorEnv.reset`."""
        return self._shown(self.behind.reset())

    def step(self, action: FloatArray) -> VectorStep:
        """Advances every environment by one policy step; see `VectorEnv.step`."""
        return self._shown(self.behind.step(action))

    def _shown(self, step: VectorStep) -> VectorStep:
        for frame, scene, is_first in zip(self._frames, self._scenes, step.is_first, strict=True):
            frame[...] = scene.next(bool(is_first))
        image: Frames = step.observation["image"]  # type: ignore[assignment]
        every_bit = np.negative(is_background(image, 1, self._mask).view(np.uint8))[:, None]
        image ^= (image ^ self._frames) & every_bit  # a tenth of the time of np.copyto; it is ours
        return step

    def render(self, size: int | None = None, indices: Sequence[int] | None = None) -> Frames:
        """Pictures for videos, with what is behind the robot now; see `VectorEnv.render`."""
        pictures = self.behind.render(size, indices)
        frames = self._frames if indices is None else self._frames[list(indices)]
        size = pictures.shape[1]
        down, across = (np.arange(size) * side // size for side in frames.shape[2:])
        large = frames[:, :, down][..., across].transpose(0, 2, 3, 1)
        return np.where(is_background(pictures, 3, self._mask)[..., None], large, pictures)

    def take_notices(self) -> list[str]:
        """See `VectorEnv`."""
        notices, self._notices = self._notices, []
        return [*notices, *self.behind.take_notices()]

    def close(self) -> None:
        """See `VectorEnv`."""
        self.behind.close()


def without_layers(env: VectorEnv) -> VectorEnv:
    """The environments that a simulator plays."""
    return env.behind if isinstance(env, BackgroundEnv) else env
