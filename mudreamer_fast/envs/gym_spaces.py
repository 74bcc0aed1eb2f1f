"""From Gymnasium's spaces to what the agent takes and gives: one image, one vector, one action."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal

import numpy as np
from gymnasium import spaces
from PIL import Image

from mudreamer_fast.config import ConfigError
from mudreamer_fast.envs.vector_env import ActionSpec, EnvError, FloatArray, Frames

SMALLEST_IMAGE = 16
"""A side of an image has at least so many pixels: smaller arrays of bytes, such as the 7 x 7 cells
that a MiniGrid agent sees, are numbers."""
MOST_JOINT_CHOICES = 128
"""Several choices at once are one choice among all their combinations, of which so many may be."""

_MOST_CHANNELS = 4
_NUMBERS = "biuf"
"""NumPy's kinds of dtypes that become float32."""

Path = tuple[str | int, ...]
"""Keys that lead into nested dictionaries and tuples."""


class ActionTranslator:
    """Turns the agent's actions into those of an action space.

    Args:
        space: Box with bounds, Discrete, MultiDiscrete or MultiBinary.
        task: for messages.

    Raises:
        ConfigError: a space that the agent cannot act in.
    """

    def __init__(self, space: Any, task: str) -> None:
        self._translate: Callable[[FloatArray], Any]
        if isinstance(space, spaces.Box) and space.dtype.kind == "f":
            low, high = space.low.astype(np.float64), space.high.astype(np.float64)
            if not np.isfinite(high - low).all():
                raise ConfigError(
                    f"{task} takes actions without bounds: give its action space finite ones, as "
                    "with gymnasium.wrappers.RescaleAction"
                )
            self.spec = ActionSpec(int(np.prod(space.shape)), continuous=True)
            self._centre, self._half = (high + low) / 2, (high - low) / 2
            self._low, self._high, self._dtype = space.low, space.high, space.dtype
            self._translate = self._scale
            return
        if isinstance(space, spaces.Discrete):
            counts, self._start = np.array([space.n]), space.start
        elif isinstance(space, spaces.MultiDiscrete):
            counts, self._start = space.nvec, space.start
        elif isinstance(space, spaces.MultiBinary):
            counts, self._start = np.full(space.shape, 2), 0
        else:
            raise ConfigError(
                f"{task} takes actions of {space}: they must be a Box of floating-point numbers, "
                "Discrete, MultiDiscrete or MultiBinary"
            )
        combinations = int(np.prod(counts.astype(float).clip(max=1e6)))
        if combinations > MOST_JOINT_CHOICES and counts.size > 1:
            raise ConfigError(
                f"{task} takes actions of {combinations:,} combinations ({space}): "
                f"at most {MOST_JOINT_CHOICES} can be told apart"
            )
        self.spec = ActionSpec(combinations, continuous=False)
        self._counts, self._dtype = counts, space.dtype
        self._translate = self._choose if isinstance(space, spaces.Discrete) else self._combine

    def __call__(self, action: FloatArray) -> Any:
        """The action of the space for (A,) in [-1, 1] or one-hot."""
        return self._translate(action)

    def _scale(self, action: FloatArray) -> Any:
        action = action.astype(np.float64).clip(-1, 1).reshape(self._centre.shape)
        scaled = (self._centre + self._half * action).astype(self._dtype)
        return scaled.clip(self._low, self._high)  # where rounding has carried it beyond

    def _choose(self, action: FloatArray) -> Any:
        return self._dtype.type(self._start + action.argmax())

    def _combine(self, action: FloatArray) -> Any:
        places = np.unravel_index(int(action.argmax()), self._counts.ravel())
        chosen = np.array(places, self._dtype).reshape(self._counts.shape)
        return chosen + np.asarray(self._start, self._dtype)


class ObservationTranslator:
    """Finds image and vector in observations of a space.

    Args:
        space: Box, Discrete, MultiDiscrete, MultiBinary, or Dict or Tuple of such; parts of other
            kinds, such as Text, are left out.
        wanted: what the agent sees.
        shape: height and width of its images.
        task: for messages.

    Raises:
        ConfigError: a space that does not show what is wanted.
    """

    def __init__(
        self,
        space: Any,
        wanted: Literal["pixels", "vector", "both"],
        shape: tuple[int, int],
        task: str,
    ) -> None:
        self.left_out: list[str] = []
        """Parts that the agent cannot see, in words."""
        self.image_path: Path | None = None
        """Where the image is; None where the space has none."""
        self._shape = shape
        self._parts: list[tuple[Path, Any]] = []
        images = {}
        for path, part in _leaves(space):
            if _is_image(part):
                images[path] = part
            elif _is_numeric(part):
                self._parts.append((path, part))
            else:
                self.left_out.append(f"{_in_words(path)} ({type(part).__name__})")
        if wanted == "vector" and not self._parts:
            raise ConfigError(
                f"{task} shows no vector, but {space}: train with --env.observation pixels"
            )
        if wanted == "both" and not self._parts:
            raise ConfigError(f"{task} shows images alone: train with --env.observation pixels")
        if wanted != "vector" and images:
            if len(images) > 1:
                names = " and ".join(map(_in_words, images))
                raise ConfigError(f"{task} shows {len(images)} images, {names}: leave it one")
            self.image_path, self._image = next(iter(images.items()))
            channels = self._image.shape[_channel_axis(self._image.shape)]
            if len(self._image.shape) == 3 and channels not in (1, 3):
                raise ConfigError(
                    f"{task} shows images of shape {self._image.shape}: "
                    f"they must have 1 or 3 channels, got {channels}"
                )
        if wanted == "pixels":
            self._parts = []
        self.vector_size = sum(spaces.flatdim(part) for _, part in self._parts)

    def vector(self, observation: Any) -> FloatArray:
        """All numbers (V,) float32; what is chosen among n things is one-hot of n.

        Raises:
            EnvError: they are not what the space promises, or not finite.
        """
        vector = np.concatenate(
            [_numbers(_find(observation, path), part, path) for path, part in self._parts]
        )
        for place in np.flatnonzero(~np.isfinite(vector)):
            raise EnvError(f"number {place} of its observation is {vector[place]:g}")
        return vector

    def image(self, observation: Any) -> Frames:
        """The image (3, height, width) of an observation that has one.

        Raises:
            EnvError: it is not what the space promises.
        """
        assert self.image_path is not None
        found = _find(observation, self.image_path)
        return to_image(
            _checked(found, self._image, self.image_path), self._shape, _in_words(self.image_path)
        )


