"""Everything that does not fit gives one clear error and leaves the buffer as it was."""

from __future__ import annotations

import numpy as np
import pytest

from mudreamer_fast.replay import NonFiniteError, ReplayBuffer
from mudreamer_fast.replay.twin import NumpyReplay


def other(arrays, **changes):
    return {**arrays, **changes}


def bad_arrays(arrays):
    """Arrays that do not fit, one fault at a time, with the message each must give."""
    image, vector = arrays["image"], arrays["vector"]
    without_reward = {name: array for name, array in arrays.items() if name != "reward"}
    strided = np.repeat(vector, 2, axis=-1)[..., ::2]
    return [
        ({}, "key"),
        (without_reward, "reward"),
        (other(arrays, extra=vector), "extra"),
        (other(without_reward, rewards=arrays["reward"]), "reward"),
        (other(arrays, vector=vector.astype(np.float64)), "vector.*float64"),
        (other(arrays, vector=vector.astype(vector.dtype.newbyteorder())), "vector"),
        (other(arrays, image=image.view(np.int8)), "image.*int8"),
        (other(arrays, image=image[0].copy()), r"image.*5, 7\)"),
        (other(arrays, reward=arrays["reward"][..., None]), "reward"),
        (other(arrays, vector=np.repeat(vector, 2, axis=-1)), "vector"),
        (other(arrays, vector=strided), "vector.*contiguous"),
        (other(arrays, image=np.asfortranarray(image)), "image.*contiguous"),
        (other(arrays, reward=arrays["reward"].tolist()), "reward.*numpy array"),
        (other(arrays, is_terminal=True), "is_terminal.*numpy array"),
    ]


def test_arrays_that_do_not_fit_cannot_be_added(make_replay, steps, assert_same_state):
    replay = make_replay(30)
    steps.fill(replay, 0, 4)
    before = replay.state_dict()
    for arrays, message in bad_arrays(steps.step(3, 4)):
        with pytest.raises(ValueError, match=message):
            replay.add(arrays)
        assert_same_state(replay.state_dict(), before)
    replay.add(steps.step(3, 4))
    steps.check(replay.sample(9, 5), 0, 5)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(("name", "index"), [("reward", 2), ("vector", (1, 1)), ("vector", (0, 0))])
def test_numbers_that_are_not_finite_are_refused_and_no_stream_stores_the_step(
    make_replay, steps, assert_same_state, name, index, value
):
    replay = make_replay(12)
    steps.fill(replay, 0, 4)
    before = replay.state_dict()
    step = steps.step(3, 4)
    step[name][index] = value
    stream = np.atleast_1d(index)[0]
    with pytest.raises(ValueError, match=f"^'{name}' of stream {stream} must be finite") as caught:
        replay.add(step)
    assert "\n" not in str(caught.value)
    assert isinstance(replay, NumpyReplay) or isinstance(caught.value, NonFiniteError)
    assert_same_state(replay.state_dict(), before)
    steps.fill(replay, 4, 6)
    steps.check(replay.sample(9, 4), 2, 6)


def test_out_that_does_not_fit_is_refused_untouched(make_replay, steps, assert_same_state):
    replay = make_replay(30)
    steps.fill(replay, 0, 4)
    before = replay.state_dict()
    out = {name: np.full((2, 3, *spec.shape), 1, spec.dtype) for name, spec in steps.fields.items()}
    for arrays, message in bad_arrays(out):
        with pytest.raises(ValueError, match=message):
            replay.sample(2, 3, arrays)
        assert_same_state(replay.state_dict(), before)  # the generator has not moved
        assert all((array == 1).all() for array in out.values())


def test_out_may_not_share_memory(steps):
    replay = ReplayBuffer(steps.fields, 30, 3, seed=0)
    steps.fill(replay, 0, 4)
    out = replay.sample(2, 3)
    with pytest.raises(ValueError, match=r"is_first.*is_terminal.*share memory"):
        replay.sample(2, 3, other(out, is_terminal=out["is_first"]))


