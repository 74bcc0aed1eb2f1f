"""What every environment looks like from outside: N of them, stepped together on arrays."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.generic]
FloatArray = npt.NDArray[np.float32]
BoolArray = npt.NDArray[np.bool_]
Frames = npt.NDArray[np.uint8]

Policy: TypeAlias = Callable[[Mapping[str, Array], BoolArray, Any], tuple[FloatArray, Any]]
"""(observation, is_first, state) -> (action (N, A), next state); what the state is, is its own."""
StatefulPolicy: TypeAlias = Callable[[Mapping[str, Array], BoolArray], FloatArray]
"""(observation, is_first) -> action (N, A); it keeps its state itself."""

ACTION_SLACK = 1e-4
"""How far beyond [-1, 1] rounding may carry an action before it is refused."""
_LARGEST_ACTION = np.array(1 + ACTION_SLACK, np.float32)  # NumPy takes longer over a Python number
MAX_RENDER_SIZE = 480
"""Largest picture in pixels: the height of MuJoCo's off-screen buffer, unless a model says so."""
MAX_SEED = 2**31
"""EnvPool's seeds are int32."""


class EnvError(RuntimeError):
    """A simulator or renderer that cannot go on; the message is shown to the user as it is."""


@dataclass(frozen=True)
class ArraySpec:
    """Shape and dtype of one array of one environment, without the batch axis."""

    shape: tuple[int, ...]
    """Axes, slowest first."""
    dtype: np.dtype[np.generic]
    """Element type."""


@dataclass(frozen=True)
class ActionSpec:
    """What an environment takes as an action."""

    size: int
    """A, numbers in an action."""
    continuous: bool
    """True: float32 in [-1, 1]. False: float32 one-hot."""


@dataclass(frozen=True)
class VectorStep:
    """One step of N environments.

    The arrays belong to the caller: the environment writes into them no more.
    """

    observation: dict[str, Array]
    """"image" (N, 3, height, width) uint8 and/or "vector" (N, n) float32."""
    reward: FloatArray
    """(N,), summed over the action repeat; 0 on first steps."""
    is_first: BoolArray
    """(N,), an episode's first observation: no action led here."""
    is_last: BoolArray
    """(N,), an episode's last observation; the next step resets."""
    is_terminal: BoolArray
    """(N,), the episode really ended; False where only its time was up."""
    facts: Mapping[str, FloatArray] = field(default_factory=dict)
    """(N,) numbers that an environment tells of its episode as it ends, such as whether it was a
    success; NaN for those that tell none. The agent learns nothing from them."""

    def without_facts(self) -> dict[str, Any]:
        """All that has to do with what comes next, by name."""
        return {name: part for name, part in vars(self).items() if name != "facts"}


class VectorEnv(Protocol):
    """N environments that act side by side and reset themselves.

    A step with is_last carries the episode's true last observation; the next `step` ignores that
    environment's action and returns the first observation of a new episode, with reward 0.
    Environment i of seed s equals environment 0 of seed s + i.

    A simulator that fails may be replaced: the environment's step is then the first one of a new
    episode, after a step that was not the last of the dropped one; `take_notices` says why.
    """

    @property
    def num_envs(self) -> int:
        """N."""

    @property
    def observation_spec(self) -> dict[str, ArraySpec]:
        """Shape and dtype of each observation of one environment."""

    @property
    def action_spec(self) -> ActionSpec:
        """What `step` takes for one environment."""

    @property
    def render_profile(self) -> str | None:
        """The profile that observed images are rendered with, settled; None without images."""

    def reset(self) -> VectorStep:
        """Starts a new episode everywhere; is_first is True for all."""

    def step(self, action: FloatArray) -> VectorStep:
        """Advances every environment by one policy step.

        Args:
            action: (N, A) float32.

        Raises:
            ValueError: an action of another shape, dtype or range.
            EnvError: a simulator that cannot go on, nor be replaced.
        """

    def render(self, size: int | None = None, indices: Sequence[int] | None = None) -> Frames:
        """Pictures of the present state, for videos, whatever the observation is.

        Args:
            size: height and width in pixels; None takes the height of the images.
            indices: environments to draw; None draws all.

        Returns:
            (N, size, size, 3) uint8, or as many as indices.
        """

    def take_notices(self) -> list[str]:
        """One line for each simulator that was replaced since the last call."""

    def close(self) -> None:
        """Ends simulators and worker processes; a second call does nothing."""


