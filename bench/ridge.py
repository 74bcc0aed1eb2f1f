"""Ridge regressions from features to states, and how much of each dimension they explain."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

STRENGTHS = 10.0 ** np.arange(-6, 5)
"""Of the ridge, per frame, on features of unit variance."""
DEAD = 1e-6
"""Spread below which a column counts as constant."""


class Fit(NamedTuple):
    """What a probe reads, for each dimension of the state."""

    r2: Floats
    """(S,), NaN where the state does not vary."""
    strength: Floats
    """(S,), of the ridge."""


def split(episodes: int) -> tuple[list[int], list[int], list[int]]:
    """Episodes to fit on, to choose the strength on, and to measure on: 2, 1 and 1 of each 4."""
    numbers = range(episodes)
    return (
        [i for i in numbers if i % 4 < 2],
        [i for i in numbers if i % 4 == 2],
        [i for i in numbers if i % 4 == 3],
    )


def probe(
    train: tuple[Floats, Floats], validate: tuple[Floats, Floats], test: tuple[Floats, Floats]
) -> Fit:
    """Fit a ridge regression for each dimension and measure it.

    Args:
        train: features (n, F) and states (n, S) to fit on.
        validate: likewise, to choose the strength on.
        test: likewise, to measure on.
    """
    x, y = train
    spread = x.std(0)
    # A column that is constant here may not be elsewhere, and must not be blown up there.
    alive = spread > DEAD
    centre, scale = x.mean(0)[alive], spread[alive]

    def scaled(x: Floats) -> Floats:
        scaled: Floats = (x[:, alive] - centre) / scale
        return scaled

    # In the directions of the features' covariance every strength is one division.
    size, directions = np.linalg.eigh(scaled(x).T @ scaled(x) / len(x))
    moments = directions.T @ (scaled(x).T @ (y - y.mean(0)) / len(x))

    def readings(x: Floats) -> Iterator[Floats]:
        turned = scaled(x) @ directions
        for strength in STRENGTHS:
            yield turned @ (moments / (size.clip(0)[:, None] + strength)) + y.mean(0)

    errors = np.stack([((r - validate[1]) ** 2).mean(0) for r in readings(validate[0])])
    best = errors.argmin(0)
    read = np.stack(list(readings(test[0])))[best, :, np.arange(y.shape[1])].T
    total = ((test[1] - test[1].mean(0)) ** 2).sum(0)
    left = ((test[1] - read) ** 2).sum(0)
    varies = (test[1].std(0) > DEAD) & (y.std(0) > DEAD)
    r2 = np.where(varies, 1 - left / np.where(varies, total, 1), np.nan)
    return Fit(r2, STRENGTHS[best])


def effective_rank(x: Floats) -> float:
    """How many directions features (n, F) use: `exp(-sum_i p_i ln p_i)`, `p_i = s_i / sum_j s_j`.

    s are the singular values of the centred features (Roy and Vetterli, "The effective rank: a
    measure of effective dimensionality", 2007). 1 where all lie on a line, F where they spread
    alike in every direction, 0 where they are constant.
    """
    singular = np.linalg.svd(x - x.mean(0), compute_uv=False)
    if singular[0] <= DEAD * np.sqrt(len(x)):
        return 0.0
    share = singular[singular > 0] / singular.sum()
    return float(np.exp(-(share * np.log(share)).sum()))


def summary(fit: Fit, dimensions: Sequence[str]) -> dict[str, Any]:
    """Means of R^2, over all dimensions and by observation, and each one's; null where undefined.

    Args:
        fit: of S dimensions.
        dimensions: their names (S,), such as velocity[0].
    """
    each = {n: None if np.isnan(v) else float(v) for n, v in zip(dimensions, fit.r2, strict=True)}
    by_observation: dict[str, list[float]] = {}
    for name, value in each.items():
        if value is not None:
            by_observation.setdefault(name.partition("[")[0], []).append(value)
    return {
        "mean_r2": float(np.nanmean(fit.r2)),
        "mean_r2_by_observation": {n: float(np.mean(v)) for n, v in by_observation.items()},
        "r2": each,
        "ridge": dict(zip(dimensions, fit.strength.tolist(), strict=True)),
    }
