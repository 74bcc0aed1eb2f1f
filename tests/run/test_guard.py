from __future__ import annotations

import math

import pytest

from mudreamer_fast.run.guard import BAD_UPDATES, RETURNS, FiniteGuard, NotFiniteError

GOOD = {"world_model/loss": 1.0, "world_model/loss_reward": 0.5, "behaviour/actor_loss": 0.0}
BAD = {**GOOD, "world_model/loss": math.nan, "world_model/loss_reward": math.inf}


def test_single_bad_updates_are_counted_and_nothing_more() -> None:
    reasons: list[str] = []
    guard = FiniteGuard(reasons.append)
    for _ in range(BAD_UPDATES):
        for metrics in [BAD] * (BAD_UPDATES - 1) + [GOOD]:
            guard.check(metrics)
    assert guard.skipped == BAD_UPDATES * (BAD_UPDATES - 1)
    assert reasons == []


def test_bad_updates_in_a_row_lead_back_and_name_the_first_broken_term() -> None:
    reasons: list[str] = []
    guard = FiniteGuard(reasons.append)
    guard.check(BAD)
    for _ in range(BAD_UPDATES - 1):
        guard.check({"behaviour/actor_loss": math.nan})
    (reason,) = reasons
    assert reason.startswith("world_model/loss_reward is inf, and the 19 updates after")


def test_a_run_that_stays_bad_is_given_up() -> None:
    reasons: list[str] = []
    guard = FiniteGuard(reasons.append)
    for _ in range((RETURNS + 1) * BAD_UPDATES - 1):
        guard.check(BAD)
    with pytest.raises(NotFiniteError, match=r"world_model/loss_reward is inf.* 3 returns"):
        guard.check(BAD)
    assert len(reasons) == RETURNS
    assert guard.skipped == (RETURNS + 1) * BAD_UPDATES
