from __future__ import annotations

import dataclasses
import errno
import itertools
import json
import math
import os
import re
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import wait
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mudreamer_fast.acting import Acting
from mudreamer_fast.agent import Agent
from mudreamer_fast.collect import Episode, random_policy
from mudreamer_fast.config import Config, ConfigError, EnvConfig, ModelConfig
from mudreamer_fast.disk import arrays, checkpoint
from mudreamer_fast.envs import EnvError
from mudreamer_fast.evaluate import Evaluation
from mudreamer_fast.learner import Learner, Update
from mudreamer_fast.machine.late import LateValues
from mudreamer_fast.machine.memory import RESERVED_BYTES
from mudreamer_fast.machine.seeds import SeedUse, derived_seed, seed_everything
from mudreamer_fast.replay import ReplayBuffer, StorageError
from mudreamer_fast.run import pace, saving, scoring, trainer
from mudreamer_fast.run import replay as replay_module
from mudreamer_fast.run.evaluator import Evaluator
from mudreamer_fast.run.folder import read_config
from mudreamer_fast.run.guard import BAD_UPDATES, NotFiniteError
from mudreamer_fast.run.lessons import Lessons
from mudreamer_fast.run.metrics import read_lines
from mudreamer_fast.run.scoring import score_agent
from mudreamer_fast.run.trainer import Trainer
from mudreamer_fast.train import train
from mudreamer_fast.world_model import WorldModel
from tests import tiny_run
from tests.patience import PATIENCE_SECONDS
from tests.tiny_run import start, step

Made = list[tuple[int, int]]


@pytest.fixture(autouse=True)
def made_envs(monkeypatch: pytest.MonkeyPatch) -> Made:
    """The tiny environment in place of the simulators; number and seed of each one made."""
    return tiny_run.patch_envs(monkeypatch)


def lines(folder: Path) -> list[dict[str, Any]]:
    return list(read_lines(folder / "metrics.jsonl"))


def assert_same_learner(one: Agent, other: Agent) -> None:
    a, b = one.state_dict(), other.state_dict()
    for part in ("world_model", "behaviour"):
        assert a[part].keys() == b[part].keys()
        for name in a[part]:
            assert torch.equal(a[part][name], b[part][name]), name
    assert torch.equal(a["generator"], b["generator"])
    assert a["updates"] == b["updates"]


def test_run_leaves_scores_pictures_metrics_and_checkpoint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny_run.config("pixels")
    result = train(config, tmp_path / "run")
    folder = tmp_path / "run"
    assert (result.env_steps, result.stopped_by, result.run_dir) == (120, None, folder)
    assert result.evaluation is not None
    assert len(result.evaluation.scores) == len(result.random_scores) == 3
    saved = json.loads((folder / "result.json").read_text())
    assert saved["scores"] == result.evaluation.scores
    assert saved["random_scores"] == result.random_scores
    assert (folder / "evaluation.mp4").stat().st_size > 0
    assert Image.open(folder / "curve.png").format == "PNG"
    # the 64 x 64 images of an episode's 8 observations, not the video's larger ones
    assert Image.open(folder / "agent_view.png").size == (2 * (8 * 64 + 7 * 2), 128)
    assert list(checkpoint.load(folder / "checkpoint")) == [
        "counters", "generators", "agent", "replay", "batches",
    ]  # fmt: skip
    said = capsys.readouterr().err
    assert "5 replayed steps per policy step, 2.5 per environment step" in said
    assert "random policy" in said
    assert str(folder / "evaluation.mp4") in said


def test_updates_are_those_that_the_train_ratio_asks_for(tmp_path: Path) -> None:
    config = tiny_run.config()
    run = start(config, tmp_path)
    with run:
        for _ in range(40):
            step(run, 1)
            counters = run.counters
            owed = counters.learning_policy_steps * config.updates_per_policy_step
            assert run.agent.updates + counters.update_credit == pytest.approx(owed)
            assert 0 <= counters.update_credit < 1
            assert counters.policy_steps - counters.learning_policy_steps <= 20
    assert config.updates_per_policy_step == 1 / 3
    assert run.agent.updates == 21  # 80 policy steps, of which 64 count


