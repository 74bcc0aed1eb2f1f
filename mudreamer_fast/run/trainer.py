"""The parts of a training run and the steps of its loop; `train` puts them in order."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import fmean

import torch

from mudreamer_fast.agent import Agent
from mudreamer_fast.collect import Collector, Episode, PolicyNotFiniteError, random_policy
from mudreamer_fast.config import Config
from mudreamer_fast.envs import make_env, without_layers
from mudreamer_fast.evaluate import Evaluation
from mudreamer_fast.learner import Learner, Update
from mudreamer_fast.machine.device import (
    overlaps,
    resolve_device,
    settle_arithmetic,
    threads_beside_acting,
)
from mudreamer_fast.machine.ranks import ALONE, Ranks
from mudreamer_fast.machine.seeds import SeedUse, derived_seed, seed_everything
from mudreamer_fast.machine.signals import StopSignals
from mudreamer_fast.replay.prefetch import Prefetcher
from mudreamer_fast.run import made_with, saving, shares
from mudreamer_fast.run.evaluator import Evaluator
from mudreamer_fast.run.folder import RunFolder, write_config
from mudreamer_fast.run.history import check_exact_resume, open_history
from mudreamer_fast.run.lessons import Lessons
from mudreamer_fast.run.lock import RunLock
from mudreamer_fast.run.pace import Pace, check_that_updates_come
from mudreamer_fast.run.replay import can_learn, close_replay, open_replay
from mudreamer_fast.run.reporter import Reporter, Standing
from mudreamer_fast.run.results import TrainResult, present


class Trainer:
    """The parts of one run and the steps of its loop; `train` says in which order."""

    def __init__(
        self,
        config: Config,
        run_dir: Path,
        resume: bool,
        stop: StopSignals,
        other_simulator: bool,
        ranks: Ranks = ALONE,
    ) -> None:
        """Builds everything, or raises and leaves nothing open."""
        self.stop, self.ranks = stop, ranks
        self.folder = shares.own_folder(run_dir, ranks)
        check_that_updates_come(config)
        device = ranks.device(resolve_device(config.train.device))
        self._open = ExitStack()
        try:
            self._open.enter_context(RunLock(self.folder.root))
            config, saved = shares.read_saved(run_dir, config, resume, ranks)
            self.counters = saving.counters_of(saved, self.folder)
            self.counters.resumes += resume and not config.train.exact_resume
            self.pace = Pace(config, self.counters)
            if resume:
                saving.check_unfinished(RunFolder(run_dir), self.pace)
            threads = threads_beside_acting(config.train.threads, config.train.overlap, device)
            settle_arithmetic(threads, config.train.precision)
            check_exact_resume(config, device)
            self.config = config
            seed_everything(self._seed(SeedUse.GLOBAL))
            self._own = own = shares.own_share(config, ranks)
            first = ranks.index * own.env.num_envs
            self.env = make_env(own.env, own.env.num_envs, self._seed(SeedUse.COLLECT) + first)
            self._open.callback(self.env.close)
            made_with.check(self.folder.made_with, self.env, other_simulator)
            self.config = config = saving.with_profile(config, self.env.render_profile)
            seed = self._seed(SeedUse.REPLAY, self.ranks.index)
            self.replay = open_replay(own, self.env, self.folder, seed, saved)
            self._open.callback(close_replay, self.replay)
            self.agent = Agent(
                config, self.env.observation_spec, self.env.action_spec, device, ranks
            )
            sizes = own.replay.batch_size, own.replay.batch_length
            self.batches = Prefetcher(self.replay, *sizes, config.replay.batches_ahead, device)
            self._open.callback(self.batches.close)
            self.collector = self._make_collector()
            kept = self.replay, self.batches
            self._history = open_history(config, self.env, self.collector, *kept)
            if resume:
                saving.restore(saved, self.folder, self.agent, *kept, self._history)
            del saved  # maps of files, which this frame would keep, if an exception kept the frame
            self.learner = self._make_learner(device)  # copies the weights that are there now
            self._open.callback(self.learner.close)
            learning = self.agent.updates or can_learn(own, self.replay)
            if learning and not self.collector.handed_over:
                self._hand_over()
            write_config(config, self.folder.config)
            made_with.write(self.folder.made_with, self.env, self.agent)
            resumed_at = (self.pace.env_steps, self.counters.seconds) if resume else None
            entropy, silent = self.agent.policy_entropy, ranks.index > 0
            self.reporter = Reporter(config, self.folder.root, resumed_at, entropy, silent)
            self._open.callback(self.reporter.close)
            parts = self.agent, self.replay, self.batches, self.reporter, self._history
            self._saver = saving.Saver(self.folder, config, self.pace, *parts, ranks.size)
            self._open.callback(self._saver.close)
            self.lessons = Lessons(self.learner, self.pace, self._saver, self.reporter)
            if not resume:
                self._saver.save()
                self._saver.finish()  # from here on a run that is killed can be resumed
            self.evaluator = Evaluator(config, self.pace, self.reporter, stop)
        except BaseException:
            self._open.close()
            raise
        self._introduce()

    def __enter__(self) -> Trainer:
        return self

    def __exit__(self, *error: object) -> None:
        self._open.close()

    def _make_learner(self, device: torch.device) -> Learner:
        in_background = overlaps(self.config.train.overlap, device)
        return Learner(self.agent, self.batches, in_background, lambda: self._stopping)

    def _make_collector(self) -> Collector:
        action, seed = self.env.action_spec, self._seed(SeedUse.PREFILL, self.ranks.index)
        return Collector(self.env, self.replay, random_policy(action, self.env.num_envs, seed))

    def _seed(self, use: SeedUse, rank: int = 0) -> int:
        return derived_seed(self.config.train.seed, use, self.counters.resumes) + rank

    @property
    def _stopping(self) -> bool:
        """Whether to end early; several ranks do that together, when they ask what is due."""
        return self.ranks.size == 1 and self.stop.received is not None

    def _introduce(self) -> None:
        """Says what runs, on what, and how much it learns from each step."""
        graphs = " in CUDA graphs" if self.agent.graphed else ""
        meanwhile = ", acting meanwhile" if self.learner.in_background else ""
        parameters, ops = sum(self.agent.parameter_counts().values()), self.agent.operations
        made = f"{type(without_layers(self.env)).__name__}, {parameters / 1e6:.2f} M parameters"
        on = f"{made} on {self.agent.device}, {ops}{graphs}{meanwhile}"
        self.reporter.introduce(on, ops.why)
        self._report_problems()

    def _report_problems(self) -> None:
        """What became of replay and simulators, where it is not what it should be."""
        for problem in (*self.replay.problems(), *self.env.take_notices()):
            self.reporter.message(f"warning: {problem}")

    def _hand_over(self) -> None:
        """Have the agent act from now on."""
        state = self.learner.acting.initial_state(
            self.env.num_envs, self._seed(SeedUse.ACT, self.ranks.index)
        )
        self.collector.hand_over(self.learner.acting.act, state)

    def take_up(self) -> None:
        """Bring the environments of an exact resume back; do what a stop has left undone."""
        if self._history is not None:
            self._history.bring_back(self.reporter.message, self.stop.raise_if_received)
            self.learn(self.agent.update)
            if self.pace.evaluation_due():
                self.evaluate()
            self.stop.raise_if_received()

    def collect(self) -> list[Episode]:
        """Take one step in every environment."""
        try:
            return self.collector.collect(1)
        except PolicyNotFiniteError as error:
            if self.ranks.size > 1:  # the others' weights would stay
                raise
            self.lessons.go_back(f"{error} after update {self.agent.updates:,}")
            self._hand_over()
            return self.collect()

    def count(self, episodes: Sequence[Episode]) -> None:
        """Count the step just collected, which ended `episodes`."""
        for episode in episodes:
            self.reporter.episode(episode, self.pace.env_steps, self.pace.seconds)
        learning = self.ranks.all_say(can_learn(self._own, self.replay))
        self.pace.count_step(self.config.env.num_envs, learning)
        if learning and not self.collector.handed_over:
            self._hand_over()

    def learn(self, update: Update) -> None:
        """Have `update` called as often as the steps taken so far have earned.

        What a run that left its replay behind still owes it does once that is filled again.
        """
        due = self.counters.update_credit >= 1 and not self._stopping  # alike on all ranks
        if due and self.ranks.all_say(can_learn(self._own, self.replay)):
            self.lessons.start(update)

    def report(self) -> None:
        """Progress to the screen, averages to the log, each when it is time."""
        self._report_problems()
        counters = self.counters
        self.reporter.tick(
            Standing(
                self.pace.env_steps,
                counters.policy_steps,
                counters.learning_policy_steps,
                self.agent.updates,
                self.lessons.skipped,
                self.pace.seconds,
                self.pace.seconds_left,
                self.learner.idle_seconds + self.batches.waited_seconds,
                self.collector.seconds,
            )
        )

    def evaluate(self, film: bool = False) -> Evaluation | None:
        """Score the agent; film it where pictures can be had. Rank 0 does, and gives its score."""
        self.lessons.finish()
        self.learner.pause()
        if self.ranks.index:
            self.pace.schedule_evaluation()
            return None
        evaluation = self.evaluator.score_agent(self.agent, film)
        self.pace.schedule_evaluation()
        self._saver.save_best(fmean(evaluation.scores))
        return evaluation

    def save(self) -> None:
        """Makes a checkpoint and waits until it is written."""
        self.lessons.save()

    def finish(self, evaluation: Evaluation | None) -> TrainResult:
        """Writes scores and pictures and prints the table, where there is an evaluation."""
        result = self.result(evaluation)
        if evaluation is None:
            return result
        self.reporter.waited(
            self.batches.waited_seconds, self.learner.idle_seconds, self.pace.session_seconds
        )
        present(result, self.folder, self.config, self.reporter.message)
        return result

    def result(self, evaluation: Evaluation | None) -> TrainResult:
        """What the run came to."""
        pace, stopped_by = self.pace, self.stop.received if evaluation is None else None
        return TrainResult(
            self.folder.root, pace.env_steps, self.agent.updates, pace.seconds,
            self.counters.random_scores, evaluation, stopped_by,
        )  # fmt: skip
