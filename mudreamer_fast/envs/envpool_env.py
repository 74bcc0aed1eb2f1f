"""DeepMind Control on EnvPool: all environments in one process, on C++ threads."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np

from mudreamer_fast.config import EnvConfig
from mudreamer_fast.envs import graphics
from mudreamer_fast.envs.render_profile import ASSETS, draws_green, write_assets
from mudreamer_fast.envs.tasks import EPISODE_SIMULATOR_STEPS, find_task
from mudreamer_fast.envs.vector_env import (
    ActionSpec,
    Array,
    EnvError,
    FloatArray,
    Frames,
    VectorStep,
    check_action,
    check_render,
    check_seed,
    find_non_finite,
    observation_specs,
)

_LOW, _HIGH = np.array(-1, np.float32), np.array(1, np.float32)
"""Bounds of an action; NumPy takes longer over Python numbers."""

_CORRECTED_SITES = {
    # it takes the radius of a part of the cup, .008, for the ball's: this size makes up for it
    "dmc/ball_in_cup_catch": ("target", "size", ".033 .006 .033"),
    # it means to hide the tip's dot, but takes the red out of it instead
    "dmc/finger_spin": ("tip", "rgba", "0 0 0 0"),
}
"""Where EnvPool reads or writes the wrong element of a model: the task's site, its attribute, and
the value with which rewards and pictures are dm_control's."""