def test_prefill_is_random_and_learning_is_the_agents(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    acted: list[int] = []
    act = Acting.act
    monkeypatch.setattr(
        Acting,
        "act",
        lambda self, o, f, *rest: acted.append(int(f.all())) or act(self, o, f, *rest),
    )
    with start(tiny_run.config(), tmp_path) as run:
        step(run, 9)  # with the reset, 20 steps in the replay
        assert (run.agent.updates, acted, len(run.replay)) == (0, [], 20)
        step(run, 4)
    assert len(acted) == 4
    assert acted[0] == 1  # the agent knows nothing of the episodes it takes over
    assert acted[1] == 0
    assert run.agent.updates == 3  # 10 policy steps since, an update for every third


def test_metrics_are_over_environment_steps(tmp_path: Path) -> None:
    train(tiny_run.config(), tmp_path)
    rows = lines(tmp_path)
    steps = [row["env_steps"] for row in rows]
    assert steps == sorted(steps)
    evaluations = [row["env_steps"] for row in rows if "evaluation/score" in row]
    assert evaluations == [52, 100, 120]
    (random,) = [row for row in rows if "random/score" in row]
    assert random["env_steps"] == 0
    assert random["random/score"] == pytest.approx(np.mean(random["random/scores"]))
    updates = [row for row in rows if "world_model/loss" in row]
    counts = [row["run/updates"] for row in updates]
    assert counts == sorted({*counts})
    ratios = [row["run/train_ratio"] for row in updates]
    assert ratios[-1] == pytest.approx(5.0, abs=0.5)


def test_agent_and_random_policy_play_the_same_episodes(tmp_path: Path, made_envs: Made) -> None:
    config = tiny_run.config()
    train(config, tmp_path)
    collecting, *evaluating = made_envs
    assert len(evaluating) == 4  # the random policy, two on the way, the last one
    assert set(evaluating) == {(2, scoring.evaluation_seed(config.train.seed))}
    assert collecting[1] != evaluating[0][1]


def test_nothing_that_a_run_draws_shares_its_seed_with_anything_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made_envs: Made
) -> None:
    seeds: list[int] = []

    def recording(call: Callable[..., Any], place: int) -> Callable[..., Any]:
        def made(*args: Any) -> Any:
            seeds.append(args[place])
            return call(*args)

        return made

    for module in (trainer, scoring):
        monkeypatch.setattr(module, "random_policy", recording(random_policy, 2))
    monkeypatch.setattr(Acting, "initial_state", recording(Acting.initial_state, 2))
    monkeypatch.setattr(trainer, "seed_everything", recording(seed_everything, 0))
    monkeypatch.setattr(torch, "manual_seed", recording(torch.manual_seed, 0))
    with start(tiny_run.config(), tmp_path) as run:
        run.evaluator.score_random_policy()
        step(run, 20)
        run.evaluate()
        seeds += [run.agent.generator.initial_seed(), run._seed(SeedUse.REPLAY)]
    used = {*seeds, *(seed for _, seed in made_envs)}
    assert used == {derived_seed(0, use) for use in SeedUse}
    assert len(used) == len(SeedUse)
    # Of each but two: evaluations share their environments, the generator of torch is one of all.
    assert len(seeds) + len(made_envs) == len(SeedUse) + 2


def test_evaluation_samples_the_policy_or_takes_its_mode_as_asked(tmp_path: Path) -> None:
    scores = {}
    for policy in ("sample", "mode"):
        result = train(tiny_run.config(eval_policy=policy), tmp_path / policy)
        assert result.evaluation is not None
        scores[policy] = result.evaluation.scores
        facts = json.loads((tmp_path / policy / "result.json").read_text())
        assert (facts["eval_policy"], facts["scores"]) == (policy, scores[policy])
        agent = Agent.load(tmp_path / policy, "cpu")
        assert score_agent(agent).scores == scores[policy]
        other = score_agent(agent, eval_policy="mode" if policy == "sample" else "sample")
        assert other.scores != scores[policy]
    assert scores["sample"] != scores["mode"]


def test_same_seed_gives_the_same_run_and_another_seed_another(tmp_path: Path) -> None:
    results, runs = [], []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        results.append(train(tiny_run.config(seed=seed), tmp_path / name))
        runs.append(checkpoint.load(tmp_path / name / "checkpoint"))
    first, again, other = results
    assert first.evaluation is not None
    assert again.evaluation is not None
    assert first.evaluation.scores == again.evaluation.scores
    assert first.random_scores == again.random_scores != other.random_scores
    for name, weight in runs[0]["agent"]["world_model"].items():
        assert torch.equal(weight, runs[1]["agent"]["world_model"][name]), name
    image = "vector"
    np.testing.assert_array_equal(
        runs[0]["replay"]["fields"][image], runs[1]["replay"]["fields"][image]
    )


def test_resumed_learner_goes_on_bitwise(tmp_path: Path) -> None:
    config = tiny_run.config("both")
    with start(config, tmp_path) as whole:
        step(whole, 30)
        assert whole.agent.updates > 5
        whole.save()
        shutil.copytree(tmp_path, tmp_path / "copy", ignore=shutil.ignore_patterns("lock", "copy"))
        with start(config, tmp_path / "copy", resume=True) as resumed:
            assert_same_learner(resumed.agent, whole.agent)
            for _ in range(4):
                batches = [run.batches.next() for run in (whole, resumed)]
                for name in batches[0]:
                    assert torch.equal(batches[0][name], batches[1][name]), name
                metrics = [
                    run.agent.update(batch)
                    for run, batch in zip((whole, resumed), batches, strict=True)
                ]
                assert metrics[0] == metrics[1]
            assert_same_learner(resumed.agent, whole.agent)
            assert resumed.counters == dataclasses.replace(whole.counters, resumes=1)


@pytest.mark.parametrize("ahead", [0, 3])
def test_resumed_learner_goes_on_bitwise_from_a_replay_on_disk(tmp_path: Path, ahead: int) -> None:
    config = tiny_run.config(replay={"storage": "disk", "batches_ahead": ahead})
    with start(config, tmp_path / "run") as whole:
        step(whole, 30)
        whole.save()
        shutil.copytree(tmp_path / "run", tmp_path / "copy")
        expected = [whole.agent.update(whole.batches.next()) for _ in range(6)]
    assert "replay" not in checkpoint.load(tmp_path / "copy" / "checkpoint")
    with start(config, tmp_path / "copy", resume=True) as resumed:
        assert len(resumed.replay) == 62
        assert [resumed.agent.update(resumed.batches.next()) for _ in range(6)] == expected


