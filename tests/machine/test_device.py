from __future__ import annotations

import os
import subprocess
from types import SimpleNamespace

import pytest
import torch

from mudreamer_fast.config import ConfigError
from mudreamer_fast.machine import device as device_module
from mudreamer_fast.machine.device import (
    overlaps,
    resolve_device,
    settle_arithmetic,
    threads_beside_acting,
    usable_cores,
)


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


def test_a_machine_is_busy_from_half_a_load_on_each_core(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_module, "usable_cores", lambda: 4)
    monkeypatch.setattr(os, "getloadavg", lambda: (1.9, 9.0, 9.0))
    assert device_module.busy_with_others(torch.device("cpu")) == ""
    monkeypatch.setattr(os, "getloadavg", lambda: (2.1, 0.0, 0.0))
    assert device_module.busy_with_others(torch.device("cpu")) == "a load average of 2.1 on 4 cores"


def test_a_gpu_is_busy_with_processes_that_are_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getloadavg", lambda: (0.0, 0.0, 0.0))
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="4-2")
    )
    asked: list[list[str]] = []
    said = SimpleNamespace(stdout=f"{os.getpid()}\n17\n[N/A]\n")
    monkeypatch.setattr(subprocess, "run", lambda command, **_: asked.append(command) or said)
    assert device_module.busy_with_others(torch.device("cuda", 1)) == "1 other processes on the GPU"
    assert "--id=GPU-4-2" in asked[0]
    said.stdout = f"{os.getpid()}\n"
    assert device_module.busy_with_others(torch.device("cuda", 1)) == ""

    def missing(*_: object, **__: object) -> None:
        raise FileNotFoundError

    monkeypatch.setattr(subprocess, "run", missing)
    assert device_module.busy_with_others(torch.device("cuda", 1)) == ""


@pytest.mark.parametrize("name", ["tpu", "", "cuda:", "cuda:-1", "CPU", "cpu:0", "mps"])
def test_device_of_another_name_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="must be auto, cpu, cuda or cuda:N"):
        resolve_device(name)


def test_device_cuda_without_a_gpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="finds no CUDA GPU"):
        resolve_device("cuda")


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
    monkeypatch.setattr(device_module, "usable_cores", lambda: cores)
    monkeypatch.setattr(torch, "get_num_threads", lambda: own)
    found = threads_beside_acting(None, overlap, torch.device(device))
    assert found == expected
    assert threads_beside_acting(3, overlap, torch.device(device)) == 3


@pytest.mark.parametrize(
    ("setting", "device", "threads", "expected"),
    [
        ("on", "cpu", 2, True),
        ("off", "cuda", 1, False),
        ("auto", "cuda", 2, True),
        ("auto", "cpu", 1, True),
        ("auto", "cpu", 2, False),
    ],
)
def test_auto_overlaps_on_a_gpu_and_where_a_core_is_free(
    setting: str, device: str, threads: int, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device_module, "usable_cores", lambda: 2)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    assert overlaps(setting, torch.device(device)) == expected


def test_usable_cores_are_those_the_process_may_run_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {1, 3, 4} if pid == 0 else set())
    assert usable_cores() == 3


def test_arithmetic_is_settled() -> None:
    threads = torch.get_num_threads()
    try:
        settle_arithmetic(threads + 1, "tf32")
        assert torch.get_num_threads() == threads + 1
        assert torch.backends.cuda.matmul.allow_tf32
        assert torch.backends.cudnn.allow_tf32
        settle_arithmetic(None, "float32")
        assert torch.get_num_threads() == threads + 1
        assert not torch.backends.cuda.matmul.allow_tf32
        assert not torch.backends.cudnn.allow_tf32
    finally:
        settle_arithmetic(threads, "float32")
