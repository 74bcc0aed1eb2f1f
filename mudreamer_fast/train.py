"""A training run, from the first random step to the final score: the algorithm, read top down."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mudreamer_fast.config import Config
from mudreamer_fast.envs import with_factory
from mudreamer_fast.machine.device import resolve_device
from mudreamer_fast.machine.handles import raise_handle_limit
from mudreamer_fast.machine.ranks import joined_ranks
from mudreamer_fast.machine.signals import Stopped, StopSignals
from mudreamer_fast.run import shares
from mudreamer_fast.run.folder import default_run_dir
from mudreamer_fast.run.results import TrainResult
from mudreamer_fast.run.trainer import Trainer

__all__ = ["TrainResult", "train"]


def train(
    config: Config,
    run_dir: str | os.PathLike[str] | None = None,
    resume: bool = False,
    env: Callable[[], Any] | None = None,
    allow_other_simulator: bool = False,
) -> TrainResult:
    """Trains an agent; metrics and checkpoints go to `run_dir`.

    Every collected step of all environments earns `num_envs * config.updates_per_policy_step`
    updates, so that the train ratio holds at any moment. The call of the policy that only resets
    an environment counts as a policy step too. Where acting and learning overlap
    (`config.train.overlap`), steps are taken while the updates of those before are under way, with
    the weights from before these updates; the updates see no step that was taken since they began.
    Either way the same seed gives the same run.

    A resumed run goes on from its checkpoint with the same weights, optimisers, generators, replay
    contents, counters and random baseline: given the same replay, its updates are bitwise those of
    the uninterrupted run. The environments are not stored: they start new episodes, with new
    seeds, unless `config.train.exact_resume` brings them back by their actions. A replay that was
    not saved is first filled again, to `prefill_steps`, by the agent.

    Args:
        config: all settings; for a resumed run, `train` and `replay` may differ from before.
        run_dir: run folder; holds no run yet, or the one to resume. None makes a new one,
            runs/<task>-own-seed<seed>-<time>, which the result names.
        resume: go on from the checkpoint in `run_dir`.
        env: makes one environment, a gymnasium.Env, in place of `config.env.task`'s; it is called
            without arguments, in this process and, with several environments, in others as well.
        allow_other_simulator: whether a run may go on with a simulator that may show it something
            else than the one that it was made with.

    Raises:
        ConfigError: a device, task, memory or number of open files that this machine cannot
            provide, settings under which nothing would be learned, or a run folder that is taken.
        checkpoint.CheckpointError: nothing to resume, or nothing that can be read.
        NotFiniteError: losses or gradients stay infinite or NaN, even from earlier weights.

    Whatever ends a run, what it had learned is saved first.

    Processes that `torchrun` starts train one agent together (`run.shares`): the configuration is
    that of the whole run, and `run_dir` that of rank 0. The others' results have no evaluation.
    """
    config = dataclasses.replace(config, env=with_factory(config.env, env))
    raise_handle_limit(config.env.num_envs)
    folder = default_run_dir(config, "own") if run_dir is None else Path(run_dir)
    with (
        StopSignals() as stop,
        joined_ranks(resolve_device(config.train.device)) as ranks,
        Trainer(
            config, Path(ranks.firsts(str(folder))), resume, stop, allow_other_simulator, ranks
        ) as run,
    ):
        try:
            run.take_up()
            if not ranks.index:
                run.evaluator.score_random_policy()
            due = shares.due(run.pace, stop, ranks)
            while not due.end:
                run.count(run.collect())
                run.learn(run.agent.update)
                run.report()
                due = shares.due(run.pace, stop, ranks)
                if due.evaluation:
                    run.evaluate()
                if due.checkpoint:
                    run.lessons.save_meanwhile()
                if due.stop:
                    raise Stopped
            run.save()
            return run.finish(run.evaluate(film=True))
        except BaseException as reason:
            run.lessons.rescue()
            if not isinstance(reason, Stopped):
                raise
            return run.result(None)
