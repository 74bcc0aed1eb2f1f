"""One episode on EnvPool and the same one on dm_control, and a picture of both.

`python -m tests.envs.parity docs/results/parity/contact_sheet.png` draws the picture.
"""

from __future__ import annotations

import argparse
from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mudreamer_fast.config import EnvConfig
from mudreamer_fast.envs.dmc_simulator import DmcSimulator
from mudreamer_fast.envs.envpool_env import EnvPoolEnv
from mudreamer_fast.envs.tasks import PAPERS_TASKS

EPISODE_STEPS = 500
"""Policy steps of an episode, with an action repeat of 2."""
HOLD_STEPS = 20
"""Policy steps that an action is held: long enough to swing something up, or throw it."""
SEEDS = {
    "dmc/ball_in_cup_catch": 12,
    "dmc/hopper_hop": 29,
    "dmc/hopper_stand": 29,
    "dmc/pendulum_swingup": 27,
}
"""Seeds of episodes with rewards other than 0, where those of `USUAL_SEED` are not."""
USUAL_SEED = 14


class EnvPoolRandom(np.random.RandomState):
    """Draws what environment 0 of EnvPool draws from the same seed, to the last bit.

    EnvPool's tasks are dm_control's, translated: they ask for the same numbers in the same order,
    but of a std::mt19937 under libstdc++'s distributions. RandomState is the same generator, and
    dm_control takes one in place of a seed.
    """

    def uniform(self, low: Any = 0.0, high: Any = 1.0, size: Any = None) -> Any:
        """As std::uniform_real_distribution: 64 bits, low word first, for each number."""
        shape = np.broadcast(low, high).shape if size is None else size
        count = np.prod(shape, dtype=int)
        draws = [int.from_bytes(self.bytes(8), "little") / 2**64 for _ in range(count)]
        return low + np.reshape(draws, shape) * (np.asarray(high) - low)

    def randn(self, *shape: int) -> Any:
        """As a fresh std::normal_distribution for each number: Marsaglia's polar method."""
        count = np.prod(shape, dtype=int)
        return np.reshape([self._normal() for _ in range(count)], shape)

    def _normal(self) -> float:
        while True:
            x, y = self.uniform(size=2) * 2 - 1
            square = x * x + y * y
            if 0 < square <= 1:
                return float(y * np.sqrt(-2 * np.log(square) / square))


class Shown(NamedTuple):
    """What a policy step of one environment came to."""

    vector: np.ndarray
    """(V,)."""
    reward: float
    """Summed over the action repeat."""
    is_first: bool
    is_last: bool
    is_terminal: bool
    image: np.ndarray | None
    """(size, size, 3), where one was asked for."""


def play_both(
    task: str,
    steps: int,
    profile: str,
    frame_steps: Collection[int],
    size: int = 64,
    **options: Any,
) -> tuple[list[Shown], list[Shown]]:
    """The same random episode on EnvPool and on dm_control.

    Args:
        task: such as dmc/walker_walk.
        steps: policy steps; the one after an episode's last is the next one's reset.
        profile: render profile.
        frame_steps: the steps to have images of; 0 is the reset.
        size: of the images.
        options: other settings of the environment.

    Returns:
        The reset and the steps on EnvPool, and those on dm_control.
    """
    seed = SEEDS.get(task, USUAL_SEED)
    config = EnvConfig(
        task, "vector", action_repeat=2, render_profile=profile, **options  # type: ignore[arg-type]
    )  # fmt: skip
    # EnvPool first: after its last picture dm_control takes its context in this thread for current
    left = play_envpool(config, seed, steps, frame_steps, size)
    return left, play_dm_control(config, seed, steps, frame_steps, size)


def actions_of(seed: int, steps: int, action_size: int) -> np.ndarray:
    """(steps, A) float32, random and held."""
    drawn = np.random.default_rng(seed).uniform(-1, 1, (steps, action_size))
    return drawn.astype(np.float32)[np.arange(steps) // HOLD_STEPS * HOLD_STEPS]


def play_envpool(
    config: EnvConfig, seed: int, steps: int, frame_steps: Collection[int], size: int
) -> list[Shown]:
    """EnvPool's half of `play_both`."""
    env = EnvPoolEnv(config, 1, seed)
    actions = actions_of(seed, steps, env.action_spec.size)
    played = []
    for number in range(steps + 1):
        step = env.step(actions[None, number - 1]) if number else env.reset()
        flags = bool(step.is_first[0]), bool(step.is_last[0]), bool(step.is_terminal[0])
        image = env.render(size)[0] if number in frame_steps else None
        played.append(Shown(step.observation["vector"][0], float(step.reward[0]), *flags, image))
    env.close()
    return played


def play_dm_control(
    config: EnvConfig, seed: int, steps: int, frame_steps: Collection[int], size: int
) -> list[Shown]:
    """dm_control's half of `play_both`."""
    simulator = DmcSimulator(config, EnvPoolRandom(seed))
    actions = actions_of(seed, steps, simulator.action_size)
    played = []
    for number in range(steps + 1):
        if number in (0, EPISODE_STEPS + 1):
            simulator.reset()
            reward, flags = 0.0, (True, False, False)
        else:
            step = simulator.step(actions[number - 1])
            reward, flags = step.reward, (False, bool(step.is_last), bool(step.is_terminal))
        image = np.array(simulator.image((size, size))) if number in frame_steps else None
        played.append(Shown(simulator.vector(), reward, *flags, image))
    simulator.close()
    return played


def draw_contact_sheet(path: Path, steps: int, profile: str, size: int) -> None:
    """Draws all tasks, each on EnvPool, on dm_control, and as ten times the difference.

    Args:
        path: PNG to write.
        steps: policy steps before the picture.
        profile: render profile.
        size: of a picture, in pixels.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.0, 14.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(10, 6)
    for number, task in enumerate(PAPERS_TASKS):
        left, right = (
            np.asarray(played[steps].image, int)
            for played in play_both(task, steps, profile, {steps}, size)
        )
        difference = np.abs(left - right)
        triple = axes[number % 10, number // 10 * 3 :][:3]
        for axis, image in zip(
            triple, (left, right, np.minimum(10 * difference, 255)), strict=True
        ):
            axis.imshow(image)
            axis.set(xticks=[], yticks=[])
        triple[0].set_ylabel(task.removeprefix("dmc/"), fontsize=8)
        triple[2].set_title(f"largest: {difference.max()}", fontsize=7, pad=2)
    for column, title in enumerate(("EnvPool", "dm_control", "10 x difference") * 2):
        axes[-1, column].set_xlabel(title, fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)


def main() -> None:
    """Draws the contact sheet."""
    parser = argparse.ArgumentParser(description="Draw all tasks on both simulators.")
    parser.add_argument("path", type=Path, help="PNG to write")
    parser.add_argument("--steps", type=int, default=25, help="policy steps before the picture")
    parser.add_argument("--profile", default="reference", help="reference, light or flat")
    parser.add_argument("--size", type=int, default=64, help="height and width in pixels")
    arguments = parser.parse_args()
    draw_contact_sheet(arguments.path, arguments.steps, arguments.profile, arguments.size)


if __name__ == "__main__":
    main()