def test_steps_since_the_checkpoint_are_there_after_a_crash(tmp_path: Path) -> None:
    config = tiny_run.config(replay={"storage": "disk"})
    with start(config, tmp_path / "run") as run:
        step(run, 15)
        run.save()
        step(run, 15)
        run.replay.flush()
        shutil.copytree(tmp_path / "run", tmp_path / "copy")
        assert run.reporter is not None
    with start(config, tmp_path / "copy", resume=True) as resumed:
        assert (resumed.pace.env_steps, len(resumed.replay)) == (60, 62)
        step(resumed, 5)


MISFITS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "a counter of another version": (lambda s: s["counters"].update(laps=3), "laps"),
    "a counter that is no number": (
        lambda s: s["counters"].update(policy_steps="40"), "policy_steps must be of type int, got"
    ),
    "no weights of the actor and critic": (lambda s: s["agent"].pop("behaviour"), "it lacks 'beh"),
    "a weight of another shape": (
        lambda s: s["agent"]["world_model"].update({"rssm.input.weight": torch.zeros(3, 2)}),
        r"size mismatch for rssm\.input\.weight",
    ),
    "a weight that is no tensor": (
        lambda s: s["agent"]["world_model"].update({"rssm.input.weight": 3}), "rssm.input.weight"
    ),
    "moments of other parameters": (
        lambda s: s["agent"]["optimisers"].update(world_model=s["agent"]["optimisers"]["actor"]),
        "moments of",
    ),
    "no generators": (lambda s: s.pop("generators"), "it lacks 'generators'"),
    "a replay without steps": (lambda s: s["replay"].pop("fields"), "fields"),
}  # fmt: skip
"""What is no damage, as all checksums are right, and yet no state of this run; and its error."""


