"""Scores: a policy's returns on fixed episodes."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mudreamer_fast import checkpoint, pictures
from mudreamer_fast.agent import Agent
from mudreamer_fast.collect import Policy, random_policy
from mudreamer_fast.config import Config, EnvConfig
from mudreamer_fast.envs import VectorEnv, make_env
from mudreamer_fast.evaluate import evaluate
from mudreamer_fast.machine import derived_seed, resolve_device, settle_arithmetic
from mudreamer_fast.run_folder import RunFolder

EVALUATION_SEED = 4
"""Use of a run's seed, apart from those in `train`: the evaluation's episodes."""

PolicyMaker = Callable[[VectorEnv], tuple[Policy, Any]]
"""Gives a policy for an environment, and its first state."""


@dataclass(frozen=True)
class Scoring:
    """Returns of some episodes."""

    scores: list[float]
    """Return of each episode."""
    lengths_steps: list[int]
    """Policy steps of each episode."""
    frames: list[pictures.Frame]
    """Renderings of the first episode, where asked for."""
    seen: list[pictures.Frame]
    """The same episode as the policy saw it; empty where it sees no image."""
    seconds: float
    """Wall time that it took."""


def evaluation_seed(config: Config) -> int:
    """Seed of the evaluation's environments, the same for every evaluation of a run."""
    return derived_seed(config.train.seed, EVALUATION_SEED)


def agent_policy(agent: Agent, seed: int) -> PolicyMaker:
    """The agent's most likely actions."""

    def make(env: VectorEnv) -> tuple[Policy, Any]:
        def policy(observation: Any, is_first: Any, state: Any) -> tuple[Any, Any]:
            return agent.act(observation, is_first, state, "eval")

        return policy, agent.initial_state(env.num_envs, seed)

    return make


def uniform_policy(seed: int) -> PolicyMaker:
    """Actions at random, the bar that any agent must pass."""
    return lambda env: (random_policy(env.action_spec, env.num_envs, seed), None)


def score(
    env_config: EnvConfig,
    make_policy: PolicyMaker,
    episodes: int,
    seed: int,
    film: bool = False,
    interrupt: Callable[[], None] = lambda: None,
) -> Scoring:
    """Plays episodes in environments of their own and adds up their rewards.

    Args:
        env_config: task; at most its `num_envs` environments run side by side.
        make_policy: the policy to score.
        episodes: number of episodes.
        seed: of the environments: the same seed gives the same episodes to every policy.
        film: keep the pictures of the first episode.
        interrupt: called at every step; what it raises ends the evaluation.
    """
    started = time.monotonic()
    env = make_env(env_config, min(episodes, env_config.num_envs), seed)
    seen: list[pictures.Frame] = []
    try:
        policy, state = make_policy(env)
        first_episodes = 0

        def watched(observation: Any, is_first: Any, state: Any) -> tuple[Any, Any]:
            nonlocal first_episodes
            interrupt()
            first_episodes += bool(is_first[0])
            if film and first_episodes == 1 and "image" in observation:
                seen.append(np.ascontiguousarray(observation["image"][0].transpose(1, 2, 0)))
            return policy(observation, is_first, state)

        played = evaluate(env, watched, state, episodes, record=film)
    finally:
        env.close()
    return Scoring(
        list(played.scores),
        list(played.lengths),
        list(played.frames),
        seen,
        time.monotonic() - started,
    )


def score_run(
    config: Config,
    run_dir: Path,
    episodes: int | None,
    seed: int | None,
    device: str,
    film: bool,
) -> tuple[Scoring, list[float]]:
    """Scores the newest checkpoint of a run.

    Args:
        config: the run's.
        run_dir: run folder.
        episodes: number of episodes; None takes the run's.
        seed: of the episodes; None takes those of the run's own evaluations.
        device: to act on.
        film: keep the pictures of the first episode.

    Returns:
        The agent's scores, and the random policy's that the run measured.

    Raises:
        ConfigError: a device that is not there.
        checkpoint.CheckpointError: no checkpoint, or none that can be read.
    """
    chosen = resolve_device(device)
    saved = checkpoint.load(RunFolder(run_dir).checkpoint, ("agent", "counters"))
    settle_arithmetic(config.train.threads, config.train.tf32)
    seed = evaluation_seed(config) if seed is None else seed

    def make(env: VectorEnv) -> tuple[Policy, Any]:
        agent = Agent(config, env.observation_spec, env.action_spec, chosen)
        agent.load_state_dict(saved["agent"])
        return agent_policy(agent, seed)(env)

    scoring = score(config.env, make, episodes or config.train.eval_episodes, seed, film)
    return scoring, saved["counters"]["random_scores"]
