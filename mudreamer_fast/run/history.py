"""How the environments of a resumed run are brought back: by all the actions they have taken."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch

from mudreamer_fast.acting import Acting
from mudreamer_fast.collect import Collector, no_action, replay_step
from mudreamer_fast.config import Config, ConfigError
from mudreamer_fast.disk.arrays import Empty
from mudreamer_fast.envs import VectorEnv, VectorStep
from mudreamer_fast.envs.vector_env import FloatArray
from mudreamer_fast.machine.device import overlaps
from mudreamer_fast.replay import ReplayBuffer
from mudreamer_fast.replay.batch import check_uint64
from mudreamer_fast.replay.prefetch import Prefetcher

CHUNK_STEPS = 4096
"""Steps that the log of actions grows by."""


def check_exact_resume(config: Config, device: torch.device) -> None:
    """Refuses `exact_resume` where a resumed run would differ from the uninterrupted one.

    Args:
        config: the run's settings; PyTorch's threads are settled already.
        device: where the agent learns.

    Raises:
        ConfigError: naming the setting that is in the way.
    """
    if not config.train.exact_resume:
        return
    if overlaps(config.train.overlap, device):
        raise ConfigError(
            "exact_resume needs --train.overlap off: here the agent acts and learns at the same "
            "time"
        )


def open_history(
    config: Config,
    env: VectorEnv,
    collector: Collector,
    replay: ReplayBuffer,
    batches: Prefetcher,
) -> History | None:
    """The history of a run that can be resumed exactly; None for another. See `History`."""
    return History(env, collector, replay, batches) if config.train.exact_resume else None


class ActionLog:
    """The actions of N environments, step by step.

    Args:
        num_envs: N.
        size: A, numbers in an action.
    """

    def __init__(self, num_envs: int, size: int) -> None:
        self._shape = num_envs, size
        self._chunks: list[FloatArray] = []
        self._steps = 0

    def __len__(self) -> int:
        """Steps."""
        return self._steps

    def __iter__(self) -> Iterator[FloatArray]:
        """(N, A) of each step."""
        return (self._chunks[step // CHUNK_STEPS][step % CHUNK_STEPS] for step in range(len(self)))

    def append(self, action: FloatArray) -> None:
        """Add (N, A), one step of all environments."""
        if self._steps == len(self._chunks) * CHUNK_STEPS:
            self._chunks.append(np.empty((CHUNK_STEPS, *self._shape), np.float32))
        self._chunks[-1][self._steps % CHUNK_STEPS] = action
        self._steps += 1

    def array(self, empty: Empty = np.empty) -> FloatArray:
        """A copy (steps, N, A) float32, in an array that `empty` makes."""
        actions = empty((self._steps, *self._shape), np.float32)
        for index, chunk in enumerate(self._chunks):
            part = actions[index * CHUNK_STEPS : (index + 1) * CHUNK_STEPS]
            part[...] = chunk[: len(part)]
        return actions


class History:
    """Keeps what brings a run's environments back, and all that a run knows of them.

    Args:
        env: the environments, which have taken no step.
        collector: steps through them, at random at first, by the actor later.
        replay: what they have shown.
        batches: those drawn ahead.
    """

    def __init__(
        self, env: VectorEnv, collector: Collector, replay: ReplayBuffer, batches: Prefetcher
    ) -> None:
        self.behind = False
        """Whether the environments are yet to be brought back."""
        self._env, self._collector = env, collector
        self._replay, self._batches = replay, batches
        self._actions = ActionLog(env.num_envs, env.action_spec.size)
        collector.on_step = self._actions.append

    def state_dict(self, empty: Empty = np.empty) -> dict[str, Any]:
        """All of it, for a checkpoint; `empty` makes the array of actions."""
        policy = self._collector.policy_state if self._collector.handed_over else None
        return {
            "actions": self._actions.array(empty),
            "collector": self._collector.state_dict(),
            "policy": None if policy is None else policy.state_dict(),
            "batches": self._batches.lost(),
            "windows": self._batches.pending(),
            "generator": self._replay.generator,
        }

    def load_state_dict(self, state: Mapping[str, Any], acting: Acting) -> None:
        """Take over what `state_dict` gave; environments and replay stay behind until `bring_back`.

        Args:
            state: from a run with the same seeds.
            acting: the actor, which steps through the environments if it did.

        Raises:
            ValueError: the sampler's generator has no such state.
        """
        self.behind = True
        self._generator = state["generator"]
        check_uint64("generator", self._generator)
        self._drawn = state["windows"], state["batches"]
        for action in state["actions"]:
            self._actions.append(action)
        if state["policy"] is not None:
            self._collector.hand_over(acting.act, acting.restored_state(state["policy"]))
        self._collector.load_state_dict(state["collector"])

    def bring_back(self, tell: Callable[[str], None], interrupt: Callable[[], None]) -> None:
        """Reset the environments and take all actions again, which fills the replay again.

        What a folder holds of the replay is of a later time, and lacks the oldest steps of then.
        It is replaced where all went well.

        Args:
            tell: shows a line, which says how many steps there are.
            interrupt: called at every step; what it raises ends it early.

        Raises:
            ConfigError: they do not show what they showed last.
        """
        if not self.behind:
            return
        with self._replay.refilling(self._generator):
            if self._collector.step is not None:
                self._take_again(self._collector.step, tell, interrupt)
        self._batches.resume(*self._drawn)
        self.behind = False

    def _take_again(
        self, last: VectorStep, tell: Callable[[str], None], interrupt: Callable[[], None]
    ) -> None:
        tell(f"bringing the environments back: {len(self._actions):,} steps of each, taken again")
        step = self._env.reset()
        self._replay.add(replay_step(step, no_action(self._env)))
        for action in self._actions:
            interrupt()
            step = self._env.step(action)
            self._replay.add(replay_step(step, action))
        if not _same(step, last):
            raise ConfigError(
                "the environments could not be brought back: after the same actions they show "
                "something else, as with another version of the simulator or renderer; "
                "resume with --train.no-exact-resume"
            )


def _same(one: VectorStep, other: VectorStep) -> bool:
    """Whether two steps are bitwise the same."""
    a, b = ({**step.without_facts(), **step.observation} for step in (one, other))
    for step in (a, b):
        del step["observation"]
    return a.keys() == b.keys() and all(
        a[name].dtype == b[name].dtype and a[name].tobytes() == b[name].tobytes() for name in a
    )