def test_a_checkpoint_that_does_not_fit_is_one_line_and_stays_as_it_is(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with start(tiny_run.config(), folder) as run:
        step(run, 12)
        run.save()
    for name, (spoil, told) in MISFITS.items():
        state = checkpoint.load(folder / "checkpoint")
        spoil(state)
        spoilt = tmp_path / name
        shutil.copytree(folder, spoilt, ignore=shutil.ignore_patterns("checkpoint"))
        checkpoint.save(state, spoilt / "checkpoint")
        manifest = (spoilt / "checkpoint" / "manifest.json").read_bytes()
        with pytest.raises(checkpoint.CheckpointError, match=told) as error:
            train(tiny_run.config(), spoilt, resume=True)
        assert "does not fit this run or this version" in str(error.value), name
        assert "\n" not in str(error.value), name
        assert (spoilt / "checkpoint" / "manifest.json").read_bytes() == manifest


def test_a_damaged_replay_is_told_and_the_run_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny_run.config(replay={"storage": "disk"})
    with start(config, tmp_path) as run:
        step(run, 30)
        run.save()
    file = sorted((tmp_path / "replay").glob("segment-*"))[0]
    os.truncate(file, 100)
    with start(config, tmp_path, resume=True) as resumed:
        step(resumed, 10)
        assert resumed.agent.updates > run.agent.updates
    assert f"{file.name}: has 100 bytes" in capsys.readouterr().err


def test_a_folder_with_a_replay_is_no_place_for_a_new_run(tmp_path: Path) -> None:
    (tmp_path / "replay").mkdir()
    (tmp_path / "replay" / "segment-00000001.bin").touch()
    with pytest.raises(ConfigError, match="holds a run"):
        train(tiny_run.config(), tmp_path)


def test_waiting_for_data_is_counted_and_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(tiny_run.config(), tmp_path)
    rows = [row for row in lines(tmp_path) if "speed/waiting_share" in row]
    assert all(0 <= row["speed/waiting_share"] <= 1 for row in rows)
    assert any(row["speed/waiting_share"] > 0 for row in rows)
    assert any(row["speed/collecting_share"] > 0 for row in rows)
    said = capsys.readouterr().err
    assert re.search(r"the learner waited [\d.]+% of the time: [\d.]+% for batches, [\d.]+%", said)


def step_between_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Environments so slow that every job is done before the next step."""
    learn = Trainer.learn

    def wait_afterwards(run: Trainer, update: Update) -> None:
        learn(run, update)
        wait([run.learner._job] if run.learner._job else [])

    monkeypatch.setattr(Trainer, "learn", wait_afterwards)


def step_before_updates(monkeypatch: pytest.MonkeyPatch) -> None:
    """A learner so slow that steps are taken, or its result is wanted, before its first update."""
    count, begin, finish = Trainer.count, Learner.start, Learner.finish
    update = Agent.update
    due = threading.Event()

    def collected(run: Trainer, episodes: Sequence[Episode]) -> None:
        count(run, episodes)
        due.set()

    def begun(learner: Learner, update: Update, updates: int) -> None:
        due.clear()
        begin(learner, update, updates)

    def wanted(learner: Learner, last: bool = True) -> list[dict[str, float]]:
        due.set()
        return finish(learner, last)

    def updated(agent: Agent, batch: Any) -> LateValues:
        assert due.wait(PATIENCE_SECONDS)
        return update(agent, batch)

    monkeypatch.setattr(Trainer, "count", collected)
    monkeypatch.setattr(Learner, "start", begun)
    monkeypatch.setattr(Learner, "finish", wanted)
    monkeypatch.setattr(Agent, "update", updated)


@pytest.mark.parametrize("ratio", [1.0, 40.0])
def test_a_run_that_overlaps_is_the_same_however_fast_its_parts_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ratio: float
) -> None:
    """Fewer than one update a step, and several."""
    learners, contents = [], []
    for name, order in (
        ("as it comes", lambda patch: None),
        ("slow environments", step_between_jobs),
        ("a slow learner", step_before_updates),
    ):
        # a capacity that the run fills twice
        config = tiny_run.config(overlap="on", train_ratio=ratio, replay={"capacity_steps": 40})
        with monkeypatch.context() as patch, start(config, tmp_path / name) as run:
            order(patch)
            step(run, 40)
            run.save()
            learners.append(run.agent)
            contents.append(run.replay.state_dict())
            owed = run.counters.learning_policy_steps * config.updates_per_policy_step
            assert run.agent.updates + run.counters.update_credit == pytest.approx(owed)
    assert learners[0].updates == int(64 * ratio / 15)
    for learner, content in zip(learners[1:], contents[1:], strict=True):
        assert_same_learner(learner, learners[0])
        assert content["generator"] == contents[0]["generator"]
        for field, array in content["fields"].items():
            np.testing.assert_array_equal(array, contents[0]["fields"][field], err_msg=field)


def test_steps_are_taken_while_updates_are_under_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    update = Agent.update
    released = threading.Event()

    def wait(self: Agent, batch: Any) -> LateValues:
        assert released.wait(PATIENCE_SECONDS)
        return update(self, batch)

    monkeypatch.setattr(Agent, "update", wait)
    with start(tiny_run.config(overlap="on", train_ratio=1.0), tmp_path) as run:
        while run.learner._job is None:
            step(run, 1)
        taken = run.counters.policy_steps
        for _ in range(5):
            run.count(run.collector.collect(1))
        assert (run.counters.policy_steps, run.agent.updates) == (taken + 10, 0)
        released.set()
        run.lessons.finish()
        assert run.agent.updates == 1


def test_a_resumed_run_that_overlaps_acts_with_the_weights_it_saved(tmp_path: Path) -> None:
    config = tiny_run.config(overlap="on")
    with start(config, tmp_path) as run:
        step(run, 30)
        run.save()
        weights = run.agent.behaviour.actor.state_dict()
    with start(config, tmp_path, resume=True) as resumed:
        for name, weight in resumed.learner.acting._actor.state_dict().items():
            assert torch.equal(weight, weights[name])


def test_a_stop_during_updates_leaves_the_rest_owed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    update = Agent.update

    def stopping(self: Agent, batch: Any) -> LateValues:
        run.stop.received = signal.SIGINT
        return update(self, batch)

    config = tiny_run.config(overlap="on", train_ratio=40.0)
    with start(config, tmp_path) as run:
        step(run, 8)
        monkeypatch.setattr(Agent, "update", stopping)
        step(run, 3)
        run.lessons.finish()
        assert run.agent.updates == 1
        owed = run.counters.learning_policy_steps * config.updates_per_policy_step
        assert run.agent.updates + run.counters.update_credit == pytest.approx(owed)


def test_learner_that_was_not_restored_would_differ(tmp_path: Path) -> None:
    """The comparison above can fail: one update more is a different learner."""
    with start(tiny_run.config(), tmp_path) as run:
        step(run, 30)
        run.save()
    with start(tiny_run.config(), tmp_path, resume=True) as resumed:
        resumed.agent.update(resumed.replay.sample(3, 5))
        with pytest.raises(AssertionError):
            assert_same_learner(resumed.agent, run.agent)


def test_resumed_run_keeps_the_baseline_and_plays_new_episodes(
    tmp_path: Path, made_envs: Made
) -> None:
    first = train(tiny_run.config(env_steps=60), tmp_path)
    made_envs.clear()
    second = train(tiny_run.config(env_steps=140), tmp_path, resume=True)
    assert second.random_scores == first.random_scores
    assert (first.env_steps, second.env_steps) == (60, 140)
    assert second.updates > first.updates
    assert second.seconds > first.seconds
    assert made_envs[0] != (2, derived_seed(0, SeedUse.COLLECT, 0))
    assert len(made_envs) == 3  # no second measurement of the random policy
    rows = lines(tmp_path)
    steps = [row["env_steps"] for row in rows]
    assert steps == sorted(steps)
    assert sum("random/score" in row for row in rows) == 1
    assert json.loads((tmp_path / "config.json").read_text())["train"]["env_steps"] == 140


def test_resume_drops_what_came_after_the_checkpoint(tmp_path: Path) -> None:
    with start(tiny_run.config(), tmp_path) as run:
        step(run, 15)
        run.save()
        step(run, 15)  # lost, as in a crash
    assert lines(tmp_path)[-1]["env_steps"] > 60
    with start(tiny_run.config(), tmp_path, resume=True) as resumed:
        assert resumed.pace.env_steps == 60
        assert lines(tmp_path)[-1]["env_steps"] <= 60


def test_resume_without_the_replay_fills_it_by_the_agent(tmp_path: Path) -> None:
    config = tiny_run.config(save_replay=False)
    with start(config, tmp_path) as run:
        step(run, 20)
        updates = run.agent.updates
        run.counters.update_credit = 2.5  # as where a stop came between updates that were owed
        run.save()
    assert not {"replay", "batches"} & checkpoint.load(tmp_path / "checkpoint").keys()
    with start(config, tmp_path, resume=True) as resumed:
        assert resumed.collector._policy == resumed.learner.acting.act
        step(resumed, 8)
        assert resumed.agent.updates == updates
        step(resumed, 6)
        assert resumed.agent.updates > updates


def test_stop_during_an_evaluation_saves_and_can_be_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_run.config()
    observed: list[int] = []
    act = Agent.act

    def interrupt(self: Agent, o: Any, f: Any, state: Any, choice: str = "sample") -> Any:
        observed.append(self.updates)
        if len(observed) == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return act(self, o, f, state, choice)  # type: ignore[arg-type]

    monkeypatch.setattr(Agent, "act", interrupt)
    before = signal.getsignal(signal.SIGINT)
    result = train(config, tmp_path)
    assert (result.stopped_by, result.evaluation, result.env_steps) == (signal.SIGINT, None, 52)
    assert len(observed) == 3
    assert signal.getsignal(signal.SIGINT) is before
    resumed = train(config, tmp_path, resume=True)
    assert (resumed.env_steps, resumed.stopped_by) == (120, None)
    evaluations = [row["env_steps"] for row in lines(tmp_path) if "evaluation/score" in row]
    assert evaluations == [56, 100, 120]  # the interrupted one is made up for


def test_stop_before_the_first_step_can_be_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure = Evaluator.score_random_policy

    def interrupt(evaluator: Evaluator) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        measure(evaluator)

    monkeypatch.setattr(Evaluator, "score_random_policy", interrupt)
    result = train(tiny_run.config(), tmp_path)
    assert (result.stopped_by, result.env_steps, result.random_scores) == (signal.SIGTERM, 0, [])
    monkeypatch.setattr(Evaluator, "score_random_policy", measure)
    assert len(train(tiny_run.config(), tmp_path, resume=True).random_scores) == 3


def test_full_disk_at_a_checkpoint_does_not_end_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    attempts = 0
    close = arrays.ChecksummedFile.close

    def full_twice(file: arrays.ChecksummedFile) -> None:
        nonlocal attempts
        close(file)
        attempts += 1
        if attempts <= 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(arrays.ChecksummedFile, "close", full_twice)
    monkeypatch.setattr(pace, "CHECKPOINT_SHARE", math.inf)
    result = train(tiny_run.config(checkpoint_every_seconds=1e-6), tmp_path)
    assert result.env_steps == 120
    warnings = [w for w in capsys.readouterr().err.splitlines() if w.startswith("warning")]
    place = tmp_path / "checkpoint"
    assert (
        warnings
        == [f"warning: cannot write the checkpoint in {place}: No space left on device"] * 2
    )
    assert checkpoint.load(place)["counters"]["policy_steps"] == 60


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The run's clock: `now`, and how many `seconds` pass from one look to the next."""
    clock = SimpleNamespace(now=0.0, seconds=0.0)

    def look() -> float:
        clock.now += clock.seconds
        return float(clock.now)

    monkeypatch.setattr(pace, "time", SimpleNamespace(monotonic=look))
    return clock


def test_minutes_run_out_before_the_steps_do(tmp_path: Path, clock: SimpleNamespace) -> None:
    clock.seconds = 0.1
    config = tiny_run.config(env_steps=10**9, max_minutes=1.0, eval_every_env_steps=0)
    result = train(config, tmp_path)
    assert result.evaluation is not None
    assert 0 < result.env_steps < 10**3
    assert 60 < result.seconds < 70
    with pytest.raises(ConfigError, match="is over"):  # the time is that of the whole run
        train(config, tmp_path, resume=True)


def test_a_wall_clock_that_jumps_by_hours_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jumps = itertools.cycle((0.0, 5 * 3600.0, -30 * 3600.0))
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + next(jumps))
    saves, save = [], saving.Saver.save

    def count(saver: saving.Saver) -> None:
        saves.append(saver)
        save(saver)

    monkeypatch.setattr(saving.Saver, "save", count)
    hours = tiny_run.config(max_minutes=200.0, checkpoint_every_seconds=7200.0)
    result = train(hours, tmp_path)
    assert result.env_steps == 120
    assert result.evaluation is not None
    assert len(saves) == 2  # the first and the last
    seconds = [line["seconds"] for line in lines(tmp_path)]
    assert seconds == sorted(seconds)
    assert 0 <= seconds[0] <= seconds[-1] < 3600
    rates = [
        line["speed/env_steps_per_second"] for line in lines(tmp_path) if "run/updates" in line
    ]
    assert min(rates) >= 0
    assert max(rates) > 0


