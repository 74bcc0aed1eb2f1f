"""Saving and loading are exact, generator and all, and survive a change of capacity."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from mudreamer_fast.replay import ReplayBuffer


@pytest.mark.parametrize("filled", [0, 1, 9, 10, 11, 37])
def test_a_loaded_state_draws_what_the_original_would_have(
    make_replay, steps, assert_same_state, filled
):
    replay = make_replay(30, seed=4)
    steps.fill(replay, 0, filled)
    if filled:
        replay.sample(3, 1)  # the generator has moved
    state = pickle.loads(pickle.dumps(replay.state_dict()))
    loaded = make_replay(30, seed=8)
    steps.fill(loaded, 100, 113)
    loaded.load_state_dict(state)
    assert_same_state(loaded.state_dict(), replay.state_dict())
    for begin in (filled, filled + 5, filled + 10):
        for each in (replay, loaded):
            steps.fill(each, begin, begin + 5)
        expected, drawn = replay.sample(4, 3), loaded.sample(4, 3)
        for name in expected:
            np.testing.assert_array_equal(drawn[name], expected[name])


def test_a_state_is_a_copy(make_replay, steps):
    replay = make_replay(30)
    steps.fill(replay, 0, 10)
    state = replay.state_dict()
    steps.fill(replay, 10, 17)
    np.testing.assert_array_equal(state["fields"]["vector"][1, :, 1], np.arange(10))
    state["fields"]["vector"].fill(0)
    steps.check(replay.sample(5, 4), 7, 17)


@pytest.mark.parametrize("filled", [3, 10, 23])
def test_contents_are_in_order_of_age(make_replay, steps, filled):
    replay = make_replay(30)
    steps.fill(replay, 0, filled)
    contents = replay.state_dict()["fields"]
    expected = steps.at(np.arange(3)[:, None], np.arange(max(0, filled - 10), filled)[None])
    for name, array in contents.items():
        np.testing.assert_array_equal(array, expected[name])


def test_a_smaller_buffer_keeps_the_newest_steps(make_replay, steps):
    replay = make_replay(60)
    steps.fill(replay, 0, 33)
    smaller = make_replay(15)
    smaller.load_state_dict(replay.state_dict())
    assert len(smaller) == 15
    assert smaller.steps_added == 99
    np.testing.assert_array_equal(
        smaller.state_dict()["fields"]["vector"][2, :, 1], np.arange(28, 33)
    )
    steps.fill(smaller, 33, 35)
    steps.check(smaller.sample(9, 5), 30, 35)


def test_a_larger_buffer_keeps_everything_and_goes_on_filling(make_replay, steps):
    replay = make_replay(30)
    steps.fill(replay, 0, 27)
    larger = make_replay(60)
    larger.load_state_dict(replay.state_dict())
    steps.fill(larger, 27, 33)
    assert len(larger) == 3 * 16
    steps.check(larger.sample(9, 16), 17, 33)


def test_a_state_that_does_not_fit_is_refused_and_changes_nothing(
    make_replay, steps, assert_same_state
):
    replay = make_replay(30)
    steps.fill(replay, 0, 12)
    before = replay.state_dict()
    good = replay.state_dict()
    arrays = good["fields"]
    bad = [
        ({key: value for key, value in good.items() if key != "generator"}, "lacks generator"),
        ({}, "lacks fields, generator"),
        ({**good, "num_streams": 4}, "4 streams, the buffer 3"),
        ({**good, "generator": -1}, "generator must be in"),
        ({**good, "steps": 11}, "image"),
        ({**good, "steps_added": 9}, "10 steps of 9 added"),
        ({**good, "fields": {**arrays, "vector": arrays["vector"][:, ::-1]}}, "contiguous"),
        ({**good, "fields": {**arrays, "vector": arrays["vector"][:2]}}, "vector"),
        ({**good, "fields": {**arrays, "image": arrays["image"].astype(np.int8)}}, "image"),
        ({**good, "fields": {"image": arrays["image"]}}, "key"),
    ]
    for state, message in bad:
        with pytest.raises(ValueError, match=message):
            replay.load_state_dict(state)
        assert_same_state(replay.state_dict(), before)


@pytest.mark.parametrize("steps_added", [2**63 // 3 + 1, 2**64 - 1])
def test_a_state_of_more_steps_than_can_be_numbered_is_refused(steps, steps_added):
    replay = ReplayBuffer(steps.fields, 30, 3, 0)
    steps.fill(replay, 0, 12)
    with pytest.raises(ValueError, match=f"has {steps_added} steps added"):
        replay.load_state_dict({**replay.state_dict(), "steps_added": steps_added})
    assert len(replay) == 30
