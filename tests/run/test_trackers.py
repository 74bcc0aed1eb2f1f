"""Services that metrics go to: by a stand-in, and by their own packages without a network."""

from __future__ import annotations

import importlib.util
import json
import sqlite3
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from mudreamer_fast.config import Config, ConfigError
from mudreamer_fast.run import trackers
from mudreamer_fast.run.metrics import MetricsLogger
from mudreamer_fast.run.trackers import TRACKER_FILE, Tracker, open_tracker
from mudreamer_fast.train import train
from tests import tiny_run
from tests.patience import PATIENCE_SECONDS


class StandIn:
    """A service that keeps what it is sent; runs by their numbers."""

    runs: dict[str, list[tuple[int, dict[str, float]]]]
    fails: str | None = None

    def __init__(
        self, project: str, folder: Path, settings: Mapping[str, Any], known: str | None
    ) -> None:
        if self.fails:
            raise RuntimeError(self.fails)
        assert settings["env.task"] == "dmc/walker_walk"
        self.id = known or f"{project}-{len(self.runs)}"
        self.runs.setdefault(self.id, [])
        self.closed = False

    def log(self, env_steps: int, values: Mapping[str, float]) -> None:
        assert not self.closed
        if self.fails:
            raise RuntimeError(self.fails)
        self.runs[self.id].append((env_steps, dict(values)))

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> type[StandIn]:
    monkeypatch.setattr(StandIn, "runs", {}, raising=False)
    monkeypatch.setitem(trackers._TRACKERS, "wandb", StandIn)
    return StandIn


def config(kind: str = "wandb", **changes: Any) -> Config:
    return tiny_run.config(tracker=kind, **changes)


