"""What videos for backgrounds look like to an agent."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from mudreamer_fast.config import EnvConfig
from mudreamer_fast.envs.footage import FOLDERS, Clip, clips
from mudreamer_fast.run.pictures import write_picture

COLUMNS = 8
"""Frames of each video, from its first to its last."""


def show_videos(config: EnvConfig, out: Path) -> Iterator[str]:
    """Reads all videos, says what they are, and draws a sheet of them, one a row.

    Args:
        config: which videos, and how they are read.
        out: PNG to write.

    Raises:
        ConfigError: a video or the folder is missing, or is not what it should be.
    """
    rows = []
    for use in FOLDERS:
        found = clips(dataclasses.replace(config, background_set=use))
        lengths = [len(clip) for clip in found]
        yield (
            f"{use:10} {len(found)} videos of {min(lengths)} to {max(lengths)} frames, "
            f"{sum(clip.nbytes for clip in found) / 2**20:,.0f} MiB at "
            f"{config.image_shape[0]} x {config.image_shape[1]}"
        )
        rows += [_row(clip) for clip in found]
    write_picture(np.concatenate(rows), out)
    yield str(out)


def _row(clip: Clip) -> Clip:
    """(height, COLUMNS * width, 3)."""
    places = np.linspace(0, len(clip) - 1, COLUMNS).round().astype(int)
    return np.concatenate(clip[places].transpose(0, 2, 3, 1), axis=1)
