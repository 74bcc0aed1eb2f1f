"""A picture of the paper's tasks without and with backgrounds, or with colours and camera shifted.

`python -m tests.envs.background_sheet docs/results/backgrounds.png` draws it, and
`python -m tests.envs.background_sheet docs/results/shifts.png --shifts` the other one.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from mudreamer_fast.config import EnvConfig
from mudreamer_fast.envs import make_env
from mudreamer_fast.envs.tasks import PAPERS_TASKS
from mudreamer_fast.run.pictures import write_picture
from tests.envs.rollouts import random_actions, roll

WAYS: tuple[dict[str, Any], ...] = (
    {},
    {"background": "video"},
    {"background": "video", "background_mask": "chroma"},
    {"background": "noise"},
    {"background": "color", "background_mask": "chroma"},
)
SHIFTS: tuple[dict[str, Any], ...] = (
    {},
    {"color_shift": 0.2},
    {"camera_shift": 0.1},
    {"camera_shift": 0.2},
    {"color_shift": 0.3, "camera_shift": 0.3, "moving_shifts": True},
)
STEPS = 12
COLUMNS = 2
"""Tasks side by side."""


def row(task: str, seed: int, ways: tuple[dict[str, Any], ...]) -> np.ndarray[Any, Any]:
    """(64, 64 * len(ways), 3)."""
    pictures = []
    for way in ways:
        env = make_env(EnvConfig(task, render_profile="light", **way), 1, seed)
        shown = roll(env, random_actions(env, STEPS))[-1].observation["image"][0]
        pictures.append(shown.transpose(1, 2, 0))
        env.close()
    return np.concatenate(pictures, axis=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--shifts", action="store_true")
    options = parser.parse_args()
    ways = SHIFTS if options.shifts else WAYS
    rows = [row(task, seed, ways) for seed, task in enumerate(PAPERS_TASKS)]
    height = len(rows) // COLUMNS
    columns = [np.concatenate(rows[i * height : (i + 1) * height]) for i in range(COLUMNS)]
    gap = np.full((columns[0].shape[0], 8, 3), 255, np.uint8)
    write_picture(np.concatenate([columns[0], gap, columns[1]], axis=1), options.out)


if __name__ == "__main__":
    main()
