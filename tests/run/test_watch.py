from __future__ import annotations

import math

import pytest

from mudreamer_fast.config import ModelConfig
from mudreamer_fast.run.watch import (
    FEATURE_STD,
    FEATURE_STD_FLOOR,
    LINES,
    POLICY_ENTROPY,
    POSTERIOR_ENTROPY,
    RETURN_SCALE,
    SCALE_FLOOR_UPDATES,
    STOCH_STD,
    LearningWatch,
)

ENTROPY = (-2.0, 3.0)
HEALTHY = {
    FEATURE_STD: 0.1, STOCH_STD: 0.05, POSTERIOR_ENTROPY: 2.0, POLICY_ENTROPY: 2.7,
    RETURN_SCALE: 4.0,
}  # fmt: skip
SIGNS = [
    (
        {FEATURE_STD: FEATURE_STD_FLOOR / 2},
        "has collapsed: world_model/feature_std 5.00e-04 (below",
    ),
    ({STOCH_STD: 1e-5}, "has collapsed: world_model/stoch_std"),
    ({POSTERIOR_ENTROPY: 0.9995 * math.log(32)}, "has collapsed: world_model/posterior_entropy"),
    ({POLICY_ENTROPY: -1.99}, "hardly explores any more: behaviour/entropy -1.99e+00 (below"),
    ({POLICY_ENTROPY: 2.99}, "as random as it can be: behaviour/entropy 2.99e+00 (above"),
    ({RETURN_SCALE: 1.0}, "no reward was found, or none that weighs against the policy's entropy"),
]


def watch() -> LearningWatch:
    return LearningWatch(ModelConfig(classes=32), ENTROPY)


@pytest.mark.parametrize(("sign", "words"), SIGNS)
def test_sign_is_told_once_and_only_when_it_lasts(sign: dict[str, float], words: str) -> None:
    watching, updates = watch(), SCALE_FLOOR_UPDATES
    for _ in range(LINES - 1):
        assert watching.check(HEALTHY | sign, updates) == []
    assert watching.check(HEALTHY, updates) == []
    told = [watching.check(HEALTHY | sign, updates) for _ in range(LINES + 5)]
    ((warning,),) = [warnings for warnings in told if warnings]
    assert told.index([warning]) == LINES - 1
    assert words in warning
    assert warning.startswith("warning: ")
    assert "\n" not in warning


def test_signs_of_one_fault_are_one_line() -> None:
    watching = watch()
    both = HEALTHY | {FEATURE_STD: 0.0, STOCH_STD: 0.0, RETURN_SCALE: 1.0}
    told = [watching.check(both, SCALE_FLOOR_UPDATES) for _ in range(LINES)]
    collapse, scale = told[-1]
    assert "feature_std" in collapse
    assert "stoch_std" in collapse
    assert "return_scale" in scale


def test_watch_is_silent_on_a_healthy_model_and_without_metrics() -> None:
    confident = HEALTHY | {POSTERIOR_ENTROPY: 0.09, POLICY_ENTROPY: -1.5}
    early = HEALTHY | {POSTERIOR_ENTROPY: 0.98 * math.log(32), RETURN_SCALE: 1.0}
    watching = watch()
    for averages in [HEALTHY, {}, confident, early] * 20:
        assert watching.check(averages, SCALE_FLOOR_UPDATES - 1) == []
