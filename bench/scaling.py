"""Updates by several processes that learn together: how much more of them a second.

    python -m bench.scaling OUT.json                                     # one process
    torchrun --standalone --nproc-per-node 2 -m bench.scaling OUT.json   # two

Each adds its row to OUT. A batch of the preset (size S on a GPU, `quick` on a CPU) is shared evenly
(`shared`), and each process has one of its own (`each`); an update is over when all are done.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.profile_update import ACTIONS, batch, timed
from bench.surroundings import DEVICE, GPU, sized, surroundings
from mudreamer_fast.agent import Agent
from mudreamer_fast.config import PRESETS, Config
from mudreamer_fast.envs import ActionSpec, ArraySpec
from mudreamer_fast.machine.ranks import Ranks, joined_ranks

WARM_UPS, UPDATES = 5, sized(50, 20, 1)
IMAGES = {"image": ArraySpec((3, 64, 64), np.dtype(np.uint8))}


def milliseconds(config: Config, rows: int, ranks: Ranks) -> dict[str, Any]:
    """Of an update from so many rows of each rank's own, as this rank saw it."""
    agent = Agent(config, IMAGES, ActionSpec(ACTIONS, True), ranks.device(DEVICE), ranks)
    sequences = batch(replace(config, replay=replace(config.replay, batch_size=rows)))
    taken = timed(lambda: agent.update(sequences).read(), UPDATES, WARM_UPS)
    steps = rows * ranks.size * config.replay.batch_length
    return {
        "rows_of_each": rows,
        "milliseconds": taken,
        "replayed_steps_per_second": 1e3 * steps / taken["median"],
    }


def main(words: list[str]) -> int:
    """Adds this number of processes to the file that the command line names."""
    if len(words) != 1:
        sys.exit("error: expected a file for what is found")
    out = Path(words[0])
    preset = "dmc_vision" if GPU else "quick"
    config = PRESETS[preset][1]
    with joined_ranks(DEVICE) as ranks:
        if not GPU:
            torch.set_num_threads(1)
        rows = config.replay.batch_size
        if rows % ranks.size:
            sys.exit(f"error: {rows} rows cannot be shared evenly by {ranks.size} processes")
        found = {
            "shared": milliseconds(config, rows // ranks.size, ranks),
            "each": milliseconds(config, rows, ranks),
        }
        if ranks.index:
            return 0
    before = json.loads(out.read_text())["processes"] if out.exists() else {}
    content = {
        **surroundings(),
        "preset": preset,
        "processes": before | {str(ranks.size): found},
    }
    out.write_text(json.dumps(content, indent=1) + "\n")
    for name, row in found.items():
        print(f"{ranks.size} processes, {name:8}{row['milliseconds']['median']:9.1f} ms an update")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
