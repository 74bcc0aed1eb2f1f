"""What a checkpoint of a run holds, and how a run goes on from one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

from mudreamer_fast.agent import Agent
from mudreamer_fast.config import Config, ConfigError
from mudreamer_fast.disk import checkpoint
from mudreamer_fast.disk.arrays import Empty
from mudreamer_fast.machine.seeds import generator_states, restore_generator_states
from mudreamer_fast.replay import ReplayBuffer, StorageError
from mudreamer_fast.replay.prefetch import Prefetcher
from mudreamer_fast.run.folder import RunFolder, read_config
from mudreamer_fast.run.history import History
from mudreamer_fast.run.pace import Counters, Pace
from mudreamer_fast.run.reporter import Reporter


class RunOverError(ConfigError):
    """A run to be resumed that has nothing left to do."""


def read_saved(folder: RunFolder, config: Config, resume: bool) -> tuple[Config, dict[str, Any]]:
    """The settings of a run, and the checkpoint that it goes on from; empty for a new run.

    What a run settled for when it began, such as its render profile, it keeps wherever it goes on.

    Raises:
        ConfigError: a new run in a folder that holds one, or a resumed one with another task,
            model or behaviour, or an exact one from a checkpoint that tells no actions.
        checkpoint.CheckpointError: nothing to resume, or nothing that can be read.
    """
    kept = folder.checkpoint.glob("data-*"), folder.replay.glob("segment-*")
    if not resume and (any(map(any, kept)) or folder.result.exists()):
        raise ConfigError(f"{folder.root} holds a run: resume it, or name another folder")
    if not resume:
        return config, {}
    before = read_config(folder.config)
    if config.env.render_profile == "auto":
        config = with_profile(config, before.env.render_profile)
    env = before.env
    if env.background_videos is not None and config.env.background_videos is not None:
        # the same videos may lie elsewhere
        env = dataclasses.replace(env, background_videos=config.env.background_videos)
    if (env, before.model, before.behaviour) != (config.env, config.model, config.behaviour):
        raise ConfigError("a resumed run keeps its settings of env, model and behaviour")
    saved = checkpoint.load(folder.checkpoint)
    if config.train.exact_resume and "history" not in saved:
        raise ConfigError(
            f"the checkpoint in {folder.root} holds no actions, as it was saved without "
            "exact_resume: resume with --train.no-exact-resume"
        )
    return config, saved


def with_profile(config: Config, profile: str | None) -> Config:
    """The settings with a render profile in place of their own; None leaves them as they are."""
    if profile is None:
        return config
    env = dataclasses.replace(config.env, render_profile=cast(Any, profile))
    return dataclasses.replace(config, env=env)


def check_unfinished(folder: RunFolder, pace: Pace) -> None:
    """Refuses to resume a run that is over, naming what would let it go on.

    Raises:
        RunOverError: it has reached its last step or minute, and left its results.
    """
    if pace.limit is not None and folder.result.exists():
        option = pace.limit.split()[0].replace("_", "-")
        raise RunOverError(
            f"the run in {folder.root} is over ({pace.limit}); give it more by --train.{option}"
        )


def counters_of(saved: Mapping[str, Any], folder: RunFolder) -> Counters:
    """Where the run of a checkpoint stood; at the beginning without one.

    Raises:
        checkpoint.CheckpointError: it counts something else, or otherwise.
    """
    if not saved:
        return Counters()
    with checkpoint.fitting(folder.checkpoint):
        counters = Counters(**saved["counters"])
        for name, value in vars(Counters()).items():
            if not isinstance(found := getattr(counters, name), type(value)):
                raise TypeError(f"{name} must be of type {type(value).__name__}, got {found!r}")
    return counters


def restore(
    saved: Mapping[str, Any],
    folder: RunFolder,
    agent: Agent,
    replay: ReplayBuffer,
    batches: Prefetcher,
    history: History | None,
) -> None:
    """Bring a run's parts into the state that `Saver.save` saved.

    Raises:
        checkpoint.CheckpointError: it is the state of other parts.
    """
    with checkpoint.fitting(folder.checkpoint):
        agent.load_state_dict(saved["agent"])
        if history is not None:
            history.load_state_dict(saved["history"], agent.acting)
        else:
            if "replay" in saved and not len(replay):
                replay.load_state_dict(saved["replay"])
            if "batches" in saved:
                batches.resume(saved["batches"], saved.get("history", {}).get("batches"))
        restore_generator_states(saved["generators"])


class Saver:
    """Writes a run's checkpoints, in the background; one that fails is told and made up for.

    A run waits while its state is copied, and for the checkpoint before where that is not written
    yet.

    Args:
        folder: run folder.
        config: the run's settings.
        pace: knows how far the run is, and is told when a checkpoint was made.
        agent: what has learned; no update may be under way while it is copied.
        replay: what it learns from.
        batches: those drawn ahead.
        reporter: is told what fails, and how long the run waited.
        history: of the environments; None keeps none.
        ranks: how many processes the run is shared by.
    """

    def __init__(
        self,
        folder: RunFolder,
        config: Config,
        pace: Pace,
        agent: Agent,
        replay: ReplayBuffer,
        batches: Prefetcher,
        reporter: Reporter,
        history: History | None,
        ranks: int = 1,
    ) -> None:
        self._ranks = ranks
        self._folder, self._config, self._pace = folder, config, pace
        self._agent, self._replay, self._batches = agent, replay, batches
        self._reporter, self._history = reporter, history
        self._thread = ThreadPoolExecutor(1, "saver")
        self._written: Future[None] | None = None

    def save(self) -> None:
        """Make a checkpoint, from which the run can go on.

        While environments are yet to be brought back, that is the one that the run came from.
        """
        if self._history is not None and self._history.behind:
            return
        started = self._pace.counters.seconds = self._pace.seconds
        self._save(self._state, self._folder.checkpoint, self._config.train.keep_checkpoints)
        held_up_seconds = self._pace.seconds - started
        self._reporter.update({"checkpoint/seconds": held_up_seconds})
        self._pace.schedule_checkpoint(held_up_seconds)

    def save_best(self, score: float) -> None:
        """Save the agent, for evaluations alone, if it has never scored better."""
        counters = self._pace.counters
        if score <= counters.best_score:
            return
        counters.best_score = score
        self._save(self._learned(), self._folder.best, 1)

    def go_back(self, reason: str) -> None:
        """Bring the weights and moments of the last checkpoint back, and nothing else.

        The generator goes on: the same draws might lead to the same end.
        """
        self.finish()
        self._reporter.message(f"warning: {reason}: back to the weights of the last checkpoint")
        now = self._agent.state_dict()
        before = checkpoint.load(self._folder.checkpoint, ("agent",))["agent"]
        kept = {name: now[name] for name in ("generator", "updates")}
        self._agent.load_state_dict(before | kept)

    def finish(self) -> None:
        """Wait until what was saved is written, and tell what could not be."""
        written, self._written = self._written, None
        if written is not None:
            self._attempt(written.result)

    def close(self) -> None:
        """Finish, and end the thread."""
        self.finish()
        self._thread.shutdown()

    def _save(self, state: Mapping[str, Any] | checkpoint.Build, folder: Path, keep: int) -> None:
        self.finish()

        def stage() -> None:
            staged = checkpoint.StagedCheckpoint(state, folder)
            self._written = self._thread.submit(staged.commit, keep)

        self._attempt(stage)

    def _attempt(self, write: Callable[[], None]) -> None:
        try:
            write()
        except (checkpoint.CheckpointError, StorageError) as error:
            self._reporter.message(f"warning: {error}")

    def _learned(self) -> dict[str, Any]:
        return {
            "counters": dataclasses.asdict(self._pace.counters),
            "generators": generator_states(),
            "agent": self._agent.state_dict(),
        } | ({"ranks": self._ranks} if self._ranks > 1 else {})

    def _state(self, empty: Empty) -> dict[str, Any]:
        state = self._learned()
        if self._config.replay.storage == "disk":
            self._replay.flush()
        elif self._config.train.save_replay:
            state["replay"] = self._replay.state_dict(empty)
        if self._history is not None:
            state["history"] = self._history.state_dict(empty)
        if self._config.replay.storage == "disk" or "replay" in state:
            state["batches"] = self._batches.pending()
        return state
