"""What each of several processes has of a run that they train together.

All numbers of a configuration are those of the whole run: environments, rows of a batch, steps in
the replay. A rank has its share of them, in a folder of its own below the run's; rank 0, whose
folder is the run's own, evaluates and tells. Weights and counters are the same on all.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

from mudreamer_fast.config import Config, ConfigError
from mudreamer_fast.disk import checkpoint
from mudreamer_fast.machine.ranks import Ranks
from mudreamer_fast.machine.screen import say
from mudreamer_fast.machine.signals import StopSignals
from mudreamer_fast.run import saving
from mudreamer_fast.run.folder import RunFolder
from mudreamer_fast.run.pace import Pace

STEPS_OF_A_RANK = ("replay", "batches")
"""What of a checkpoint is a rank's own."""


class Due(NamedTuple):
    """What is to be done before the next step; all ranks do the same."""

    end: bool
    evaluation: bool
    checkpoint: bool
    stop: bool


def due(pace: Pace, stop: StopSignals, ranks: Ranks) -> Due:
    """What all ranks are to do: rank 0's clock counts, and a stop that any of them was asked for.

    Args:
        pace: of this rank.
        stop: told of the signal that another rank has received.
        ranks: who has to agree.
    """
    wanted = pace.finished, pace.evaluation_due(), pace.checkpoint_due(), stop.received or 0
    told = ranks.tell(wanted)
    end, evaluation, save, _ = map(bool, told[0])
    received = int(max(signal for *_, signal in told))
    stop.received = stop.received or received or None
    return Due(end, evaluation, save, bool(received))


def own_folder(root: Path, ranks: Ranks) -> RunFolder:
    """A rank's folder: the run's own, or one below it."""
    return RunFolder(root / "ranks" / str(ranks.index) if ranks.index else root)


def own_share(config: Config, ranks: Ranks) -> Config:
    """The settings with a rank's share of environments, rows and steps.

    Raises:
        ConfigError: they cannot be shared evenly, or an exact resume is asked for.
    """
    size = ranks.size
    if size == 1:
        return config
    if config.train.exact_resume:
        raise ConfigError(f"exact_resume is for one process, and {size} train together")
    shared = {
        "env.num_envs": config.env.num_envs,
        "replay.batch_size": config.replay.batch_size,
        "replay.capacity_steps": config.replay.capacity_steps,
        "train.prefill_steps": config.train.prefill_steps,
    }
    for name, number in shared.items():
        if number % size:
            raise ConfigError(f"{name} {number} cannot be shared evenly by {size} processes")
    envs, rows, capacity, prefill = (number // size for number in shared.values())
    replace = dataclasses.replace
    return replace(
        config,
        env=replace(config.env, num_envs=envs),
        replay=replace(config.replay, batch_size=rows, capacity_steps=capacity),
        train=replace(config.train, prefill_steps=prefill),
    )


def read_saved(
    root: Path, config: Config, resume: bool, ranks: Ranks
) -> tuple[Config, dict[str, Any]]:
    """The settings of a run and the checkpoint to go on from: rank 0's, with this rank's steps.

    Where the processes are not as many as they were, the steps are left behind: the replay is
    filled again.

    Raises:
        ConfigError: see `saving.read_saved`; or steps on disk are to be shared otherwise.
        checkpoint.CheckpointError: nothing to resume, or nothing that can be read.
    """
    config, saved = saving.read_saved(RunFolder(root), config, resume)
    if not saved:
        return config, saved
    with checkpoint.fitting(RunFolder(root).checkpoint):
        before = int(saved.get("ranks", 1))
    if before != ranks.size:
        if config.replay.storage == "disk":
            raise ConfigError(
                f"{root} has its replay on disk, shared by {before} processes: resume it with as "
                "many, or with --replay.storage memory"
            )
        if ranks.index == 0 and "replay" in saved:
            say(
                f"warning: {before} processes trained before and {ranks.size} do now: the replay "
                "is filled again\n"
            )
    elif ranks.index == 0:
        return config, saved
    learned = {name: part for name, part in saved.items() if name not in STEPS_OF_A_RANK}
    if before != ranks.size:
        return config, learned
    return config, learned | _own_steps(own_folder(root, ranks))


def _own_steps(folder: RunFolder) -> dict[str, Any]:
    """A rank's steps; none where it was killed before its first checkpoint."""
    if not checkpoint.exists(folder.checkpoint):
        return {}
    own = checkpoint.load(folder.checkpoint)
    return {name: own[name] for name in STEPS_OF_A_RANK if name in own}
