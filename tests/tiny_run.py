"""Whole training runs small enough for a test: the real trainer on the environment of tiny_env.

As a program it is the command line on that environment: `python -m tests.tiny_run train ...`.
With TINY_HANG set, the environments' first step says so and does not end.
"""

from __future__ import annotations

import math
import os
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from mudreamer_fast.config import Config, EnvConfig, ReplayConfig, TrainConfig
from mudreamer_fast.machine.signals import StopSignals
from mudreamer_fast.run import pace, scoring, trainer
from mudreamer_fast.run.trainer import Trainer
from tests import tiny
from tests.tiny_env import TinyEnv

EPISODE_STEPS = 7
HANGS = "this step does not end"


def config(
    observation: str = "vector",
    env: dict[str, Any] | None = None,
    replay: dict[str, Any] | None = None,
    **train: Any,
) -> Config:
    """Two environments, batches of 3 x 5, an update for every third policy step after 20."""
    defaults: dict[str, Any] = {
        "env_steps": 120, "prefill_steps": 20, "train_ratio": 5.0, "eval_every_env_steps": 50,
        "eval_episodes": 3, "log_every_seconds": 0.01, "device": "cpu", "backend": "reference",
        "overlap": "off",
    }  # fmt: skip
    return Config(
        env=EnvConfig(**({"observation": observation, "num_envs": 2} | (env or {}))),
        model=tiny.model_config(),
        behaviour=tiny.behaviour_config(),
        replay=ReplayConfig(
            **({"capacity_steps": 300, "batch_size": 3, "batch_length": 5} | (replay or {}))
        ),
        train=TrainConfig(**(defaults | train)),
    )


class HangingEnv(TinyEnv):
    """A step that never ends, as a simulator's may not, once it has said so."""

    def step(self, action: Any) -> Any:
        print(HANGS, file=sys.stderr, flush=True)
        while True:
            time.sleep(1000.0)


def make_env(config: EnvConfig, num_envs: int, seed: int) -> TinyEnv:
    """Stands in for `envs.make_env`."""
    kind = HangingEnv if "TINY_HANG" in os.environ else TinyEnv
    return kind(num_envs, config.observation, episode_length=EPISODE_STEPS, seed=seed)


def patch_envs(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Puts the tiny environment in place of the simulators; number and seed of each one made."""
    made: list[tuple[int, int]] = []

    def make(config: EnvConfig, num_envs: int, seed: int) -> TinyEnv:
        made.append((num_envs, seed))
        return make_env(config, num_envs, seed)

    monkeypatch.setattr(trainer, "make_env", make)
    monkeypatch.setattr(scoring, "make_env", make)
    return made


def start(config: Config, folder: Path, resume: bool = False) -> Trainer:
    """A run that nothing stops."""
    return Trainer(config, folder, resume, StopSignals(), other_simulator=False)


def step(run: Trainer, times: int) -> None:
    """Some steps of the loop, without reports, evaluations and checkpoints."""
    for _ in range(times):
        run.count(run.collect())
        run.learn(run.agent.update)


def options(config: Config, run_dir: Path) -> list[str]:
    """The command line's words for a configuration."""
    words = ["--run-dir", str(run_dir)]
    for section in ("env", "model", "behaviour", "replay", "train"):
        for name, value in vars(getattr(config, section)).items():
            flag = f"--{section}.{'' if value is not False else 'no-'}{name}".replace("_", "-")
            words += [flag] if isinstance(value, bool) else [flag, str(value)]
    return words


if __name__ == "__main__":
    from mudreamer_fast.cli.main import main

    trainer.make_env = scoring.make_env = make_env  # type: ignore[assignment]
    pace.CHECKPOINT_SHARE = math.inf  # as often as it is asked for
    sys.exit(main())