def to_image(array: Any, wanted: tuple[int, int], what: str) -> Frames:
    """Any picture as (3, height, width) uint8: every pixel is the mean of the area it covers.

    Args:
        array: uint8, (H, W), (H, W, C) or (C, H, W) with one channel or three.
        wanted: height and width.
        what: the picture, for messages.

    Raises:
        EnvError: it is no picture.
    """
    shape = np.shape(array)
    if not isinstance(array, np.ndarray) or array.dtype != np.uint8 or len(shape) not in (2, 3):
        got = f"{array.dtype} of shape {shape}" if isinstance(array, np.ndarray) else repr(array)
        raise EnvError(f"{what} must be uint8 of shape (H, W, 3), got {got}"[:300])
    if len(shape) == 3:
        if _channel_axis(shape) == 0:
            array = array.transpose(1, 2, 0)
        if array.shape[2] not in (1, 3):
            raise EnvError(f"{what} must have 1 or 3 channels, got shape {shape}")
        if array.shape[2] == 1:
            array = array[..., 0]
    if array.shape[:2] != wanted:
        picture = Image.fromarray(np.ascontiguousarray(array))
        array = np.asarray(picture.resize(wanted[::-1], Image.Resampling.BOX))
    if array.ndim == 2:
        array = np.broadcast_to(array[..., None], (*wanted, 3))
    frame: Frames = np.ascontiguousarray(array.transpose(2, 0, 1))
    return frame


def _leaves(space: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    if isinstance(space, spaces.Dict):
        for key, part in space.spaces.items():
            yield from _leaves(part, (*path, key))
    elif isinstance(space, spaces.Tuple):
        for place, part in enumerate(space.spaces):
            yield from _leaves(part, (*path, place))
    else:
        yield path, space


def _find(observation: Any, path: Path) -> Any:
    for number, key in enumerate(path):
        try:
            observation = observation[key]
        except (KeyError, IndexError, TypeError):
            raise EnvError(f"{_in_words(path[: number + 1])} is missing") from None
    return observation


def _in_words(path: Path) -> str:
    return f"its observation {'.'.join(map(str, path))}".rstrip()


def _channel_axis(shape: tuple[int, ...]) -> int:
    """The last one where it may be, for most environments have it there."""
    return -1 if shape[-1] <= _MOST_CHANNELS or shape[0] > _MOST_CHANNELS else 0


def _is_image(space: Any) -> bool:
    if not isinstance(space, spaces.Box) or space.dtype != np.uint8:
        return False
    shape = space.shape
    if len(shape) == 3:
        axis = _channel_axis(shape)
        if shape[axis] > _MOST_CHANNELS:
            return False
        shape = shape[:-1] if axis else shape[1:]
    return len(shape) == 2 and min(shape) >= SMALLEST_IMAGE


def _is_numeric(space: Any) -> bool:
    choices = spaces.Discrete | spaces.MultiDiscrete | spaces.MultiBinary
    return isinstance(space, choices) or (
        isinstance(space, spaces.Box) and space.dtype.kind in _NUMBERS
    )


def _numbers(value: Any, space: Any, path: Path) -> FloatArray:
    if isinstance(space, spaces.Box):
        with np.errstate(over="ignore"):  # what is too large becomes infinite, and is told of
            numbers: FloatArray = _checked(value, space, path).astype(np.float32).ravel()
        return numbers
    try:
        fits = space.contains(value)
    except Exception:
        fits = False
    if not fits:
        raise EnvError(f"{_in_words(path)} must be of {space}, got {value!r}"[:300])
    flat: FloatArray = spaces.flatten(space, value).astype(np.float32)
    return flat


def _checked(value: Any, space: Any, path: Path) -> Any:
    array = np.asarray(value)
    numeric = array.dtype.kind in _NUMBERS
    if array.shape != space.shape or not numeric or (_is_image(space) and array.dtype != np.uint8):
        raise EnvError(
            f"{_in_words(path)} must be {space.dtype} of shape {space.shape}, "
            f"got {array.dtype} of shape {array.shape}"
        )
    return array
