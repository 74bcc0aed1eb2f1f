"""What an agent dreams: an episode, what the model knows of it, and what it expects of it."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from mudreamer_fast.agent import Agent
from mudreamer_fast.collect import Collector, no_action, replay_fields
from mudreamer_fast.config import BackendName, ConfigError
from mudreamer_fast.envs import make_env
from mudreamer_fast.envs.vector_env import Frames
from mudreamer_fast.machine.seeds import SeedUse, derived_seed
from mudreamer_fast.replay import ReplayBuffer
from mudreamer_fast.run.scoring import evaluation_seed, policy_seed
from mudreamer_fast.run.stored import StoredAgent

LESSON_STEPS = 4_000
"""Policy steps that a decoder of its own learns from."""
GAP, MARK = 2, 3
"""Pixels between two pictures, and of the line below those that are imagined."""


@dataclass(frozen=True)
class Dream:
    """An episode three times over."""

    real: Frames
    """(T, h, w, 3) uint8, as the agent saw it."""
    reconstructed: Frames
    """The same, from model states that saw every step."""
    imagined: Frames
    """The same, from model states that saw the first steps of each stretch."""
    unseen: np.ndarray[Any, np.dtype[np.bool_]]
    """(T,), the steps that `imagined` did not see."""

    def frames(self, scale: int = 3) -> list[Frames]:
        """Side by side; a line below the third tells what was imagined."""
        pictures = []
        for step, unseen in enumerate(self.unseen):
            panels = [part[step] for part in (self.real, self.reconstructed, self.imagined)]
            large = [panel.repeat(scale, 0).repeat(scale, 1) for panel in panels]
            gap = np.full((len(large[0]), GAP, 3), 255, np.uint8)
            line = np.zeros((MARK, 3 * len(large[0][0]) + 2 * GAP, 3), np.uint8)
            line[:, -len(large[0][0]) :] = 255 * unseen
            row = np.concatenate([large[0], gap, large[1], gap, large[2]], axis=1)
            pictures.append(np.concatenate([row, line]))
        return pictures

    def errors(self) -> dict[str, float]:
        """Mean squared error of a pixel, from 0 to 1, over the steps that were not seen."""
        held = self.real.copy()
        for step in np.flatnonzero(self.unseen):
            held[step] = held[step - 1]
        parts = {
            "reconstructed": self.reconstructed,
            "imagined": self.imagined,
            "the last seen image": held,
        }
        real = self.real[self.unseen].astype(np.float64)
        return {
            name: float(np.mean((part[self.unseen] - real) ** 2)) / 255**2
            for name, part in parts.items()
        }


def with_decoder(stored: StoredAgent, device: str, backend: BackendName) -> Agent:
    """A stored agent with a decoder, which has learned nothing if it had none.

    Raises:
        ConfigError: the agent sees no images.
    """
    if "image" not in stored.observation_spec:
        raise ConfigError(
            f"an agent that sees {', '.join(stored.observation_spec)} has no pictures"
        )
    model = dataclasses.replace(stored.config.model, decoder=True)
    config = dataclasses.replace(stored.config, model=model)
    empty = Agent.of(dataclasses.replace(stored, config=config, agent={}), device, backend)
    own = empty.state_dict()
    learned = dict(stored.agent)
    for part in ("world_model", "optimisers"):
        learned[part] = own[part] | dict(learned.get(part, {}))
    return Agent.of(dataclasses.replace(stored, config=config, agent=learned), device, backend)


def teach_decoder(agent: Agent, minutes: float, tell: Callable[[str], None]) -> None:
    """Train an agent's decoder, and nothing else, on what it sees as it acts.

    Args:
        agent: has a decoder.
        minutes: how long, after the steps are collected.
        tell: shows a line.

    Raises:
        ConfigError: the agent has no decoder that could learn alone.
    """
    decoder, sizes = agent.world_model.decoder, agent.config.replay
    if decoder is None or "decoder" not in agent.optimisers:
        raise ConfigError("the decoder of a model that reconstructs is part of it")
    env_config = agent.config.env
    seed = derived_seed(agent.config.train.seed, SeedUse.COLLECT)
    env = make_env(env_config, env_config.num_envs, seed)
    try:
        fields = replay_fields(env.observation_spec, env.action_spec)
        replay = ReplayBuffer(fields, 2 * LESSON_STEPS, env.num_envs, seed)
        state = agent.initial_state(env.num_envs)
        Collector(env, replay, agent.act, state).collect(LESSON_STEPS // env.num_envs)
    finally:
        env.close()
    until, updates, error = time.monotonic() + 60 * minutes, 0, torch.zeros(())
    while updates == 0 or time.monotonic() < until:
        batch = replay.sample(sizes.batch_size, sizes.batch_length)
        feature = agent.beliefs(batch).feature
        image = torch.as_tensor(batch["image"]).to(agent.device)
        error = decoder.loss(feature, image).mean()
        agent.optimisers["decoder"].step(error)
        updates += 1
    pixels = int(np.prod(agent.observation_spec["image"].shape))
    tell(f"decoder: {updates:,} updates, squared error {error.item() / pixels:.4f} a pixel")


def dream(agent: Agent, observe: int, imagine: int, steps: int, seed: int | None = None) -> Dream:
    """Play an episode and dream of it.

    Args:
        agent: has a decoder.
        observe: steps at the beginning of each stretch that the model sees.
        imagine: steps that follow from the actions alone.
        steps: policy steps to play, fewer where the episode ends.
        seed: of the episode; None plays the first one of the run's evaluations.
    """
    seed = agent.config.train.seed if seed is None else seed
    env_config = dataclasses.replace(agent.config.env, background_set="evaluation")
    env = make_env(env_config, 1, evaluation_seed(seed))
    try:
        policy = agent.policy(1, agent.config.train.eval_policy, policy_seed(seed))
        step, action = env.reset(), no_action(env)
        rows: list[Mapping[str, Any]] = []
        while True:
            rows.append({**step.observation, "action": action, "is_first": step.is_first})
            if step.is_last[0] or len(rows) > steps:
                break
            action = policy(step.observation, step.is_first)
            step = env.step(action)
    finally:
        env.close()
    batch = {name: np.stack([row[name] for row in rows], axis=1) for name in rows[0]}
    reconstructed, imagined = agent.dream(batch, observe, imagine)
    shown = (batch["image"], reconstructed, imagined)
    real, reconstructed, imagined = (np.moveaxis(part[0], 1, -1) for part in shown)
    unseen = np.arange(len(real)) % (observe + imagine) >= observe
    return Dream(real, reconstructed, imagined, unseen)
