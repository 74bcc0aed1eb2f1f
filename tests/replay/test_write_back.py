"""Steps overwritten by their handles: latents that are known better after an update."""

from __future__ import annotations

import numpy as np
import pytest


def test_written_steps_are_drawn_with_their_new_values(make_replay, steps):
    replay = make_replay(30)
    steps.fill(replay, 0, 10)
    batch = replay.sample(6, 4, handles=True)
    stream, start = steps.check({k: v for k, v in batch.items() if k != "handle"}, 0, 10)
    np.testing.assert_array_equal(
        batch["handle"], (start[:, None] + np.arange(4)) * 3 + stream[:, None]
    )
    vector = np.full((6, 4, 2), 77, np.float32)
    assert replay.write_back(batch["handle"], {"vector": vector}).all()
    contents = replay.state_dict()["fields"]
    expected = steps.at(np.arange(3)[:, None], np.arange(10)[None])
    for row in range(6):
        expected["vector"][stream[row], start[row] : start[row] + 4] = 77
    for name, array in contents.items():
        np.testing.assert_array_equal(array, expected[name], err_msg=name)


def test_stale_handles_are_refused_one_by_one(make_replay, steps, assert_same_state):
    replay = make_replay(30)
    steps.fill(replay, 0, 10)
    handle = np.arange(6, dtype=np.uint64).reshape(2, 3)  # steps 0 and 1 of all streams
    steps.fill(replay, 10, 11)
    values = {"reward": np.full((2, 3), -5, np.float32)}
    np.testing.assert_array_equal(replay.write_back(handle, values), [[False] * 3, [True] * 3])
    assert (replay.state_dict()["fields"]["reward"][:, 0] == -5).all()
    steps.fill(replay, 11, 12)
    before = replay.state_dict()
    assert not replay.write_back(handle, values).any()
    assert_same_state(replay.state_dict(), before)


def test_a_handle_means_the_same_step_after_a_reload(make_replay, steps):
    replay = make_replay(30)
    steps.fill(replay, 0, 17)
    handle = replay.sample(1, 3, handles=True)["handle"]
    loaded = make_replay(15)
    loaded.load_state_dict(replay.state_dict())
    written = loaded.write_back(handle, {"reward": np.full((1, 3), -1, np.float32)})
    held = handle[0] // 3 >= 12
    np.testing.assert_array_equal(written[0], held)
    contents = loaded.state_dict()["fields"]["reward"]
    stream = int(handle[0, 0] % 3)
    for step in handle[0, held] // 3:
        assert contents[stream, int(step) - 12] == -1


def test_handles_that_were_never_given_are_refused(make_replay, steps, assert_same_state):
    replay = make_replay(30)
    steps.fill(replay, 0, 5)
    before = replay.state_dict()
    for unknown in (15, 2**64 - 1):
        handle = np.array([3, unknown], np.uint64)
        with pytest.raises(IndexError, match=f"no step with the handle {unknown}"):
            replay.write_back(handle, {"reward": np.zeros(2, np.float32)})
        assert_same_state(replay.state_dict(), before)


def test_arrays_that_do_not_fit_are_refused(steps, assert_same_state):
    from mudreamer_fast.replay import ReplayBuffer

    replay = ReplayBuffer(steps.fields, 30, 3, seed=0)
    steps.fill(replay, 0, 5)
    before = replay.state_dict()
    handle = np.array([3, 4], np.uint64)
    bad = [
        ({"reward": np.zeros(3, np.float32)}, r"reward.*shape \(2,\)"),
        ({"reward": np.zeros(2)}, "reward.*float32, got float64"),
        ({"rewards": np.zeros(2, np.float32)}, "some of the keys .*got .*rewards"),
        ({"reward": [0.0, 0.0]}, "numpy array"),
    ]
    for values, message in bad:
        with pytest.raises(ValueError, match=message):
            replay.write_back(handle, values)
    for wrong in (handle.astype(np.int64), [3, 4]):
        with pytest.raises(ValueError, match="handle must be an array of uint64"):
            replay.write_back(wrong, {"reward": np.zeros(2, np.float32)})
    assert_same_state(replay.state_dict(), before)


def test_handles_are_given_where_they_are_asked_for_and_only_there(make_replay, steps):
    replay = make_replay(30)
    steps.fill(replay, 0, 5)
    out = replay.sample(2, 3, handles=True)
    assert replay.sample(2, 3, out, handles=True) is out
    with pytest.raises(ValueError, match="handle"):
        replay.sample(2, 3, out)
    with pytest.raises(ValueError, match="handle"):
        replay.sample(2, 3, replay.sample(2, 3), handles=True)
    for wrong in (out["handle"].astype(np.int64), out["handle"][:1], out["handle"].tolist()):
        with pytest.raises(ValueError, match="handle"):
            replay.sample(2, 3, {**out, "handle": wrong}, handles=True)
    assert "handle" not in replay.sample(2, 3)


def test_no_field_may_take_the_handles_name(make_replay, steps):
    spec = type(steps.fields["image"])
    with pytest.raises(ValueError, match="no field may be called 'handle'"):
        type(make_replay(30))(
            {**steps.fields, "handle": spec((), np.dtype(np.int64))}, 30, 3, seed=0
        )


def test_pending_batches_are_copied_before_a_step_is_overwritten(steps):
    from mudreamer_fast.replay import ReplayBuffer

    replay = ReplayBuffer(steps.fields, 90, 3, seed=0)
    steps.fill(replay, 0, 30)
    queue = replay.batches(8, 5, ahead=3, handles=True)
    queue.next()
    everything = np.arange(90, dtype=np.uint64)
    replay.write_back(everything, {"reward": np.full(90, -3, np.float32)})
    for _ in range(3):
        batch = queue.next()
        steps.check({k: v for k, v in batch.items() if k != "handle"}, 0, 30)
    assert (queue.next()["reward"] == -3).all()
