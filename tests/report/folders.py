"""Run folders for a report, written as a run writes them but with numbers that a test chooses."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mudreamer_fast.config import PRESETS, Config
from mudreamer_fast.run.folder import write_config, write_json
from mudreamer_fast.run.metrics import METRICS_FILE
from mudreamer_fast.run.pictures import write_strip, write_video

STEPS = 100_000
RANDOM = [10.0, 20.0]


def configuration(task: str = "dmc/cheetah_run", seed: int = 0, **model: Any) -> Config:
    """The quick preset's, with another task, seed and model."""
    config = PRESETS["quick"][1]
    return dataclasses.replace(
        config,
        env=dataclasses.replace(config.env, task=task),
        model=dataclasses.replace(config.model, **model),
        train=dataclasses.replace(config.train, seed=seed),
    )


def write_run(
    folder: Path,
    config: Config,
    scores: Sequence[float] = (100.0, 200.0),
    finished: bool = True,
    pictures: bool = False,
) -> Path:
    """A run that rises evenly to its scores; an unfinished one ends half way."""
    folder.mkdir(parents=True)
    write_config(config, folder / "config.json")
    write_json(folder / "made_with.json", {"device": "cpu", "libraries": {"torch": "2.13.0"}})
    rows: list[dict[str, Any]] = [{"env_steps": 0, "seconds": 0.5, "random/scores": RANDOM}]
    for tenth in range(1, 11 if finished else 6):
        line: dict[str, Any] = {
            "env_steps": tenth * STEPS // 10,
            "seconds": 60.0 * tenth,
            "world_model/feature_std": 0.1 * tenth,
            "world_model/kl": 2.0,
            "run/updates": 600 * tenth,
            "speed/env_steps_per_second": 150.0 + tenth,
            "speed/updates_per_second": 10.0,
        }
        if tenth % 5 == 0:
            shown = [score * tenth / 10 for score in scores]
            line |= {"evaluation/scores": shown, "evaluation/score": float(np.mean(shown))}
        rows.append(line)
    (folder / METRICS_FILE).write_text("".join(json.dumps(row) + "\n" for row in rows))
    if finished:
        result = {"env_steps": STEPS, "updates": 6_000, "seconds": 600.0, "random_scores": RANDOM}
        write_json(folder / "result.json", result | {"scores": list(scores)})
    if pictures:
        frames = list(np.random.default_rng(0).integers(0, 255, (20, 64, 64, 3), np.uint8))
        write_video(frames, folder / "evaluation.mp4", 25.0)
        write_strip(frames, folder / "agent_view.png")
    return folder
