"""Resumed with the other storage, a run goes on from the steps of its checkpoint, and no others."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mudreamer_fast.config import ConfigError
from mudreamer_fast.disk import checkpoint
from mudreamer_fast.machine.memory import RESERVED_BYTES
from mudreamer_fast.replay import StorageError
from mudreamer_fast.run import replay as replay_module
from mudreamer_fast.run.trainer import Trainer
from tests import tiny_run
from tests.tiny_run import start, step


@pytest.fixture(autouse=True)
def tiny_envs(monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_run.patch_envs(monkeypatch)


def config(storage: str, **train: Any) -> Any:
    return tiny_run.config(replay={"storage": storage, "flush_every_seconds": 1e6}, **train)


def assert_same_steps(found: dict[str, Any], expected: dict[str, Any]) -> None:
    for name in ("num_streams", "steps", "steps_added", "generator"):
        assert found[name] == expected[name], name
    for name, array in expected["fields"].items():
        np.testing.assert_array_equal(found["fields"][name], array, err_msg=name)


def next_updates(run: Trainer) -> list[dict[str, float]]:
    return [run.agent.update(run.batches.next()) for _ in range(4)]


@pytest.mark.parametrize(
    "storages",
    [
        ("memory", "disk"),
        ("disk", "memory"),
        ("memory", "disk", "memory"),
        ("disk", "memory", "disk"),
        ("disk", "memory", "memory", "disk", "disk", "memory"),
    ],
)
def test_learning_goes_on_bitwise_with_any_other_storage(
    tmp_path: Path, storages: Sequence[str]
) -> None:
    saved, expected, state = None, None, None
    for phase, storage in enumerate(storages):
        run_dir = tmp_path / str(phase)
        if saved is not None:
            shutil.copytree(saved, run_dir)
        with start(config(storage), run_dir, resume=phase > 0) as run:
            if state is not None:
                assert_same_steps(run.replay.state_dict(), state)
                assert next_updates(run) == expected
            step(run, 30 if phase == 0 else 8)
            run.save()
            saved = tmp_path / f"saved-{phase}"
            shutil.copytree(run_dir, saved)
            state = run.replay.state_dict()
            expected = next_updates(run)


def test_steps_of_an_earlier_disk_phase_are_not_taken_for_newer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = tmp_path / "run"
    with start(config("disk"), run_dir) as run:
        step(run, 15)
        run.save()
        step(run, 40)  # more of them than the memory phase will have
    with start(config("memory"), run_dir, resume=True) as run:
        taken = len(run.replay)
        step(run, 3)
        run.save()
        state = run.replay.state_dict()
    assert taken == 112
    assert "warning" not in capsys.readouterr().err
    for _ in range(2):  # the second time after a crash before the first checkpoint on disk
        with start(config("disk"), run_dir, resume=True) as run:
            assert_same_steps(run.replay.state_dict(), state)
            step(run, 2)
        assert "steps in" in capsys.readouterr().err
    with start(config("memory"), run_dir, resume=True) as run:
        assert_same_steps(run.replay.state_dict(), state)


def test_steps_that_no_checkpoint_keeps_are_not_replaced_by_older_ones(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with start(config("disk"), tmp_path) as run:
        step(run, 30)
        run.save()
    with start(config("memory", save_replay=False), tmp_path, resume=True) as run:
        assert len(run.replay) == 62
        step(run, 10)
        run.save()
    with start(config("disk"), tmp_path, resume=True) as run:
        assert len(run.replay) == 0
        step(run, 12)
        run.save()
    assert "62 steps in" in capsys.readouterr().err
    with start(config("memory"), tmp_path, resume=True) as run:
        assert len(run.replay) == 26


@pytest.mark.parametrize("storage", ["memory", "disk"])
def test_a_replay_folder_that_is_missing_is_an_error_and_an_empty_one_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], storage: str
) -> None:
    with start(config("disk"), tmp_path) as run:
        step(run, 30)
        run.save()
    shutil.rmtree(tmp_path / "replay")
    for _ in range(2):
        with pytest.raises(StorageError, match="replay is missing, which holds the steps"):
            start(config(storage), tmp_path, resume=True)
    (tmp_path / "replay").mkdir()
    with start(config(storage), tmp_path, resume=True) as run:
        assert len(run.replay) == 0
    assert "replay holds no steps" in capsys.readouterr().err


def test_steps_that_do_not_fit_in_memory_on_their_way_to_the_disk_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with start(config("memory"), tmp_path) as run:
        step(run, 30)
        run.save()
    monkeypatch.setattr(replay_module, "available_bytes", lambda: RESERVED_BYTES + 999)
    with pytest.raises(ConfigError, match=r"GiB of memory .* steps would fit"):
        start(config("disk"), tmp_path, resume=True)
    assert "replay" in checkpoint.load(tmp_path / "checkpoint")
