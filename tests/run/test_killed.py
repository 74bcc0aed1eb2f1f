"""A run that is killed at random moments, over and over, and goes on."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mudreamer_fast.disk import checkpoint
from mudreamer_fast.run.metrics import read_lines
from tests import tiny_run
from tests.patience import PATIENCE_SECONDS

ROOT = Path(__file__).parents[2]
KILLS = int(os.environ.get("MUDREAMER_TEST_KILLS", "2"))
"""More of them: MUDREAMER_TEST_KILLS=50."""
WAYS = signal.SIGKILL, signal.SIGABRT
"""SIGABRT is how a simulator's C++ code ends the process that it runs in."""


@pytest.mark.parametrize("storage", ["memory", "disk"])
def test_a_run_that_is_killed_at_any_moment_goes_on_from_a_checkpoint(
    tmp_path: Path, storage: str
) -> None:
    rng, folder = random.Random(storage), tmp_path / "run"
    # Saving, flushing and evaluating all the time: a kill falls into one of them more often
    # than not.
    config = tiny_run.config(
        env_steps=10**9,
        eval_every_env_steps=40,
        checkpoint_every_seconds=1e-6,
        replay={"storage": storage, "flush_every_seconds": 1e-3},
    )
    words = tiny_run.options(config, folder)
    command = [sys.executable, "-m", "tests.tiny_run", "train", "--resume-or-start", *words[1:]]
    steps = 0
    for number in range(KILLS):
        process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
        with process:
            assert process.stderr is not None
            said = [process.stderr.readline()]
            for _ in range(rng.randrange(1, 40)):  # lines of progress and of evaluations
                said.append(process.stderr.readline())
            time.sleep(rng.random() * 0.05)
            assert process.poll() is None, "".join(said)
            process.send_signal(WAYS[number % len(WAYS)])
            said += process.communicate(timeout=PATIENCE_SECONDS)[1].splitlines(keepends=True)
        assert process.returncode == -WAYS[number % len(WAYS)]
        assert "Traceback" not in "".join(said)
        assert not [line for line in said if line.startswith("warning")]
        saved = checkpoint.load(folder / "checkpoint")
        assert saved["counters"]["policy_steps"] >= steps  # nothing that was saved is lost
        steps = saved["counters"]["policy_steps"]
    assert steps > 0
    more = [*command, "--train.env-steps", str(2 * steps + 40)]
    subprocess.run(more, cwd=ROOT, check=True, capture_output=True, timeout=PATIENCE_SECONDS)
    assert json.loads((folder / "result.json").read_text())["env_steps"] == 2 * steps + 40
    logged = [row["env_steps"] for row in read_lines(folder / "metrics.jsonl")]
    assert logged == sorted(logged)
    assert len(list(folder.glob("checkpoint/data-*"))) == config.train.keep_checkpoints
