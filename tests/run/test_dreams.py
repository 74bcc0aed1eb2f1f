"""Dreams: what a model knows of an episode, and what it expects without looking."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mudreamer_fast.agent import Agent
from mudreamer_fast.cli.main import main
from mudreamer_fast.config import Config, ConfigError
from mudreamer_fast.run import dreams
from mudreamer_fast.run.dreams import Dream, dream, teach_decoder, with_decoder
from mudreamer_fast.run.stored import read_stored
from mudreamer_fast.train import train
from tests import tiny, tiny_run
from tests.twin.maths import draw, mixed
from tests.twin.networks import prior, recur

LENGTH = tiny_run.EPISODE_STEPS + 1
"""Images of an episode."""


@pytest.fixture(autouse=True)
def tiny_envs(monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_run.patch_envs(monkeypatch)
    monkeypatch.setattr(dreams, "make_env", tiny_run.make_env)


def config(seen: str = "pixels", **model: Any) -> Config:
    made = tiny_run.config(seen, env_steps=60, eval_every_env_steps=0)
    return dataclasses.replace(made, model=dataclasses.replace(made.model, **model))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run whose agent has no decoder."""
    train(config(), tmp_path / "run")
    return tmp_path / "run"


def agent(**model: Any) -> Agent:
    made = Agent(config(**model), {"image": tiny.IMAGE}, tiny.CONTINUOUS, torch.device("cpu"))
    for parameter in (*made.world_model.parameters(), *made.behaviour.parameters()):
        torch.nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(1))
    return made


def episode(steps: int = 9, seed: int = 0) -> dict[str, np.ndarray[Any, Any]]:
    batch = tiny.batch({"image": tiny.IMAGE}, tiny.CONTINUOUS, 1, steps, seed)
    return {name: batch[name] for name in ("image", "action", "is_first")}


def test_what_is_foreseen_is_the_priors_as_the_twin_has_it() -> None:
    rssm = agent().world_model.rssm.double()
    weights = {f"rssm.{name}": value.detach() for name, value in rssm.state_dict().items()}
    rng = torch.Generator().manual_seed(0)
    model = dataclasses.asdict(rssm.config)
    h = torch.randn(2, rssm.deter_size, generator=rng, dtype=torch.float64)
    z = torch.eye(model["classes"], dtype=torch.float64)[
        torch.randint(model["classes"], (2, model["groups"]), generator=rng)
    ]
    action = torch.rand(2, 6, 2, generator=rng, dtype=torch.float64) * 2 - 1
    uniforms = torch.rand(2, 6, model["groups"], generator=rng, dtype=torch.float64)
    with torch.no_grad():
        found = rssm.foresee(type(rssm.empty_state(2))(h, z), action, uniforms)
    for t in range(6):
        h = recur(weights, h, z, action[:, t], model)
        z = draw(mixed(prior(weights, h, model), model["unimix"]), uniforms[:, t])
        torch.testing.assert_close(found.deter[:, t], h)
        torch.testing.assert_close(found.stoch[:, t], z)


def test_what_is_imagined_follows_from_what_was_seen_and_the_actions_alone() -> None:
    dreamer, batch = agent(decoder=True), episode()
    observe, imagine = 2, 3  # steps 0, 1, 5 and 6 are seen
    seen = np.isin(np.arange(9) % 5, (0, 1))
    reconstructed, imagined = dreamer.dream(batch, observe, imagine)
    assert reconstructed.shape == imagined.shape == batch["image"].shape
    np.testing.assert_array_equal(reconstructed, dreamer.reconstruct(batch))
    np.testing.assert_array_equal(imagined[:, seen], reconstructed[:, seen])
    assert (imagined[:, 2:5] != reconstructed[:, 2:5]).any()

    hidden = {**batch, "image": batch["image"].copy()}
    hidden["image"][:, 2:5] = 255 - hidden["image"][:, 2:5]
    others, again = dreamer.dream(hidden, observe, imagine)
    assert (others[:, 2:5] != reconstructed[:, 2:5]).any()
    np.testing.assert_array_equal(again[:, :5], imagined[:, :5])

    turned = {**batch, "action": batch["action"].copy()}
    turned["action"][:, 3] *= -1
    _, elsewhere = dreamer.dream(turned, observe, imagine)
    np.testing.assert_array_equal(elsewhere[:, :3], imagined[:, :3])
    assert (elsewhere[:, 3:5] != imagined[:, 3:5]).any()


