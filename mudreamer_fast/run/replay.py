"""Opens the replay buffer of a run, in memory or in its folder.

The steps of a resumed run are in its checkpoint, or in the folder of the replay if they were stored
there when the checkpoint was written. They are taken over where the run is resumed with the other
storage; what the folder holds of an earlier time is not used again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeAlias

from mudreamer_fast.collect import replay_fields
from mudreamer_fast.config import Config
from mudreamer_fast.envs import VectorEnv
from mudreamer_fast.machine.memory import available_bytes, check_replay_room, disk_bytes
from mudreamer_fast.machine.screen import say
from mudreamer_fast.replay import ReplayBuffer, StorageError
from mudreamer_fast.run.folder import RunFolder

SPARE_SHARE = 0.02
"""Of the replay's capacity, taken on top of it at most, so that steps need not wait for a job."""

Keeper: TypeAlias = Literal["checkpoint", "folder", "nobody"]
"""Where the steps of a checkpoint are; nobody keeps those in memory without `train.save_replay`."""


def open_replay(
    config: Config, env: VectorEnv, folder: RunFolder, seed: int, saved: Mapping[str, Any]
) -> ReplayBuffer:
    """The replay buffer for the steps of `env`, with those of the run's checkpoint if there is one.

    Steps that are in the checkpoint and stay in memory are left to `saving.restore`. An exact
    resume fills the replay once more (`History.bring_back`).

    Args:
        config: the run's settings.
        env: the environments that it is filled from.
        folder: run folder, which holds the steps where `replay.storage` is disk.
        seed: of the sampler.
        saved: the checkpoint that the run goes on from; empty for a new run.

    Raises:
        ConfigError: it would not fit.
        StorageError: what is on disk cannot be read or written, or is missing.
    """
    train, replay = config.train, config.replay
    fields = replay_fields(env.observation_spec, env.action_spec)
    on_disk = replay.storage == "disk"
    steps = train.env_steps // config.env.action_repeat + env.num_envs
    room = disk_bytes(folder.replay) if on_disk else available_bytes()
    check_replay_room(fields, replay.capacity_steps, steps, room, replay.storage)
    if train.exact_resume and on_disk:  # it is filled again in memory
        check_replay_room(fields, replay.capacity_steps, steps, available_bytes())
    keeper = _keeper(saved)
    if keeper == "folder" and not folder.replay.is_dir():
        raise StorageError(
            f"{folder.replay} is missing, which holds the steps of the checkpoint: put it back, or "
            "make an empty folder of that name to go on without them"
        )
    sizes = fields, replay.capacity_steps, env.num_envs, seed
    opened = ReplayBuffer(
        *sizes,
        replay.gather_threads,
        folder.replay if on_disk else None,
        replay.flush_every_seconds if on_disk else None,
        spare_steps=_spare_steps(config, env.num_envs),
    )
    try:
        if on_disk and keeper == "checkpoint":
            state = saved["replay"]
            held = state["steps"] * env.num_envs
            check_replay_room(fields, replay.capacity_steps, held, available_bytes(), "memory")
            _tell_of_unused(opened, folder.replay)
            opened.load_state_dict(state)
            opened.flush()
        elif on_disk and keeper == "nobody":
            _tell_of_unused(opened, folder.replay)
            opened.copy_from(ReplayBuffer(*sizes))
            opened.flush()
        elif not on_disk and keeper == "folder":
            stored = ReplayBuffer(*sizes, folder=folder.replay)
            _tell(*stored.problems())
            opened.copy_from(stored)
            stored.close()
        if keeper == "folder" and saved["counters"]["policy_steps"] and not len(opened):
            _tell(f"{folder.replay} holds no steps: the run goes on without those of before")
    except BaseException:
        opened.close()
        raise
    return opened


def _keeper(saved: Mapping[str, Any]) -> Keeper | None:
    """Where the steps of a checkpoint are; None without one."""
    if not saved:
        return None
    if "replay" in saved:
        return "checkpoint"
    return "folder" if "batches" in saved else "nobody"  # batches are drawn of steps that are kept


def _tell_of_unused(replay: ReplayBuffer, place: Path) -> None:
    """Says that the steps in the folder are not those of the checkpoint, if it holds any."""
    if len(replay):
        _tell(f"{len(replay)} steps in {place} are not of the checkpoint and are not used again")


def _tell(*problems: str) -> None:
    for problem in problems:
        say(f"warning: {problem}\n")


def can_learn(config: Config, replay: ReplayBuffer) -> bool:
    """Whether the replay holds the prefill."""
    prefill = min(config.train.prefill_steps, replay.capacity_steps)
    return len(replay) >= prefill and replay.can_sample(config.replay.batch_length)


def close_replay(replay: ReplayBuffer) -> None:
    """Leaves a replay whole on disk; what cannot be written is told."""
    try:
        replay.close()
    except StorageError as error:
        _tell(str(error))


def _spare_steps(config: Config, num_envs: int) -> int:
    """Steps that the replay takes from one job of the learner to the next, unless too many."""
    rounds = math.ceil(1 / (num_envs * config.updates_per_policy_step))
    share = SPARE_SHARE * config.replay.capacity_steps / num_envs
    return max(1, min(rounds + 1, int(share)))
