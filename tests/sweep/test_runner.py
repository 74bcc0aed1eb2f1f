from __future__ import annotations

import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from mudreamer_fast.run.lock import RunLock
from mudreamer_fast.sweep.plan import read_plan
from mudreamer_fast.sweep.runner import cores_of, run_sweep
from tests.patience import PATIENCE_SECONDS
from tests.sweep.fake_train import STEPS

FAKE = (sys.executable, "-m", "tests.sweep.fake_train")
SWEEP = """
import sys
from pathlib import Path
from mudreamer_fast.sweep.plan import read_plan
from mudreamer_fast.sweep.runner import run_sweep

out = Path(sys.argv[2])
program = (sys.executable, "-m", "tests.sweep.fake_train")
runs = read_plan(Path(sys.argv[1]), out)
sys.exit(run_sweep(runs, out, 3, 0, lambda line: print(line, flush=True), program))
"""


def file(tmp_path: Path, *variants: str, seeds: int = 1) -> Path:
    path = tmp_path / "sweep.toml"
    tables = "\n".join(f"[variants.{name}]" for name in variants)
    path.write_text(f'preset = "quick"\ntasks = "dmc/{{}}"\nseeds = {seeds}\n{tables}')
    path.write_text(path.read_text().replace("{}", "walker_walk"))
    return path


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def sweep(path: Path, out: Path, jobs: int = 2, gpus: int = 0) -> tuple[int, list[str]]:
    said: list[str] = []
    return run_sweep(read_plan(path, out), out, jobs, gpus, said.append, FAKE), said


def test_all_runs_come_to_their_ends_and_a_second_sweep_does_nothing(tmp_path: Path) -> None:
    path, out = file(tmp_path, "a", "b", seeds=2), tmp_path / "out"
    code, said = sweep(path, out)
    assert code == 0
    assert said[0] == "4 runs, 0 finished; 2 at a time"
    assert said[-1].endswith(": 2.0 (4 of 4)")
    assert sum(line.startswith("start ") for line in said) == 4
    for run in read_plan(path, out):
        assert [len(lines(run.folder.root / name)) for name in ("begun", "ended")] == [1, 1]
        (words,) = lines(run.folder.root / "begun")
        assert words.startswith("['train', 'quick', '--env.task', 'dmc/walker_walk'")
    assert sweep(path, out) == (0, ["4 runs, 4 finished; 2 at a time"])


def test_a_run_that_fails_once_is_begun_again_and_one_that_always_fails_is_told(
    tmp_path: Path,
) -> None:
    path, out = tmp_path / "sweep.toml", tmp_path / "out"
    path.write_text(
        'preset = "quick"\ntasks = ["dmc:fails_once:x", "dmc:broken:x", "dmc/walker_walk"]'
    )
    code, said = sweep(path, out)
    assert code == 1
    once, broken, good = (run.folder.root for run in read_plan(path, out))
    assert [len(lines(folder / "begun")) for folder in (once, broken, good)] == [2, 2, 1]
    assert said[-1] == f"1 of 3 runs failed: {broken.name}"
    failed = f"failed   {broken.name}: exit code 2; error: the simulator did not start"
    assert failed in said
    assert "some lines before" in (out / "logs" / f"{broken.name}.log").read_text()
    assert sweep(path, out)[1][0] == "3 runs, 2 finished; 2 at a time"


def test_a_run_in_other_hands_is_waited_for(tmp_path: Path) -> None:
    path, out = file(tmp_path, "a", "b"), tmp_path / "out"
    first, second = read_plan(path, out)
    done: list[tuple[int, list[str]]] = []
    with RunLock(first.folder.root):
        thread = threading.Thread(target=lambda: done.append(sweep(path, out, jobs=1)))
        thread.start()
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not second.finished and time.monotonic() < deadline:
            time.sleep(0.05)
        assert second.finished
        assert not lines(first.folder.root / "begun")
        assert thread.is_alive()
    thread.join(PATIENCE_SECONDS)
    assert done[0][0] == 0
    assert first.finished


def test_killed_at_random_moments_it_ends_with_all_runs_once_and_none_lost(tmp_path: Path) -> None:
    path, out = file(tmp_path, *"abcd", seeds=3), tmp_path / "out"
    command = [sys.executable, "-c", SWEEP, str(path), str(out)]
    moments = random.Random(0)
    for _ in range(5):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        time.sleep(moments.uniform(0.3, 1.5))
        process.kill()
        process.wait()
    done = subprocess.run(command, timeout=PATIENCE_SECONDS, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    runs = read_plan(path, out)
    assert len(runs) == 12
    for run in runs:
        assert run.finished
        assert len(lines(run.folder.root / "ended")) == 1
        assert len(lines(run.folder.root / "steps")) == STEPS


def test_asked_to_stop_it_stops_its_runs_first(tmp_path: Path) -> None:
    path, out = file(tmp_path, *"abcdef"), tmp_path / "out"
    command = [sys.executable, "-c", SWEEP, str(path), str(out)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    runs = read_plan(path, out)
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not any(lines(run.folder.root / "steps") for run in runs):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 128 + signal.SIGTERM
    assert "runs save; start the sweep again to go on" in said.splitlines()[-1]
    assert not any(run.held for run in runs)
    assert not all(run.finished for run in runs)


def test_jobs_share_cores_and_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [cores_of(slot, 3, range(8)) for slot in range(3)] == [[0, 1], [2, 3, 4], [5, 6, 7]]
    assert cores_of(2, 3, [4, 6]) == [4, 6]
    path, out = file(tmp_path, "a", "b"), tmp_path / "out"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    sweep(path, out, gpus=2)
    runs = read_plan(path, out)
    assert sorted(lines(run.folder.root / "gpu")[0] for run in runs) == ["5", "7"]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    sweep(path, tmp_path / "other", jobs=1, gpus=1)
    runs = read_plan(path, tmp_path / "other")
    assert [lines(run.folder.root / "gpu")[0] for run in runs] == ["0", "0"]
