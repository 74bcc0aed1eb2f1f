"""What a checkpoint of a run holds, and how a run goes on from one."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from mudreamer_fast.agent import Agent
from mudreamer_fast.config import Config, ConfigError
from mudreamer_fast.disk import checkpoint
from mudreamer_fast.disk.arrays import Empty
from mudreamer_fast.machine.seeds import generator_states, restore_generator_states
from mudreamer_fast.replay import ReplayBuffer
from mudreamer_fast.replay.prefetch import Prefetcher
from mudreamer_fast.run.folder import RunFolder, read_config
from mudreamer_fast.run.pace import Counters


def read_saved(folder: RunFolder, config: Config, resume: bool) -> dict[str, Any]:
    """The checkpoint that a run is resumed from; empty for a new run.

    Raises:
        ConfigError: a new run in a folder that holds one, or a resumed one with another task,
            model or behaviour.
        checkpoint.CheckpointError: nothing to resume, or nothing that can be read.
    """
    taken = folder.config.exists() or checkpoint.exists(folder.checkpoint)
    if not resume and (taken or folder.replay.exists()):
        raise ConfigError(f"{folder.root} holds a run: resume it, or name another folder")
    if not resume:
        return {}
    before = read_config(folder.config)
    if (before.env, before.model, before.behaviour) != (
        config.env,
        config.model,
        config.behaviour,
    ):
        raise ConfigError("a resumed run keeps its settings of env, model and behaviour")
    return checkpoint.load(folder.checkpoint)


def restore(
    saved: Mapping[str, Any], agent: Agent, replay: ReplayBuffer, batches: Prefetcher
) -> None:
    """Bring a run's parts into the state that `write` saved."""
    agent.load_state_dict(saved["agent"])
    if "replay" in saved and not len(replay):
        replay.load_state_dict(saved["replay"])
    if "batches" in saved:
        batches.resume(saved["batches"])
    restore_generator_states(saved["generators"])


def write(
    folder: RunFolder,
    config: Config,
    counters: Counters,
    agent: Agent,
    replay: ReplayBuffer,
    batches: Prefetcher,
) -> None:
    """Write a checkpoint; no update may be under way.

    Raises:
        checkpoint.CheckpointError, StorageError: it cannot be written; the last one still stands.
    """

    def build(empty: Empty) -> dict[str, Any]:
        state: dict[str, Any] = {
            "counters": dataclasses.asdict(counters),
            "generators": generator_states(),
            "agent": agent.state_dict(),
        }
        if config.replay.storage == "disk":
            replay.flush()
        elif config.train.save_replay:
            state["replay"] = replay.state_dict(empty)
        else:
            return state
        return {**state, "batches": batches.pending()}

    checkpoint.save(build, folder.checkpoint)
