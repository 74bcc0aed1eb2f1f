"""How much of the simulator's state a linear map can read from what an encoder makes of an image.

`python -m bench.probe RUN... --out FILE` plays episodes with the random policy and with the first
run's agent, and shows the same frames to the newest checkpoint of every run. A ridge regression
from features to the state vector is fitted for each dimension on half of the episodes; its
strength is chosen on a quarter, and R^2 measured on the last quarter. Features are the encoder's
(x, of one image: velocities are not in it), the latents' (z alone) and the model state's (h and z,
after all images so far), as they are when the agent acts. Where something moves behind the robot, a
second regression reads that: the mean colours of 4 x 4 blocks of what is there, of the videos that
are kept for evaluation, each episode from another frame on. Beside the fits stand the features'
spread and effective rank, which show a collapse. A fresh agent with the first run's configuration,
which has learned nothing, is measured beside the runs.

Only the weights of a run are read: its code may have been another, as long as they still fit.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import tyro
from torch import Tensor

import mudreamer_fast
from bench.commit import commit
from bench.ridge import Floats, effective_rank, probe, split, summary
from mudreamer_fast.agent import Agent
from mudreamer_fast.collect import random_policy
from mudreamer_fast.config import Config, ConfigError, EnvConfig
from mudreamer_fast.disk import checkpoint
from mudreamer_fast.envs import Policy, VectorEnv, make_env
from mudreamer_fast.envs.backgrounds import BackgroundEnv
from mudreamer_fast.envs.graphics import try_to_load_egl
from mudreamer_fast.envs.tasks import find_task
from mudreamer_fast.envs.vector_env import Frames
from mudreamer_fast.machine.device import resolve_device, settle_arithmetic
from mudreamer_fast.run.folder import RunFolder, read_config, write_json

FRAMES_AT_ONCE = 256
KINDS = ("encoder", "latents", "model_state")
"""Features that are measured."""
BLOCKS = 4
"""Blocks of a background, along each side."""
ALIKE = (
    *("task", "action_repeat", "camera", "render_profile"),
    *("background", "background_videos", "background_mask", "background_advance"),
    *("background_grey", "color_shift", "camera_shift", "moving_shifts"),
)
"""Settings of `env` that runs share, to be shown the same frames."""


@dataclass(frozen=True)
class Options:
    """Probe what encoders know of the simulator's state."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Run folders with a checkpoint, all of one task."""
    out: Path
    """JSON to write."""
    episodes: int = 16
    """Episodes of the random policy, and as many of the first run's agent; a multiple of 4."""
    seed: int = 0
    """Of environments, actions and latents."""
    device: str = "auto"
    """As train.device."""

    def __post_init__(self) -> None:
        if not self.runs:
            raise ConfigError("name at least one run")
        if self.episodes < 4 or self.episodes % 4:
            raise ConfigError(f"episodes must be a multiple of 4, got {self.episodes}")


class Recording(NamedTuple):
    """E episodes of T steps, shorter ones followed by others that do not count."""

    observation: dict[str, npt.NDArray[Any]]
    """(E, T, *shape) by name; "vector" is the simulator's state."""
    action: npt.NDArray[np.float32]
    """(E, T, A), the action that led to each step."""
    is_first: npt.NDArray[np.bool_]
    """(E, T)."""
    counts: npt.NDArray[np.bool_]
    """(E, T), whether a step is of the row's first episode."""
    background: Floats | None = None
    """(E, T, 3 BLOCKS^2), mean colours of the blocks of what is behind the robot, if anything."""


def record(env: VectorEnv, policy: Policy, state: Any) -> Recording:
    """Play an episode in each environment and keep all of it."""
    step, rows = env.reset(), []
    action = np.zeros((env.num_envs, env.action_spec.size), np.float32)
    counts = ended = np.zeros(env.num_envs, bool)
    while True:
        counts, ended = ~ended, ended | step.is_last
        led = np.where(step.is_first[:, None], np.float32(0), action)
        row = {**step.observation, "action": led, "first": step.is_first, "counts": counts}
        if isinstance(env, BackgroundEnv):
            row["background"] = blocks(env.backgrounds)
        rows.append(row)
        if ended.all():
            break
        action, state = policy(step.observation, step.is_first, state)
        step = env.step(action)
    stacked = {name: np.stack([row[name] for row in rows], 1) for name in rows[0]}
    led, first, counted = (stacked.pop(name) for name in ("action", "first", "counts"))
    return Recording(stacked, led, first, counted, stacked.pop("background", None))


