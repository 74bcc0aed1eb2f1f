"""DeepMind Control on dm_control: every environment in a process of its own."""

from __future__ import annotations

import math
import os
import time
import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np

from mudreamer_fast.config import ConfigError, EnvConfig
from mudreamer_fast.envs.dmc_process import WorkerCrash, WorkerProcess
from mudreamer_fast.envs.dmc_worker import Reply, Sizes, map_images
from mudreamer_fast.envs.tasks import OWN_TASK, find_task
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
    observation_specs,
)

FAILURES_IN_A_ROW = 3
"""So many of one environment without a finished step between them, and it is given up."""
FAILURES_PER_HOUR = 10
"""Of all environments together; as many as there are environments, where these are more."""
_HOUR_SECONDS = 3600.0


class DmcEnv:
    """N environments of one task on dm_control; see `VectorEnv`.

    A worker that dies, raises an error, shows what is not finite or does not answer is replaced,
    with other starting states; the others go on.

    Args:
        config: task and observation.
        num_envs: N.
        seed: of environment 0; environment i takes seed + i.

    Raises:
        ConfigError: a task or camera that does not exist.
        EnvError: a worker cannot simulate or render here.
    """

    def __init__(self, config: EnvConfig, num_envs: int, seed: int) -> None:
        check_seed(seed, num_envs)
        if not config.task.startswith(OWN_TASK):
            find_task(config.task, config.camera)
        self.num_envs = num_envs
        self.restarts = 0
        """Workers that were replaced."""
        self._config, self._seed = config, seed
        self._name = config.task
        self._shape = config.image_shape
        self._images: Frames | None = None
        self._notices: list[str] = []
        self._failed_at: list[float] = []
        self._failures = np.zeros(num_envs, np.int64)
        self._failures_in_a_row = np.zeros(num_envs, np.int64)
        self._memory = os.memfd_create("mudreamer_fast_images")  # open for workers to come
        self._workers: list[WorkerProcess] = []
        self._close = weakref.finalize(self, _end, self._workers, self._memory)
        if config.observation != "vector":
            os.ftruncate(self._memory, num_envs * 3 * math.prod(self._shape))
            self._images = map_images(self._memory, num_envs, self._shape)
        for index in range(num_envs):
            try:
                self._workers.append(self._start(index))
            except OSError as error:
                self.close()  # the run that saves what it has learned needs the files
                raise EnvError(f"{self._place(index)} gets no process: {error.strerror}") from None
        sizes = self._read_sizes()
        self.render_profile = sizes.render_profile if self._images is not None else None
        self.action_spec = ActionSpec(sizes.action, continuous=True)
        self.observation_spec = observation_specs(
            self._images is not None,
            self._shape,
            0 if config.observation == "pixels" else sizes.vector,
        )

    def _start(self, index: int) -> WorkerProcess:
        seed: int | np.random.RandomState = self._seed + index
        if self._failures[index]:  # not the same episodes again
            seed = np.random.RandomState([seed, self._failures[index]])
        return WorkerProcess(self._memory, self._config, seed, index, self.num_envs)

    def _read_sizes(self) -> Sizes:
        for worker in self._workers:
            worker.send("sizes")
        sizes: list[Sizes] = []
        try:
            for worker in self._workers:
                sizes.append(worker.receive())
        except WorkerCrash as crash:
            self.close()
            raise EnvError(f"{self._place(len(sizes))} failed: {crash}") from None
        except ConfigError:
            self.close()
            raise
        return sizes[0]

    def _place(self, index: int) -> str:
        return f"environment {index} of {self._name}"

    def _ask(self, commands: dict[int, tuple[Any, ...]]) -> list[Any]:
        """Has the workers at some indices obey side by side; gives their answers in that order."""
        if not self._close.alive:
            raise EnvError(f"this {self._name} environment is closed")
        for index, command in commands.items():
            self._workers[index].send(*command)
        return [self._answer(index, command) for index, command in commands.items()]

    def _answer(self, index: int, command: tuple[Any, ...]) -> Any:
        while True:
            try:
                return self._workers[index].receive()
            except WorkerCrash as crash:
                self._replace(index, str(crash))
            # a new worker answers a step with a first one
            self._workers[index].send(*command)

    def _replace(self, index: int, reason: str) -> None:
        self._workers[index].end(grace_seconds=0)
        now = time.monotonic()
        self._failed_at = [at for at in self._failed_at if now - at < _HOUR_SECONDS] + [now]
        self._failures[index] += 1
        self._failures_in_a_row[index] += 1
        place = self._place(index)
        if self._failures_in_a_row[index] >= FAILURES_IN_A_ROW:
            self.close()
            raise EnvError(
                f"{place} failed {FAILURES_IN_A_ROW} times in a row without a finished step: "
                f"{reason}"
            )
        if len(self._failed_at) > max(FAILURES_PER_HOUR, self.num_envs):
            self.close()
            raise EnvError(
                f"{place} failed: {reason}; "
                f"simulators failed {len(self._failed_at)} times within an hour"
            )
        self._workers[index] = self._start(index)
        self.restarts += 1
        self._notices.append(f"{place} was restarted and its episode dropped: {reason}")

    def reset(self) -> VectorStep:
        """Starts a new episode everywhere; see `VectorEnv.reset`."""
        return self._gather({index: ("reset",) for index in range(self.num_envs)})

    def step(self, action: FloatArray) -> VectorStep:
        """Advances every environment by one policy step; see `VectorEnv.step`."""
        check_action(action, self.num_envs, self.action_spec)
        return self._gather({index: ("step", action[index]) for index in range(self.num_envs)})

    def _gather(self, commands: dict[int, tuple[Any, ...]]) -> VectorStep:
        replies: list[Reply] = self._ask(commands)
        is_first = np.array([reply.is_first for reply in replies])
        self._failures_in_a_row[~is_first] = 0
        observation: dict[str, Array] = {}
        if self._images is not None:
            observation["image"] = self._images.copy()
        if "vector" in self.observation_spec:
            observation["vector"] = np.stack([reply.vector for reply in replies])
        return VectorStep(
            observation,
            np.array([reply.reward for reply in replies], np.float32),
            is_first,
            np.array([reply.is_last for reply in replies]),
            np.array([reply.is_terminal for reply in replies]),
        )

    def render(self, size: int | None = None, indices: Sequence[int] | None = None) -> Frames:
        """Pictures for videos; see `VectorEnv.render`."""
        size = self._shape[0] if size is None else size
        indices = range(self.num_envs) if indices is None else indices
        check_render(size, indices, self.num_envs)
        commands = {index: ("render", size) for index in indices}  # some may be asked for twice
        frames = dict(zip(commands, self._ask(commands), strict=True))
        return np.stack([frames[index] for index in indices])

    def take_notices(self) -> list[str]:
        """Why workers were replaced since the last call; see `VectorEnv.take_notices`."""
        notices, self._notices = self._notices, []
        return notices

    def close(self) -> None:
        """Ends the workers; a second call does nothing."""
        self._close()


def _end(workers: list[WorkerProcess], memory: int) -> None:
    for worker in workers:
        worker.hang_up()
    for worker in workers:
        worker.end()
    os.close(memory)
