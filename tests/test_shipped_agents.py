"""The trained agents in the repository act as well as they did when their training ended."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import fmean

import pytest

from mudreamer_fast.agent import Agent
from mudreamer_fast.run.folder import RunFolder
from mudreamer_fast.run.scoring import score_agent

pytest.importorskip("safetensors")
AGENTS = sorted((Path(__file__).parents[1] / "docs/results/agents").iterdir())


@pytest.mark.parametrize("folder", AGENTS, ids=lambda folder: folder.name)
def test_a_shipped_agent_does_what_it_has_learned(folder: Path) -> None:
    result = json.loads(RunFolder(folder).result.read_text())
    learned, by_chance = fmean(result["scores"]), fmean(result["random_scores"])
    assert learned > 10 * by_chance
    agent = Agent.load(folder, device="cpu", backend="reference")
    scores = score_agent(agent, episodes=agent.config.env.num_envs).scores
    assert fmean(scores) > (learned + by_chance) / 2  # actions are sampled, so episodes differ
