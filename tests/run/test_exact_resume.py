"""Runs that end at any moment and go on as if they had not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mudreamer_fast.agent import Agent
from mudreamer_fast.config import Config, ConfigError
from mudreamer_fast.disk import checkpoint
from mudreamer_fast.envs import make_env
from mudreamer_fast.machine.late import LateValues
from mudreamer_fast.machine.seeds import SeedUse, derived_seed
from mudreamer_fast.run import history, trainer
from mudreamer_fast.run import replay as run_replay
from mudreamer_fast.run.evaluator import Evaluator
from mudreamer_fast.run.folder import RunFolder, read_config
from mudreamer_fast.run.history import ActionLog
from mudreamer_fast.run.lessons import Lessons
from mudreamer_fast.run.metrics import read_lines
from mudreamer_fast.run.pace import Pace
from mudreamer_fast.run.replay import open_replay
from mudreamer_fast.run.trainer import Trainer
from mudreamer_fast.train import train
from tests import tiny_run
from tests.patience import PATIENCE_SECONDS
from tests.simulators import needs
from tests.tiny_run import start, step

ROOT = Path(__file__).parents[2]
FULL = {"capacity_steps": 40}
"""A replay that overwrites steps, those of batches drawn ahead too."""
DISK = {"storage": "disk", "flush_every_seconds": 1e-3}
KEPT: dict[str, dict[str, Any]] = {
    "in the checkpoint": {},
    "on disk": {"replay": DISK},
    "nowhere": {"save_replay": False},
}
"""Where a run keeps its replay."""


@pytest.fixture(autouse=True)
def made_envs(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The tiny environment in place of the simulators; number and seed of each one made."""
    return tiny_run.patch_envs(monkeypatch)


def config(**options: Any) -> Config:
    """240 simulator steps are 60 of each environment; an episode of 7 begins at every 8th."""
    return tiny_run.config(**({"exact_resume": True, "env_steps": 240} | options))


class Killed(BaseException):
    """Ends a run that has no time to save anything."""


@dataclass
class Outcome:
    """All that is to be the same in two runs."""

    updates: dict[int, LateValues]
    """Metrics, by the number of updates before; of a resumed run, those since."""
    rows: list[Any]
    """Scores and lengths of episodes, scores of evaluations, with the steps they came after."""
    state: dict[str, Any]
    """The last checkpoint, and the replay's folder, by the path of each value in it."""


def leaves(tree: Any, path: str = "") -> dict[str, Any]:
    """What is in a checkpoint, by its path."""
    if isinstance(tree, Mapping | list | tuple):
        items = tree.items() if isinstance(tree, Mapping) else enumerate(tree)
        return {p: v for name, item in items for p, v in leaves(item, f"{path}/{name}").items()}
    return {path: tree}


def saved(folder: Path) -> dict[str, Any]:
    state = checkpoint.load(folder / "checkpoint")
    del state["counters"]["seconds"]
    config = read_config(folder / "config.json")
    if config.replay.storage == "disk":
        env = tiny_run.make_env(config.env, config.env.num_envs, 0)
        stored = open_replay(config, env, RunFolder(folder), 0, {})
        state["stored"] = stored.state_dict()
        stored.close()
    return leaves(state)


def told(folder: Path) -> list[Any]:
    """Without repeats: what is scored again at the step of the checkpoint has a line already."""
    names = "episode/score", "episode/length_steps", "evaluation/scores", "random/scores"
    rows: list[Any] = []
    for line in read_lines(folder / "metrics.jsonl"):
        row = line["env_steps"], [line.get(name) for name in names]
        if any(name in line for name in names) and row not in rows:
            rows.append(row)
    return rows


def assert_same_state(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert one.keys() == other.keys()
    for path, value in one.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, other[path]), path
        elif isinstance(value, np.ndarray):
            assert value.dtype == other[path].dtype, path
            np.testing.assert_array_equal(value, other[path], err_msg=path)
        else:
            assert value == other[path], path


def outcome(
    monkeypatch: pytest.MonkeyPatch, config: Config, folder: Path, resume: bool = False
) -> Outcome:
    """Trains to the end."""
    update, updates = Agent.update, {}

    def recorded(agent: Agent, batch: Any) -> LateValues:
        number = agent.updates
        updates[number] = update(agent, batch)
        return updates[number]

    with monkeypatch.context() as patch:
        patch.setattr(Agent, "update", recorded)
        assert train(config, folder, resume).stopped_by is None
    return Outcome(updates, told(folder), saved(folder))


