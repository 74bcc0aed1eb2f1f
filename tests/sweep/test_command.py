"""`mudreamer-fast sweep` as its user calls it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from mudreamer_fast.cli import forecast
from mudreamer_fast.cli.main import main
from mudreamer_fast.config import Config
from mudreamer_fast.run.folder import write_config
from mudreamer_fast.sweep import cluster, runner
from mudreamer_fast.sweep.plan import PlannedRun, read_plan

SWEEP = """
preset = "quick"
tasks = ["dmc/cheetah_run", "dmc/walker_walk"]
seeds = 2
[variants.usual]
[variants.short]
train.env_steps = 10_000
"""


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "mine.toml"
    path.write_text(SWEEP)
    return path


def test_a_dry_run_says_what_there_is_to_do_and_for_how_long(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    measured: list[Config] = []

    def seconds(config: Config, measure_for: float) -> float:
        measured.append(config)
        return 60.0 * (2 + 9 * (config.train.env_steps > 10_000))

    monkeypatch.setattr(forecast, "run_seconds", seconds)
    first, second, *_ = read_plan(file, Path("runs/mine"))
    for run in (first, second):
        run.folder.root.mkdir(parents=True)
        write_config(run.config, run.folder.config)
    first.folder.result.write_text(json.dumps({"scores": [1.0]}))
    assert main(["sweep", str(file), "--dry-run", "--jobs", "2"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert len(measured) == 2  # one for each variant
    assert said[0] == "finished  usual/cheetah_run-seed0"
    assert said[1] == "to resume usual/walker_walk-seed0: 11 min, dmc/walker_walk"
    assert said[2] == "to start  short/cheetah_run-seed0: 2 min, dmc/cheetah_run"
    # Three of 11 minutes and four of two.
    assert said[-1].startswith("7 of 8 runs to do: 0.7 hours one after the other, 0.3 hours with 2")
    assert not (second.folder.root / "lock").exists()


def test_it_hands_runs_to_this_machine_or_to_a_cluster(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    handed: list[tuple[Any, ...]] = []

    def here(runs: Sequence[PlannedRun], out: Path, jobs: int, gpus: int, say: Any) -> int:
        handed.append((len(runs), out, jobs, gpus))
        return 7

    def there(
        runs: Sequence[PlannedRun], out: Path, name: str, job: Any, program: Any
    ) -> list[Any]:
        handed.append((len(runs), out, name, job, program))
        return []

    monkeypatch.setattr(runner, "run_sweep", here)
    monkeypatch.setattr(cluster, "submit", there)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 3)
    assert main(["sweep", str(file)]) == 7
    words = ["--cluster", "slurm", "--job", "timeout_min=600", "slurm_partition=gpu"]
    assert main(["sweep", str(file), "--out", "there", *words]) == 0
    assert handed == [
        (8, Path("runs/mine"), 3, 3),
        (8, Path("there"), "slurm", {"timeout_min": 600, "slurm_partition": "gpu"}, main),
    ]
    assert "0 of 8 runs queued" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["mine.toml", "--jobs", "0"], "error: jobs must be positive, got 0"),
        (["yours.toml"], "error: no file yours.toml"),
        (["mine.toml", "--cluster", "pbs"], "invalid choice 'pbs'"),
    ],
)
def test_a_mistake_is_one_line(
    file: Path, words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sweep", *words]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_other_settings_than_those_of_a_run_that_is_there_are_refused(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = read_plan(file, Path("runs/mine"))[2]
    run.folder.root.mkdir(parents=True)
    write_config(run.config, run.folder.config)
    file.write_text(SWEEP.replace("10_000", "20_000"))
    assert main(["sweep", str(file)]) == 2
    assert capsys.readouterr().err.endswith(
        "was made with train.env_steps 10000, the file says 20000: name another folder by --out\n"
    )
