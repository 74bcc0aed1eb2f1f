"""The parts of a training run and the steps of its loop; `train` puts them in order."""

from __future__ import annotations

import dataclasses
import math
import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mudreamer_fast.agent import Agent
from mudreamer_fast.collect import Collector, random_policy, replay_fields
from mudreamer_fast.config import Config, ConfigError
from mudreamer_fast.disk import checkpoint
from mudreamer_fast.disk.arrays import Empty
from mudreamer_fast.envs import EnvError, make_env
from mudreamer_fast.learner import Learner
from mudreamer_fast.machine.device import (
    overlaps,
    resolve_device,
    settle_arithmetic,
    threads_beside_acting,
)
from mudreamer_fast.machine.memory import available_bytes, check_replay_room, disk_bytes
from mudreamer_fast.machine.seeds import (
    SeedUse,
    derived_seed,
    generator_states,
    restore_generator_states,
    seed_everything,
)
from mudreamer_fast.machine.signals import StopSignals
from mudreamer_fast.replay import ReplayBuffer, StorageError
from mudreamer_fast.replay.prefetch import Prefetcher
from mudreamer_fast.run.folder import RunFolder, read_config, write_config
from mudreamer_fast.run.reporter import Reporter, Standing
from mudreamer_fast.run.results import TrainResult, score_table, write_results
from mudreamer_fast.run.scoring import (
    PolicyMaker,
    Scoring,
    agent_policy,
    evaluation_seed,
    policy_seed,
    score,
    uniform_policy,
)

EVALUATION_MARGIN = 1.5
"""The final evaluation is given this many times the last one's duration within max_minutes."""
SPARE_SHARE = 0.02
"""Of the replay's capacity, taken on top of it at most, so that steps need not wait for a job."""


@dataclass
class Counters:
    """Where a run stands: all that a checkpoint keeps of the trainer itself."""

    policy_steps: int = 0
    """Actions chosen, over all environments."""
    learning_policy_steps: int = 0
    """Those of them that updates were owed for: all but the prefill."""
    update_credit: float = 0.0
    """Updates owed for steps already taken."""
    seconds: float = 0.0
    """Wall time of the run up to the checkpoint."""
    next_eval_env_steps: int = 0
    """When the next evaluation is due."""
    resumes: int = 0
    """How often the run was resumed; seeds the environments' new episodes."""
    random_scores: list[float] = dataclasses.field(default_factory=list)
    """Returns of the random policy."""


