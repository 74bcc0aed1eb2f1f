"""Scores: a policy's returns on fixed episodes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

from mudreamer_fast.agent import Agent
from mudreamer_fast.collect import random_policy
from mudreamer_fast.config import ActionChoice, ConfigError, EnvConfig
from mudreamer_fast.envs import StatefulPolicy, VectorEnv, make_env
from mudreamer_fast.evaluate import Evaluation, evaluate
from mudreamer_fast.machine.device import settle_arithmetic
from mudreamer_fast.machine.handles import raise_handle_limit
from mudreamer_fast.machine.screen import say
from mudreamer_fast.machine.seeds import SeedUse, derived_seed
from mudreamer_fast.run import made_with

PolicyMaker = Callable[[VectorEnv], StatefulPolicy]
"""Gives a policy for environments that are about to be reset."""


def evaluation_seed(seed: int) -> int:
    """Seed of the environments, the same for every evaluation of a run with `seed`."""
    return derived_seed(seed, SeedUse.EVALUATION)


def policy_seed(seed: int) -> int:
    """Seed of the agent's draws, the same for every evaluation of a run with `seed`."""
    return derived_seed(seed, SeedUse.EVALUATION_POLICY)


def agent_policy(agent: Agent, eval_policy: ActionChoice, seed: int) -> PolicyMaker:
    """The agent's actions.

    Args:
        agent: acts.
        eval_policy: whether its actions are sampled or the most likely ones.
        seed: of its draws.
    """
    return lambda env: agent.policy(env.num_envs, eval_policy, seed)


def uniform_policy(seed: int) -> PolicyMaker:
    """Actions at random, the bar that any agent must pass."""

    def make(env: VectorEnv) -> StatefulPolicy:
        policy = random_policy(env.action_spec, env.num_envs, seed)
        return lambda observation, is_first: policy(observation, is_first, None)[0]

    return make


def score(
    env_config: EnvConfig,
    make_policy: PolicyMaker,
    episodes: int,
    seed: int,
    film: bool = False,
    interrupt: Callable[[], None] = lambda: None,
) -> Evaluation:
    """Plays episodes in environments of their own and adds up their rewards.

    Args:
        env_config: task; at most its `num_envs` environments run side by side, before the videos
            for evaluation, if there are any behind them. Rewards count as they are.
        make_policy: the policy to score.
        episodes: number of episodes.
        seed: of the environments: the same seed gives the same episodes to every policy.
        film: keep the pictures of the first episode.
        interrupt: called at every step; what it raises ends the evaluation.
    """
    env_config = dataclasses.replace(
        env_config, background_set="evaluation", atari_sign_rewards=False
    )
    env = make_env(env_config, min(episodes, env_config.num_envs), seed)
    try:
        return evaluate(env, make_policy(env), episodes, film, interrupt=interrupt)
    finally:
        for notice in env.take_notices():
            say(f"warning: {notice}\n")
        env.close()


def score_agent(
    agent: Agent,
    episodes: int | None = None,
    seed: int | None = None,
    eval_policy: ActionChoice | None = None,
    film: bool = False,
    made_in: Path | None = None,
    allow_other_simulator: bool = False,
) -> Evaluation:
    """Scores an agent on its own task.

    Args:
        agent: as its run left it.
        episodes: number of episodes; None takes the run's.
        seed: stands in for the run's; None plays the episodes of its own evaluations.
        eval_policy: whether actions are sampled or the most likely ones; None takes the run's.
        film: keep the pictures of the first episode.
        made_in: file that says what the run was made with; None asks nothing.
        allow_other_simulator: whether another simulator will do.

    Raises:
        ConfigError: a simulator that is not the run's, or a task that is another one here.
    """
    config = agent.config
    raise_handle_limit(config.env.num_envs)
    settle_arithmetic(config.train.threads, config.train.precision)
    seed = config.train.seed if seed is None else seed
    choice = eval_policy or config.train.eval_policy

    def make(env: VectorEnv) -> StatefulPolicy:
        if made_in is not None:
            made_with.check(made_in, env, allow_other_simulator)
        here = env.observation_spec, env.action_spec
        if here != (agent.observation_spec, agent.action_spec):
            raise ConfigError(
                f"{config.env.task} shows and takes {here} here, "
                f"and the agent was made for {(agent.observation_spec, agent.action_spec)}"
            )
        return agent_policy(agent, choice, policy_seed(seed))(env)

    return score(
        config.env, make, episodes or config.train.eval_episodes, evaluation_seed(seed), film
    )
