"""Collecting: policy steps of both simulators with random actions, and of EnvPool left alone.

Run with `make bench` or `pytest bench/bench_collect.py`. A group compares, for one kind of
observation and one number of environments, our environments on EnvPool and on dm_control, the
whole collector with its replay, and EnvPool called by hand: two steps, rewards added, one render.
Frames are 64x64 with the light render profile; `extra_info` holds simulator steps per second.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from mudreamer_fast.collect import Collector, random_policy, replay_fields
from mudreamer_fast.config import EnvConfig
from mudreamer_fast.envs import VectorEnv, graphics, make_env
from mudreamer_fast.envs.render_profile import write_assets
from mudreamer_fast.replay import ReplayBuffer

TASK, DOMAIN, ENVPOOL_ID = "dmc/cartpole_swingup", "cartpole", "CartpoleSwingup-v1"
REPEAT = 2
STEPS = 25
"""Policy steps in a round."""
ROUNDS = 12

Observation = Literal["vector", "pixels"]
Take = Callable[[], object]
"""Takes one policy step of all environments."""


def simulator(backend: Literal["envpool", "dm_control"]) -> Callable[..., Take]:
    def start(observation: Observation, num_envs: int, folder: Path) -> Take:
        env = started(observation, num_envs, backend)
        act = random_policy(env.action_spec, num_envs, 0)
        env.reset()
        return lambda: env.step(act({}, None, None)[0])  # type: ignore[arg-type]

    return start


def started(observation: Observation, num_envs: int, backend: str) -> VectorEnv:
    config = EnvConfig(
        TASK, observation, REPEAT, render_profile="light", backend=backend  # type: ignore[arg-type]
    )  # fmt: skip
    return make_env(config, num_envs, seed=0)


def collector(observation: Observation, num_envs: int, folder: Path) -> Take:
    env = started(observation, num_envs, "envpool")
    fields = replay_fields(env.observation_spec, env.action_spec)
    replay = ReplayBuffer(fields, 20_000, num_envs, seed=0)
    collecting = Collector(env, replay, random_policy(env.action_spec, num_envs, 0))
    return lambda: collecting.collect(1)


def raw_envpool(observation: Observation, num_envs: int, folder: Path) -> Take:
    graphics.prepare("light")
    import envpool

    base_path = envpool.make_spec(ENVPOOL_ID).config.base_path
    write_assets(Path(base_path), DOMAIN, "light", folder)
    pool = envpool.make_dm(ENVPOOL_ID, num_envs=num_envs, seed=0, base_path=str(folder))
    pool.reset()
    rng, everyone = np.random.default_rng(0), np.arange(num_envs, dtype=np.int32)

    def take() -> object:
        action = rng.uniform(-1, 1, (num_envs, 1))
        reward = pool.step(action).reward + pool.step(action).reward
        return reward, pool._render(everyone, 64, 64, 0) if observation == "pixels" else None

    return take


PROVIDERS = {
    "raw-envpool": raw_envpool,
    "envpool": simulator("envpool"),
    "collector": collector,
    "dm_control": simulator("dm_control"),
}


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("num_envs", [1, 4, 8])
@pytest.mark.parametrize("observation", ["vector", "pixels"])
def bench_policy_steps(
    benchmark: BenchmarkFixture,
    observation: Observation,
    num_envs: int,
    provider: str,
    tmp_path: Path,
) -> None:
    benchmark.group = f"{observation}, {num_envs} environments"
    take = PROVIDERS[provider](observation, num_envs, tmp_path)

    def take_steps() -> None:
        for _ in range(STEPS):
            take()

    benchmark.pedantic(take_steps, rounds=ROUNDS, warmup_rounds=1)
    if benchmark.stats:
        simulator_steps = STEPS * num_envs * REPEAT
        benchmark.extra_info["simulator_steps_per_second"] = round(
            simulator_steps / benchmark.stats["median"]
        )
        benchmark.extra_info["renderer"] = graphics.renderer_name()
