from __future__ import annotations

import re

import pytest

from mudreamer_fast.cli.check_env import check_env
from mudreamer_fast.cli.main import main
from mudreamer_fast.config import EnvConfig

TOY = "gym:tests.envs.gym_toy:Toy"


def test_check_env_says_what_the_agent_will_see(capsys: pytest.CaptureFixture[str]) -> None:
    words = [TOY, "--env.observation", "both", "--env.action-repeat", "2", "--steps", "17"]
    assert main(["check-env", *words, "--seed", "1"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    # episodes of 3, 5, 2, 3, 5 and 2 simulator steps: 12 policy steps, and 5 that reset
    assert out.splitlines()[0] == f"{TOY}: GymEnv, 1 side by side"
    assert "actions      2 numbers in [-1, 1]" in out
    assert re.search(r"image +3 x 64 x 64 uint8, 0 to 101$", out, re.MULTILINE)
    assert re.search(r"vector +5 float32, -1\.\d+ to 9\.\d+$", out, re.MULTILINE)
    assert "rewards      103 to 303 a policy step, other than 0 in 12 of 12" in out
    assert (
        "6 ended after 1 to 3 policy steps of 2 simulator steps: 3 for good (is_terminal), "
        "3 as their time was up"
    ) in out
    assert re.search(r"speed +[\d,]+ policy steps a second", out)


def test_check_env_tells_what_never_ends_or_changes_and_what_is_not_seen() -> None:
    config = EnvConfig("gym:tests.cli.test_check_env:still", "vector", num_envs=1)
    text = "\n".join(check_env(config, 5, 0))
    assert "actions      one of 2 choices" in text
    assert "vector       1 float32, 0.5 to 0.5; never changed" in text
    assert "not seen     its observation word (Text)" in text
    assert "rewards      0 to 0 a policy step, other than 0 in 0 of 5" in text
    assert "none ended within 5 policy steps of 2 simulator steps" in text


def test_check_env_says_what_is_wrong_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--env.observation", "vector", "--seed", "1"]
    assert main(["check-env", "gym:tests.envs.gym_toy:Fragile", *options]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == (
        "error: environment 0 of gym:tests.envs.gym_toy:Fragile failed: "
        "step raised RuntimeError: the motor is hot"
    )


def still() -> object:
    """An environment in which nothing happens."""
    import gymnasium
    import numpy as np
    from gymnasium import spaces

    class Nothing(gymnasium.Env):
        observation_space = spaces.Dict(
            number=spaces.Box(0, 1, (1,), np.float32), word=spaces.Text(3)
        )
        action_space = spaces.Discrete(2)
        seen = {"number": np.array([0.5], np.float32), "word": "abc"}  # noqa: RUF012

        def reset(self, **options: object) -> object:
            return self.seen, {}

        def step(self, action: object) -> object:
            return self.seen, 0, False, False, {}

    return Nothing()