def blocks(frames: Frames) -> Floats:
    """Mean colours (N, 3 BLOCKS^2) of frames (N, 3, size, size)."""
    side = frames.shape[-1] // BLOCKS
    cut = frames.reshape(len(frames), 3, BLOCKS, side, BLOCKS, side)
    return cut.mean((3, 5), dtype=np.float64).reshape(len(frames), -1)


@torch.no_grad()
def what_it_makes_of(agent: Agent, recording: Recording, seed: int) -> dict[str, Floats]:
    """The features (E, T, F) of a recording, by name."""
    model, device = agent.world_model.eval(), agent.device
    parts: list[Tensor] = []
    observation = {name: recording.observation[name] for name in agent.observations}
    flat = {name: array.reshape(-1, *array.shape[2:]) for name, array in observation.items()}
    for begin in range(0, recording.is_first.size, FRAMES_AT_ONCE):
        some = {name: array[begin : begin + FRAMES_AT_ONCE] for name, array in flat.items()}
        parts.append(model.encoder({n: torch.from_numpy(a).to(device) for n, a in some.items()}))
    embed = torch.cat(parts).view(*recording.is_first.shape, -1)
    generator = torch.Generator(device).manual_seed(seed)
    groups = agent.config.model.groups
    seen = model.rssm.observe(
        embed,
        torch.from_numpy(recording.action).to(device),
        torch.from_numpy(recording.is_first).to(device),
        torch.rand(*recording.is_first.shape, groups, generator=generator, device=device),
    )
    features = {
        "encoder": embed,
        "latents": seen.state.stoch.flatten(-2),
        "model_state": seen.state.feature,
    }
    return {kind: tensor.cpu().double().numpy() for kind, tensor in features.items()}


def rows_of(
    arrays: Sequence[npt.NDArray[Any]], recordings: Sequence[Recording], part: int
) -> Floats:
    """The steps (n, ...) of one part of the split, of arrays (E, T, ...) beside recordings."""
    chosen = []
    for array, recording in zip(arrays, recordings, strict=True):
        episodes = split(len(array))[part]
        chosen.append(array[episodes][recording.counts[episodes]])
    return np.concatenate(chosen).astype(np.float64)


def measure(
    agent: Agent, recordings: Sequence[Recording], dimensions: Sequence[str], seed: int
) -> dict[str, Any]:
    """What can be read from each kind of an agent's features, as JSON."""
    read = {"": ([recording.observation["vector"] for recording in recordings], dimensions)}
    behind = [r.background for r in recordings if r.background is not None]
    if behind:
        names = [f"background[{i}]" for i in range(behind[0].shape[-1])]
        read["background"] = behind, names
    made = [what_it_makes_of(agent, recording, seed) for recording in recordings]
    fits = {}
    for kind in made[0]:
        x = [rows_of([one[kind] for one in made], recordings, part) for part in range(3)]
        found: dict[str, Any] = {
            "feature_std": float(x[2].std(0).mean()),
            "effective_rank": effective_rank(x[2]),
        }
        for name, (targets, named) in read.items():
            y = [rows_of(targets, recordings, part) for part in range(3)]
            fit = summary(probe(*zip(x, y, strict=True)), named)
            found |= {name: fit} if name else fit
        fits[kind] = found
    return fits


def dimension_names(env: EnvConfig) -> list[str]:
    """Names of the state vector's dimensions, such as position[0], from dm_control."""
    try_to_load_egl()  # else dm_control looks for a display
    from dm_control import suite

    task = find_task(env.task, env.camera)[0]
    shown = suite.load(task.domain, task.name).observation_spec()
    return [
        f"{key}[{i}]"
        for key in task.observation_keys
        for i in range(int(np.prod(shown[key].shape)))
    ]


