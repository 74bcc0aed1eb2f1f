"""What linear probes find, where it is known what there is to find."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from bench import probe as tool
from bench.ridge import STRENGTHS, Floats, effective_rank, probe, split, summary
from mudreamer_fast.agent import Agent
from mudreamer_fast.collect import random_policy
from mudreamer_fast.config import Config, ConfigError, EnvConfig
from mudreamer_fast.disk import checkpoint
from mudreamer_fast.envs import VectorStep
from mudreamer_fast.envs.backgrounds import BackgroundEnv
from mudreamer_fast.run.folder import RunFolder, write_config
from tests import tiny, tiny_run
from tests.simulators import needs
from tests.tiny_env import TinyEnv
from tests.tolerances import REORDERED, assert_close

Sample = tuple[Floats, Floats]


def samples(features: int, noise: float = 0.0, map_scale: float = 1.0) -> tuple[Sample, ...]:
    """Three samples of 200 features and of 3 states: a linear map of them, and noise."""
    rng = np.random.default_rng(0)
    linear = map_scale * rng.normal(size=(features, 3))

    def draw() -> Sample:
        x = rng.normal(size=(200, features))
        return x * 5 + 2, x @ linear + 7 + noise * rng.normal(size=(200, 3))

    return draw(), draw(), draw()


def test_probe_reads_all_of_a_state_that_the_features_hold() -> None:
    assert probe(*samples(9)).r2 == pytest.approx(1.0, abs=1e-6)


def test_probe_reads_nothing_from_features_that_hold_nothing() -> None:
    fit = probe(*samples(300, noise=1.0, map_scale=0.0))
    assert fit.r2 == pytest.approx(0.0, abs=0.05)
    assert (fit.strength > 1).all()  # more features than samples: only the ridge prevents a fit


def test_probe_explains_the_share_of_the_variance_that_the_features_cause() -> None:
    rng = np.random.default_rng(1)
    feature = rng.normal(size=(3, 4000, 1))
    state = feature + rng.normal(size=feature.shape)  # half of it is noise
    fit = probe(*((feature[i], state[i]) for i in range(3)))
    assert fit.r2 == pytest.approx(0.5, abs=0.05)


def test_effective_rank_counts_the_directions_that_features_use() -> None:
    square = np.linalg.qr(np.random.default_rng(0).normal(size=(64, 8)))[0]
    apart = square - square.mean(0)  # no longer quite orthogonal
    assert effective_rank(square) == pytest.approx(8.0, abs=0.1)
    assert effective_rank(apart[:, :1] @ np.ones((1, 5)) + 3) == pytest.approx(1.0, abs=1e-6)
    assert effective_rank(np.full((64, 5), 3.0)) == 0.0
    # Singular values 3 and 1: shares of 3/4 and 1/4.
    two = np.array([[3.0, 0.0], [-3.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    assert effective_rank(two) == pytest.approx(np.exp(0.75 * np.log(4 / 3) + 0.25 * np.log(4)))


def test_probe_reads_nothing_from_constant_features() -> None:
    train, validate, test = samples(4)
    constant = tuple((np.full_like(x, 3.0), y) for x, y in (train, validate, test))
    # The mean of one sample is off from that of another by 1 / sqrt(200) of the spread.
    assert probe(*constant).r2 == pytest.approx(0.0, abs=0.05)


def test_probe_takes_no_notice_of_a_feature_that_only_varies_later() -> None:
    train, validate, test = samples(5)
    for x, scale in ((train[0], 0.0), (validate[0], 1e3), (test[0], 1e3)):
        x[:, 2] *= scale
    linear = np.linalg.lstsq(train[0] - train[0].mean(0), train[1] - train[1].mean(0))[0]
    assert linear[2] == pytest.approx(0.0)
    expected = 1 - (((test[0] - train[0].mean(0)) @ linear + train[1].mean(0) - test[1]) ** 2).sum(
        0
    ) / ((test[1] - test[1].mean(0)) ** 2).sum(0)
    assert probe(train, validate, test).r2 == pytest.approx(expected, abs=0.01)


def test_probe_chooses_a_strength_without_a_look_at_what_it_is_measured_on() -> None:
    train, validate, test = samples(300, noise=1.0, map_scale=0.05)
    other = (test[0], np.random.default_rng(2).normal(size=test[1].shape))
    assert (probe(train, validate, test).strength == probe(train, validate, other).strength).all()


def test_probe_leaves_out_a_dimension_that_does_not_vary() -> None:
    train, validate, test = samples(9)
    for _, y in (train, validate, test):
        y[:, 1] = 4.0
    fit = probe(train, validate, test)
    found = summary(fit, ["position[0]", "position[1]", "velocity[0]"])
    assert found["r2"]["position[1]"] is None
    assert found["mean_r2"] == pytest.approx(1.0, abs=1e-6)
    assert found["mean_r2_by_observation"].keys() == {"position", "velocity"}


def test_summary_gives_means_by_observation() -> None:
    fit = probe(*samples(9))._replace(r2=np.array([0.2, 0.4, 0.9]))
    found = summary(fit, ["position[0]", "position[1]", "velocity[0]"])
    assert found["mean_r2"] == pytest.approx(0.5)
    assert found["mean_r2_by_observation"] == pytest.approx({"position": 0.3, "velocity": 0.9})
    assert set(found["ridge"].values()) <= set(STRENGTHS)


def test_split_gives_every_episode_to_one_part() -> None:
    parts = split(12)
    assert sorted(episode for part in parts for episode in part) == list(range(12))
    assert [len(part) for part in parts] == [6, 3, 3]


def test_record_keeps_whole_episodes_and_the_actions_that_led_on() -> None:
    env = TinyEnv(3, "both", episode_length=[4, 2, 3])
    taken = []
    policy = random_policy(env.action_spec, 3, seed=1)

    def watched(*arguments: object) -> tuple[np.ndarray, object]:
        taken.append(policy(*arguments)[0])  # type: ignore[arg-type]
        return taken[-1], None

    recording = tool.record(env, watched, None)
    assert recording.counts.sum(1).tolist() == [5, 3, 4]
    assert recording.is_first[:, 0].all()
    assert not (recording.is_first[:, 1:] & recording.counts[:, 1:]).any()
    for row, steps in enumerate((4, 2, 3)):
        led = recording.action[row, 1 : steps + 1]
        assert (led == np.stack([action[row] for action in taken[:steps]])).all()
    assert (recording.action[recording.is_first] == 0).all()
    assert recording.observation["image"].shape == (3, 5, 3, 64, 64)


def make_run(folder: Path, observation: str, seed: int) -> Path:
    """A run folder with the checkpoint of an agent whose weights are not those it began with."""
    config = tiny_run.config(observation, seed=seed)
    env = TinyEnv(1, observation)  # type: ignore[arg-type]
    agent = Agent(config, env.observation_spec, env.action_spec, torch.device("cpu"))
    torch.manual_seed(seed)
    tiny.randomise(agent.world_model)
    tiny.randomise(agent.behaviour)
    folder.mkdir()
    write_config(config, RunFolder(folder).config)
    checkpoint.save({"agent": agent.state_dict()}, RunFolder(folder).checkpoint)
    return folder


@pytest.fixture
def _tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tool, "make_env", tiny_run.make_env)
    monkeypatch.setattr(tool, "dimension_names", lambda env: [f"light[{i}]" for i in range(3)])


@pytest.mark.usefixtures("_tiny")
def test_tool_writes_what_each_run_knows_of_the_same_frames(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = [make_run(tmp_path / "a", "pixels", 1), make_run(tmp_path / "b", "vector", 2)]
    twin = make_run(tmp_path / "twin of a", "pixels", 1)
    out = tmp_path / "probe.json"
    words = [*map(str, [*runs, twin]), "--out", str(out), "--episodes", "8", "--device", "cpu"]
    monkeypatch.setattr(sys, "argv", ["probe", *words])
    assert tool.main() == 0
    found = json.loads(out.read_text())
    assert found["frames"] == [8 * (tiny_run.EPISODE_STEPS + 1)] * 2
    assert found["command"].endswith("--episodes 8 --device cpu")
    pixels, vector, same, untrained = (
        found["runs"][name]["encoder"] for name in (*map(str, [*runs, twin]), "untrained")
    )
    # Three pictures with three vectors: a linear map tells them apart.
    assert pixels["mean_r2"] == pytest.approx(1.0, abs=0.01)
    assert vector["mean_r2"] == pytest.approx(1.0, abs=0.01)
    assert same == pixels
    assert untrained["feature_std"] != pixels["feature_std"]
    assert vector["feature_std"] != pixels["feature_std"]
    assert found["runs"][str(runs[1])]["run_seed"] == 2


class BlueEnv(TinyEnv):
    """Pictures that are all background."""

    def step(self, action: np.ndarray) -> VectorStep:
        return self._blue(super().step(action))

    def reset(self) -> VectorStep:
        return self._blue(super().reset())

    def _blue(self, step: VectorStep) -> VectorStep:
        step.observation["image"][:] = np.array([0, 0, 255], np.uint8)[:, None, None]
        return step


def test_blocks_are_mean_colours_from_the_upper_left() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (2, 3, 64, 64), dtype=np.uint8)
    found = tool.blocks(frames).reshape(2, 3, 4, 4)
    assert found[1, 2, 0, 3] == pytest.approx(frames[1, 2, :16, 48:].mean())
    assert found[0, 1, 2, 1] == pytest.approx(frames[0, 1, 32:48, 16:32].mean())


def test_what_is_behind_the_robot_is_read_beside_the_state() -> None:
    env = BackgroundEnv(BlueEnv(64, "both", episode_length=4), EnvConfig(background="color"), 0)
    config = tiny.config(model={"conv": 8})  # a norm of two channels leaves nothing of a colour
    shown = {"image": env.observation_spec["image"]}
    agent = Agent(config, shown, env.action_spec, torch.device("cpu"))
    recordings = [tool.record(env, random_policy(env.action_spec, 64, seed=1), None)]
    features = tool.measure(agent, recordings, [f"light[{i}]" for i in range(3)], 0)["encoder"]
    assert features["background"]["mean_r2"] > 0.5  # a colour is all that is in the images
    assert features["mean_r2"] < 0.1
    assert len(features["background"]["r2"]) == 48


def test_backgrounds_are_probed_with_videos_that_training_shows_none_of() -> None:
    env = EnvConfig(background="video")
    probed = tool.one_task({Path("run"): Config(env=env)})
    assert (probed.background_set, probed.background_start) == ("evaluation", "random")
    other = Config(env=replace(env, background_grey=True))
    with pytest.raises(ConfigError, match="background_grey is False in run, but True in grey"):
        tool.one_task({Path("run"): Config(env=env), Path("grey"): other})


def test_loaded_agent_sees_and_acts_with_the_weights_of_its_run(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", "vector", 3)
    env, device = TinyEnv(1, "both"), torch.device("cpu")
    agent = tool.loaded(run, tiny_run.config("vector", seed=3), env, device)
    saved = checkpoint.load(RunFolder(run).checkpoint)["agent"]
    for part in ("world_model", "behaviour"):
        mine = agent.state_dict()[part]
        assert all(torch.equal(x, mine[name]) for name, x in saved[part].items())


def test_features_of_an_episode_are_those_of_acting_whatever_else_is_probed() -> None:
    env = TinyEnv(3, "both")
    config = tiny.config(model={"batch_norm": "both"})
    agent = Agent(config, env.observation_spec, env.action_spec, torch.device("cpu"))
    tiny.randomise(agent.world_model)
    before = {name: x.clone() for name, x in agent.world_model.state_dict().items()}
    recording = tool.record(env, random_policy(env.action_spec, 3, seed=1), None)
    shown = {name: array[:1] for name, array in recording.observation.items()}
    alone = tool.Recording(shown, *(array[:1] for array in recording[1:4]))
    agent.world_model.train()
    together = tool.what_it_makes_of(agent, recording, seed=0)["encoder"]
    assert_close(
        torch.from_numpy(tool.what_it_makes_of(agent, alone, seed=0)["encoder"]),
        torch.from_numpy(together[:1]),
        REORDERED,
    )
    after = agent.world_model.state_dict()
    assert all(torch.equal(x, after[name]) for name, x in before.items())


@pytest.mark.usefixtures("_tiny")
def test_tool_refuses_runs_of_unlike_tasks(tmp_path: Path) -> None:
    runs = tuple(make_run(tmp_path / name, "vector", 0) for name in "ab")
    config = tiny_run.config("vector", env={"action_repeat": 7})
    write_config(config, RunFolder(runs[1]).config)
    with pytest.raises(ConfigError, match=r"env\.action_repeat is 2 .* but 7"):
        tool.compare(tool.Options(runs, tmp_path / "out.json"))


@pytest.mark.parametrize("episodes", [0, 6])
def test_tool_refuses_episodes_that_cannot_be_split(episodes: int, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"multiple of 4, got {episodes}"):
        tool.Options((tmp_path,), tmp_path, episodes=episodes)


@needs("dm_control")
def test_dimension_names_are_the_simulators() -> None:
    names = tool.dimension_names(tiny_run.config(env={"task": "dmc/cartpole_swingup"}).env)
    assert names == [f"position[{i}]" for i in range(3)] + [f"velocity[{i}]" for i in range(2)]