@pytest.fixture(scope="module")
def wholes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    """The runs that nothing ends."""
    made = {}
    with pytest.MonkeyPatch.context() as patch:
        tiny_run.patch_envs(patch)
        for kept, options in KEPT.items():
            made[kept] = outcome(patch, config(**options), tmp_path_factory.mktemp("whole"))
    first = next(iter(made.values()))
    assert len(first.updates) > 30
    assert first.state["/counters/resumes"] == 0
    assert all((one.updates, one.rows) == (first.updates, first.rows) for one in made.values())
    return made


@pytest.fixture
def whole(wholes: dict[str, Outcome]) -> Outcome:
    """The run that keeps its replay in the checkpoint."""
    return wholes["in the checkpoint"]


def assert_goes_on(
    monkeypatch: pytest.MonkeyPatch, config: Config, folder: Path, whole: Outcome
) -> None:
    """The run in `folder`, resumed, ends as the one that nothing has ended."""
    before = checkpoint.load(folder / "checkpoint", ("agent",))["agent"]["updates"]
    resumed = outcome(monkeypatch, config, folder, resume=True)
    assert list(resumed.updates) == list(range(before, len(whole.updates)))
    for number, metrics in resumed.updates.items():
        assert metrics == whole.updates[number], number
    assert resumed.rows == whole.rows
    assert_same_state(resumed.state, whole.state)


def kill(
    monkeypatch: pytest.MonkeyPatch, config: Config, folder: Path, saved_at: int, steps: int = 4
) -> None:
    """Has a run die, some steps after a checkpoint at a step of the environments."""
    collect, envs = Trainer.collect, config.env.num_envs

    def due(pace: Pace) -> bool:
        return pace.counters.policy_steps == saved_at * envs

    def die(run: Trainer) -> Any:
        if run.counters.policy_steps == (saved_at + steps) * envs:
            raise Killed
        return collect(run)

    with monkeypatch.context() as patch:
        patch.setattr(Pace, "checkpoint_due", due)
        patch.setattr(Trainer, "collect", die)
        patch.setattr(Lessons, "rescue", lambda run: None)
        with pytest.raises(Killed):
            train(config, folder)
    counters = checkpoint.load(folder / "checkpoint", ("counters",))["counters"]
    assert counters["policy_steps"] == saved_at * envs


@pytest.mark.parametrize(
    ("saved_at", "kept"),
    [
        pytest.param(0, "on disk", id="before the first step"),
        pytest.param(4, "on disk", id="in the prefill"),
        pytest.param(9, "in the checkpoint", id="after the hand-over"),
        pytest.param(20, "in the checkpoint", id="in an episode"),
        pytest.param(20, "on disk", id="in an episode, its replay on disk"),
        pytest.param(20, "nowhere", id="in an episode, its replay not kept"),
        pytest.param(23, "on disk", id="at an episode's end"),
        pytest.param(24, "in the checkpoint", id="at an episode's start"),
        pytest.param(25, "on disk", id="after an evaluation"),
    ],
)
def test_a_run_that_is_killed_goes_on_bitwise_with_its_environments(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    wholes: dict[str, Outcome],
    saved_at: int,
    kept: str,
) -> None:
    kill(monkeypatch, config(**KEPT[kept]), tmp_path / "run", saved_at)
    assert_goes_on(monkeypatch, config(**KEPT[kept]), tmp_path / "run", wholes[kept])


@pytest.mark.parametrize(("ahead", "kept"), [(0, {}), (2, {}), (2, DISK)])
def test_a_run_that_has_overwritten_steps_goes_on_bitwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ahead: int, kept: dict[str, Any]
) -> None:
    """Batches drawn ahead may hold steps that the replay no longer does."""
    replay = FULL | kept | {"batches_ahead": ahead}
    full = config(observation="both", replay=replay)
    whole = outcome(monkeypatch, full, tmp_path / "whole")
    lost = []
    for saved_at in (35, 40):
        folder = tmp_path / f"run {saved_at}"
        kill(monkeypatch, full, folder, saved_at)
        lost += checkpoint.load(folder / "checkpoint")["history"]["batches"]
        assert_goes_on(monkeypatch, full, folder, whole)
    assert bool(lost) == bool(ahead)