def test_time_left_keeps_the_final_evaluation_back(tmp_path: Path, clock: SimpleNamespace) -> None:
    with start(tiny_run.config(max_minutes=10.0), tmp_path) as run:
        clock.now += 30.0
        assert run.pace.seconds_left == 570
        run.pace.count_evaluation(370.0)
        assert run.pace.seconds_left == 15
        assert not run.pace.finished
        run.pace.count_evaluation(381.0)
        assert run.pace.finished


def test_replay_beyond_the_memory_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replay_module, "available_bytes", lambda: RESERVED_BYTES + 999)
    with pytest.raises(ConfigError, match="steps would fit"):
        train(tiny_run.config(), tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_replay_beyond_the_disk_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replay_module, "disk_bytes", lambda folder: RESERVED_BYTES + 999)
    with pytest.raises(ConfigError, match=r"GiB of disk .* steps would fit"):
        train(tiny_run.config(replay={"storage": "disk"}), tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_folder_of_another_run_is_refused(tmp_path: Path) -> None:
    start(tiny_run.config(), tmp_path).__exit__()
    with pytest.raises(ConfigError, match="holds a run: resume it"):
        train(tiny_run.config(), tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        lambda c: dataclasses.replace(c, model=ModelConfig()),
        lambda c: dataclasses.replace(c, env=dataclasses.replace(c.env, num_envs=3)),
    ],
)
def test_resume_with_another_model_or_task_is_refused(
    tmp_path: Path, change: Callable[[Config], Config]
) -> None:
    config = tiny_run.config()
    start(config, tmp_path).__exit__()
    with pytest.raises(ConfigError, match="keeps its settings of env, model and behaviour"):
        train(change(config), tmp_path, resume=True)


