"""Every setting of training changes a run; with all others, every setting there is."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from mudreamer_fast import kernels, reference
from mudreamer_fast.config import Config, ConfigError
from mudreamer_fast.disk import checkpoint
from mudreamer_fast.machine.device import settle_arithmetic
from mudreamer_fast.machine.seeds import SeedUse
from mudreamer_fast.run import pace
from mudreamer_fast.run import reporter as reporter_module
from mudreamer_fast.run.metrics import read_lines
from mudreamer_fast.run.trainer import Trainer
from tests import (
    test_agent,
    test_config_data,
    test_config_effects,
    test_train,
    tiny_run,
)
from tests.backend import test_cuda_graph, test_precision
from tests.machine import test_device
from tests.run import test_exact_resume, test_trackers
from tests.tiny import settings
from tests.tiny_run import start, step


@pytest.fixture
def made_envs(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The tiny environment in place of the simulators; number and seed of each one made."""
    return tiny_run.patch_envs(monkeypatch)


@pytest.fixture
def _arithmetic() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    settle_arithmetic(threads, "float32")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The time that a run sees, in seconds: it stands still until it is set."""
    clock = SimpleNamespace(now=1000.0)
    stopped = SimpleNamespace(monotonic=lambda: clock.now)
    monkeypatch.setattr(pace, "time", stopped)
    monkeypatch.setattr(reporter_module, "time", stopped)
    return clock


@pytest.mark.usefixtures("made_envs")
@pytest.mark.parametrize("steps", [20, 30])
def test_prefill_is_in_the_replay_before_learning_starts(tmp_path: Path, steps: int) -> None:
    with start(tiny_run.config(prefill_steps=steps), tmp_path) as run:
        while not run.counters.learning_policy_steps:
            step(run, 1)
        assert len(run.replay) == steps


@pytest.mark.usefixtures("made_envs")
@pytest.mark.parametrize(("ratio", "updates"), [(5.0, 14), (10.0, 29)])
def test_train_ratio_is_replayed_steps_per_policy_step(
    tmp_path: Path, ratio: float, updates: int
) -> None:
    with start(tiny_run.config(train_ratio=ratio), tmp_path) as run:
        step(run, 30)  # 60 policy steps, of which 44 count, for 15 replayed steps an update
        assert run.agent.updates == updates


@pytest.mark.usefixtures("made_envs")
@pytest.mark.parametrize(("every", "expected"), [(30, [32, 60, 92]), (50, [52, 100]), (0, [])])
def test_evaluations_come_as_often_as_they_are_asked_for(
    tmp_path: Path, every: int, expected: list[int]
) -> None:
    evaluated: list[int] = []
    with start(tiny_run.config(eval_every_env_steps=every, env_steps=120), tmp_path) as run:
        while not run.pace.finished:
            run.count(run.collector.collect(1))
            if run.pace.evaluation_due():
                evaluated.append(run.pace.env_steps)
                run.pace.schedule_evaluation()
    assert evaluated == expected


@pytest.mark.usefixtures("made_envs")
@pytest.mark.parametrize("episodes", [1, 4])
def test_eval_episodes_are_scored(tmp_path: Path, episodes: int) -> None:
    with start(tiny_run.config(eval_episodes=episodes), tmp_path) as run:
        run.evaluator.score_random_policy()
        assert len(run.counters.random_scores) == len(run.evaluate().scores) == episodes


@pytest.mark.usefixtures("made_envs")
@pytest.mark.parametrize(("every", "written"), [(4.0, 5), (10.0, 2)])
def test_lines_are_logged_as_often_as_they_are_asked_for(
    tmp_path: Path, clock: SimpleNamespace, every: float, written: int
) -> None:
    with start(tiny_run.config(log_every_seconds=every), tmp_path) as run:
        for _ in range(20):
            clock.now += 1.0
            run.count(run.collector.collect(1))
            run.report()
    lines = read_lines(tmp_path / "metrics.jsonl")
    assert sum("run/updates" in line for line in lines) == written


@pytest.mark.usefixtures("made_envs")
@pytest.mark.parametrize("every", [10.0, 30.0])
def test_checkpoints_come_as_often_as_they_are_asked_for(
    tmp_path: Path, clock: SimpleNamespace, every: float
) -> None:
    with start(tiny_run.config(checkpoint_every_seconds=every), tmp_path) as run:
        saved = []
        for second in range(1, 62):
            clock.now += 1.0
            run.save = lambda second=second: (  # type: ignore[method-assign]
                saved.append(second), Trainer.save(run),
            )  # fmt: skip
            if run.pace.checkpoint_due():
                run.save()
    assert saved == list(range(int(every), 62, int(every)))


@pytest.mark.usefixtures("made_envs")
@pytest.mark.parametrize("save_replay", [True, False])
def test_save_replay_says_whether_a_checkpoint_holds_it(tmp_path: Path, save_replay: bool) -> None:
    with start(tiny_run.config(save_replay=save_replay), tmp_path) as run:
        run.count(run.collector.collect(1))
        run.save()
    assert ("replay" in checkpoint.load(tmp_path / "checkpoint")) == save_replay


@pytest.mark.usefixtures("made_envs")
@pytest.mark.parametrize("keep", [1, 3])
def test_keep_checkpoints_is_how_many_stay(tmp_path: Path, keep: int) -> None:
    with start(tiny_run.config(keep_checkpoints=keep), tmp_path) as run:
        for _ in range(3):
            run.save()
    assert len(list(tmp_path.glob("checkpoint/data-*"))) == keep


@pytest.mark.usefixtures("made_envs")
@pytest.mark.parametrize("minutes", [1.0, 2.0, None])
def test_max_minutes_end_a_run(
    tmp_path: Path, clock: SimpleNamespace, minutes: float | None
) -> None:
    with start(tiny_run.config(max_minutes=minutes), tmp_path) as run:
        finished = []
        for _ in range(130):
            clock.now += 1.0
            finished.append(run.pace.finished)
    assert finished.index(True) + 1 == 60 * minutes if minutes else not any(finished)


@pytest.mark.usefixtures("made_envs")
def test_device_is_where_the_agent_lives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with start(tiny_run.config(device="cpu"), tmp_path / "cpu") as run:
        assert {weight.device.type for weight in run.agent.world_model.parameters()} == {"cpu"}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="finds no CUDA GPU"):
        start(tiny_run.config(device="cuda"), tmp_path / "cuda")


@pytest.mark.usefixtures("made_envs")
@pytest.mark.parametrize(("backend", "ops"), [("reference", reference), ("fused", kernels)])
def test_backend_is_what_computes(tmp_path: Path, backend: str, ops: Any) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with start(tiny_run.config(backend=backend, device=device), tmp_path) as run:
        agent = run.agent
        parts = (agent.world_model, agent.world_model.rssm, agent.world_model.reward.mlp,
                 agent.behaviour, agent.behaviour.actor.mlp)  # fmt: skip
        assert all(part.ops is ops for part in parts)


@pytest.mark.usefixtures("made_envs", "_arithmetic")
@pytest.mark.parametrize("precision", ["float32", "tf32", "bfloat16"])
def test_precision_is_settled_for_a_run(tmp_path: Path, precision: str) -> None:
    with start(tiny_run.config(precision=precision), tmp_path):
        assert torch.backends.cuda.matmul.allow_tf32 == (precision != "float32")


@pytest.mark.usefixtures("made_envs", "_arithmetic")
@pytest.mark.parametrize("threads", [1, 2])
def test_threads_are_settled_for_a_run(tmp_path: Path, threads: int) -> None:
    with start(tiny_run.config(threads=threads), tmp_path):
        assert torch.get_num_threads() == threads


@pytest.mark.usefixtures("made_envs")
@pytest.mark.parametrize("overlap", ["on", "off"])
def test_overlap_acts_on_a_copy_while_another_thread_learns(tmp_path: Path, overlap: str) -> None:
    with start(tiny_run.config(overlap=overlap), tmp_path) as run:
        assert run.learner.in_background == (overlap == "on")
        assert (run.learner.acting is run.agent.acting) == (overlap == "off")


def test_seed_is_that_of_everything_drawn(tmp_path: Path, made_envs: list[tuple[int, int]]) -> None:
    drawn: list[dict[str, np.ndarray]] = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        with start(tiny_run.config(seed=seed), tmp_path / name) as run:
            for _ in range(12):
                run.count(run.collector.collect(1))
            state = run.learner.acting.initial_state(2, run._seed(SeedUse.ACT))
            drawn.append({
                "environments": np.array(made_envs[-1]),
                "actions at random": run.replay.state_dict()["fields"]["action"],
                "batches": np.array(run.replay.state_dict()["generator"]),
                "weights": run.agent.world_model.rssm.gru.weight.detach().numpy(),
                "updates": run.agent.generator.get_state().numpy(),
                "acting": state.generator.get_state().numpy(),
                "elsewhere": torch.get_rng_state().numpy(),
            })  # fmt: skip
    one, again, other = drawn
    for name in one:
        np.testing.assert_array_equal(one[name], again[name], err_msg=name)
        assert not np.array_equal(one[name], other[name]), name


SHOWN = {
    **test_config_data.SHOWN,
    "train.env_steps": test_train.test_resumed_run_keeps_the_baseline_and_plays_new_episodes,
    "train.prefill_steps": test_prefill_is_in_the_replay_before_learning_starts,
    "train.train_ratio": test_train_ratio_is_replayed_steps_per_policy_step,
    "train.eval_every_env_steps": test_evaluations_come_as_often_as_they_are_asked_for,
    "train.eval_episodes": test_eval_episodes_are_scored,
    "train.eval_policy": (test_train.test_evaluation_samples_the_policy_or_takes_its_mode_as_asked),
    "train.log_every_seconds": test_lines_are_logged_as_often_as_they_are_asked_for,
    "train.checkpoint_every_seconds": test_checkpoints_come_as_often_as_they_are_asked_for,
    "train.save_replay": test_save_replay_says_whether_a_checkpoint_holds_it,
    "train.exact_resume": test_exact_resume.test_exact_resume_is_what_brings_environments_back,
    "train.keep_checkpoints": test_keep_checkpoints_is_how_many_stay,
    "train.max_minutes": test_max_minutes_end_a_run,
    "train.device": (
        test_device_is_where_the_agent_lives,
        test_device.test_device_auto_is_the_gpu_where_there_is_one,
    ),
    "train.backend": test_backend_is_what_computes,
    "train.cuda_graph": test_cuda_graph.test_agent_learns_the_same_bitwise_from_a_graph,
    "train.precision": (
        test_precision_is_settled_for_a_run,
        test_precision.test_an_update_multiplies_as_it_is_told,
    ),
    "train.threads": test_threads_are_settled_for_a_run,
    "train.overlap": test_overlap_acts_on_a_copy_while_another_thread_learns,
    "train.tracker": test_trackers.test_a_run_sends_its_scalars_and_goes_on_in_the_same_one,
    "train.tracker_project": test_trackers.test_another_project_is_another_run,
    "train.seed": (
        test_seed_is_that_of_everything_drawn,
        test_agent.test_agent_depends_on_its_seed,
    ),
}
"""The test that shows two values of a setting to make for other runs."""


def test_every_setting_is_shown_to_change_a_run() -> None:
    shown = SHOWN.keys() | test_config_effects.COVERED
    assert shown == settings(Config()).keys()
    for tests in SHOWN.values():
        for test in tests if isinstance(tests, tuple) else (tests,):
            assert test.__name__.startswith("test_")
