"""Opens the replay buffer of a run, in memory or in its folder."""

from __future__ import annotations

import math

from mudreamer_fast.collect import replay_fields
from mudreamer_fast.config import Config
from mudreamer_fast.envs import VectorEnv
from mudreamer_fast.machine.memory import available_bytes, check_replay_room, disk_bytes
from mudreamer_fast.machine.screen import say
from mudreamer_fast.replay import ReplayBuffer, StorageError
from mudreamer_fast.run.folder import RunFolder

SPARE_SHARE = 0.02
"""Of the replay's capacity, taken on top of it at most, so that steps need not wait for a job."""


def open_replay(config: Config, env: VectorEnv, folder: RunFolder, seed: int) -> ReplayBuffer:
    """The replay buffer for the steps of `env`.

    Args:
        config: the run's settings.
        env: the environments that it is filled from.
        folder: run folder, which holds the steps where `replay.storage` is disk.
        seed: of the sampler.

    Raises:
        ConfigError: it would not fit.
        StorageError: what is on disk cannot be read.
    """
    train, replay = config.train, config.replay
    fields = replay_fields(env.observation_spec, env.action_spec)
    on_disk = replay.storage == "disk"
    steps = train.env_steps // config.env.action_repeat + env.num_envs
    room = disk_bytes(folder.replay) if on_disk else available_bytes()
    check_replay_room(fields, replay.capacity_steps, steps, room, replay.storage)
    return ReplayBuffer(
        fields,
        replay.capacity_steps,
        env.num_envs,
        seed,
        replay.gather_threads,
        folder.replay if on_disk else None,
        replay.flush_every_seconds if on_disk else None,
        spare_steps=_spare_steps(config, env.num_envs),
    )


def can_learn(config: Config, replay: ReplayBuffer) -> bool:
    """Whether the replay holds the prefill."""
    prefill = min(config.train.prefill_steps, replay.capacity_steps)
    return len(replay) >= prefill and replay.can_sample(config.replay.batch_length)


def close_replay(replay: ReplayBuffer) -> None:
    """Leaves a replay whole on disk; what cannot be written is told."""
    try:
        replay.close()
    except StorageError as error:
        say(f"warning: {error}\n")


def _spare_steps(config: Config, num_envs: int) -> int:
    """Steps that the replay takes from one job of the learner to the next, unless too many."""
    rounds = math.ceil(1 / (num_envs * config.updates_per_policy_step))
    share = SPARE_SHARE * config.replay.capacity_steps / num_envs
    return max(1, min(rounds + 1, int(share)))
