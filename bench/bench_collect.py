"""Collecting: both simulators called by hand, our environments on them, and the collector.

Run with `make bench` or `pytest bench/bench_collect.py`. In a group the contenders take turns, a
few policy steps each, so that all see the same machine; `extra_info` holds simulator steps per
second, and each contender's rate over raw EnvPool's, as the median and the quartiles of the rounds.
By hand means as one would: EnvPool stepped twice through its public interface, rewards added, one
render of all; dm_control's environments one after the other in one process, with kept cameras.
Frames are 64x64 with the light render profile.

`bench_acting` has the quick preset's agent act, and says where a policy step's time goes.
"""

from __future__ import annotations

import functools
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from bench.surroundings import sized
from bench.turns import seconds, take_turns
from mudreamer_fast.agent import Agent
from mudreamer_fast.collect import Collector, random_policy, replay_fields
from mudreamer_fast.config import PRESETS, EnvConfig
from mudreamer_fast.envs import VectorEnv, graphics, make_env
from mudreamer_fast.envs.render_profile import apply_to_model, write_assets
from mudreamer_fast.envs.tasks import find_task
from mudreamer_fast.replay import ReplayBuffer

REPEAT, SIZE = 2, 64
TASKS = ["cartpole_swingup", "cheetah_run", "walker_walk"]
ROUNDS = sized(20, 20, 1)
WARM_STEPS = 3
"""Policy steps before a turn: collecting goes on and on, and is not slow to begin every time."""
ROUND_SECONDS = 0.05
"""What a turn of raw EnvPool should take; the others take as many policy steps."""
ACTING_STEPS = sized(100, 100, 5)

Observation = Literal["vector", "pixels"]
Take = Callable[[int], object]
"""Takes so many policy steps of all environments."""


@dataclass(frozen=True)
class Work:
    """What all contenders of a group have to do."""

    task: str
    observation: Observation
    num_envs: int
    closing: ExitStack
    """Ends what the contenders have started."""


def raw_envpool(work: Work, threads: int) -> Take:
    graphics.prepare("light")
    import envpool

    task, camera = find_task(work.task)
    base_path = envpool.make_spec(task.envpool_id).config.base_path
    with tempfile.TemporaryDirectory() as folder:
        write_assets(Path(base_path), task.domain, "light", Path(folder))
        pool = envpool.make_dm(
            task.envpool_id, num_envs=work.num_envs, num_threads=threads, seed=0, base_path=folder
        )
    pool.reset()
    rng, everyone = np.random.default_rng(0), np.arange(work.num_envs, dtype=np.int32)
    shape = work.num_envs, *pool.action_spec().shape

    def take(steps: int) -> None:
        for _ in range(steps):
            action = rng.uniform(-1, 1, shape)
            _ = pool.step(action).reward + pool.step(action).reward
            if work.observation == "pixels":
                pool._render(everyone, SIZE, SIZE, camera)

    return take


def raw_dm_control(work: Work, threads: int) -> Take:
    graphics.prepare("light")
    from dm_control import suite
    from dm_control.mujoco import engine

    task, camera = find_task(work.task)
    seeds = range(work.num_envs)
    envs = [suite.load(task.domain, task.name, {"random": seed}) for seed in seeds]
    rng = np.random.default_rng(0)
    shape = work.num_envs, *envs[0].action_spec().shape
    cameras: list[Any] = []
    for env in envs:
        apply_to_model(env.physics.model, "light")
        env.reset()

    def turn(steps: int) -> None:
        if work.observation == "pixels" and not cameras:
            cameras.extend(engine.Camera(env.physics, SIZE, SIZE, camera) for env in envs)
        for _ in range(steps):
            for env, action in zip(envs, rng.uniform(-1, 1, shape), strict=True):
                for _ in range(REPEAT):
                    env.step(action)
            for each in cameras:
                each.render()

    def close() -> None:
        for env in envs:
            env.physics.free()

    # a thread of its own: EnvPool changes the context of this one behind dm_control's back
    thread = work.closing.enter_context(ThreadPoolExecutor(1))
    work.closing.callback(lambda: thread.submit(close).result())
    return lambda steps: thread.submit(turn, steps).result()


def started(work: Work, threads: int, backend: str, **options: Any) -> VectorEnv:
    config = EnvConfig(
        work.task, work.observation, REPEAT, render_profile="light",
        simulator_threads=threads or None, backend=backend, **options,  # type: ignore[arg-type]
    )  # fmt: skip
    env = make_env(config, work.num_envs, seed=0)
    work.closing.callback(env.close)
    return env


def environment(work: Work, threads: int, backend: str = "envpool", **options: Any) -> Take:
    env = started(work, threads, backend, **options)
    act = random_policy(env.action_spec, work.num_envs, 0)
    env.reset()

    def take(steps: int) -> None:
        for _ in range(steps):
            env.step(act({}, None, None)[0])  # type: ignore[arg-type]

    return take


def dmc_environment(work: Work, threads: int) -> Take:
    return environment(work, threads, "dm_control")


def collector(work: Work, threads: int) -> Take:
    env = started(work, threads, "envpool")
    fields = replay_fields(env.observation_spec, env.action_spec)
    replay = ReplayBuffer(fields, 20_000, work.num_envs, seed=0)
    return Collector(env, replay, random_policy(env.action_spec, work.num_envs, 0)).collect