class Trainer:
    """The parts of one run and the steps of its loop; `train` says in which order."""

    def __init__(self, config: Config, run_dir: Path, resume: bool, stop: StopSignals) -> None:
        """Builds everything, or raises and leaves nothing open."""
        started = time.monotonic()
        self.config, self.stop, self.folder = config, stop, RunFolder(run_dir)
        device = resolve_device(config.train.device)
        saved = self._check_folder(resume)
        self.counters = Counters(**saved["counters"]) if resume else Counters()
        self.counters.resumes += resume
        self.started, self.resumed_at = started - self.counters.seconds, started
        threads = threads_beside_acting(config.train.threads, config.train.overlap, device)
        settle_arithmetic(threads, config.train.tf32)
        seed_everything(self._seed(SeedUse.GLOBAL))
        self._open = ExitStack()
        try:
            self.env = make_env(config.env, config.env.num_envs, self._seed(SeedUse.COLLECT))
            self._open.callback(self.env.close)
            self.replay = self._make_replay()
            self._open.callback(self._close_replay)
            self.agent = Agent(config, self.env.observation_spec, self.env.action_spec, device)
            self.batches = self._make_batches(device)
            self._open.callback(self.batches.close)
            if resume:
                self._restore(saved)
            self.learner = self._make_learner(device)  # copies the weights that are there now
            self._open.callback(self.learner.close)
            run_dir.mkdir(parents=True, exist_ok=True)
            write_config(config, self.folder.config)
            self.reporter = Reporter(config, run_dir, self.env_steps if resume else None)
            self._open.callback(self.reporter.close)
        except BaseException:
            self._open.close()
            raise
        self.random = random_policy(
            self.env.action_spec, self.env.num_envs, self._seed(SeedUse.PREFILL)
        )
        self.collector = Collector(self.env, self.replay, self._act)
        self.collecting_seconds = 0.0
        self.updates_started = 0
        self.evaluation_seconds = 0.0
        self.next_checkpoint = time.monotonic() + config.train.checkpoint_every_seconds
        self._introduce()

    def __enter__(self) -> Trainer:
        return self

    def __exit__(self, *error: object) -> None:
        self._open.close()

    # Its parts

    def _check_folder(self, resume: bool) -> dict[str, Any]:
        """Checks the run folder; gives the checkpoint of a resumed run."""
        folder = self.folder
        taken = folder.config.exists() or checkpoint.exists(folder.checkpoint)
        if not resume and (taken or folder.replay.exists()):
            raise ConfigError(f"{folder.root} holds a run: resume it, or name another folder")
        if not resume:
            return {}
        before, now = read_config(folder.config), self.config
        if (before.env, before.model, before.behaviour) != (now.env, now.model, now.behaviour):
            raise ConfigError("a resumed run keeps its settings of env, model and behaviour")
        return checkpoint.load(folder.checkpoint)

    def _make_replay(self) -> ReplayBuffer:
        train, replay = self.config.train, self.config.replay
        fields = replay_fields(self.env.observation_spec, self.env.action_spec)
        on_disk = replay.storage == "disk"
        steps = train.env_steps // self.config.env.action_repeat + self.env.num_envs
        room = disk_bytes(self.folder.replay) if on_disk else available_bytes()
        check_replay_room(fields, replay.capacity_steps, steps, room, replay.storage)
        return ReplayBuffer(
            fields,
            replay.capacity_steps,
            self.env.num_envs,
            self._seed(SeedUse.REPLAY),
            replay.gather_threads,
            self.folder.replay if on_disk else None,
            replay.flush_every_seconds if on_disk else None,
            spare_steps=self._spare_steps(),
        )

    def _spare_steps(self) -> int:
        """Steps that the replay takes from one job of the learner to the next, unless too many."""
        rounds = math.ceil(1 / (self.env.num_envs * self.config.updates_per_policy_step))
        share = SPARE_SHARE * self.config.replay.capacity_steps / self.env.num_envs
        return max(1, min(rounds + 1, int(share)))

    def _make_batches(self, device: torch.device) -> Prefetcher:
        replay = self.config.replay
        sizes = replay.batch_size, replay.batch_length
        return Prefetcher(self.replay, *sizes, replay.batches_ahead, device)

    def _make_learner(self, device: torch.device) -> Learner:
        in_background = overlaps(self.config.train.overlap, device)
        return Learner(
            self.agent, self.batches, in_background, lambda: self.stop.received is not None
        )

    def _close_replay(self) -> None:
        """Leaves the replay whole on disk; what cannot be written is told."""
        try:
            self.replay.close()
        except StorageError as error:
            print(f"warning: {error}", file=sys.stderr)

    def _seed(self, use: SeedUse) -> int:
        return derived_seed(self.config.train.seed, use, self.counters.resumes)

    def _restore(self, saved: Mapping[str, Any]) -> None:
        self.agent.load_state_dict(saved["agent"])
        if "replay" in saved and not len(self.replay):
            self.replay.load_state_dict(saved["replay"])
        if "batches" in saved:
            self.batches.resume(saved["batches"])
        restore_generator_states(saved["generators"])

    def _introduce(self) -> None:
        """Says what runs, on what, and how much it learns from each step."""
        config, tell = self.config, self.reporter.message
        ratio, repeat = config.train.train_ratio, config.env.action_repeat
        parameters = sum(self.agent.parameter_counts().values())
        tell(f"run folder {self.folder.root}")
        tell(
            f"{config.env.task} on {type(self.env).__name__}, {parameters / 1e6:.2f} M parameters "
            f"on {self.agent.device}, {self.agent.backend} operations"
            + (" in CUDA graphs" if self.agent.graphed else "")
            + (", acting meanwhile" if self.learner.in_background else "")
        )
        tell(
            f"train ratio {ratio:g}: {ratio:g} replayed steps per policy step, "
            f"{ratio / repeat:g} per environment step; "
            f"{config.updates_per_policy_step:g} updates per policy step"
        )
        self._report_problems()

    def _report_problems(self) -> None:
        """What became of a replay on disk, where it is not what it should be."""
        for problem in self.replay.problems():
            self.reporter.message(f"warning: {problem}")

    def _can_learn(self) -> bool:
        """Whether the replay holds the prefill."""
        prefill = min(self.config.train.prefill_steps, self.replay.capacity_steps)
        length = self.config.replay.batch_length
        return len(self.replay) >= prefill and self.replay.can_sample(length)

    def _act(self, observation: Any, is_first: Any, state: Any) -> tuple[Any, Any]:
        """Acts at random until learning can begin, then as the agent says."""
        if self.agent.updates == 0 and not self._can_learn():
            return self.random(observation, is_first, None)[0], None
        if state is None:
            # The agent has seen nothing of the episodes under way: to it, they begin here.
            state = self.learner.acting.initial_state(self.env.num_envs, self._seed(SeedUse.ACT))
            is_first = np.ones_like(is_first)
        return self.learner.acting.act(observation, is_first, state, "sample")

    # The steps of the loop

    @property
    def env_steps(self) -> int:
        """Simulator steps taken so far."""
        return self.counters.policy_steps * self.config.env.action_repeat

    @property
    def seconds(self) -> float:
        """Wall time of the run so far."""
        return time.monotonic() - self.started

    @property
    def seconds_left(self) -> float:
        """Wall time until training must end, the final evaluation's share kept back."""
        minutes = self.config.train.max_minutes
        if minutes is None:
            return math.inf
        return 60 * minutes - self.seconds - EVALUATION_MARGIN * self.evaluation_seconds

    @property
    def waited_seconds(self) -> float:
        """Wall time that the learner waited, for steps to be taken or for batches."""
        return self.learner.idle_seconds + self.batches.waited_seconds

    def finished(self) -> bool:
        """Whether all steps are taken or the time is up."""
        return self.env_steps >= self.config.train.env_steps or self.seconds_left <= 0

    def measure_random_policy(self) -> None:
        """Scores the random policy on the evaluation's episodes, once in a run."""
        if self.counters.random_scores:
            return
        episodes = self.config.train.eval_episodes
        self.reporter.message(f"scoring the random policy on {episodes} episodes, to compare with")
        scoring = self._score(uniform_policy(self._seed(SeedUse.RANDOM_POLICY)))
        self.counters.random_scores = scoring.scores
        self._report_scores("random", scoring)

    def collect(self) -> None:
        """One step of every environment, into the replay; at random until it holds the prefill."""
        started = time.monotonic()
        episodes = self.collector.collect(1)
        self.collecting_seconds += time.monotonic() - started
        for episode in episodes:
            self.reporter.episode(episode.score, episode.length_steps, self.env_steps, self.seconds)
        self.counters.policy_steps += self.env.num_envs
        if self._can_learn():
            self.counters.learning_policy_steps += self.env.num_envs
            self.counters.update_credit += self.env.num_envs * self.config.updates_per_policy_step

    def learn(self) -> None:
        """Has the learner do the updates that the steps taken so far have earned."""
        if self.counters.update_credit < 1 or self.stop.received is not None:
            return
        self.finish_updates()
        self.updates_started = int(self.counters.update_credit)
        self.counters.update_credit -= self.updates_started
        self.learner.start(self.updates_started)
        if not self.learner.in_background:
            self.finish_updates()

    def finish_updates(self) -> None:
        """Waits for the updates under way; those that a stop left undone are still owed."""
        done = self.learner.finish()
        self.counters.update_credit += self.updates_started - len(done)
        self.updates_started = 0
        for metrics in done:
            self.reporter.update(metrics)

    def report(self) -> None:
        """Progress to the screen, averages to the log, each when it is time."""
        self._report_problems()
        counters = self.counters
        self.reporter.tick(
            Standing(
                self.env_steps,
                counters.policy_steps,
                counters.learning_policy_steps,
                self.agent.updates,
                self.seconds,
                self.seconds_left,
                self.waited_seconds,
                self.collecting_seconds,
            )
        )

    def evaluate_if_due(self) -> None:
        """Scores the agent every `eval_every_env_steps`; the end of the run has its own."""
        every = self.config.train.eval_every_env_steps
        counters = self.counters
        if counters.next_eval_env_steps == 0:
            counters.next_eval_env_steps = every
        affordable = self.seconds_left > self.evaluation_seconds and not self.finished()
        if every and self.env_steps >= counters.next_eval_env_steps and affordable:
            self.evaluate()
            counters.next_eval_env_steps = (self.env_steps // every + 1) * every

    def evaluate(self, film: bool = False) -> Scoring:
        """Scores the agent; filmed where pictures can be had."""
        self.finish_updates()
        self.learner.pause()
        policy = agent_policy(
            self.agent, self.config.train.eval_policy, policy_seed(self.config.train.seed)
        )
        try:
            scoring = self._score(policy, film)
        except EnvError as error:
            # An agent that sees vectors needs no renderer: its score must not be lost for a film.
            if not film or "image" in self.env.observation_spec:
                raise
            self.reporter.message(f"warning: no video: {error}")
            scoring = self._score(policy)
        self._report_scores("evaluation", scoring)
        return scoring

    def checkpoint_if_due(self) -> None:
        """Saves every `checkpoint_every_seconds`."""
        if time.monotonic() >= self.next_checkpoint:
            self.save()

    def save(self) -> None:
        """Writes a checkpoint; one that fails is told and tried again at the next occasion."""
        self.finish_updates()
        self.learner.pause()
        started = self.counters.seconds = self.seconds

        def build(empty: Empty) -> dict[str, Any]:
            state: dict[str, Any] = {
                "counters": dataclasses.asdict(self.counters),
                "generators": generator_states(),
                "agent": self.agent.state_dict(),
            }
            if self.config.replay.storage == "disk":
                self.replay.flush()
            elif self.config.train.save_replay:
                state["replay"] = self.replay.state_dict(empty)
            else:
                return state
            return {**state, "batches": self.batches.under_way()}

        try:
            checkpoint.save(build, self.folder.checkpoint)
        except (checkpoint.CheckpointError, StorageError) as error:
            self.reporter.message(f"warning: {error}")
        self.reporter.update({"checkpoint/seconds": self.seconds - started})
        self.next_checkpoint = time.monotonic() + self.config.train.checkpoint_every_seconds

    def finish(self, scoring: Scoring) -> TrainResult:
        """Writes scores and pictures and prints the table."""
        result, tell = self.result(scoring), self.reporter.message
        share = 100 / (time.monotonic() - self.resumed_at)
        tell(
            f"the learner waited {self.waited_seconds * share:.1f}% of the time: "
            f"{self.batches.waited_seconds * share:.2f}% for batches, "
            f"{self.learner.idle_seconds * share:.1f}% for steps to be taken"
        )
        written = write_results(result, self.folder, self.config, tell)
        tell(score_table(scoring.scores, result.random_scores, self.config.train.eval_policy))
        for path in (*written, self.folder.checkpoint):
            tell(f"  {path}")
        return result

    def result(self, scoring: Scoring | None) -> TrainResult:
        """What the run came to."""
        return TrainResult(
            self.folder.root,
            self.env_steps,
            self.agent.updates,
            self.seconds,
            self.counters.random_scores,
            scoring,
            self.stop.received if scoring is None else None,
        )

    def _score(self, make_policy: PolicyMaker, film: bool = False) -> Scoring:
        train = self.config.train
        scoring = score(
            self.config.env,
            make_policy,
            train.eval_episodes,
            evaluation_seed(self.config.train.seed),
            film,
            self.stop.raise_if_received,
        )
        self.evaluation_seconds = scoring.seconds
        return scoring

    def _report_scores(self, name: str, scoring: Scoring) -> None:
        scores = scoring.scores
        self.reporter.scores(name, scores, self.env_steps, self.seconds)
        self.reporter.message(
            f"{name} at {self.env_steps:,} env steps: {np.mean(scores):.1f} "
            f"+- {np.std(scores):.1f} over {len(scores)} episodes"
        )
