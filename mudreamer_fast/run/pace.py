"""How far a run is, and what is due: updates, evaluations, checkpoints, the end."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from mudreamer_fast.config import Config, ConfigError

EVALUATION_MARGIN = 1.5
"""The final evaluation is given this many times the last one's duration within max_minutes."""
CHECKPOINT_SHARE = 0.01
"""Of a run's time, that it waits for checkpoints at most."""


@dataclass
class Counters:
    """Where a run stands: all that a checkpoint keeps of the trainer itself."""

    policy_steps: int = 0
    """Actions chosen, over all environments."""
    learning_policy_steps: int = 0
    """Those of them that earned updates: all but the prefill."""
    update_credit: float = 0.0
    """Updates earned by steps already taken, and not yet begun."""
    seconds: float = 0.0
    """Wall time of the run up to the checkpoint."""
    next_eval_env_steps: int = 0
    """When the next evaluation is due."""
    resumes: int = 0
    """How often the run was resumed; seeds the environments' new episodes."""
    random_scores: list[float] = field(default_factory=list)
    """Returns of the random policy."""
    best_score: float = -math.inf
    """The highest mean return of an evaluation."""


def check_that_updates_come(config: Config) -> None:
    """Refuses settings under which a run would end without an update.

    Raises:
        ConfigError: naming the number that is too small.
    """
    envs, length = config.env.num_envs, config.replay.batch_length
    kept = config.replay.capacity_steps // envs
    if kept < length:
        raise ConfigError(
            f"nothing could be learned: of each of {envs} environments the replay keeps {kept} "
            f"steps, and batch_length is {length}; capacity_steps must be at least {envs * length}"
        )
    steps = math.ceil(config.train.env_steps / config.env.action_repeat)
    filled = max(min(config.train.prefill_steps, config.replay.capacity_steps), envs * (length - 1))
    updates = (steps - filled) * config.updates_per_policy_step
    if updates < 1:
        raise ConfigError(
            f"nothing would be learned: {config.train.env_steps} env_steps are {steps} policy "
            f"steps, of which {filled} fill the replay (prefill_steps, or batch_length in each "
            f"environment) and the rest earn {max(0.0, updates):.2g} updates"
        )


class Pace:
    """Paces a run: every policy step earns updates, and the rest comes due by steps or by time.

    A policy step of N environments earns `N * train_ratio / (B T)` updates once learning has begun,
    so that the train ratio holds at any moment.

    Args:
        config: the run's settings.
        counters: where the run stands; changed as it goes on.
        clock: seconds, from any start; None takes the system's.
    """

    def __init__(
        self, config: Config, counters: Counters, clock: Callable[[], float] | None = None
    ) -> None:
        self.counters = counters
        self._config, self._clock = config, clock or time.monotonic
        self._opened_at = self._clock()
        self._seconds_before = counters.seconds
        self._evaluation_seconds = 0.0
        self._next_checkpoint = self._opened_at + config.train.checkpoint_every_seconds
        if counters.next_eval_env_steps == 0:
            counters.next_eval_env_steps = config.train.eval_every_env_steps

    @property
    def env_steps(self) -> int:
        """Simulator steps taken so far."""
        return self.counters.policy_steps * self._config.env.action_repeat

    @property
    def seconds(self) -> float:
        """Wall time of the run so far, resumed parts included."""
        return self._seconds_before + self.session_seconds

    @property
    def session_seconds(self) -> float:
        """Wall time since this process began or resumed the run."""
        return self._clock() - self._opened_at

    @property
    def seconds_left(self) -> float:
        """Wall time until training must end, the final evaluation's share kept back."""
        minutes = self._config.train.max_minutes
        if minutes is None:
            return math.inf
        return 60 * minutes - self.seconds - EVALUATION_MARGIN * self._evaluation_seconds

    @property
    def limit(self) -> str | None:
        """The setting that ends the run now, and its value; None while it goes on."""
        train = self._config.train
        if self.env_steps >= train.env_steps:
            return f"env_steps {train.env_steps}"
        return f"max_minutes {train.max_minutes:g}" if self.seconds_left <= 0 else None

    @property
    def finished(self) -> bool:
        """Whether all steps are taken or the time is up."""
        return self.limit is not None

    def count_step(self, num_envs: int, learning: bool) -> None:
        """Count a policy step of every environment, which earns updates once learning has begun."""
        self.counters.policy_steps += num_envs
        if learning:
            self.counters.learning_policy_steps += num_envs
            self.counters.update_credit += num_envs * self._config.updates_per_policy_step

    def take_updates(self) -> int:
        """The whole updates that are due; they are owed no longer."""
        updates = int(self.counters.update_credit)
        self.counters.update_credit -= updates
        return updates

    def give_back(self, updates: int) -> None:
        """Owe updates again that were taken and not done."""
        self.counters.update_credit += updates

    def evaluation_due(self) -> bool:
        """Whether to evaluate now; the end of the run has an evaluation of its own."""
        affordable = self.seconds_left > self._evaluation_seconds and not self.finished
        due = self.env_steps >= self.counters.next_eval_env_steps
        return bool(self._config.train.eval_every_env_steps) and due and affordable

    def count_evaluation(self, seconds: float) -> None:
        """Count an evaluation, of the agent or the random policy, that took `seconds`."""
        self._evaluation_seconds = seconds

    def schedule_evaluation(self) -> None:
        """Have the next evaluation at the next multiple of `eval_every_env_steps`."""
        every = self._config.train.eval_every_env_steps
        if every:
            self.counters.next_eval_env_steps = (self.env_steps // every + 1) * every

    def checkpoint_due(self) -> bool:
        """Whether to save now."""
        return self._clock() >= self._next_checkpoint

    def schedule_checkpoint(self, held_up_seconds: float) -> None:
        """Have the next checkpoint in `checkpoint_every_seconds`, if the run can afford it.

        Args:
            held_up_seconds: how long the run has waited for the last one.
        """
        affordable = held_up_seconds / CHECKPOINT_SHARE
        every = max(self._config.train.checkpoint_every_seconds, affordable)
        self._next_checkpoint = self._clock() + every