def test_a_resumed_run_keeps_no_file_of_its_checkpoint_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even where something keeps the frames of its beginning, as exceptions in a cache do."""
    config, frames = tiny_run.config(), []
    with start(config, tmp_path) as run:
        step(run, 12)
        run.save()
    monkeypatch.setattr(arrays, "MAP_BYTES", 1)
    monkeypatch.setattr(trainer, "write_config", lambda *args: frames.append(sys._getframe(1)))

    def mapped() -> list[str]:
        lines = Path("/proc/self/maps").read_text().splitlines()
        return [line for line in lines if str(tmp_path) in line]

    saved = checkpoint.load(tmp_path / "checkpoint")
    assert mapped()
    del saved
    with start(config, tmp_path, resume=True) as run:
        assert len(run.replay) == 26
        assert mapped() == []
    assert frames


def test_resume_of_a_run_without_checkpoint_is_refused_and_a_new_start_is_not(
    tmp_path: Path,
) -> None:
    config = tiny_run.config()
    start(config, tmp_path).__exit__()
    shutil.rmtree(tmp_path / "checkpoint")
    with pytest.raises(checkpoint.CheckpointError, match="no checkpoint in"):
        train(config, tmp_path, resume=True)
    start(config, tmp_path).__exit__()


def test_a_run_killed_before_its_first_checkpoint_can_be_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_run.config(replay={"storage": "disk"})
    with monkeypatch.context() as patch:
        patch.setattr(saving.Saver, "save", lambda _: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            start(config, tmp_path)
    assert (tmp_path / "config.json").exists()
    assert (tmp_path / "replay").exists()
    start(config, tmp_path).__exit__()
    with pytest.raises(ConfigError, match="holds a run"):
        start(config, tmp_path)


def test_a_run_killed_before_its_first_step_can_be_resumed(tmp_path: Path) -> None:
    config = tiny_run.config()
    start(config, tmp_path).__exit__()  # nothing is saved on this way out
    assert train(config, tmp_path, resume=True).env_steps == 120


def test_a_run_that_is_over_is_not_resumed_without_more_to_do(tmp_path: Path) -> None:
    config = tiny_run.config()
    train(config, tmp_path)
    with pytest.raises(ConfigError, match=r"is over \(env_steps 120\); .* --train.env-steps"):
        train(config, tmp_path, resume=True)
    late = tiny_run.config(env_steps=10**6, max_minutes=1e-9)
    with pytest.raises(ConfigError, match=r"is over \(max_minutes 1e-09\); .* --train.max-minutes"):
        train(late, tmp_path, resume=True)
    more = tiny_run.config(env_steps=160)
    assert train(more, tmp_path, resume=True).env_steps == 160


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (tiny_run.config(replay={"capacity_steps": 9}), "keeps 4 steps, and batch_length is 5"),
        (tiny_run.config(prefill_steps=60), "of which 60 fill the replay"),
        (tiny_run.config(env_steps=16, prefill_steps=0), "of which 8 fill the replay"),
        (tiny_run.config(train_ratio=0.1), "the rest earn 0.27 updates"),
    ],
)
def test_settings_that_give_no_update_are_refused_before_anything_is_written(
    tmp_path: Path, config: Config, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        train(config, tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_an_error_in_the_middle_of_a_run_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = 0
    real = tiny_run.TinyEnv.step

    def crash(env: tiny_run.TinyEnv, action: Any) -> Any:
        nonlocal steps
        steps += env.num_envs == 2  # those of training
        if steps > 25:
            raise EnvError("environment 1 has crashed")
        return real(env, action)

    config = tiny_run.config(eval_every_env_steps=0, eval_episodes=1)
    monkeypatch.setattr(tiny_run.TinyEnv, "step", crash)
    with pytest.raises(EnvError, match="environment 1 has crashed"):
        train(config, tmp_path)
    saved = checkpoint.load(tmp_path / "checkpoint")["counters"]
    assert saved["policy_steps"] == 2 * 25
    monkeypatch.setattr(tiny_run.TinyEnv, "step", real)
    assert train(config, tmp_path, resume=True).env_steps == 120


@pytest.mark.parametrize("overlap", ["on", "off"])
def test_an_error_in_an_update_saves_what_was_learned_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overlap: str
) -> None:
    update = Agent.update

    def fail(agent: Agent, batch: Any) -> LateValues:
        if agent.updates == 5:
            raise RuntimeError("out of luck")
        return update(agent, batch)

    monkeypatch.setattr(Agent, "update", fail)
    with pytest.raises(RuntimeError, match="out of luck"):
        train(tiny_run.config(overlap=overlap), tmp_path)
    assert checkpoint.load(tmp_path / "checkpoint")["agent"]["updates"] == 5


@pytest.mark.parametrize("overlap", ["on", "off"])
def test_of_several_updates_those_that_an_error_left_undone_are_owed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overlap: str
) -> None:
    config = tiny_run.config(overlap=overlap, train_ratio=22.5)  # three updates for two steps
    assert config.updates_per_policy_step == 1.5
    update = Agent.update

    def fail(agent: Agent, batch: Any) -> LateValues:
        if agent.updates == 5:
            raise RuntimeError("out of luck")
        return update(agent, batch)

    monkeypatch.setattr(Agent, "update", fail)
    with pytest.raises(RuntimeError, match="out of luck"):
        train(config, tmp_path)
    counters = checkpoint.load(tmp_path / "checkpoint")["counters"]
    earned = 1.5 * counters["learning_policy_steps"]
    assert counters["update_credit"] == earned - 5


def test_a_line_written_after_the_last_checkpoint_is_there_once_after_a_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer, "present", lambda *_: 1 / 0)
    monkeypatch.setattr(Lessons, "rescue", lambda _: None)
    config = tiny_run.config(eval_every_env_steps=0)
    for resume in (False, True):
        with pytest.raises(ZeroDivisionError):
            train(config, tmp_path, resume)
    written = lines(tmp_path)
    assert [line["env_steps"] for line in written if "evaluation/score" in line] == [120]


def test_what_cannot_be_saved_on_the_way_out_does_not_hide_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Agent, "update", lambda *_: 1 / 0)
    monkeypatch.setattr(Agent, "state_dict", lambda *_: [][0])
    config = tiny_run.config()
    saver = saving.Saver.save
    monkeypatch.setattr(saving.Saver, "save", lambda _: None)  # the one at the start
    run = start(config, tmp_path)
    monkeypatch.setattr(saving.Saver, "save", saver)
    run.lessons.rescue()
    run.__exit__()
    assert "warning: not saved: list index out of range" in capsys.readouterr().err


def test_a_run_that_diverges_goes_back_and_then_gives_up(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny_run.config(env_steps=2000, eval_every_env_steps=0)
    config = dataclasses.replace(
        config, model=dataclasses.replace(config.model, learning_rate=1e30)
    )
    with pytest.raises(
        NotFiniteError, match=r"^the policy's actions are not finite .*lower the learning"
    ):
        train(config, tmp_path)
    said = capsys.readouterr().err
    assert said.count("back to the weights of the last checkpoint") == 3
    for tensor in checkpoint.load(tmp_path / "checkpoint")["agent"]["world_model"].values():
        assert tensor.isfinite().all()


@pytest.mark.parametrize("overlap", ["on", "off"])
def test_updates_that_are_not_finite_are_skipped_and_then_undone(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    overlap: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    loss, poisoned = WorldModel.loss, range(5, 5 + BAD_UPDATES)
    calls = 0
    states: list[dict[str, Any]] = []

    def poison(self: WorldModel, *arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        seen = loss(self, *arguments)
        if calls - 1 not in poisoned:
            return seen
        states.append({name: x.clone() for name, x in self.state_dict().items()})
        metrics = seen.metrics | {"loss_reward": seen.metrics["loss_reward"] * torch.nan}
        return dataclasses.replace(seen, total=seen.total * torch.nan, metrics=metrics)

    monkeypatch.setattr(WorldModel, "loss", poison)
    config = tiny_run.config(env_steps=400, eval_every_env_steps=0, overlap=overlap)
    result = train(config, tmp_path)
    assert result.updates == calls
    said = capsys.readouterr().err
    assert said.count("warning: world_model/loss_reward is nan, and the 19 updates after") == 1
    for name, parameter in trained_model(config).named_parameters():
        if parameter.requires_grad:  # no step was taken while it lasted
            assert torch.equal(states[0][name], states[-1][name]), name
    rows = [row["run/skipped_updates"] for row in lines(tmp_path) if "run/skipped_updates" in row]
    assert max(rows) == BAD_UPDATES
    assert all(None not in row.values() for row in lines(tmp_path))


def trained_model(config: Config) -> WorldModel:
    env = tiny_run.make_env(config.env, 1, 0)
    return Agent(config, env.observation_spec, env.action_spec, torch.device("cpu")).world_model


@pytest.mark.parametrize("overlap", ["on", "off"])
def test_metrics_of_an_update_are_read_when_the_next_is_launched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overlap: str
) -> None:
    update, read = Agent.update, LateValues.read
    happened: list[tuple[str, int]] = []
    made: list[LateValues] = []
    inside = threading.local()

    def launched(agent: Agent, batch: Any) -> LateValues:
        inside.update = True
        found = update(agent, batch)
        inside.update = False
        made.append(found)
        happened.append(("launched", agent.updates))
        return found

    def looked_at(values: LateValues) -> dict[str, float]:
        happened.append(("read", 1 + [*map(id, made)].index(id(values))))
        return read(values)

    def refused(name: str) -> Callable[..., Any]:
        real = getattr(torch.Tensor, name)

        def called(tensor: torch.Tensor, *arguments: Any) -> Any:
            assert not getattr(inside, "update", False), f"{name} waits for the update"
            return real(tensor, *arguments)

        return called

    for name in ("tolist", "item", "cpu", "numpy", "__bool__", "__float__", "__int__"):
        monkeypatch.setattr(torch.Tensor, name, refused(name))
    monkeypatch.setattr(LateValues, "read", looked_at)
    monkeypatch.setattr(Agent, "update", launched)
    with start(tiny_run.config(overlap=overlap, log_every_seconds=1e9), tmp_path) as run:
        step(run, 20)
        run.lessons.finish()
        updates = run.agent.updates
    assert updates > 5
    expected = [("launched", 1)]
    for k in range(2, updates + 1):
        expected += [("launched", k), ("read", k - 1)]
    assert happened == [*expected, ("read", updates)]


def test_a_line_of_the_log_has_the_metrics_of_all_updates_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    update, losses = Agent.update, [math.nan]

    def noted(agent: Agent, batch: Any) -> LateValues:
        found = update(agent, batch)
        losses.append(found["world_model/loss"])
        return found

    monkeypatch.setattr(Agent, "update", noted)
    with start(tiny_run.config(overlap="off", log_every_seconds=1e-9), tmp_path) as run:
        for _ in range(20):
            step(run, 1)
            run.report()
    told = {row["run/updates"]: row for row in lines(tmp_path) if "world_model/loss" in row}
    assert [told[k]["world_model/loss"] for k in told] == losses[1:]


def test_the_agent_that_scored_best_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    means = iter([3.0, 5.0, 4.0])
    updates: list[int] = []

    def score(self: Evaluator, agent: Agent, film: bool) -> Evaluation:
        updates.append(agent.updates)
        return Evaluation([next(means)], [7])

    monkeypatch.setattr(Evaluator, "score_agent", score)
    train(tiny_run.config(), tmp_path)
    assert checkpoint.load(tmp_path / "best")["agent"]["updates"] == updates[1] > 0


def test_agent_of_vectors_is_scored_where_nothing_can_be_rendered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: Any) -> None:
        raise EnvError("no EGL")

    monkeypatch.setattr(tiny_run.TinyEnv, "render", fail)
    result = train(tiny_run.config(eval_every_env_steps=0), tmp_path)
    assert result.evaluation is not None
    assert len(result.evaluation.scores) == 3
    assert "warning: no video: no EGL" in capsys.readouterr().err
    assert not (tmp_path / "evaluation.mp4").exists()


def test_agent_of_pixels_is_not_scored_where_nothing_can_be_rendered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: Any) -> None:
        raise EnvError("no EGL")

    monkeypatch.setattr(tiny_run.TinyEnv, "render", fail)
    with start(tiny_run.config("pixels"), tmp_path) as run, pytest.raises(EnvError, match="no EGL"):
        run.evaluator.score_agent(run.agent, film=True)
    assert "no video" not in capsys.readouterr().err


def test_replay_that_cannot_be_closed_is_told_and_fails_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(_: Any) -> None:
        raise StorageError("cannot write to replay: No space left on device")

    monkeypatch.setattr(ReplayBuffer, "close", fail)
    with start(tiny_run.config(), tmp_path):
        pass
    told = capsys.readouterr().err.splitlines()
    assert told[-1] == "warning: cannot write to replay: No space left on device"


def test_environments_are_closed_whatever_happens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = 0

    def count(self: Any) -> None:
        nonlocal closed
        closed += 1

    monkeypatch.setattr(tiny_run.TinyEnv, "close", count)
    monkeypatch.setattr(Agent, "update", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train(tiny_run.config(), tmp_path / "a")
    assert closed == 2
    monkeypatch.setattr(trainer, "Agent", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train(tiny_run.config(), tmp_path / "b")
    assert closed == 3


def test_a_run_keeps_the_render_profile_that_it_settled_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`auto` is another profile on a machine with another renderer."""
    config = tiny_run.config("pixels")
    settled: list[str] = []

    def make(profile: str) -> Callable[..., Any]:
        def made(env: EnvConfig, num_envs: int, seed: int) -> Any:
            settled.append(env.render_profile)
            tiny = tiny_run.make_env(env, num_envs, seed)
            tiny.render_profile = profile if env.render_profile == "auto" else env.render_profile
            return tiny

        return made

    monkeypatch.setattr(trainer, "make_env", make("light"))
    start(config, tmp_path).__exit__()
    assert settled == ["auto"]
    assert read_config(tmp_path / "config.json").env.render_profile == "light"
    monkeypatch.setattr(trainer, "make_env", make("reference"))
    start(config, tmp_path, resume=True).__exit__()
    assert settled == ["auto", "light"]
    other = dataclasses.replace(config.env, render_profile="reference")
    with pytest.raises(ConfigError, match="keeps its settings of env"):
        start(dataclasses.replace(config, env=other), tmp_path, resume=True)


def test_what_became_of_a_simulator_is_told_in_training_and_in_evaluations(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    notices = ["environment 0 was restarted", "environment 1 was restarted"]
    monkeypatch.setattr(
        tiny_run.TinyEnv, "take_notices", lambda _: [notices.pop()] if notices else []
    )
    config = tiny_run.config()
    scoring.score(config.env, scoring.uniform_policy(0), 1, 0)
    start(config, tmp_path).__exit__()
    assert capsys.readouterr().err.count("warning: environment") == 2
