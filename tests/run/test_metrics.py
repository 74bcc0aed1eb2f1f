from __future__ import annotations

import json
import math
import random
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from mudreamer_fast.run.metrics import METRICS_FILE, MetricsLogger, drop_lines_after, read_lines
from mudreamer_fast.run.tensorboard import TensorBoardWriter
from tests.mutations import ROUNDS, mutate


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / METRICS_FILE).read_text().splitlines()]


def events(folder: Path) -> list[tuple[int, str, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0})
    board.Reload()
    return sorted(
        (event.step, name, event.value)
        for name in board.Tags()["scalars"]
        for event in board.Scalars(name)
    )


def test_logger_averages_between_two_lines(tmp_path: Path) -> None:
    logger = MetricsLogger(tmp_path, tensorboard=False)
    for value in (1.0, 2.0, 6.0):
        logger.add({"loss": value})
    logger.add({"rare": 5.0})
    logger.flush(10, 1.25, {"speed": 7.0})
    logger.add({"loss": 4.0})
    logger.flush(20, 2.5, {})
    assert lines(tmp_path) == [
        {"env_steps": 10, "seconds": 1.25, "loss": 3.0, "rare": 5.0, "speed": 7.0},
        {"env_steps": 20, "seconds": 2.5, "loss": 4.0},
    ]


def test_line_is_on_disk_as_soon_as_it_is_written(tmp_path: Path) -> None:
    logger = MetricsLogger(tmp_path)
    logger.write(3, 0.0, {"x": 1.0})
    assert lines(tmp_path) == [{"env_steps": 3, "seconds": 0.0, "x": 1.0}]
    assert events(tmp_path) == [(3, "x", 1.0)]
    logger.close()


def test_not_a_number_is_written_as_null(tmp_path: Path) -> None:
    logger = MetricsLogger(tmp_path, tensorboard=False)
    logger.write(0, 0.0, {"x": math.nan, "y": math.inf, "z": [1.0, 2.0], "warning": "text"})
    (line,) = lines(tmp_path)
    assert line["x"] is line["y"] is None
    assert (line["z"], line["warning"]) == ([1.0, 2.0], "text")


def test_resumed_log_has_no_steps_twice(tmp_path: Path) -> None:
    logger = MetricsLogger(tmp_path)
    for step in (10, 20, 30):
        logger.write(step, 0.0, {"x": float(step)})
    logger.close()
    with (tmp_path / METRICS_FILE).open("a") as file:
        file.write('{"env_steps": 40, "x"')  # torn by a crash
    resumed = MetricsLogger(tmp_path, resume_env_steps=20)
    resumed.write(25, 0.0, {"x": -25.0})
    resumed.close()
    assert [(line["env_steps"], line["x"]) for line in lines(tmp_path)] == [
        (10, 10.0),
        (20, 20.0),
        (25, -25.0),
    ]
    assert [step for step, _, _ in events(tmp_path)] == [10, 20, 25]


def test_resumed_log_keeps_what_was_written_before_the_checkpoint_at_its_step(
    tmp_path: Path,
) -> None:
    logger = MetricsLogger(tmp_path, tensorboard=False)
    for step, seconds in ((10, 9.0), (20, 1.0), (20, 2.0006), (20, 2.1), (30, 1.5)):
        logger.write(step, seconds, {})
    MetricsLogger(tmp_path, 20, 1.5, tensorboard=False)
    kept = [(line["env_steps"], line["seconds"]) for line in lines(tmp_path)]
    assert kept == [(10, 9.0), (20, 1.0)]
    MetricsLogger(tmp_path, 20, 0.9996, tensorboard=False)  # written as 1.0
    assert len(lines(tmp_path)) == 2


def test_names_of_event_files_are_in_the_order_of_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = []
    for nanoseconds in (7 * 10**9 + 98_000_000, 7 * 10**9 + 500_000_000):
        monkeypatch.setattr(time, "time_ns", lambda now=nanoseconds: now)
        TensorBoardWriter(tmp_path).close()
        (new,) = {path.name for path in tmp_path.iterdir()} - set(names)
        names.append(new)
    assert names == sorted(names)


def test_dropping_lines_of_no_file_makes_none(tmp_path: Path) -> None:
    drop_lines_after(tmp_path / METRICS_FILE, 5)
    assert list(tmp_path.iterdir()) == []
    assert list(read_lines(tmp_path / METRICS_FILE)) == []


def test_full_disk_costs_one_warning_and_no_run(tmp_path: Path) -> None:
    (tmp_path / METRICS_FILE).symlink_to("/dev/full")
    warnings: list[str] = []
    logger = MetricsLogger(tmp_path, tensorboard=False, warn=warnings.append)
    for step in range(3):
        logger.write(step, 0.0, {"x": 1.0})
    assert warnings == ["warning: cannot write metrics (No space left on device); training goes on"]
    (tmp_path / METRICS_FILE).unlink()
    logger.write(3, 0.0, {"x": 1.0})
    logger.write(4, 0.0, {"x": 1.0})
    assert [line["env_steps"] for line in read_lines(tmp_path / METRICS_FILE)] == [3, 4]
    assert len(warnings) == 1


def test_tensorboard_goes_on_in_a_new_file_after_a_full_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    warnings: list[str] = []
    logger = MetricsLogger(tmp_path, warn=warnings.append)
    logger.write(1, 0.0, {"x": 1.0})
    add = TensorBoardWriter.add

    def half_an_event(board: TensorBoardWriter, step: int, values: Any) -> None:
        board._file.write(b"\0" * 7)
        board._file.flush()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(TensorBoardWriter, "add", half_an_event)
    logger.write(2, 0.0, {"x": 2.0})
    monkeypatch.setattr(TensorBoardWriter, "add", add)
    logger.write(3, 0.0, {"x": 3.0})
    logger.close()
    assert len(warnings) == 1
    assert events(tmp_path) == [(1, "x", 1.0), (3, "x", 3.0)]
    assert [line["env_steps"] for line in lines(tmp_path)] == [1, 2, 3]


def test_log_goes_on_without_tensorboard_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    warnings: list[str] = []
    logger = MetricsLogger(tmp_path, warn=warnings.append)
    logger.write(1, 0.0, {"x": 1.0})
    logger.close()
    assert warnings == ["note: tensorboard is not installed; metrics go to metrics.jsonl only"]
    assert [path.name for path in tmp_path.iterdir()] == [METRICS_FILE]


def test_any_file_of_metrics_is_read_and_cut_off(tmp_path: Path) -> None:
    path, rng = tmp_path / METRICS_FILE, random.Random(0)
    rows = [{"env_steps": 10 * i, "seconds": 1.5, "episode/score": float(i)} for i in range(9)]
    good = "".join(json.dumps(row) + "\n" for row in rows).encode()
    for number in range(ROUNDS // 4):
        path.write_bytes(mutate(good, rng) if number else good + b'{"env_steps": "x"}\n[[\n')
        drop_lines_after(path, 50)
        assert all(row["env_steps"] <= 50 for row in read_lines(path))
    path.write_text("[" * 100_000 + "\n")
    assert list(read_lines(path)) == []