def test_a_run_sends_its_scalars_and_goes_on_in_the_same_one(
    tmp_path: Path, service: type[StandIn], monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_run.patch_envs(monkeypatch)
    train(config(env_steps=120), tmp_path / "run")
    (name,) = service.runs
    sent = list(service.runs[name])
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").open()]
    scalars = [
        (line["env_steps"], {k: v for k, v in line.items() if isinstance(v, float | int)})
        for line in lines
    ]
    assert [step for step, _ in sent] == [step for step, _ in scalars]
    for (_, values), (_, written) in zip(sent, scalars, strict=True):
        assert values == {k: v for k, v in written.items() if k not in ("env_steps", "seconds")}
    assert json.loads((tmp_path / "run" / TRACKER_FILE).read_text()) == {
        "tracker": "wandb", "project": "mudreamer-fast", "id": name
    }  # fmt: skip
    train(config(env_steps=200), tmp_path / "run", resume=True)
    assert list(service.runs) == [name]
    assert len(service.runs[name]) > len(sent)
    train(config("none"), tmp_path / "other")
    assert list(service.runs) == [name]
    assert not (tmp_path / "other" / TRACKER_FILE).exists()


def test_another_project_is_another_run(tmp_path: Path, service: type[StandIn]) -> None:
    names = []
    for project in ("mine", "mine", "yours"):
        tracker = open_tracker(config(tracker_project=project), tmp_path)
        assert tracker is not None
        names.append(tracker.id)
    assert names == ["mine-0", "mine-0", "yours-1"]


def test_a_service_out_of_reach_costs_one_warning_and_no_run(
    tmp_path: Path, service: type[StandIn], monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    tracker = open_tracker(config(), tmp_path)
    logger = MetricsLogger(tmp_path, tensorboard=False, warn=said.append, tracker=tracker)
    monkeypatch.setattr(service, "fails", "no\nanswer")
    for step in range(3):
        logger.write(step, 0.0, {"a": 1.0})
    monkeypatch.setattr(service, "fails", None)
    logger.write(3, 0.0, {"a": 2.0, "text": "x", "list": [1.0]})
    logger.close()
    logger.close()
    assert said == ["warning: the tracker took no metrics (no answer); training goes on"]
    assert service.runs == {"mudreamer-fast-0": [(3, {"a": 2.0})]}
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 4


def test_a_service_that_cannot_be_reached_at_the_start_is_one_line(
    tmp_path: Path, service: type[StandIn], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "fails", "log in\nfirst")
    with pytest.raises(ConfigError, match=r"^train\.tracker wandb: log in first$"):
        open_tracker(config(), tmp_path)


def test_a_slow_service_does_not_hold_training_up_and_gets_everything_in_order() -> None:
    taken: list[tuple[int, float]] = []
    goes_on = threading.Event()

    def slow(env_steps: int, values: Mapping[str, float], seconds: float) -> None:
        assert goes_on.wait(20)
        taken.append((env_steps, values["a"]))

    behind = trackers._Behind(slow)
    values = {"a": 0.0}
    for step in range(3):
        values["a"] = step / 2
        behind.log(step, values)
    assert not taken
    goes_on.set()
    behind.close()
    assert taken == [(0, 0.0), (1, 0.5), (2, 1.0)]


def test_what_a_service_refuses_meanwhile_is_told_by_the_next_metrics() -> None:
    refused = threading.Event()

    def fails(env_steps: int, values: Mapping[str, float], seconds: float) -> None:
        if env_steps < 2:
            refused.set()
            raise RuntimeError(f"no room for {env_steps}")

    behind = trackers._Behind(fails)
    behind.log(0, {})
    assert refused.wait(20)
    while behind._error is None:  # its thread may still be about to say so
        time.sleep(0.01)
    with pytest.raises(RuntimeError, match="no room for 0"):
        behind.log(2, {})
    behind.log(3, {})
    behind.log(1, {})
    with pytest.raises(RuntimeError, match="no room for 1"):
        behind.close()


def test_a_service_that_hangs_is_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trackers, "CLOSE_SECONDS", 0.05)
    goes_on = threading.Event()
    behind = trackers._Behind(lambda *_: goes_on.wait(20) and None)
    behind.log(0, {})
    with pytest.raises(TimeoutError, match=r"not taken all metrics 0\.05 s after"):
        behind.close()
    goes_on.set()


@pytest.mark.parametrize("kind", ["wandb", "mlflow", "trackio"])
def test_a_missing_package_is_one_line(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (kind, "mlflow.entities", "mlflow.tracking"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ConfigError, match=rf"pip install 'mudreamer-fast\[{kind}\]'"):
        open_tracker(config(kind), tmp_path)


def wandb_values(tmp_path: Path, name: str) -> list[tuple[int, float]]:
    """From W&B's files: seven bytes, then records of checksum, length, kind and a message."""
    from wandb.proto.wandb_internal_pb2 import Record

    found = []
    for file in sorted((tmp_path / "run").glob("wandb/offline-run-*/*.wandb")):
        assert file.name == f"run-{name}.wandb"
        content, place = file.read_bytes(), 7
        assert len(content) < 32_768  # one block
        while place < len(content):
            length = int.from_bytes(content[place + 4 : place + 6], "little")
            record = Record.FromString(content[place + 7 : place + 7 + length])
            place += 7 + length
            row = {
                "/".join(item.nested_key) or item.key: json.loads(item.value_json)
                for item in record.history.item
            }
            if row:
                found.append((row["env_steps"], row["a/b"]))
    return found


def mlflow_values(tmp_path: Path, name: str) -> list[tuple[int, float]]:
    from mlflow.tracking import MlflowClient

    run = MlflowClient().get_run(name)
    assert run.info.run_name == "run"
    assert run.info.status == "FINISHED"
    assert run.data.params["model.batch_norm"] == "posterior"
    return [(m.step, m.value) for m in MlflowClient().get_metric_history(name, "a/b")]


def trackio_values(tmp_path: Path, name: str) -> list[tuple[int, float]]:
    (database,) = (tmp_path / "trackio").glob("*.db")
    with sqlite3.connect(database) as connection:
        rows = connection.execute("SELECT run_name, step, metrics FROM metrics ORDER BY id")
        found = [(run, step, json.loads(values)) for run, step, values in rows]
    assert {run for run, *_ in found} == {name}
    return [(step, values["a/b"]) for _, step, values in found if "a/b" in values]


OFFLINE: dict[str, tuple[dict[str, str], Callable[[Path, str], list[tuple[int, float]]]]] = {
    "wandb": ({"WANDB_MODE": "offline", "WANDB_SILENT": "true"}, wandb_values),
    "mlflow": (
        {"MLFLOW_ALLOW_FILE_STORE": "true", "MLFLOW_TRACKING_URI": "file:{}/mlflow"}, mlflow_values
    ),
    "trackio": ({"TRACKIO_DIR": "{}/trackio"}, trackio_values),
}  # fmt: skip


@pytest.mark.parametrize("kind", OFFLINE)
def test_its_own_package_keeps_scalars_without_a_network_and_goes_on_after_a_resume(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if importlib.util.find_spec(kind) is None:  # an import would read the variables too early
        pytest.skip(f"no {kind}")
    variables, values_of = OFFLINE[kind]
    for name, value in variables.items():
        monkeypatch.setenv(name, value.format(tmp_path))
    (tmp_path / "run").mkdir()
    names = []
    for steps in ((10, 20), (15, 30)):  # the second begins where a checkpoint was
        tracker: Tracker | None = open_tracker(config(kind), tmp_path / "run")
        assert tracker is not None
        names.append(tracker.id)
        for step in steps:
            tracker.log(step, {"a/b": step / 4})
        tracker.close()
    assert names[0] == names[1]
    deadline = time.monotonic() + PATIENCE_SECONDS
    found = values_of(tmp_path, names[0])
    while len(found) < 4 and time.monotonic() < deadline:  # W&B's files are written by its service
        time.sleep(0.1)
        found = values_of(tmp_path, names[0])
    assert sorted(found) == [(10, 2.5), (15, 3.75), (20, 5.0), (30, 7.5)]