class EnvPoolEnv:
    """N environments of one task on EnvPool; see `VectorEnv`.

    The simulators give states only. A policy step advances them `action_repeat` times, adds the
    rewards, and renders once: EnvPool's own frame_skip would drop all rewards but the last, and
    its pixel observations would render every repeat.

    Args:
        config: task and observation.
        num_envs: N.
        seed: of environment 0; environment i takes seed + i.

    Raises:
        ConfigError: a task or camera that does not exist.
        EnvError: nothing can be rendered here.
    """

    def __init__(self, config: EnvConfig, num_envs: int, seed: int) -> None:
        check_seed(seed, num_envs)
        self._task, self._camera = find_task(config.task, config.camera)
        self._pixels = config.observation != "vector"
        self._repeat = config.action_repeat
        self._shape = config.image_shape
        graphics.try_to_load_egl()
        if self._pixels:
            self._profile = graphics.prepare(config.render_profile)
        else:  # no renderer is needed until a video is asked for
            self._profile = graphics.video_profile(config.render_profile)
        self.render_profile = self._profile if self._pixels else None
        self._graphics_ready = self._pixels
        self._process = os.getpid()
        self._green = draws_green(config)
        self._pool: Any = self._make_pool(num_envs, seed, config.simulator_threads)
        self.num_envs = num_envs
        action = self._pool.action_spec()
        self.action_spec = ActionSpec(size=action.shape[0], continuous=True)
        bounds = np.array([action.minimum, action.maximum], np.float64)
        self._action_centre, self._action_half = bounds.mean(0), np.diff(bounds, axis=0)[0] / 2
        shown = self._pool.observation_spec()
        # where EnvPool's arrays come in what it says
        places: list[str] = self._pool._state_keys
        self._env_id, self._reward = places.index("info:env_id"), places.index("reward")
        self._done, self._discount = places.index("done"), places.index("discount")
        # and where dm_control's observations go in the vector
        self._vector_columns: list[tuple[int, slice | int]] = []
        size = 0
        for key in self._task.observation_keys:
            shape = getattr(shown, key).shape
            begin, size = size, size + int(np.prod(shape))
            columns = slice(begin, size) if shape else begin
            self._vector_columns.append((places.index(f"obs:{key}"), columns))
        self._state_size, self._shows_vector = size, config.observation != "pixels"
        self.observation_spec = observation_specs(
            self._pixels, self._shape, size if self._shows_vector else 0
        )
        self._all = np.arange(num_envs, dtype=np.int32)
        self._is_last = np.zeros(num_envs, bool)

    def _make_pool(self, num_envs: int, seed: int, threads: int | None) -> Any:
        import envpool
        import envpool.mujoco.dmc.registration  # a trimmed installation may leave it to us

        name = self._task.envpool_id
        options = {
            "num_envs": num_envs,
            "num_threads": threads or 0,
            "seed": seed,
            "max_episode_steps": EPISODE_SIMULATOR_STEPS,
        }
        installed = Path(envpool.make_spec(name).config.base_path)
        # the models are read while the simulators are made, and not again
        with tempfile.TemporaryDirectory(prefix="mudreamer_fast_assets_") as folder:
            write_assets(installed, self._task.domain, self._profile, Path(folder), self._green)
            self._correct_model(Path(folder) / ASSETS / f"{self._task.domain}.xml")
            return envpool.make_dm(name, base_path=folder, **options)

    def _correct_model(self, path: Path) -> None:
        if self._task.full_name not in _CORRECTED_SITES:
            return
        site, attribute, value = _CORRECTED_SITES[self._task.full_name]
        model = ElementTree.parse(path)
        for element in model.iterfind(f".//site[@name='{site}']"):
            element.set(attribute, value)
        model.write(path)

    def reset(self) -> VectorStep:
        """Starts a new episode everywhere; see `VectorEnv.reset`."""
        pool = self._open_pool()
        pool._reset(self._all)
        zeros, no = np.zeros(self.num_envs, np.float32), np.zeros(self.num_envs, bool)
        self._is_last = no
        return VectorStep(self._observe(pool._recv(), zeros), zeros, ~no, no.copy(), no.copy())

    def step(self, action: FloatArray) -> VectorStep:
        """Advances every environment by one policy step; see `VectorEnv.step`."""
        self._open_pool()
        check_action(action, self.num_envs, self.action_spec)
        controls = action.clip(_LOW, _HIGH).astype(np.float64)
        controls *= self._action_half
        controls += self._action_centre
        is_first, any_first = self._is_last, np.count_nonzero(self._is_last) > 0
        state = self._advance(controls, self._all)
        if any_first:
            # EnvPool repeats the last episode's reward on the step that resets
            state[self._reward][is_first] = 0
        is_last = state[self._done]
        for _ in range(self._repeat - 1):
            if not (any_first or np.count_nonzero(is_last)):
                earlier, state = state, self._advance(controls, self._all)
                state[self._reward] += earlier[self._reward]
            else:
                # an environment that has just reset, or whose episode is over, has had its step
                ids = np.flatnonzero(~(is_first | is_last)).astype(np.int32)
                if not ids.size:
                    break
                some = self._advance(controls[ids], ids)
                ids = some[self._env_id]
                some[self._reward] += state[self._reward][ids]
                for whole, part in zip(state, some, strict=True):
                    whole[ids] = part
            is_last = state[self._done]
        self._is_last = is_last.copy()
        is_terminal = is_last.copy()
        if np.count_nonzero(is_last):
            is_terminal &= state[self._discount] == 0
        reward = state[self._reward]
        observation = self._observe(state, reward)
        return VectorStep(observation, reward, is_first, is_last, is_terminal)

    def _advance(self, controls: Array, ids: Array) -> list[Any]:
        """One simulator step of the environments `ids`: new arrays, a row for each of them."""
        # what the public step() adds for the sake of other tasks takes longer than the physics
        self._pool._send([ids, ids, controls])
        state: list[Any] = self._pool._recv()
        if self._task.smallest_reward:
            state[self._reward][state[self._reward] < self._task.smallest_reward] = 0
        return state

    def _observe(self, state: list[Any], reward: FloatArray) -> dict[str, Array]:
        vector = np.empty((self.num_envs, self._state_size), np.float32)
        for place, columns in self._vector_columns:
            vector[:, columns] = state[place]
        self._check_finite(reward, vector)
        observation: dict[str, Array] = {}
        if self._pixels:
            frames = self._pool._render(self._all, *self._shape[::-1], self._camera)
            observation["image"] = np.ascontiguousarray(frames.transpose(0, 3, 1, 2))
        if self._shows_vector:
            observation["vector"] = vector
        return observation

    def _check_finite(self, reward: FloatArray, vector: FloatArray) -> None:
        finite = np.count_nonzero(np.isfinite(reward)) + np.count_nonzero(np.isfinite(vector))
        if finite == reward.size + vector.size:
            return
        for index in range(self.num_envs):
            if fault := find_non_finite(float(reward[index]), vector[index]):
                raise EnvError(f"environment {index} of {self._task.full_name} failed: {fault}")

    def render(self, size: int | None = None, indices: Sequence[int] | None = None) -> Frames:
        """Pictures for videos; see `VectorEnv.render`."""
        pool = self._open_pool()
        size = self._shape[0] if size is None else size
        ids = self._all if indices is None else np.asarray(indices, np.int32)
        check_render(size, ids.tolist(), self.num_envs)
        if not self._graphics_ready:
            graphics.prepare(self._profile)
            self._graphics_ready = True
        # the public render() knows only the size that an environment was made with
        frames: Frames = pool._render(ids, size, size, self._camera)
        return frames

    def take_notices(self) -> list[str]:
        """Nothing: a simulator that fails is not replaced, but ends the run."""
        return []

    def close(self) -> None:
        """Ends the simulators; a second call does nothing."""
        self._pool = None

    def _open_pool(self) -> Any:
        return opened(self._pool, self._process, self._task.full_name)


def opened(pool: Any, process: int, name: str) -> Any:
    """A pool that works here.

    Args:
        pool: EnvPool's; None where it has been closed.
        process: that made it.
        name: of the task.

    Raises:
        EnvError: it is closed, or its threads are another process's.
    """
    if pool is None:
        raise EnvError(f"this {name} environment is closed")
    if process != os.getpid():  # it would wait for ever
        raise EnvError(
            f"this {name} environment was made before this process was forked, "
            "and its threads are not here: make another one in this process"
        )
    return pool
