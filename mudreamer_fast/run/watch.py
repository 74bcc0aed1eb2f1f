"""Watches for a run that trains and does not learn: each sign is told once."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from mudreamer_fast.config import ModelConfig

FEATURE_STD = "world_model/feature_std"

POSTERIOR_ENTROPY = "world_model/posterior_entropy"

STOCH_STD = "world_model/stoch_std"

POLICY_ENTROPY = "behaviour/entropy"

RETURN_SCALE = "behaviour/return_scale"

FEATURE_STD_FLOOR = 1e-3
"""Below this, the encoder says the same of every image. Its last layer is normalised to unit scale
before the activation: frames of cartpole, most of which is still background, give a standard
deviation over the batch of 0.08 before any update and 0.15 later; a single frame everywhere gives
rounding alone."""
STOCH_STD_FLOOR = 1e-3
"""Below this, the posterior gives every state the same probabilities: with 32 classes, states that
use a single categorical of 32 fully already give 0.005."""
ENTROPY_SHARE_CEILING = 0.999
"""Share of ln C above which the posterior is uniform and its samples are noise, carrying at most a
thousandth of their capacity; early in healthy runs the share comes up to 0.98."""
POLICY_ENTROPY_MARGIN = 0.01
"""Share of the range of the policy's entropy that counts as a bound. An untrained policy begins at
0.95 of the range."""
SCALE_FLOOR = 1.0
"""What the return scale is raised to; see `actor_critic.ReturnScale`."""
SCALE_FLOOR_UPDATES = 2_000
"""After so many updates the returns should differ. Cheetah run leaves the floor after 800 to 1,500
updates of the quick preset."""
LINES = 3
"""Log lines in a row that must show a sign before it is told: the first updates of a run pass
through nearly constant features and nearly uniform posteriors."""


@dataclass(frozen=True)
class _Sign:
    """Something that should not last."""

    name: str
    """Of the metric."""
    below: float
    """The sign is a value below this, or"""
    above: float
    """above this."""
    meaning: str
    """What to tell, before the value and the limit."""
    advice: str
    """What to look at."""
    updates: int = 0
    """Those that must be done before it counts."""

    def shown(self, averages: Mapping[str, float], updates: int) -> str | None:
        """The value beside the limit that it is beyond; None where it is not."""
        value = averages.get(self.name)
        if value is None or updates < self.updates:
            return None
        if value < self.below:
            return f"{self.name} {value:.2e} (below {self.below:.2e})"
        if value > self.above:
            return f"{self.name} {value:.2e} (above {self.above:.2e})"
        return None


def _signs(model: ModelConfig, policy_entropy: tuple[float, float]) -> tuple[_Sign, ...]:
    low, high = policy_entropy
    margin = POLICY_ENTROPY_MARGIN * (high - low)
    uniform = ENTROPY_SHARE_CEILING * math.log(model.classes)
    collapsed = "the world model's representation has collapsed", "model.batch_norm"
    return (
        _Sign(FEATURE_STD, FEATURE_STD_FLOOR, math.inf, *collapsed),
        _Sign(STOCH_STD, STOCH_STD_FLOOR, math.inf, *collapsed),
        _Sign(POSTERIOR_ENTROPY, -math.inf, uniform, *collapsed),
        _Sign(
            POLICY_ENTROPY, low + margin, math.inf,
            "the policy hardly explores any more", "behaviour.entropy_scale",
        ),
        _Sign(
            POLICY_ENTROPY, -math.inf, high - margin,
            "the policy is as random as it can be", "behaviour.entropy_scale",
        ),
        _Sign(
            RETURN_SCALE, SCALE_FLOOR * (1 + 1e-6), math.inf,
            "imagined returns hardly differ from state to state: no reward was found, or none that "
            "weighs against the policy's entropy", "behaviour.entropy_scale",
            SCALE_FLOOR_UPDATES,
        ),
    )  # fmt: skip


class LearningWatch:
    """Warns, once each, of what shows that a run learns nothing.

    Without a decoder nothing but batch norm keeps the features from collapsing (MuDreamer, arXiv
    2405.15083), and the losses alone do not show that they have. The thresholds, with their
    reasons, are the module's constants.

    Args:
        model: the model's configuration.
        policy_entropy: the lowest and the highest that the policy can have, nats.
    """

    def __init__(self, model: ModelConfig, policy_entropy: tuple[float, float]) -> None:
        self._lines = dict.fromkeys(_signs(model, policy_entropy), 0)
        self._told: set[str] = set()

    def check(self, averages: Mapping[str, float], updates: int) -> list[str]:
        """Looks at the averages of one log line; gives the warnings that are due.

        Args:
            averages: of metrics, by name.
            updates: done so far.
        """
        due: dict[tuple[str, str], list[str]] = {}
        for sign, lines in self._lines.items():
            if sign.name not in averages:
                continue
            shown = sign.shown(averages, updates)
            self._lines[sign] = lines + 1 if shown else 0
            if shown and self._lines[sign] >= LINES and sign.meaning not in self._told:
                due.setdefault((sign.meaning, sign.advice), []).append(shown)
        self._told |= {meaning for meaning, _ in due}
        return [
            f"warning: {meaning}: {', '.join(shown)}; see {advice}"
            for (meaning, advice), shown in due.items()
        ]
