"""Run as one of several processes: updates an agent on this rank's rows of known batches.

python -m tests.ranks_program RANK SIZE FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from mudreamer_fast.agent import Agent
from mudreamer_fast.envs.vector_env import ActionSpec, ArraySpec
from mudreamer_fast.machine.ranks import ALONE, Ranks
from tests import tiny

UPDATES = 10
ROWS = 6
VECTOR = {"vector": tiny.VECTOR}
BOTH = {"image": tiny.IMAGE, "vector": tiny.VECTOR}
CASES: dict[str, tuple[dict[str, ArraySpec], ActionSpec, dict[str, Any]]] = {
    "the dynamics gradient": (BOTH, tiny.CONTINUOUS, {"batch_norm": "both", "decoder": True}),
    "REINFORCE": (VECTOR, tiny.DISCRETE, {"batch_norm": "posterior"}),
    "layer norm": (BOTH, tiny.CONTINUOUS, {"batch_norm": "none", "reconstruction": True}),
    "running statistics": (VECTOR, tiny.CONTINUOUS, {"batch_norm_statistics": "running"}),
}


def learned(case: str, ranks: Ranks = ALONE) -> dict[str, Any]:
    """Weights, averages, moments and metrics after some updates; the batches are as joined."""
    seen, action, model = CASES[case]
    agent = Agent(tiny.config(model), seen, action, torch.device("cpu"), ranks)
    for module in (agent.world_model, agent.behaviour):
        tiny.randomise(module, 0.1)
    mine = slice(ranks.index * ROWS // ranks.size, (ranks.index + 1) * ROWS // ranks.size)
    metrics = []
    for seed in range(UPDATES):
        batch = tiny.batch(seen, action, rows=ROWS, steps=5, seed=seed)
        metrics.append(
            agent.update({name: np.ascontiguousarray(x[mine]) for name, x in batch.items()}).read()
        )
    return {"state": agent.state_dict(), "metrics": metrics}


def main() -> None:
    rank, size, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    torch.set_num_threads(1)
    store = dist.FileStore(str(folder / "store"), size)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size)
    ranks = Ranks(dist.group.WORLD)
    for number, case in enumerate(CASES):
        torch.manual_seed(number)
        torch.save(learned(case, ranks), folder / f"{number}-{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
