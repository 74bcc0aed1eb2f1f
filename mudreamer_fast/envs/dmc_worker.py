"""A worker process: one dm_control environment that obeys its parent and ends with it."""

from __future__ import annotations

import contextlib
import math
import mmap
import os
import threading
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from mudreamer_fast.config import ConfigError, EnvConfig
from mudreamer_fast.envs.dmc_simulator import DmcSimulator
from mudreamer_fast.envs.vector_env import EnvError, FloatArray, Frames, find_non_finite

PARENT_CHECK_SECONDS = 1.0
"""How often a worker looks whether its parent lives."""


@dataclass(frozen=True)
class Sizes:
    """What a task's arrays have of numbers."""

    action: int
    """A."""
    vector: int
    """V."""
    render_profile: str
    """Settled, of observed images or of videos alone."""


@dataclass(frozen=True)
class Reply:
    """What a worker says of a step; the image lies in shared memory."""

    vector: FloatArray
    """(V,), dm_control's whole observation."""
    reward: float
    """Summed over the action repeat; 0 on first steps."""
    is_first: bool
    """No action led here."""
    is_last: bool
    """The episode is over."""
    is_terminal: bool
    """The episode really ended."""


@dataclass(frozen=True)
class Failure:
    """A worker's last message where it cannot go on."""

    text: str
    """One sentence."""
    is_config_error: bool
    """The user's settings are to blame."""


def map_images(descriptor: int, num_envs: int, image_shape: tuple[int, int]) -> Frames:
    """The observed images (N, 3, height, width) uint8 in the memory that all processes share."""
    memory = mmap.mmap(descriptor, num_envs * 3 * math.prod(image_shape))
    return np.frombuffer(memory, np.uint8).reshape(num_envs, 3, *image_shape)


def main(parent_pid: int, connection_descriptor: int, memory_descriptor: int) -> None:
    """Obeys until the connection closes.

    Args:
        parent_pid: the process to live as long as.
        connection_descriptor: of the pipe to the parent, which first sends configuration, seed,
            index and number of environments, and then commands; each gets one answer.
        memory_descriptor: of the shared images.
    """
    threading.Thread(target=_end_with, args=(parent_pid,), daemon=True).start()
    connection: Connection[Any, Any] = Connection(connection_descriptor)
    try:
        config, seed, index, num_envs = connection.recv()
        worker = _Worker(config, seed, index, num_envs, memory_descriptor)
        while True:
            name, *arguments = connection.recv()
            connection.send(getattr(worker, name)(*arguments))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return  # the parent has closed, or is gone
    except Exception as error:
        known = isinstance(error, ConfigError | EnvError)
        text = str(error) if known else f"{type(error).__name__}: {error}"
        with contextlib.suppress(OSError):  # another worker's failure may have ended the parent
            connection.send(Failure(" ".join(text.split()), isinstance(error, ConfigError)))


def _end_with(parent_pid: int) -> None:
    # the closed pipe does not tell where a fork of the parent holds it open
    while os.getppid() == parent_pid:
        time.sleep(PARENT_CHECK_SECONDS)
    os._exit(1)


class _Worker:
    """The commands, by name."""

    def __init__(
        self,
        config: EnvConfig,
        seed: int | np.random.RandomState,
        index: int,
        num_envs: int,
        memory_descriptor: int,
    ) -> None:
        self._simulator = DmcSimulator(config, seed)
        self._shape = config.image_shape
        self._image = None
        if config.observation != "vector":
            self._image = map_images(memory_descriptor, num_envs, self._shape)[index]
        self._is_last = True

    def sizes(self) -> Sizes:
        """What the task takes and shows."""
        simulator = self._simulator
        return Sizes(simulator.action_size, simulator.vector_size, simulator.render_profile)

    def reset(self) -> Reply:
        """Starts an episode."""
        self._simulator.reset()
        return self._reply(0.0, is_first=True)

    def step(self, action: FloatArray) -> Reply:
        """Takes an action, or starts the next episode where one has ended."""
        if self._is_last:
            return self.reset()
        step = self._simulator.step(action)
        return self._reply(step.reward, False, step.is_last, step.is_terminal)

    def render(self, size: int) -> Frames:
        """A picture of the present state."""
        return self._simulator.image((size, size))

    def _reply(
        self, reward: float, is_first: bool, is_last: bool = False, is_terminal: bool = False
    ) -> Reply:
        vector = self._simulator.vector()
        if fault := find_non_finite(reward, vector):
            raise EnvError(fault)
        self._is_last = is_last
        if self._image is not None:
            self._image[:] = self._simulator.image(self._shape).transpose(2, 0, 1)
        return Reply(vector, reward, is_first, is_last, is_terminal)
