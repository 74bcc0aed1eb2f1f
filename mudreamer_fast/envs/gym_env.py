"""Gymnasium's environments, through its own vector environments."""

from __future__ import annotations

import contextlib
import errno
import multiprocessing
from collections.abc import Iterator, Sequence
from multiprocessing.connection import wait
from multiprocessing.util import Finalize
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv

from mudreamer_fast.config import ConfigError, EnvConfig
from mudreamer_fast.envs.factories import remembered
from mudreamer_fast.envs.gym_simulator import GymMaker
from mudreamer_fast.envs.vector_env import (
    ActionSpec,
    ArraySpec,
    EnvError,
    FloatArray,
    Frames,
    VectorStep,
    check_action,
    check_render,
    check_seed,
)

RESET_SECONDS = 300.0
"""How long a worker may take over a reset."""
ANSWER_SECONDS = 60.0
"""How long it may take over anything else before it counts as hung."""

CLOSE_SECONDS = 5.0
"""How long it may take to end before it is killed."""

_LOG_NOTHING = 100
_NO_SEMAPHORES = (errno.ENOSPC, errno.ENOENT, errno.EACCES, errno.EROFS, errno.ENOSYS)
"""What the system answers where multiprocessing's semaphores, in /dev/shm, cannot be made."""


class GymProcesses(AsyncVectorEnv):  # type: ignore[misc]
    """Gymnasium's processes, which end by force where they do not end themselves.

    They take no notice of the SIGTERM by which Gymnasium and multiprocessing would end them, as it
    may be meant for the parent.
    """

    def __init__(self, makers: Sequence[GymMaker]) -> None:
        self.processes: list[Any] = []
        self.parent_pipes: list[Any] = []
        try:
            super().__init__(
                makers,
                context="spawn",  # neither PyTorch's threads nor OpenGL survive a fork
                shared_memory=False,  # /dev/shm may be small: writing to it would be a SIGBUS
                autoreset_mode=AutoresetMode.NEXT_STEP,
            )
        except BaseException:
            self.close(terminate=True)
            for process in filter(_has_begun, self.processes):
                with contextlib.suppress(ValueError):  # not even force has ended it
                    process.close()  # gives its files back, which a run that is saved may need
            raise

    def close_extras(self, timeout: float | None = None, terminate: bool = False) -> None:
        """Ends the processes."""
        for pipe in filter(None, self.parent_pipes):
            if not terminate:
                with contextlib.suppress(OSError):
                    pipe.send(("close", None))
        for process in filter(_has_begun, self.processes):
            process.join(0 if terminate else CLOSE_SECONDS)
            process.kill()
            process.join(CLOSE_SECONDS)
        for pipe in filter(None, self.parent_pipes):
            pipe.close()

    def failed(self) -> tuple[int, int | None] | None:
        """Place and exit code of a process that has ended, or ends within some seconds."""
        ended = wait([process.sentinel for process in self.processes], CLOSE_SECONDS)
        for index, process in enumerate(self.processes):
            if process.sentinel in ended:
                # an ending process closes its files, the sentinel too, before it has an exit code
                process.join(CLOSE_SECONDS)
                return index, process.exitcode
        return None