def test_out_must_be_writeable(make_replay, steps):
    replay = make_replay(30)
    steps.fill(replay, 0, 4)
    out = replay.sample(2, 3)
    out["reward"].flags.writeable = False
    with pytest.raises(ValueError, match=r"reward.*writeable"):
        replay.sample(2, 3, out)


@pytest.mark.parametrize(("batch_size", "length"), [(0, 3), (-1, 3), (2, 0), (2, -5)])
def test_sizes_must_be_positive(make_replay, steps, batch_size, length):
    replay = make_replay(30)
    steps.fill(replay, 0, 4)
    with pytest.raises(ValueError, match="must be positive, got"):
        replay.sample(batch_size, length)
    if length <= 0:
        with pytest.raises(ValueError, match="length must be positive"):
            replay.can_sample(length)


@pytest.mark.parametrize("held", [0, 1, 4])
def test_a_buffer_with_too_few_steps_cannot_be_sampled(make_replay, steps, assert_same_state, held):
    replay = make_replay(30)
    steps.fill(replay, 0, held)
    before = replay.state_dict()
    assert not replay.can_sample(5)
    with pytest.raises(RuntimeError, match=f"5 steps; the longest holds {held}"):
        replay.sample(2, 5)
    assert_same_state(replay.state_dict(), before)


def test_a_window_longer_than_the_buffer_can_never_be_sampled(make_replay, steps):
    replay = make_replay(capacity_steps=30)
    steps.fill(replay, 0, 50)
    with pytest.raises(RuntimeError, match="11 steps; the longest holds 10"):
        replay.sample(1, 11)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"capacity_steps": 2}, r"capacity_steps must be at least num_streams \(3\), got 2"),
        ({"capacity_steps": -9}, "capacity_steps must be at least"),
        ({"capacity_steps": 30, "num_streams": 0}, "num_streams must be positive, got 0"),
        ({"capacity_steps": 30, "threads": 0}, "threads must be positive, got 0"),
        ({"capacity_steps": 30, "seed": -1}, r"seed must be in \[0, 2\^64\), got -1"),
        ({"capacity_steps": 30, "seed": 2**64}, "seed must be in"),
    ],
)
def test_arguments_out_of_range_are_refused(make_replay, arguments, message):
    with pytest.raises(ValueError, match=message):
        make_replay(**arguments)


@pytest.mark.parametrize(
    ("name", "shape", "dtype"),
    [
        ("is_first", (), np.uint8),
        ("is_first", (1,), np.bool_),
        ("image", (3, 0), np.uint8),
        ("image", (3, -1), np.uint8),
    ],
)
def test_fields_that_cannot_be_stored_are_refused(make_replay, steps, name, shape, dtype):
    kind = type(make_replay(30))
    spec = type(steps.fields["image"])
    with pytest.raises(ValueError, match=name):
        kind({**steps.fields, name: spec(shape, np.dtype(dtype))}, 30, 3, seed=0)


def test_is_first_must_be_among_the_fields(make_replay, steps):
    fields = {name: spec for name, spec in steps.fields.items() if name != "is_first"}
    with pytest.raises(ValueError, match="is_first"):
        type(make_replay(30))(fields, 30, 3, seed=0)


@pytest.mark.parametrize("dtype", [np.object_, np.complex64, ">f4", "U3", np.uint64])
def test_dtypes_that_the_storage_does_not_know_are_refused(steps, dtype):
    spec = type(steps.fields["image"])
    with pytest.raises(ValueError, match=r"'odd' has dtype .*; expected bool"):
        ReplayBuffer({**steps.fields, "odd": spec((2,), np.dtype(dtype))}, 30, 3, seed=0)


def test_an_impossible_capacity_is_refused_with_its_size(steps):
    with pytest.raises(MemoryError, match=r"refused .* bytes of address space"):
        ReplayBuffer(steps.fields, 2**50, 1, seed=0)
