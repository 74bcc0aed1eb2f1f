from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from mudreamer_fast.run.pace import EVALUATION_MARGIN, Counters, Pace
from tests import tiny_run

NUM_ENVS = 2


def paced(now: SimpleNamespace, counters: Counters | None = None, **train: Any) -> Pace:
    """Two environments, action repeat 2, an update for every third policy step."""
    return Pace(tiny_run.config(**train), counters or Counters(), lambda: now.seconds)


@pytest.fixture
def now() -> SimpleNamespace:
    return SimpleNamespace(seconds=1000.0)


def test_updates_are_due_once_policy_steps_have_earned_them(now: SimpleNamespace) -> None:
    pace = paced(now)
    pace.count_step(NUM_ENVS, learning=False)
    assert (pace.take_updates(), pace.counters.learning_policy_steps) == (0, 0)
    taken = []
    for _ in range(6):
        pace.count_step(NUM_ENVS, learning=True)
        taken.append(pace.take_updates())
    assert sum(taken) + pace.counters.update_credit == pytest.approx(12 / 3)
    assert max(taken) == 1
    assert (pace.counters.policy_steps, pace.counters.learning_policy_steps) == (14, 12)
    assert pace.env_steps == 28


def test_updates_that_were_not_done_are_due_again(now: SimpleNamespace) -> None:
    pace = paced(now, train_ratio=30.0)  # two updates for each policy step
    pace.count_step(NUM_ENVS, learning=True)
    assert pace.take_updates() == 4
    assert pace.take_updates() == 0
    pace.give_back(3)
    assert pace.take_updates() == 3


def test_a_run_ends_with_its_steps(now: SimpleNamespace) -> None:
    pace = paced(now, env_steps=8)
    assert pace.seconds_left == float("inf")
    pace.count_step(NUM_ENVS, learning=True)
    assert not pace.finished
    pace.count_step(NUM_ENVS, learning=True)
    assert pace.finished


def test_a_run_ends_in_time_for_its_last_evaluation(now: SimpleNamespace) -> None:
    pace = paced(now, Counters(seconds=100.0), max_minutes=10.0)
    now.seconds += 50.0
    assert (pace.seconds, pace.session_seconds, pace.seconds_left) == (150.0, 50.0, 450.0)
    pace.count_evaluation(200.0)
    assert pace.seconds_left == 450.0 - EVALUATION_MARGIN * 200.0
    assert not pace.finished
    pace.count_evaluation(300.0)
    assert pace.finished


def test_evaluations_are_due_at_multiples_of_their_steps(now: SimpleNamespace) -> None:
    pace = paced(now, eval_every_env_steps=10, env_steps=1000)
    due = []
    for _ in range(10):
        pace.count_step(NUM_ENVS, learning=True)
        if pace.evaluation_due():
            due.append(pace.env_steps)
            pace.schedule_evaluation()
    assert due == [12, 20, 32, 40]


def test_evaluations_that_leave_no_time_are_not_due(now: SimpleNamespace) -> None:
    pace = paced(now, eval_every_env_steps=4, env_steps=1000, max_minutes=10.0)
    pace.count_step(NUM_ENVS, learning=True)
    pace.count_evaluation(230.0)
    assert pace.evaluation_due()
    now.seconds += 30.0  # 570 seconds, of which the last evaluation keeps 345
    assert not pace.evaluation_due()


def test_no_evaluations_are_due_where_none_are_asked_for(now: SimpleNamespace) -> None:
    pace = paced(now, eval_every_env_steps=0)
    pace.count_step(NUM_ENVS, learning=True)
    assert not pace.evaluation_due()
    pace.schedule_evaluation()
    assert pace.counters.next_eval_env_steps == 0


def test_a_resumed_run_keeps_to_the_schedule_of_its_evaluations(now: SimpleNamespace) -> None:
    pace = paced(now, Counters(policy_steps=10, next_eval_env_steps=30), eval_every_env_steps=10)
    assert not pace.evaluation_due()
    for _ in range(3):
        pace.count_step(NUM_ENVS, learning=True)
    assert (pace.env_steps, pace.evaluation_due()) == (32, True)


def test_checkpoints_are_due_by_time(now: SimpleNamespace) -> None:
    pace = paced(now, checkpoint_every_seconds=10.0)
    now.seconds += 9.0
    assert not pace.checkpoint_due()
    now.seconds += 1.0
    assert pace.checkpoint_due()
    pace.schedule_checkpoint(held_up_seconds=0.01)
    now.seconds += 9.0
    assert not pace.checkpoint_due()
    now.seconds += 1.0
    assert pace.checkpoint_due()


def test_a_run_waits_for_checkpoints_a_hundredth_of_its_time_at_most(now: SimpleNamespace) -> None:
    pace = paced(now, checkpoint_every_seconds=10.0)
    pace.schedule_checkpoint(held_up_seconds=0.5)
    now.seconds += 49.0
    assert not pace.checkpoint_due()
    now.seconds += 1.0
    assert pace.checkpoint_due()