def loaded(run: Path, config: Config, env: VectorEnv, device: torch.device) -> Agent:
    """The agent of a run's newest checkpoint: its weights alone, for it will learn no more."""
    agent = fresh(config, env, device)
    saved = checkpoint.load(RunFolder(run).checkpoint, ("agent",))["agent"]
    agent.world_model.load_state_dict(saved["world_model"])
    agent.behaviour.load_state_dict(saved["behaviour"])
    agent.updates = saved["updates"]
    return agent


def fresh(config: Config, env: VectorEnv, device: torch.device) -> Agent:
    """An agent that sees what it was made to see, though the environment shows images and state."""
    seen = {"pixels": ("image",), "vector": ("vector",), "both": ("image", "vector")}
    shown = {name: env.observation_spec[name] for name in seen[config.env.observation]}
    return Agent(config, shown, env.action_spec, device)


def one_task(configs: Mapping[Path, Config]) -> EnvConfig:
    """The environment of all runs, with images and state side by side.

    Raises:
        ConfigError: they differ in what is simulated or how it is drawn.
    """
    first, *others = configs
    env = configs[first].env
    for other in others:
        for name in ALIKE:
            mine, its = getattr(env, name), getattr(configs[other].env, name)
            if mine != its:
                raise ConfigError(f"env.{name} is {mine} in {first}, but {its} in {other}")
    return replace(env, observation="both", background_set="evaluation", background_start="random")


def compare(options: Options) -> dict[str, Any]:
    """Measure all runs on the same frames; gives what is written."""
    configs = {run: read_config(RunFolder(run).config) for run in options.runs}
    env_config, device = one_task(configs), resolve_device(options.device)
    first, seed = configs[options.runs[0]], options.seed
    settle_arithmetic(first.train.threads, first.train.precision)
    env = make_env(env_config, options.episodes, seed)
    try:
        agents = {str(run): loaded(run, configs[run], env, device) for run in options.runs}
        player = agents[str(options.runs[0])]
        at_random = random_policy(env.action_spec, env.num_envs, seed)
        recordings = [
            record(env, at_random, None),
            record(env, player.act, player.initial_state(env.num_envs, seed)),
        ]
        untrained = fresh(first, env, device)
    finally:
        env.close()
    names = dimension_names(env_config)
    return {
        **surroundings(device),
        "task": env_config.task,
        "seed": seed,
        "episodes": {"random": options.episodes, str(options.runs[0]): options.episodes},
        "frames": [int(recording.counts.sum()) for recording in recordings],
        "runs": {
            name: {
                "run_seed": agent.config.train.seed,
                "updates": agent.updates,
                **measure(agent, recordings, names, seed),
            }
            for name, agent in {**agents, "untrained": untrained}.items()
        },
    }


def surroundings(device: torch.device) -> dict[str, str]:
    """Command, versions, device and commit."""
    return {
        "command": shlex.join(["python", "-m", "bench.probe", *sys.argv[1:]]),
        "mudreamer_fast": mudreamer_fast.__version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "device": str(device),
        "commit": commit(),
    }


def main() -> int:
    """Measures the runs named on the command line, prints a table and writes the file."""
    options = tyro.cli(Options, prog="python -m bench.probe", description=__doc__)
    try:
        results = compare(options)
    except (ConfigError, checkpoint.CheckpointError) as error:
        print(error, file=sys.stderr)
        return 2
    write_json(options.out, results)
    for run, result in results["runs"].items():
        for kind in KINDS:
            means = result[kind]["mean_r2_by_observation"].items()
            seen = result[kind].get("background")
            print(
                f"{run} {kind}: R^2 {result[kind]['mean_r2']:.3f} ("
                + ", ".join(f"{name} {value:.3f}" for name, value in means)
                + ")"
                + (f", background {seen['mean_r2']:.3f}" if seen else "")
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