def test_a_dream_is_of_a_whole_episode_as_the_agent_plays_it() -> None:
    found = dream(agent(decoder=True), observe=2, imagine=2, steps=100)
    assert found.unseen.tolist() == [t % 4 >= 2 for t in range(LENGTH)]
    assert found.real.shape == found.imagined.shape == (LENGTH, 64, 64, 3)
    short = dream(agent(decoder=True), observe=2, imagine=2, steps=3)
    np.testing.assert_array_equal(short.real, found.real[:4])
    np.testing.assert_array_equal(short.imagined, found.imagined[:4])
    other = dream(agent(decoder=True), observe=2, imagine=2, steps=100, seed=5)
    assert (other.real != found.real).any()


def test_frames_are_side_by_side_with_a_line_below_what_was_imagined() -> None:
    parts = [np.full((3, 4, 4, 3), level, np.uint8) for level in (10, 20, 30)]
    unseen = np.array([False, True, True])
    frames = Dream(parts[0], parts[1], parts[2], unseen).frames(scale=2)
    for frame, imagined in zip(frames, unseen, strict=True):
        assert frame.shape == (8 + 3, 3 * 8 + 4, 3)
        assert frame[4, [4, 14, 24], 0].tolist() == [10, 20, 30]
        assert (frame[8:, -8:] == 255 * imagined).all()
        assert (frame[8:, :-8] == 0).all()


def test_errors_are_of_the_steps_that_were_not_seen() -> None:
    real = np.zeros((3, 2, 2, 3), np.uint8)
    real[1], real[2] = 51, 102
    parts = [np.zeros_like(real), np.full_like(real, 51)]
    errors = Dream(real, *parts, np.array([False, True, True])).errors()
    expected = {"reconstructed": (0.04 + 0.16) / 2, "imagined": 0.04 / 2}
    assert errors == pytest.approx({**expected, "the last seen image": (0.04 + 0.16) / 2})


def test_a_decoder_of_its_own_learns_and_changes_nothing_else(run: Path) -> None:
    stored = read_stored(run)
    dreamer = with_decoder(stored, "cpu", "reference")
    before = {name: value.clone() for name, value in dreamer.world_model.state_dict().items()}
    for name, value in stored.agent["world_model"].items():
        assert torch.equal(torch.as_tensor(value), before[name]), name
    said: list[str] = []
    teach_decoder(dreamer, 0.02, said.append)
    after = dreamer.world_model.state_dict()
    changed = {name for name in after if not torch.equal(after[name], before[name])}
    assert changed == {name for name in after if name.startswith("decoder.")}
    for _ in range(3):
        teach_decoder(dreamer, 0.02, said.append)
    assert said[0].startswith("decoder: ")
    first, last = (float(line.split()[-3]) for line in (said[0], said[-1]))
    assert last < first


def test_the_command_films_a_dream(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "dream.gif")
    words = ["dream", str(run), "--observe", "2", "--imagine", "3", "--out", out]
    assert main(words) == 2
    assert "has no decoder to show pictures with: give it one by --train-decoder" in (
        capsys.readouterr().err
    )
    assert main([*words, "--train-decoder", "0.001"]) == 0
    lesson, title, *errors, written = capsys.readouterr().out.splitlines()
    assert lesson.startswith("decoder: ")
    assert title == "squared error of a pixel (0 to 1) over the steps that were not seen"
    named = [line.rsplit(maxsplit=1)[0].strip() for line in errors]
    assert named == ["reconstructed", "imagined", "the last seen image"]
    assert written == out
    assert Path(out).stat().st_size > 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--observe", "0"], "observe must be positive, got 0"),
        (["--imagine", "-1"], "imagine must be positive, got -1"),
        (["--train-decoder", "nan"], "train_decoder must be positive, got nan"),
        (["--seed", "-3"], "seed must not be negative, got -3"),
        (["--out", "dream.avi"], "a video's name must end in .mp4 or .gif"),
    ],
)
def test_what_a_user_gets_wrong_is_one_line(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["dream", str(tmp_path), *words]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1


def test_what_sees_no_images_or_reconstructs_has_no_decoder_of_its_own(tmp_path: Path) -> None:
    train(config("vector"), tmp_path / "vector")
    with pytest.raises(ConfigError, match="an agent that sees vector has no pictures"):
        with_decoder(read_stored(tmp_path / "vector"), "cpu", "reference")
    with pytest.raises(ConfigError, match="the decoder of a model that reconstructs is part of"):
        teach_decoder(agent(reconstruction=True), 1.0, print)
