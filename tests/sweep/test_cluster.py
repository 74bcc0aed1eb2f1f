from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from mudreamer_fast.config import ConfigError
from mudreamer_fast.run.lock import RunLock
from mudreamer_fast.sweep.cluster import TrainingJob, parameters, submit
from mudreamer_fast.sweep.plan import PlannedRun, read_plan


def train(words: Sequence[str]) -> int:
    """The command line of a job, in a process of its own."""
    return subprocess.run([sys.executable, "-m", "tests.sweep.fake_train", *words]).returncode


def plan(tmp_path: Path, *tasks: str) -> list[PlannedRun]:
    (tmp_path / "sweep.toml").write_text(f'preset = "quick"\ntasks = {list(tasks)}')
    return read_plan(tmp_path / "sweep.toml", tmp_path / "out")


def test_jobs_bring_runs_to_their_ends_on_the_local_executor(tmp_path: Path) -> None:
    pytest.importorskip("submitit")
    runs = plan(tmp_path, "dmc/walker_walk", "dmc:broken:x", "dmc/cheetah_run")
    with RunLock(runs[2].folder.root):
        jobs = submit(runs, tmp_path / "out", "local", {"timeout_min": 5}, train)
    assert len(jobs) == 2
    for job in jobs:
        job.wait()
    assert jobs[0].result() == str(runs[0].folder.root)
    assert runs[0].finished
    assert "RuntimeError: exit code 2: train quick --env.task dmc:broken:x" in str(
        jobs[1].exception()
    )
    assert [run.name for run in runs if not run.finished] == [
        "dmc_broken_x-seed0",
        "cheetah_run-seed0",
    ]
    assert len(submit(runs, tmp_path / "out", "local", {}, train)) == 2


def test_a_job_whose_time_is_up_is_followed_by_the_same_one(tmp_path: Path) -> None:
    pytest.importorskip("submitit")
    (run,) = plan(tmp_path, "dmc/walker_walk")
    following = TrainingJob(train).checkpoint(run.command())
    assert following.function(*following.args) == str(run.folder.root)
    assert run.finished


def test_parameters_are_pairs_with_numbers_as_such() -> None:
    given = ("timeout_min=600", "slurm_partition=gpu", "slurm_comment=a=b")
    assert parameters(given) == {
        "timeout_min": 600, "slurm_partition": "gpu", "slurm_comment": "a=b"
    }  # fmt: skip
    for wrong in ("timeout_min", "=3"):
        with pytest.raises(ConfigError, match=r"job must be NAME=VALUE"):
            parameters((wrong,))


def test_what_the_cluster_does_not_know_is_one_line(tmp_path: Path) -> None:
    pytest.importorskip("submitit")
    runs = plan(tmp_path, "dmc/walker_walk")
    with pytest.raises(ConfigError, match=r"submitit: .*colour"):
        submit(runs, tmp_path / "out", "local", {"colour": 3}, train)
    with pytest.raises(ConfigError, match=r"submitit: .*slurm"):
        submit(runs, tmp_path / "out", "slurm", {}, train)


def test_without_submitit_the_way_to_it_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(ConfigError, match=r"pip install 'mudreamer-fast\[cluster\]'"):
        submit(plan(tmp_path, "dmc/walker_walk"), tmp_path / "out", "slurm", {}, train)