CONTENDERS: dict[str, tuple[Callable[..., Take], int]] = {
    "raw EnvPool": (raw_envpool, 0),
    "raw EnvPool, 1 thread": (raw_envpool, 1),
    "EnvPoolEnv": (environment, 0),
    "EnvPoolEnv, 1 thread": (environment, 1),
    "collector": (collector, 0),
    "collector, 1 thread": (collector, 1),
    "raw dm_control": (raw_dm_control, 0),
    "DmcEnv": (dmc_environment, 0),
}
"""How to start each, and EnvPool's threads; 0 leaves them to EnvPool."""


@pytest.mark.parametrize("num_envs", sized([1, 4, 8, 16], [1, 4, 8, 16], [2]))
@pytest.mark.parametrize("observation", ["vector", "pixels"])
@pytest.mark.parametrize("task", sized(TASKS, TASKS, TASKS[:1]))
def bench_collecting(
    benchmark: BenchmarkFixture, task: str, observation: Observation, num_envs: int
) -> None:
    benchmark.group = f"{task}, {observation}, {num_envs} environments"
    with ExitStack() as closing:
        work = Work(f"dmc/{task}", observation, num_envs, closing)
        takes = {name: start(work, threads) for name, (start, threads) in CONTENDERS.items()}
        for take in takes.values():
            take(WARM_STEPS)
        steps = max(1, round(ROUND_SECONDS * 5 / seconds(lambda: takes["raw EnvPool"](5))))
        turns = {name: functools.partial(take, steps) for name, take in takes.items()}
        rate = ("simulator steps/s", steps * num_envs * REPEAT)
        warm = lambda name: takes[name](WARM_STEPS)  # noqa: E731
        take_turns(benchmark, turns, "raw EnvPool", ROUNDS, rate, warm)
        # a simulator that draws takes tens of megabytes, and goes with its contender
        takes.clear()
        turns.clear()
    benchmark.extra_info["renderer"] = graphics.renderer_name()


BACKGROUNDS: dict[str, dict[str, str]] = {
    "no background": {},
    "video": {"background": "video"},
    "video, chroma": {"background": "video", "background_mask": "chroma"},
    "noise": {"background": "noise"},
    "color": {"background": "color"},
}


@pytest.mark.parametrize("num_envs", sized([4, 16], [4, 16], [2]))
@pytest.mark.parametrize("task", sized(TASKS, TASKS, TASKS[:1]))
def bench_backgrounds(benchmark: BenchmarkFixture, task: str, num_envs: int) -> None:
    benchmark.group = f"{task} before backgrounds, {num_envs} environments"
    with ExitStack() as closing:
        work = Work(f"dmc/{task}", "pixels", num_envs, closing)
        takes = {
            name: environment(work, 0, **options)  # type: ignore[arg-type]
            for name, options in BACKGROUNDS.items()
        }
        steps = max(1, round(ROUND_SECONDS * 5 / seconds(lambda: takes["no background"](5))))
        turns = {name: functools.partial(take, steps) for name, take in takes.items()}
        rate = ("simulator steps/s", steps * num_envs * REPEAT)
        take_turns(benchmark, turns, "no background", ROUNDS, rate, lambda name: takes[name](5))
        takes.clear()
        turns.clear()
    benchmark.extra_info["renderer"] = graphics.renderer_name()


@pytest.mark.parametrize("num_envs", sized([4, 8], [4, 8], [2]))
def bench_acting(benchmark: BenchmarkFixture, num_envs: int) -> None:
    benchmark.group = f"quick preset acts in {num_envs} environments"
    config = PRESETS["quick"][1]
    torch.set_num_threads(1)
    env = make_env(config.env, num_envs, seed=0)
    agent = Agent(config, env.observation_spec, env.action_spec, torch.device("cpu"))
    fields = replay_fields(env.observation_spec, env.action_spec)
    replay = ReplayBuffer(fields, config.replay.capacity_steps, num_envs, seed=0)
    spent: Counter[str] = Counter()

    def timed(part: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any) -> Any:
            start = time.perf_counter()
            result = call(*arguments)
            spent[part] += time.perf_counter() - start
            return result

        return run

    pool = env._pool  # type: ignore[attr-defined]
    for part, method in (("simulate", "_send"), ("simulate", "_recv"), ("render", "_render")):
        setattr(pool, method, timed(part, getattr(pool, method)))
    replay.add = timed("replay add", replay.add)  # type: ignore[method-assign]
    act = timed("policy", agent.act)
    collecting = Collector(env, replay, act, agent.initial_state(num_envs))
    collecting.collect(10)
    rows: list[dict[str, float]] = []

    def one_round() -> None:
        spent.clear()
        total = seconds(lambda: collecting.collect(ACTING_STEPS))
        parts = {**spent, "rest": total - spent.total(), "all": total}
        rows.append({name: 1e3 * value / ACTING_STEPS for name, value in parts.items()})

    one_round()
    rows.clear()
    benchmark.pedantic(one_round, rounds=sized(12, 12, 1))
    benchmark.extra_info["milliseconds_per_step"] = {
        name: {
            "median": statistics.median(row[name] for row in rows),
            "min": min(row[name] for row in rows),
            "max": max(row[name] for row in rows),
        }
        for name in rows[0]
    }
    print()
    for name, row in benchmark.extra_info["milliseconds_per_step"].items():
        print(f"  {name:12}{row['median']:8.3f} ms ({row['min']:.3f} to {row['max']:.3f})")