class GymEnv:
    """N environments of one kind; see `VectorEnv`.

    They reset themselves in the step after their last one (Gymnasium's `AutoresetMode.NEXT_STEP`),
    so that a last observation arrives like any other. Breaking Gymnasium's contract ends the run:
    a state that is wrong once would be learned from for ever.

    Args:
        config: task and observation.
        num_envs: N.
        seed: of environment 0; environment i takes seed + i.

    Raises:
        ConfigError: an environment that does not exist, or that the agent cannot see or act in.
        EnvError: a worker fails.
    """

    def __init__(self, config: EnvConfig, num_envs: int, seed: int) -> None:
        check_seed(seed, num_envs)
        self.num_envs = num_envs
        self._name, self._size = config.task, config.image_shape[0]
        self._seed: int | None = seed
        factory = remembered(config.task)
        makers = [GymMaker(config, factory, index) for index in range(num_envs)]
        in_turn = config.backend == "sync" or (config.backend == "auto" and num_envs == 1)
        self._vector: Any = None
        with self._failures():
            if in_turn:
                self._vector = SyncVectorEnv(makers, autoreset_mode=AutoresetMode.NEXT_STEP)
            else:
                self._vector = GymProcesses(makers)
            # before multiprocessing would wait for workers that take no notice of its SIGTERM
            self._close = Finalize(self, _end, (self._vector,), exitpriority=10)
            self.action_spec: ActionSpec = self._vector.get_attr("action_spec")[0]
            self.render_profile: str | None = self._vector.get_attr("render_profile")[0]
            self.left_out: list[str] = self._vector.get_attr("left_out")[0]
            """Parts of the observation that the agent does not see."""
        self.observation_spec = {
            name: ArraySpec(space.shape, space.dtype)
            for name, space in self._vector.single_observation_space.spaces.items()
        }
        self._is_last = np.zeros(num_envs, bool)

    @contextlib.contextmanager
    def _failures(self) -> Iterator[None]:
        """Turns whatever goes wrong into one line, and ends the workers."""
        level = gymnasium.logger.min_level
        gymnasium.logger.min_level = _LOG_NOTHING  # it would show tracebacks
        try:
            yield
        except (EnvError, ConfigError):
            self._kill()
            raise
        except multiprocessing.TimeoutError:
            self._kill()
            raise EnvError(f"an environment of {self._name} failed: it does not answer") from None
        except (EOFError, OSError) as error:
            what = self._what_is_refused(error) or self._what_died()
            # The frames form a cycle and hold what was being sent: to collect that kills CPython
            # 3.12.0 and 3.12.1 (https://github.com/python/cpython/issues/111049).
            error.__traceback__ = None
            self._kill()
            raise EnvError(what) from None
        except Exception as error:
            self._kill()
            said = " ".join(f"{type(error).__name__}: {error}".split())
            raise EnvError(f"{self._name} failed: {said}") from None
        finally:
            gymnasium.logger.min_level = level

    def _what_is_refused(self, error: Exception) -> str:
        """What the system does not give to processes that are being started; nothing otherwise."""
        if self._vector is not None or not isinstance(error, OSError) or not error.strerror:
            return ""
        if isinstance(error, ConnectionError):
            return ""
        where = " in /dev/shm" if error.errno in _NO_SEMAPHORES else ""
        return (
            f"the processes of {self._name} are refused: {error.strerror}{where}; "
            "--env.backend sync does without them"
        )

    def _what_died(self) -> str:
        if self._vector is None:
            return (
                f"a process of {self._name} ended before it was ready: it may be that its module "
                "does not import there, or that a script trains outside of "
                "if __name__ == '__main__'"
            )
        failed = self._vector.failed() if isinstance(self._vector, GymProcesses) else None
        if failed is None:
            return f"an environment of {self._name} failed: its process does not answer"
        index, code = failed
        return f"environment {index} of {self._name} failed: its process ended with code {code}"

    def _kill(self) -> None:
        if self._vector is not None:
            with contextlib.suppress(Exception):
                self._vector.close(terminate=True)
            self._vector.closed = True

    def _open(self) -> Any:
        if self._vector.closed:
            raise EnvError(f"this {self._name} environment is closed")
        return self._vector

    def reset(self) -> VectorStep:
        """Starts a new episode everywhere; see `VectorEnv.reset`."""
        vector, seed, self._seed = self._open(), self._seed, None
        with self._failures():
            if isinstance(vector, GymProcesses):
                vector.reset_async(seed=seed)
                observation, _ = vector.reset_wait(RESET_SECONDS)
            else:
                observation, _ = vector.reset(seed=seed)
        no = np.zeros(self.num_envs, bool)
        self._is_last = no
        reward = np.zeros(self.num_envs, np.float32)
        return VectorStep(dict(observation), reward, ~no, no.copy(), no.copy())

    def step(self, action: FloatArray) -> VectorStep:
        """Advances every environment by one policy step; see `VectorEnv.step`."""
        vector = self._open()
        check_action(action, self.num_envs, self.action_spec)
        with self._failures():
            if isinstance(vector, GymProcesses):
                vector.step_async(action)
                seconds = RESET_SECONDS if self._is_last.any() else ANSWER_SECONDS
                came = vector.step_wait(seconds)
            else:
                came = vector.step(action)
        observation, reward, terminated, truncated, info = came
        is_first, is_last = self._is_last, terminated | truncated
        self._is_last = is_last.copy()
        facts = {
            name: np.where(info[f"_{name}"], told, np.nan).astype(np.float32)
            for name, told in info.items()
            if f"_{name}" in info
        }
        return VectorStep(
            dict(observation), reward.astype(np.float32), is_first, is_last, terminated, facts
        )

    def render(self, size: int | None = None, indices: Sequence[int] | None = None) -> Frames:
        """Pictures for videos; see `VectorEnv.render`."""
        vector = self._open()
        size = self._size if size is None else size
        indices = list(range(self.num_envs)) if indices is None else list(indices)
        check_render(size, indices, self.num_envs)
        with self._failures():
            if isinstance(vector, GymProcesses):
                vector.call_async("picture", size, indices)
                frames = vector.call_wait(ANSWER_SECONDS)
            else:
                frames = vector.call("picture", size, indices)
        return np.stack([frames[index] for index in indices])

    def take_notices(self) -> list[str]:
        """Nothing: an environment that fails is not replaced, but ends the run."""
        return []

    def close(self) -> None:
        """Ends environments and workers; a second call does nothing."""
        self._close()


def _has_begun(process: Any) -> bool:
    return process.pid is not None


def _end(vector: Any) -> None:
    with contextlib.suppress(Exception):  # an environment's own close may fail
        vector.close()
    vector.closed = True
