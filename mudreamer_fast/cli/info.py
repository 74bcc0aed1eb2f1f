"""What there is to run, and how long it takes here: a preset's parts timed for real."""

from __future__ import annotations

import importlib.metadata
import math
import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from mudreamer_fast.agent import Agent
from mudreamer_fast.cli.predict import Prediction, predict
from mudreamer_fast.collect import Collector, random_policy, replay_fields
from mudreamer_fast.config import PRESETS, Config
from mudreamer_fast.envs import EnvError, make_env, task_names, without_layers
from mudreamer_fast.envs.graphics import renderer_name
from mudreamer_fast.envs.tasks import EPISODE_SIMULATOR_STEPS, GAMES_OF_ATARI_100K
from mudreamer_fast.machine.device import (
    busy_with_others,
    overlaps,
    resolve_device,
    settle_arithmetic,
    threads_beside_acting,
)
from mudreamer_fast.machine.memory import GIB, available_bytes, replay_bytes
from mudreamer_fast.replay import ReplayBuffer
from mudreamer_fast.run.reporter import span_text

PACKAGES = ("torch", "numpy", "mujoco", "envpool", "dm_control", "gymnasium", "triton")
TIMED_STEPS = 30
"""Steps of all environments that the collector is timed for."""
MOST_UPDATES = 20
"""Updates that are timed at most."""
COLLECTING_SHARE = 0.4
"""Share of the time that may go into steps of the environments."""


@dataclass(frozen=True)
class Timing:
    """Median seconds of the parts of a run."""

    random_step: float
    """One step of all environments, acting at random."""
    agent_step: float
    """The same with the agent acting."""
    update: float
    """One update."""
    steps_timed: int
    """Steps with the agent acting that were timed."""
    updates_timed: int
    """Updates that were timed."""
    predicted: Prediction
    """What an update should have taken, from before any was made."""


def describe(preset: str, config: Config) -> str:
    """Versions, device, renderer, presets and tasks as text."""
    device = resolve_device(config.train.device)
    threads = threads_beside_acting(config.train.threads, config.train.overlap, device)
    place = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    try:
        renderer = renderer_name()
    except EnvError as error:
        renderer = f"none: {error}"
    longest = max(map(len, PRESETS))
    lines = [
        f"mudreamer_fast {_version('mudreamer-fast')}, Python {platform.python_version()}, "
        + ", ".join(f"{name} {_version(name)}" for name in PACKAGES),
        f"device     {device} ({place}), {os.cpu_count()} cores, "
        f"{threads or torch.get_num_threads()} PyTorch threads",
        f"renderer   {renderer}",
        "presets",
        *(
            f"  {'*' if name == preset else ' '} {name:{longest}} {text}"
            for name, (text, _) in PRESETS.items()
        ),
        "tasks",
    ]
    names = list(task_names())
    width = max(map(len, names)) + 2
    columns = 3
    for start in range(0, len(names), columns):
        lines.append("    " + "".join(n.ljust(width) for n in names[start : start + columns]))
    lines += [
        f"    atari/NAME                       {', '.join(GAMES_OF_ATARI_100K[:3])} and others",
        "    crafter/reward                   an open world of 22 achievements; crafter/noreward",
        "    gym:ID                           an environment that Gymnasium knows",
        "    gym:MODULE:ID                    one that a module registers when it is imported",
        "    gym:MODULE:FUNCTION              one that a function makes",
        "    dmc:MODULE:FUNCTION              one of dm_control that a function makes",
    ]
    return "\n".join(line.rstrip() for line in lines)


def estimate(preset: str, config: Config, seconds: float) -> str:
    """Times a preset's parts and says how long the whole would take.

    Args:
        preset: its name.
        config: all settings.
        seconds: time to measure for; one update is finished whatever it takes.
    """
    busy = busy_with_others(resolve_device(config.train.device))
    timing, parts = _measure(config, seconds)
    env, train = config.env, config.train
    spans = _spans(config, timing)
    policy_steps, updates = spans.policy_steps, spans.updates
    expected = timing.predicted
    lines = [
        f"prediction an update takes {expected.seconds * 1e3:.1f} ms and all of them "
        f"{span_text(updates * expected.seconds)}: {expected}",
        f"measured   {preset}: {env.task}, {parts}",
        f"  update             {timing.update * 1e3:8.1f} ms  (median of {timing.updates_timed})",
        f"  policy step, agent {timing.agent_step / env.num_envs * 1e3:8.1f} ms  "
        f"(median of {timing.steps_timed}, {env.num_envs} environments side by side)",
        f"estimate   {train.env_steps:,} environment steps = {policy_steps:,.0f} policy steps, "
        f"{updates:,.0f} updates: {span_text(spans.total)}",
        f"  learning {span_text(spans.learning)}{' (acting meanwhile)' if spans.overlap else ''}, "
        f"prefill {span_text(spans.prefill)}, "
        f"{spans.evaluations} evaluations and the random policy's {span_text(spans.evaluating)}",
    ]
    if busy:
        lines.append(f"  this machine was busy ({busy}): alone the run will take less")
    if train.max_minutes is not None and spans.total > 60 * train.max_minutes:
        left = max(0.0, 60 * train.max_minutes - spans.prefill - spans.evaluating)
        share = left / max(spans.learning, 1e-9)
        prefill = min(train.prefill_steps, policy_steps)
        steps = (prefill + share * (policy_steps - prefill)) * env.action_repeat
        lines.append(
            f"  train.max-minutes {train.max_minutes:g} stops it before, "
            f"at about {steps:,.0f} environment steps"
        )
    return "\n".join(lines)


