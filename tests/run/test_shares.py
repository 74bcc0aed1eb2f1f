"""Runs that several processes train together: stopped, bereaved and taken up again."""

from __future__ import annotations

import dataclasses
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mudreamer_fast.config import Config, ConfigError
from mudreamer_fast.disk import checkpoint
from mudreamer_fast.machine.ranks import ALONE
from mudreamer_fast.run.folder import RunFolder
from mudreamer_fast.run.metrics import read_lines
from mudreamer_fast.run.shares import own_share, read_saved
from tests import tiny_run
from tests.patience import PATIENCE_SECONDS

ROOT = Path(__file__).parents[2]
RANKS = 2


class Several:
    """As many as there are said to be."""

    def __init__(self, size: int, index: int = 0) -> None:
        self.size, self.index = size, index


def shared_config(**train: Any) -> Config:
    defaults = {"env_steps": 10**9, "eval_every_env_steps": 40, "checkpoint_every_seconds": 1e-6}
    return tiny_run.config(replay={"batch_size": 4}, **(defaults | train))


def start_ranks(words: list[str]) -> list[subprocess.Popen[str]]:
    """Processes that train together, as `torchrun` starts them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    command = [sys.executable, "-m", "tests.tiny_run", "train", *words]
    return [
        subprocess.Popen(
            command,
            cwd=ROOT,
            env=os.environ
            | address
            | {"WORLD_SIZE": str(RANKS), "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(RANKS)
    ]


def wait_for(what: Callable[[], bool], processes: list[subprocess.Popen[str]]) -> None:
    until = time.monotonic() + PATIENCE_SECONDS
    while not what():
        assert time.monotonic() < until
        for process in processes:
            assert process.poll() is None, process.communicate()[1]
        time.sleep(0.05)


def ended(processes: list[subprocess.Popen[str]]) -> list[tuple[int, str]]:
    """Exit codes, and what was said."""
    return [
        (process.returncode, said)
        for process in processes
        for _, said in [process.communicate(timeout=PATIENCE_SECONDS)]
    ]


def steps(folder: Path) -> int:
    """Policy steps of the newest checkpoint."""
    if not checkpoint.exists(folder / "checkpoint"):
        return 0
    counted: int = checkpoint.load(folder / "checkpoint", ("counters",))["counters"]["policy_steps"]
    return counted


def same(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[name], other[name]) for name in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return torch.equal(one, other) if isinstance(one, Tensor) else np.array_equal(one, other)


def test_ranks_stop_together_end_with_one_that_dies_and_go_on_as_more_or_fewer(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "run"
    second = folder / "ranks" / "1"
    config = shared_config()
    processes = start_ranks(tiny_run.options(config, folder))
    wait_for(lambda: steps(folder) > 60, processes)
    processes[1].send_signal(signal.SIGTERM)  # either may be asked
    (code, said), (code_of_second, said_by_second) = ended(processes)
    assert code == code_of_second == 128 + signal.SIGTERM
    assert "go on with" in said
    assert said_by_second.splitlines() == [], "one speaks for all"
    saved, of_second = (checkpoint.load(each / "checkpoint") for each in (folder, second))
    assert saved["agent"]["updates"] > 10
    assert same(saved["agent"], of_second["agent"])
    stopped_at = saved["counters"]["policy_steps"]
    assert of_second["counters"]["policy_steps"] == stopped_at
    # every rank keeps the steps of its own environment
    assert saved["replay"]["steps"] == of_second["replay"]["steps"]
    assert saved["replay"]["steps"] - stopped_at // RANKS in (0, 1)
    assert not same(saved["replay"], of_second["replay"])
    scores = [line for line in read_lines(folder / "metrics.jsonl") if "evaluation/score" in line]
    assert scores
    assert not any("evaluation/score" in line for line in read_lines(second / "metrics.jsonl"))

    processes = start_ranks(["--resume", str(folder)])
    wait_for(lambda: steps(folder) > stopped_at, processes)
    processes[1].kill()
    (code, said), (code_of_second, _) = ended(processes)
    assert (code, code_of_second) == (2, -signal.SIGKILL)
    assert said.splitlines()[-1].startswith(
        "error: another of the processes that train together has ended"
    )
    assert "Traceback" not in said
    bereaved_at = steps(folder)
    assert bereaved_at > stopped_at

    done = subprocess.run(
        [sys.executable, "-m", "tests.tiny_run", "train", "--resume", str(folder),
         "--train.env-steps", str(2 * bereaved_at + 200), "--train.eval-every-env-steps", "0"],
        cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_SECONDS,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "2 processes trained before and 1 do now: the replay is filled again" in done.stderr
    alone = checkpoint.load(folder / "checkpoint")
    assert "ranks" not in alone
    assert alone["agent"]["updates"] > saved["agent"]["updates"]


def test_shares_of_a_run_add_up() -> None:
    config = tiny_run.config(
        env={"num_envs": 6}, replay={"capacity_steps": 300, "batch_size": 9}, prefill_steps=30
    )
    share = own_share(config, Several(3))  # type: ignore[arg-type]
    assert (share.env.num_envs, share.replay.batch_size) == (2, 3)
    assert (share.replay.capacity_steps, share.train.prefill_steps) == (100, 10)
    steps_of_all = config.env.num_envs * config.updates_per_policy_step
    assert share.env.num_envs * share.updates_per_policy_step == pytest.approx(steps_of_all)
    assert own_share(config, ALONE) is config


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"env": {"num_envs": 3}}, "env.num_envs 3 cannot be shared evenly by 2 processes"),
        ({"replay": {"batch_size": 5}}, "replay.batch_size 5 cannot be shared evenly"),
        ({"replay": {"batch_size": 4, "capacity_steps": 301}}, "replay.capacity_steps 301"),
        ({"prefill_steps": 21}, "train.prefill_steps 21 cannot be shared evenly"),
        ({"exact_resume": True}, "exact_resume is for one process, and 2 train together"),
    ],
)
def test_what_cannot_be_shared_is_refused(changed: dict[str, Any], expected: str) -> None:
    config = tiny_run.config(**({"replay": {"batch_size": 4}} | changed))
    with pytest.raises(ConfigError, match=expected):
        own_share(config, Several(2))  # type: ignore[arg-type]


def test_a_replay_on_disk_is_not_shared_otherwise(tmp_path: Path) -> None:
    config = tiny_run.config(replay={"storage": "disk"})
    run = tiny_run.start(config, tmp_path)
    run.save()
    run.__exit__()
    assert read_saved(tmp_path, config, True, ALONE)[1]
    with pytest.raises(ConfigError, match="shared by 1 processes: resume it with as many"):
        read_saved(tmp_path, config, True, Several(2))  # type: ignore[arg-type]
    memory = dataclasses.replace(
        config, replay=dataclasses.replace(config.replay, storage="memory")
    )
    saved = read_saved(tmp_path, memory, True, Several(2))[1]  # type: ignore[arg-type]
    assert saved["agent"]
    assert "batches" not in saved
    assert RunFolder(tmp_path).replay.is_dir()
