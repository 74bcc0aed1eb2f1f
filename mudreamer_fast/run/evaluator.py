"""Scores the random policy and the agent in the course of a run, and reports what they score."""

from __future__ import annotations

import numpy as np

from mudreamer_fast.agent import Agent
from mudreamer_fast.config import Config
from mudreamer_fast.envs import EnvError
from mudreamer_fast.evaluate import Evaluation
from mudreamer_fast.machine.allocator import give_back_freed_memory
from mudreamer_fast.machine.seeds import SeedUse, derived_seed
from mudreamer_fast.machine.signals import StopSignals
from mudreamer_fast.run.pace import Pace
from mudreamer_fast.run.reporter import Reporter
from mudreamer_fast.run.scoring import (
    PolicyMaker,
    agent_policy,
    evaluation_seed,
    policy_seed,
    score,
    uniform_policy,
)


class Evaluator:
    """Evaluates policies on the same episodes throughout a run.

    Args:
        config: the run's settings.
        pace: is told how long an evaluation takes, and keeps the random policy's scores.
        reporter: is told the scores.
        stop: ends an evaluation early.
    """

    def __init__(self, config: Config, pace: Pace, reporter: Reporter, stop: StopSignals) -> None:
        self._config, self._pace, self._reporter, self._stop = config, pace, reporter, stop

    def score_random_policy(self) -> None:
        """Score the random policy, once in a run."""
        counters, train = self._pace.counters, self._config.train
        if counters.random_scores:
            return
        self._reporter.message(
            f"scoring the random policy on {train.eval_episodes} episodes, to compare with"
        )
        seed = derived_seed(train.seed, SeedUse.RANDOM_POLICY, counters.resumes)
        evaluation = self._score(uniform_policy(seed))
        counters.random_scores = evaluation.scores
        self._report("random", evaluation)

    def score_agent(self, agent: Agent, film: bool) -> Evaluation:
        """Score the agent; film it where pictures can be had."""
        train = self._config.train
        policy = agent_policy(agent, train.eval_policy, policy_seed(train.seed))
        try:
            evaluation = self._score(policy, film)
        except EnvError as error:
            # An agent that sees vectors needs no renderer: its score must not be lost for a film.
            if not film or "image" in agent.observations:
                raise
            self._reporter.message(f"warning: no video: {error}")
            evaluation = self._score(policy)
        self._report("evaluation", evaluation)
        return evaluation

    def _score(self, make_policy: PolicyMaker, film: bool = False) -> Evaluation:
        train, started = self._config.train, self._pace.seconds
        evaluation = score(
            self._config.env,
            make_policy,
            train.eval_episodes,
            evaluation_seed(train.seed),
            film,
            self._stop.raise_if_received,
        )
        give_back_freed_memory()
        self._pace.count_evaluation(self._pace.seconds - started)
        return evaluation

    def _report(self, name: str, evaluation: Evaluation) -> None:
        scores, pace = evaluation.scores, self._pace
        self._reporter.scores(name, evaluation, pace.env_steps, pace.seconds)
        self._reporter.message(
            f"{name} at {pace.env_steps:,} env steps: {np.mean(scores):.1f} "
            f"+- {np.std(scores):.1f} over {len(scores)} episodes"
        )