def run_seconds(config: Config, seconds: float) -> float:
    """How long a run would take here, its limit of minutes included.

    Args:
        config: all settings.
        seconds: time to measure for.
    """
    total = _spans(config, _measure(config, seconds)[0]).total
    limit = config.train.max_minutes
    return total if limit is None else min(total, 60 * limit)


@dataclass(frozen=True)
class _Spans:
    """What a run consists of; seconds where nothing else is said."""

    policy_steps: float
    updates: float
    evaluations: int
    overlap: bool
    prefill: float
    learning: float
    evaluating: float
    """All evaluations and the random policy's."""

    @property
    def total(self) -> float:
        """Of the whole run."""
        return self.prefill + self.learning + self.evaluating


def _spans(config: Config, timing: Timing) -> _Spans:
    env, train = config.env, config.train
    policy_steps = train.env_steps / env.action_repeat
    prefill = min(train.prefill_steps, policy_steps)
    updates = (policy_steps - prefill) * config.updates_per_policy_step
    acting = (policy_steps - prefill) / env.num_envs * timing.agent_step
    updating = updates * timing.update
    overlap = overlaps(train.overlap, resolve_device(train.device))
    rounds = math.ceil(train.eval_episodes / env.num_envs)
    episode_steps = EPISODE_SIMULATOR_STEPS / env.action_repeat
    every = train.eval_every_env_steps
    evaluations = 1 + (math.ceil(train.env_steps / every) - 1 if every else 0)
    played = timing.agent_step * evaluations + timing.random_step
    return _Spans(
        policy_steps,
        updates,
        evaluations,
        overlap,
        prefill / env.num_envs * timing.random_step,
        max(acting, updating) if overlap else acting + updating,
        rounds * episode_steps * played,
    )


def _measure(config: Config, seconds: float) -> tuple[Timing, str]:
    """Runs the collector and the learner for a while; gives medians and what was run."""
    deadline = time.monotonic() + seconds
    collecting = seconds * COLLECTING_SHARE / 2
    device = resolve_device(config.train.device)
    threads = threads_beside_acting(config.train.threads, config.train.overlap, device)
    settle_arithmetic(threads, config.train.precision)
    env = make_env(config.env, config.env.num_envs, config.train.seed)
    try:
        length = config.replay.batch_length
        fields = replay_fields(env.observation_spec, env.action_spec)
        replay = ReplayBuffer(
            fields, 2 * length * env.num_envs, env.num_envs, 0, config.replay.gather_threads
        )
        agent = Agent(config, env.observation_spec, env.action_spec, device)
        begun = time.monotonic()
        predicted = predict(agent)
        deadline += time.monotonic() - begun
        collector = Collector(env, replay, random_policy(env.action_spec, env.num_envs, 0))
        random_step, _ = _time(
            lambda: collector.collect(1), TIMED_STEPS + length, collecting, at_least=length
        )
        state = agent.initial_state(env.num_envs)
        acting = Collector(env, replay, agent.act, state)
        agent_step, steps = _time(lambda: acting.collect(1), TIMED_STEPS, collecting)
        batch = replay.sample(config.replay.batch_size, length)
        rows = config.replay.batch_size
        learn = lambda: agent.update(replay.sample(rows, length, batch)).read()  # noqa: E731
        update, updates = _time(learn, MOST_UPDATES, deadline - time.monotonic())
    finally:
        env.close()
    sizes = f"batch {config.replay.batch_size} x {length}"
    parameters = sum(agent.parameter_counts().values())
    full = replay_bytes(fields, config.replay.capacity_steps) / GIB
    available = available_bytes()
    room = "" if available is None else f" of {available / GIB:.1f} available"
    parts = (
        f"{type(without_layers(env)).__name__}, {parameters / 1e6:.2f} M parameters, {sizes}, "
        f"{agent.operations}{' in CUDA graphs' if agent.graphed else ''}, "
        f"replay {full:.2f} GiB{room}"
    )
    return Timing(random_step, agent_step, update, steps, updates, predicted), parts


def _time(
    act: Callable[[], object], most: int, seconds: float, at_least: int = 1
) -> tuple[float, int]:
    """Median seconds of a call, the first left out where there are more; and how many."""
    deadline = time.monotonic() + seconds
    taken: list[float] = []
    while len(taken) < at_least or (len(taken) < most and time.monotonic() < deadline):
        begun = time.perf_counter()
        act()
        taken.append(time.perf_counter() - begun)
    counted = taken[1:] or taken
    return statistics.median(counted), len(counted)


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "(none)"
