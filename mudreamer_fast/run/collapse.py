"""A watch for features or latents that have become constants."""

from __future__ import annotations

import math
from collections.abc import Mapping

FEATURE_STD = "world_model/feature_std"

POSTERIOR_ENTROPY = "world_model/posterior_entropy"

STOCH_STD = "world_model/stoch_std"

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
COLLAPSE_LINES = 3
"""Log lines in a row that must show a collapse before the warning: the first updates of a run pass
through nearly constant features and nearly uniform posteriors."""


class CollapseWatch:
    """Warns once when what the model sees, or says, has become a constant.

    Without a decoder nothing but the posterior's batch norm keeps the features from collapsing
    (MuDreamer, arXiv 2405.15083); a run that has collapsed learns no more, and its losses alone do
    not show it. The thresholds, with their reasons, are the module's constants.
    """

    def __init__(self, classes: int) -> None:
        """Takes C, the classes of each categorical."""
        self._uniform_nats = ENTROPY_SHARE_CEILING * math.log(classes)
        self._lines = 0
        self._warned = False

    def check(self, averages: Mapping[str, float]) -> str | None:
        """Looks at the averages of one log line; the warning, the first time there is one."""
        signs = [
            f"{name.split('/')[1]} {averages[name]:.2e} ({sense} {limit:.2e})"
            for name, sense, limit in (
                (FEATURE_STD, "below", FEATURE_STD_FLOOR),
                (STOCH_STD, "below", STOCH_STD_FLOOR),
                (POSTERIOR_ENTROPY, "above", self._uniform_nats),
            )
            if name in averages
            and (averages[name] < limit if sense == "below" else averages[name] > limit)
        ]
        watched = any(n in averages for n in (FEATURE_STD, STOCH_STD, POSTERIOR_ENTROPY))
        if watched:
            self._lines = self._lines + 1 if signs else 0
        if self._warned or self._lines < COLLAPSE_LINES:
            return None
        self._warned = True
        return (
            f"warning: the world model's representation has collapsed: {', '.join(signs)}; "
            "see model.batch_norm"
        )
