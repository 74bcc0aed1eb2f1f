from __future__ import annotations

import os
import random
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from mudreamer_fast import machine
from mudreamer_fast.config import ConfigError
from mudreamer_fast.machine import (
    GIB,
    RESERVED_BYTES,
    SeedUse,
    Stopped,
    StopSignals,
    resolve_device,
)
from tests import tiny


def test_device_auto_is_the_gpu_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_device("auto") == resolve_device("cpu") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert resolve_device("auto") == resolve_device("cuda") == torch.device("cuda:0")
    assert resolve_device("cuda:1") == torch.device("cuda:1")
    assert resolve_device("cpu") == torch.device("cpu")
    with pytest.raises(ConfigError, match="cuda:2 was asked for, but there are 2 GPUs"):
        resolve_device("cuda:2")


@pytest.mark.parametrize("name", ["tpu", "", "cuda:", "cuda:-1", "CPU", "cpu:0", "mps"])
def test_device_of_another_name_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="must be auto, cpu, cuda or cuda:N"):
        resolve_device(name)


def test_device_cuda_without_a_gpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="finds no CUDA GPU"):
        resolve_device("cuda")


def test_available_memory_is_what_the_system_has() -> None:
    available = machine.available_bytes()
    assert available is not None
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 0 < available <= total
    assert 10**7 < machine.resident_bytes() < total


def test_replay_that_would_not_fit_is_refused_with_the_capacity_that_would() -> None:
    fields = {"image": tiny.IMAGE, "vector": tiny.VECTOR}
    step_bytes = 3 * 64 * 64 + 4 * 3
    available = RESERVED_BYTES + 1000 * step_bytes
    machine.check_replay_room(fields, 1000, 10**9, available)
    machine.check_replay_room(fields, 10**9, 1000, available)  # never filled
    machine.check_replay_room(fields, 10**9, 10**9, None)
    with pytest.raises(ConfigError, match=r"capacity_steps 1001 needs.* 1000 steps would fit") as e:
        machine.check_replay_room(fields, 1001, 10**9, available)
    assert "\n" not in str(e.value)
    with pytest.raises(ConfigError, match=r"\b0 steps would fit"):
        machine.check_replay_room(fields, 5, 5, GIB // 2)


def draw() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), float(torch.rand(()))  # noqa: NPY002


def test_generators_go_on_where_they_were_saved() -> None:
    machine.seed_everything(3)
    draw()
    states = machine.generator_states()
    expected = [draw() for _ in range(3)]
    machine.seed_everything(4)
    machine.restore_generator_states(states)
    assert [draw() for _ in range(3)] == expected


def test_seeds_differ_between_uses_neighbours_and_resumes() -> None:
    seeds = {
        machine.derived_seed(seed, use, number)
        for seed in range(20)
        for use in SeedUse
        for number in range(3)
    }
    assert len(seeds) == 20 * len(SeedUse) * 3
    assert machine.derived_seed(1, SeedUse.ACT) == machine.derived_seed(1, SeedUse.ACT)
    assert all(0 <= seed < 2**30 for seed in seeds)


@pytest.mark.parametrize("number", StopSignals.SIGNALS)
def test_first_signal_is_a_request_and_the_second_is_the_systems(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with StopSignals() as stop:
        stop.raise_if_received()
        os.kill(os.getpid(), number)
        assert stop.received == number
        assert signal.getsignal(number) == signal.SIG_DFL
        with pytest.raises(Stopped):
            stop.raise_if_received()
    assert signal.getsignal(number) == before


@pytest.mark.parametrize(
    ("cores", "own", "overlap", "device", "expected"),
    [
        (2, 2, "on", "cpu", 1),
        (8, 8, "on", "cpu", 7),
        (8, 4, "on", "cpu", None),  # leaves cores anyway
        (1, 1, "on", "cpu", None),
        (2, 2, "auto", "cpu", None),  # a large model learns faster with both
        (2, 2, "off", "cpu", None),
        (2, 2, "on", "cuda", None),
    ],
)
def test_threads_leave_a_core_to_acting(
    cores: int, own: int, overlap: str, device: str, expected: int | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(machine, "usable_cores", lambda: cores)
    monkeypatch.setattr(torch, "get_num_threads", lambda: own)
    found = machine.threads_beside_acting(None, overlap, torch.device(device))
    assert found == expected
    assert machine.threads_beside_acting(3, overlap, torch.device(device)) == 3


def test_arithmetic_is_settled() -> None:
    threads = torch.get_num_threads()
    try:
        machine.settle_arithmetic(threads + 1, tf32=True)
        assert torch.get_num_threads() == threads + 1
        assert torch.backends.cuda.matmul.allow_tf32
        assert torch.backends.cudnn.allow_tf32
        machine.settle_arithmetic(None, tf32=False)
        assert torch.get_num_threads() == threads + 1
        assert not torch.backends.cuda.matmul.allow_tf32
        assert not torch.backends.cudnn.allow_tf32
    finally:
        machine.settle_arithmetic(threads, tf32=False)


def test_stop_signals_leave_other_threads_alone() -> None:
    import threading

    failures: list[BaseException] = []

    def work(act: Callable[[], object]) -> None:
        try:
            act()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=work, args=(lambda: StopSignals().__enter__(),))
    thread.start()
    thread.join()
    assert failures == []


def test_a_folders_room_is_the_free_disk_and_what_it_holds(tmp_path: Path) -> None:
    free = shutil.disk_usage(tmp_path).free
    missing = tmp_path / "not" / "there"
    assert machine.disk_bytes(missing) == pytest.approx(free, rel=0.01)
    (tmp_path / "held").write_bytes(b"")
    os.truncate(tmp_path / "held", 10**13)
    assert machine.disk_bytes(tmp_path) == pytest.approx(free + 10**13, rel=0.01)