def check_action(action: FloatArray, num_envs: int, spec: ActionSpec) -> None:
    """Refuses an action batch that an environment cannot take.

    Args:
        action: should be (N, A) float32, in [-1, 1] or one-hot.
        num_envs: N.
        spec: A and the kind of action.

    Raises:
        ValueError: says what was expected and what came.
    """
    is_array = isinstance(action, np.ndarray)
    if not is_array or action.shape != (num_envs, spec.size) or action.dtype != np.float32:
        got = f"{action.dtype} of shape {action.shape}" if is_array else type(action).__name__
        raise ValueError(f"actions must be float32 of shape ({num_envs}, {spec.size}), got {got}")
    if spec.continuous:
        within = abs(action) <= _LARGEST_ACTION  # NaN is not
        if np.count_nonzero(within) < action.size:
            low, high = action.min(), action.max()
            raise ValueError(f"actions must lie in [-1, 1], got values from {low} to {high}")
    elif not (np.isin(action, (0, 1)).all() and (action.sum(1) == 1).all()):
        raise ValueError(f"actions must be one-hot, got {action.tolist()}")


def find_non_finite(reward: float, vector: FloatArray) -> str | None:
    """What of one environment's step is not finite, in words; None where everything is.

    Args:
        reward: of the step.
        vector: (V,) of the state.
    """
    if not np.isfinite(reward):
        return f"its reward is {reward:g}"
    for place in np.flatnonzero(~np.isfinite(vector)):
        return f"number {place} of its observation is {vector[place]:g}"
    return None


def facts_of(facts: Mapping[str, FloatArray], index: int) -> dict[str, float]:
    """What one environment tells of the episode that has just ended.

    Args:
        facts: of a step.
        index: its place among the N.
    """
    return {name: float(told[index]) for name, told in facts.items() if not np.isnan(told[index])}


def check_render(size: int, indices: Sequence[int], num_envs: int) -> None:
    """Refuses pictures that cannot be drawn, some of which would end the process.

    Args:
        size: height and width in pixels.
        indices: environments to draw.
        num_envs: N.

    Raises:
        ValueError: says what was expected and what came.
    """
    if not 1 <= size <= MAX_RENDER_SIZE:
        raise ValueError(f"size must be in 1..{MAX_RENDER_SIZE} pixels, got {size}")
    if any(not 0 <= index < num_envs for index in indices):
        raise ValueError(f"indices must be in 0..{num_envs - 1}, got {list(indices)}")


def check_seed(seed: int, num_envs: int) -> None:
    """Refuses seeds that the simulators cannot take: those of all N must be int32, from 0.

    Raises:
        ValueError: says what was expected and what came.
    """
    if not 0 <= seed <= MAX_SEED - num_envs:
        raise ValueError(f"seed must be in 0..{MAX_SEED - num_envs}, got {seed}")
    if num_envs < 1:
        raise ValueError(f"num_envs must be positive, got {num_envs}")


def observation_specs(
    pixels: bool, image_shape: tuple[int, int], vector_size: int
) -> dict[str, ArraySpec]:
    """Specs of what one environment shows.

    Args:
        pixels: whether images belong to it.
        image_shape: height and width of the images.
        vector_size: length of the vector; 0 for none.
    """
    specs = {}
    if pixels:
        specs["image"] = ArraySpec((3, *image_shape), np.dtype(np.uint8))
    if vector_size:
        specs["vector"] = ArraySpec((vector_size,), np.dtype(np.float32))
    return specs
