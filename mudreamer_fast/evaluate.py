"""True scores: a policy plays whole episodes and its rewards are added up."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import fmean

import numpy as np

from mudreamer_fast.envs import StatefulPolicy, VectorEnv, VectorStep
from mudreamer_fast.envs.vector_env import Frames, facts_of

VIDEO_SIZE = 128
"""Height and width of a video's frames, in pixels."""


@dataclass(frozen=True)
class Evaluation:
    """Some played episodes."""

    scores: list[float]
    """Return of each episode: the sum of its rewards."""
    lengths_steps: list[int]
    """Policy steps of each episode."""
    frames: list[Frames] = field(default_factory=list)
    """(size, size, 3) uint8: the first episode, its first to its last observation, if filmed."""
    seen: list[Frames] = field(default_factory=list)
    """(h, w, c) uint8: the same as the policy saw it; empty where it sees no image."""
    facts: list[dict[str, float]] = field(default_factory=list)
    """What the environment told of each episode at its end, by name."""

    @property
    def mean_facts(self) -> dict[str, float]:
        """The mean of each fact over the episodes that it was told of."""
        names = dict.fromkeys(name for told in self.facts for name in told)
        return {name: fmean(told[name] for told in self.facts if name in told) for name in names}


def evaluate(
    env: VectorEnv,
    policy: StatefulPolicy,
    episodes: int,
    film: bool = False,
    frame_size: int = VIDEO_SIZE,
    interrupt: Callable[[], None] = lambda: None,
) -> Evaluation:
    """Plays episodes side by side and measures them.

    Episode k is the (k // N)-th of environment k mod N, whatever the others do meanwhile. Were it
    the first `episodes` to end, short episodes would be counted more often than long ones.

    Args:
        env: N environments, which are reset first; those beyond `episodes` play for nothing.
        policy: acts for all N, as `Agent.policy` does.
        episodes: number of episodes, at least 1.
        film: keep pictures of the first episode.
        frame_size: height and width of the pictures.
        interrupt: called at every step; what it raises ends the evaluation.

    Raises:
        ValueError: no episodes are asked for.
    """
    if episodes < 1:
        raise ValueError(f"episodes must be positive, got {episodes}")
    num_envs = env.num_envs
    scores, lengths = np.zeros(num_envs), np.zeros(num_envs, np.int64)
    played = np.zeros(num_envs, np.int64)
    share = np.array([len(range(i, episodes, num_envs)) for i in range(num_envs)])
    results: dict[int, tuple[float, int, dict[str, float]]] = {}
    frames: list[Frames] = []
    seen: list[Frames] = []

    def take_pictures(step: VectorStep) -> None:
        frames.append(env.render(frame_size, [0])[0])
        if "image" in step.observation:
            seen.append(np.ascontiguousarray(step.observation["image"][0].transpose(1, 2, 0)))

    step = env.reset()
    while len(results) < episodes:
        interrupt()
        if film and not played[0]:
            take_pictures(step)
        step = env.step(policy(step.observation, step.is_first))
        scores[step.is_first] = lengths[step.is_first] = 0  # an episode may have been dropped
        if step.is_first[0] and not played[0]:
            frames.clear()
            seen.clear()
        scores += step.reward
        lengths += ~step.is_first
        for i in np.flatnonzero(step.is_last):
            if played[i] < share[i]:
                told = facts_of(step.facts, int(i))
                results[int(i + played[i] * num_envs)] = float(scores[i]), int(lengths[i]), told
            if film and i == 0 and not played[0]:
                take_pictures(step)
            played[i] += 1
            scores[i] = lengths[i] = 0
    ordered = [results[k] for k in range(episodes)]
    return Evaluation(
        [score for score, _, _ in ordered],
        [length for _, length, _ in ordered],
        frames,
        seen,
        [told for _, _, told in ordered],
    )