def test_a_run_that_is_killed_again_and_again_goes_on_bitwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each time before it has used up the batches drawn ahead."""
    full = config(replay=FULL | {"batches_ahead": 6})
    whole = outcome(monkeypatch, full, tmp_path / "whole")
    kill(monkeypatch, full, tmp_path / "run", 40)
    with start(full, tmp_path / "run", resume=True) as run:
        run.take_up()
        step(run, 2)
        run.save()
    assert checkpoint.load(tmp_path / "run" / "checkpoint")["history"]["batches"]
    assert_goes_on(monkeypatch, full, tmp_path / "run", whole)


def test_updates_that_a_stop_has_left_owed_come_before_the_next_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    several = config(train_ratio=20.0, env_steps=80)
    whole = outcome(monkeypatch, several, tmp_path / "whole")
    update = Agent.update

    def stopping(agent: Agent, batch: Any) -> LateValues:
        if agent.updates in (10, 11):  # the second one while they are made up for
            os.kill(os.getpid(), signal.SIGTERM)
        return update(agent, batch)

    with monkeypatch.context() as patch:
        patch.setattr(Agent, "update", stopping)
        for resume in (False, True):
            result = train(several, tmp_path / "run", resume)
            assert result.stopped_by == signal.SIGTERM
            assert result.updates == 11 + resume
    counters = checkpoint.load(tmp_path / "run" / "checkpoint")["counters"]
    assert counters["update_credit"] >= 1
    assert_goes_on(monkeypatch, several, tmp_path / "run", whole)


def test_an_evaluation_that_was_stopped_is_made_up_for_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: Outcome
) -> None:
    score = Evaluator.score_agent

    def stopping(evaluator: Evaluator, agent: Agent, film: bool) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return score(evaluator, agent, film)

    with monkeypatch.context() as patch:
        patch.setattr(Evaluator, "score_agent", stopping)
        assert train(config(), tmp_path / "run").env_steps == 52
    assert_goes_on(monkeypatch, config(), tmp_path / "run", whole)


@pytest.mark.parametrize("kept", KEPT)
def test_a_stop_while_environments_are_brought_back_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wholes: dict[str, Outcome], kept: str
) -> None:
    settings = config(**KEPT[kept])
    kill(monkeypatch, settings, tmp_path / "run", 20)
    before, steps = saved(tmp_path / "run"), 0
    take = tiny_run.TinyEnv.step

    def stopping(env: tiny_run.TinyEnv, action: Any) -> Any:
        nonlocal steps
        steps += 1
        if steps == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        return take(env, action)

    with monkeypatch.context() as patch:
        patch.setattr(tiny_run.TinyEnv, "step", stopping)
        result = train(settings, tmp_path / "run", resume=True)
    assert (result.stopped_by, result.env_steps, steps) == (signal.SIGTERM, 80, 5)
    assert_same_state(saved(tmp_path / "run"), before)
    assert_goes_on(monkeypatch, settings, tmp_path / "run", wholes[kept])


@pytest.mark.parametrize("storage", ["memory", "disk"])
def test_a_command_that_is_killed_goes_on_bitwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, storage: str
) -> None:
    folder, kept = tmp_path / "run", DISK if storage == "disk" else {}
    endless = config(env_steps=10**9, checkpoint_every_seconds=1e-6, replay=kept)
    words = ["--resume-or-start", *tiny_run.options(endless, folder)[1:]]
    command = [sys.executable, "-m", "tests.tiny_run", "train", *words]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        said = [line for line, _ in zip(process.stderr, range(40), strict=False)]
        assert process.poll() is None, "".join(said)
        process.kill()
    steps = checkpoint.load(folder / "checkpoint", ("counters",))["counters"]["policy_steps"]
    assert steps > 0
    env_steps = 2 * steps + 40
    more = [*command, "--train.env-steps", str(env_steps)]
    subprocess.run(more, cwd=ROOT, check=True, capture_output=True, timeout=PATIENCE_SECONDS)
    alike = config(env_steps=env_steps, replay=kept)
    whole = outcome(monkeypatch, alike, tmp_path / "whole")
    assert told(folder) == whole.rows
    assert_same_state(saved(folder), whole.state)


@needs("envpool")
def test_simulators_are_brought_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer, "make_env", make_env)
    simulated = config(
        env={"task": "dmc/cartpole_balance", "backend": "envpool", "action_repeat": 40},
        env_steps=10**5,
        eval_every_env_steps=0,
    )
    with start(simulated, tmp_path / "whole") as run:
        step(run, 40)  # episodes of 25
        run.save()
    with start(simulated, tmp_path / "run") as run:
        step(run, 33)
        run.save()
        step(run, 2)  # lost
    with start(simulated, tmp_path / "run", resume=True) as run:
        run.take_up()
        step(run, 7)
        run.save()
    assert_same_state(saved(tmp_path / "run"), saved(tmp_path / "whole"))


def test_gymnasiums_environments_are_brought_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer, "make_env", make_env)
    played = config(
        env={"task": "gym:CartPole-v1", "observation": "vector", "backend": "sync"},
        env_steps=10**5,
        eval_every_env_steps=0,
    )
    with start(played, tmp_path / "whole") as run:
        step(run, 40)
        run.save()
    with start(played, tmp_path / "run") as run:
        step(run, 33)
        run.save()
        step(run, 2)  # lost
    with start(played, tmp_path / "run", resume=True) as run:
        run.take_up()
        step(run, 7)
        run.save()
    assert_same_state(saved(tmp_path / "run"), saved(tmp_path / "whole"))


@pytest.mark.parametrize("storage", ["memory", "disk"])
@pytest.mark.parametrize("change", ["another action", "an action less"])
def test_environments_that_do_not_come_back_are_told(
    tmp_path: Path, change: str, storage: str
) -> None:
    replay = {"storage": storage}
    with start(config(replay=replay), tmp_path) as run:
        step(run, 12)
        run.save()
        held = run.replay.state_dict()["fields"]
    state = checkpoint.load(tmp_path / "checkpoint")
    actions = state["history"]["actions"]
    if change == "another action":
        light = held["vector"][0, -2].argmax()
        assert actions[-1, 0, 0] != light - 1
        actions[-1, 0, 0] = light - 1
    else:
        state["history"]["actions"] = actions[:-1]
    checkpoint.save(state, tmp_path / "checkpoint")
    with pytest.raises(ConfigError, match=r"could not be brought back.*--train.no-exact-resume$"):
        train(config(replay=replay), tmp_path, resume=True)
    inexact = config(exact_resume=False, replay=replay)
    with start(inexact, tmp_path, resume=True) as run:  # what it learned from is still there
        np.testing.assert_equal(run.replay.state_dict()["fields"], held)
    assert train(inexact, tmp_path, resume=True).env_steps == 240


@pytest.mark.parametrize("generator", [-1, 2**64, "a word"])
def test_a_history_with_no_state_of_the_sampler_is_one_line(
    tmp_path: Path, generator: object
) -> None:
    with start(config(), tmp_path) as run:
        step(run, 12)
        run.save()
    state = checkpoint.load(tmp_path / "checkpoint")
    state["history"]["generator"] = generator
    checkpoint.save(state, tmp_path / "checkpoint")
    with pytest.raises(checkpoint.CheckpointError) as caught:
        train(config(), tmp_path, resume=True)
    assert "\n" not in str(caught.value)


def test_exact_resume_is_what_brings_environments_back(
    tmp_path: Path, made_envs: list[tuple[int, int]]
) -> None:
    for exact in (True, False):
        folder = tmp_path / str(exact)
        with start(config(exact_resume=exact), folder) as run:
            step(run, 12)
            run.save()
        assert ("history" in checkpoint.load(folder / "checkpoint")) == exact
        with start(config(exact_resume=exact), folder, resume=True) as resumed:
            resumed.take_up()
            assert resumed.counters.resumes == (0 if exact else 1)
            assert (resumed.collector.step is None) != exact
            assert made_envs[-1] == (2, derived_seed(0, SeedUse.COLLECT, int(not exact)))


def test_settings_under_which_no_run_goes_on_exactly_are_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match=r"exact_resume needs --train.overlap off"):
        train(config(overlap="on"), tmp_path / "run")
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(run_replay, "available_bytes", lambda: 0)
    with pytest.raises(ConfigError, match=r"^replay.capacity_steps 300 needs .* GiB of memory"):
        train(config(replay=DISK), tmp_path / "run")
    train(config(replay=DISK, exact_resume=False, env_steps=80), tmp_path / "run")


def test_a_checkpoint_without_actions_is_refused(tmp_path: Path) -> None:
    start(config(exact_resume=False), tmp_path).__exit__()
    with pytest.raises(ConfigError, match=r"holds no actions.*--train.no-exact-resume$"):
        train(config(), tmp_path, resume=True)


def test_a_log_of_actions_grows_by_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "CHUNK_STEPS", 3)
    for steps in (0, 1, 3, 7):
        log, actions = ActionLog(2, 5), np.random.default_rng(steps).random((steps, 2, 5), "f4")
        for action in actions:
            log.append(action)
        assert len(log) == steps
        np.testing.assert_array_equal(log.array(), actions)
        assert log.array().dtype == np.float32
        np.testing.assert_array_equal(np.array(list(log)).reshape(actions.shape), actions)
