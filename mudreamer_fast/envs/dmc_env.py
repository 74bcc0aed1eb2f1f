"""DeepMind Control on dm_control: every environment in a process of its own."""

from __future__ import annotations

import os
import subprocess
import weakref
from collections.abc import Sequence
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any, NoReturn

import numpy as np

from mudreamer_fast.config import ConfigError, EnvConfig
from mudreamer_fast.envs.dmc_worker import Failure, Reply, Sizes, map_images
from mudreamer_fast.envs.interpreter import python_command
from mudreamer_fast.envs.tasks import find_task
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

CLOSE_SECONDS = 5.0
"""How long a worker may take to end before it is killed."""

_PROGRAM = """
import signal
signal.signal(signal.SIGINT, signal.SIG_IGN)
import sys
from mudreamer_fast.envs.dmc_worker import main
main(*map(int, sys.argv[1:]))
"""
"""Ctrl-C goes to all processes of a terminal; what follows from it is the parent's business."""


class DmcEnv:
    """N environments of one task on dm_control; see `VectorEnv`.

    Fresh interpreters rather than forks: neither PyTorch's threads nor OpenGL survive a fork.

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
        find_task(config.task, config.camera)
        self.num_envs = num_envs
        self._name = config.task
        self._size = config.image_size
        self._images: Frames | None = None
        memory = os.memfd_create("mudreamer_fast_images")
        if config.observation != "vector":
            os.ftruncate(memory, num_envs * 3 * self._size**2)
            self._images = map_images(memory, num_envs, self._size)
        self._connections: list[Connection[Any, Any]] = []
        self._processes: list[subprocess.Popen[bytes]] = []
        self._close = weakref.finalize(self, _end, self._connections, self._processes)
        try:
            for index in range(num_envs):
                self._start(memory)
                self._send(index, config, seed, index, num_envs)
        finally:
            os.close(memory)
        ready: list[Sizes] = [self._receive(index) for index in range(num_envs)]
        sizes = ready[0]
        self.action_spec = ActionSpec(sizes.action, continuous=True)
        self.observation_spec = observation_specs(
            self._images is not None,
            self._size,
            0 if config.observation == "pixels" else sizes.vector,
        )

    def _start(self, memory: int) -> None:
        ours, theirs = Pipe()
        descriptors = theirs.fileno(), memory
        process = subprocess.Popen(
            python_command(_PROGRAM, str(os.getpid()), *map(str, descriptors)),
            stdin=subprocess.DEVNULL,
            pass_fds=descriptors,
        )
        theirs.close()
        self._connections.append(ours)
        self._processes.append(process)

    def _send(self, index: int, *message: Any) -> None:
        if not self._close.alive:
            raise EnvError(f"this {self._name} environment is closed")
        try:
            self._connections[index].send(message)
        except OSError:
            self._fail(index)

    def _receive(self, index: int) -> Any:
        try:
            reply = self._connections[index].recv()
        except (EOFError, OSError):
            self._fail(index)
        if isinstance(reply, Failure):
            self.close()
            if reply.is_config_error:
                raise ConfigError(reply.text)
            raise EnvError(f"environment {index} of {self._name} failed: {reply.text}")
        return reply

    def _fail(self, index: int) -> NoReturn:
        code = self._processes[index].wait()
        self.close()
        raise EnvError(
            f"environment {index} of {self._name} failed: its process ended with code {code}"
        )

    def reset(self) -> VectorStep:
        """Starts a new episode everywhere; see `VectorEnv.reset`."""
        for index in range(self.num_envs):
            self._send(index, "reset")
        return self._gather()

    def step(self, action: FloatArray) -> VectorStep:
        """Advances every environment by one policy step; see `VectorEnv.step`."""
        check_action(action, self.num_envs, self.action_spec)
        for index in range(self.num_envs):
            self._send(index, "step", action[index])
        return self._gather()

    def _gather(self) -> VectorStep:
        replies: list[Reply] = [self._receive(index) for index in range(self.num_envs)]
        observation: dict[str, Array] = {}
        if self._images is not None:
            observation["image"] = self._images.copy()
        if "vector" in self.observation_spec:
            observation["vector"] = np.stack([reply.vector for reply in replies])
        return VectorStep(
            observation,
            np.array([reply.reward for reply in replies], np.float32),
            np.array([reply.is_first for reply in replies]),
            np.array([reply.is_last for reply in replies]),
            np.array([reply.is_terminal for reply in replies]),
        )

    def render(self, size: int | None = None, indices: Sequence[int] | None = None) -> Frames:
        """Pictures for videos; see `VectorEnv.render`."""
        size = self._size if size is None else size
        indices = range(self.num_envs) if indices is None else indices
        check_render(size, indices, self.num_envs)
        for index in indices:
            self._send(index, "render", size)
        return np.stack([self._receive(index) for index in indices])

    def close(self) -> None:
        """Ends the workers; a second call does nothing."""
        self._close()


def _end(connections: list[Connection[Any, Any]], processes: list[subprocess.Popen[bytes]]) -> None:
    for connection in connections:
        connection.close()
    for process in processes:
        try:
            process.wait(CLOSE_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
