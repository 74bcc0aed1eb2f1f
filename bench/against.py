"""Collecting, with this code and with another version of it in turns.

    git worktree add ../before COMMIT && (cd ../before && python setup.py -q build_ext --inplace)
    python -m bench.against ../before OUT.json

Each version has a process of its own, which steps a task's environments with random actions through
the collector into a replay. On every task of the paper the two take turns of about `TURN_SECONDS`,
in an order drawn anew for each round. OUT says, for each task, how much of the other version's rate
this one has: the median of the rounds and their quartiles.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

OBSERVATION, NUM_ENVS, REPEAT = "pixels", 4, 2
ROUNDS = 20
TURN_SECONDS = 0.3
FIRST_STEPS = 20
"""Policy steps taken twice before the first turn; the second time says how many a turn has."""


class Version:
    """A process that collects with one version of the code."""

    def __init__(self, tree: Path) -> None:
        """Starts it.

        Args:
            tree: folder that holds `mudreamer_fast` with its extension built.
        """
        program = [sys.executable, "-P", __file__, "collect"]
        environment = os.environ | {"PYTHONPATH": str(tree.resolve())}
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(
            program, env=environment, stdin=pipe, stdout=pipe, text=True
        )
        self.found_in = Path(self._ask("where"))

    def open(self, task: str) -> None:
        """Have the environments of a task in place of those before."""
        self._ask(f"open {task}")

    def seconds(self, steps: int) -> float:
        """How long so many policy steps of all environments took."""
        return float(self._ask(f"step {steps}"))

    def close(self) -> None:
        """End the process."""
        self._process.communicate("end\n")

    def _ask(self, words: str) -> str:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(words + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            sys.exit(f"error: a version has ended at '{words}'")
        return answer.strip()


def collect() -> None:
    """A process's work: answers each line of its input with one of output.

    It imports the package from where PYTHONPATH says, and what both versions have of it alone.
    """
    import mudreamer_fast
    from mudreamer_fast.collect import Collector, random_policy, replay_fields
    from mudreamer_fast.config import EnvConfig
    from mudreamer_fast.envs import make_env
    from mudreamer_fast.replay import ReplayBuffer

    env = collector = None
    for line in sys.stdin:
        word, *rest = line.split()
        answer: object = "done"
        if word in ("open", "end") and env is not None:
            env.close()
        if word == "where":
            answer = Path(mudreamer_fast.__path__[0]).parent
        elif word == "open":
            config = EnvConfig(
                rest[0], OBSERVATION, REPEAT, render_profile="light", simulator_threads=1
            )
            env = make_env(config, NUM_ENVS, seed=0)
            policy = random_policy(env.action_spec, NUM_ENVS, 0)
            fields = replay_fields(env.observation_spec, env.action_spec)
            collector = Collector(env, ReplayBuffer(fields, 4_000, NUM_ENVS, seed=0), policy)
        elif word == "step":
            assert collector is not None
            begun = time.perf_counter()
            collector.collect(int(rest[0]))
            answer = time.perf_counter() - begun
        else:
            return
        print(answer, flush=True)


def compare(versions: dict[str, Version], task: str, rng: np.random.Generator) -> dict[str, Any]:
    """Turns of all versions on one task."""
    taken: dict[str, list[float]] = {name: [] for name in versions}
    for version in versions.values():
        version.open(task)
    for version in versions.values():
        version.seconds(FIRST_STEPS)  # pictures are slow to begin
    first = max(version.seconds(FIRST_STEPS) for version in versions.values())
    steps = max(1, round(FIRST_STEPS * TURN_SECONDS / first))
    for _ in range(ROUNDS):
        for name in rng.permutation(list(versions)).tolist():
            taken[name].append(versions[name].seconds(steps))
    ratios = [before / now for before, now in zip(taken["before"], taken["now"], strict=True)]
    low, middle, high = np.quantile(ratios, (0.25, 0.5, 0.75)).tolist()
    rate = steps * NUM_ENVS * REPEAT
    return {
        "simulator steps/s": {
            name: round(rate / statistics.median(each)) for name, each in taken.items()
        },
        "now over before": {"median": middle, "quartiles": [low, high]},
        "seconds": taken,
        "policy_steps": steps,
    }


def main(words: list[str]) -> int:
    """Compares collecting with that of the tree that the command line names."""
    from bench.surroundings import surroundings
    from mudreamer_fast.envs.tasks import PAPERS_TASKS

    if len(words) != 2:
        sys.exit("error: expected a folder with another version and a file for what is found")
    before, out = Path(words[0]), Path(words[1])
    versions = {"before": Version(before), "now": Version(Path.cwd())}
    if versions["before"].found_in != before.resolve():
        sys.exit(f"error: no built mudreamer_fast in {before}")
    rng = np.random.default_rng(0)
    tasks: dict[str, Any] = {}
    for task in PAPERS_TASKS:
        tasks[task] = found = compare(versions, task, rng)
        ratio = found["now over before"]
        low, high = ratio["quartiles"]
        print(f"{task:24}{ratio['median']:7.3f} ({low:.3f} to {high:.3f})", flush=True)
    for version in versions.values():
        version.close()
    medians = [found["now over before"]["median"] for found in tasks.values()]
    said = subprocess.run(
        ["git", "-C", before, "rev-parse", "--short", "HEAD"], capture_output=True, text=True
    )
    content = {
        **surroundings(),
        "before": said.stdout.strip(),
        "work": f"{NUM_ENVS} environments, {OBSERVATION}, action repeat {REPEAT}",
        "median of tasks": statistics.median(medians),
        "tasks": tasks,
    }
    out.write_text(json.dumps(content, indent=1) + "\n")
    print(f"median of the tasks: {content['median of tasks']:.3f}")
    return 0


if __name__ == "__main__":
    if sys.argv[1:] == ["collect"]:
        collect()
    else:
        sys.exit(main(sys.argv[1:]))
