"""A long run that is killed again and again: does anything grow, slow down or get lost?

    python -m bench.soak OUT.json [--minutes 120] [--kill-every 10] [-- TRAIN OPTIONS...]

Starts `mudreamer-fast train --resume-or-start`, kills it with SIGKILL at random moments about every
`--kill-every` minutes, starts it again, and looks at it every ten seconds: memory of its own (files
that are mapped are the system's cache), open files, threads and processes of the run and its
children, and the steps in its log. Once a minute it stops the run (SIGSTOP) for some seconds, in
which it times updates of a fresh agent of the `quick` preset: the yardstick of the machine, whose
speed may change with what else it does. OUT
holds all of that, and what is asked of it: once the replay is full, memory that grows by no more
than 2%, neither from one stretch between two kills to another nor within them; no more files,
threads and processes at the end than at the beginning; and in the last stretch no less than 95% of
the first one's steps a second, each minute's by the yardsticks before and after it. Exit code 1
where it does not hold. Without options the preset is `quick`, with more steps than the time allows.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shlex
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.profile_update import batch
from bench.surroundings import surroundings
from mudreamer_fast.agent import Agent
from mudreamer_fast.config import PRESETS
from mudreamer_fast.envs import ActionSpec, ArraySpec
from mudreamer_fast.run.folder import RunFolder, read_config
from mudreamer_fast.run.metrics import METRICS_FILE

LOOK_SECONDS = 10.0
SETTLED_SECONDS = 60.0
"""After a start memory and threads are still coming, and so are the steps a second."""
CHECKED_SECONDS = 400.0
"""Memory takes a step at the first checkpoint after a start, which begins a thread too, and another
one at the first evaluation."""
WINDOW = 6
"""Looks between two yardsticks, a minute."""
ENOUGH = 2 * WINDOW
"""A stretch counts where it has more settled looks than these."""
YARDSTICK_SECONDS = 4.0
GROWTH, SLOWER = 0.02, 0.05
DEFAULT = ["quick", "--train.env-steps", "1000000000"]


@dataclass
class Look:
    """What a run had at one moment."""

    seconds: float
    """Since the soak began."""
    memory_bytes: int
    files: int
    threads: int
    processes: int
    env_steps: int
    """Of the newest line of its log."""
    logged_at: float
    """Seconds of the run's own, of the same line."""


@dataclass
class Stretch:
    """A run from a start to what ended it."""

    looks: list[Look] = field(default_factory=list)
    ended_by: str = ""
    first_env_steps: int = 0
    """Of the first line that it logged: where it went on."""
    steps_lost: int = 0
    """By the kill before it."""
    yardsticks: list[tuple[float, float]] = field(default_factory=list)
    """When the run was stopped, and the machine's updates a second meanwhile."""

    def settled(self, seconds: float = SETTLED_SECONDS) -> list[Look]:
        """Looks from so many seconds after the first one; none where there are too few of them."""
        looks = [look for look in self.looks if look.seconds >= self.looks[0].seconds + seconds]
        return looks if len(looks) > ENOUGH else []

    def minutes(self) -> list[tuple[float, float]]:
        """Of each minute between two yardsticks: steps a second, and by updates a second."""
        found = []
        settled = self.settled()
        for (begin, before), (end, after) in pairwise(self.yardsticks):
            # the newest line of the first look may be from before the run was stopped
            looks = [look for look in settled if begin < look.seconds < end][1:]
            if len(looks) > 1 and (seconds := looks[-1].logged_at - looks[0].logged_at) > 0:
                rate = (looks[-1].env_steps - looks[0].env_steps) / seconds
                found.append((rate, rate / statistics.mean((before, after))))
        return found

    def steps_per_second(self) -> float | None:
        """Median over its minutes, so without its evaluations; None where it was too short."""
        return statistics.median(rate for rate, _ in found) if (found := self.minutes()) else None

    def relative_rate(self) -> float | None:
        """Median over its minutes of steps for each update that the machine makes meanwhile."""
        found = self.minutes()
        return statistics.median(relative for _, relative in found) if found else None


def updates_per_second(seconds: float = YARDSTICK_SECONDS) -> float:
    """How fast the machine is: the median of the first updates of an agent of the `quick` preset.

    The same work each time: the same weights, the same batch.
    """
    config = PRESETS["quick"][1]
    images = {"image": ArraySpec((3, 64, 64), np.dtype(np.uint8))}
    agent = Agent(config, images, ActionSpec(6, continuous=True), torch.device("cpu"))
    sequences = batch(config)
    took: list[float] = []
    agent.update(sequences)
    until = time.perf_counter() + seconds
    while not took or time.perf_counter() < until:
        begun = time.perf_counter()
        agent.update(sequences)
        took.append(time.perf_counter() - begun)
    return 1 / statistics.median(took)


def family(pid: int) -> list[int]:
    """A process and all below it."""
    found = [pid]
    for parent in found:
        for children in Path(f"/proc/{parent}/task").glob("*/children"):
            try:
                found += map(int, children.read_text().split())
            except OSError:
                continue
    return found


def look(pid: int, seconds: float, newest: tuple[int, float]) -> Look | None:
    """What the processes of a run have; None where they are just ending."""
    memory = files = threads = 0
    processes = family(pid)
    try:
        for process in processes:
            folder = Path(f"/proc/{process}")
            rest = (folder / "smaps_rollup").read_text().split("Anonymous:")[1]
            memory += 1024 * int(rest.split()[0])
            files += len(list((folder / "fd").iterdir()))
            threads += len(list((folder / "task").iterdir()))
    except (OSError, IndexError):
        return None
    return Look(seconds, memory, files, threads, len(processes), *newest)


def stopped(pid: int) -> float:
    """The yardstick, while a run and all below it stand still."""
    processes = family(pid)

    def send(what: signal.Signals) -> None:
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, what)

    send(signal.SIGSTOP)
    try:
        return updates_per_second()
    finally:
        send(signal.SIGCONT)


def logged(log: Path) -> list[tuple[int, float]]:
    """Environment steps and seconds of every whole line of a run's log."""
    try:
        lines = log.read_text().splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        try:
            row = json.loads(line)
            found.append((int(row["env_steps"]), float(row["seconds"])))
        except (ValueError, KeyError):  # the last line may be half written
            continue
    return found


def stretch(
    command: list[str], folder: Path, begun: float, until: float, last: bool, said: Any
) -> Stretch:
    """Start a run, look at it until a moment, and kill it; the last one is asked to stop."""
    log, found = folder / METRICS_FILE, Stretch()
    before = logged(log)
    process = subprocess.Popen(command, stdout=said, stderr=said)
    while time.monotonic() < until and process.poll() is None:
        time.sleep(max(0.0, min(LOOK_SECONDS, until - time.monotonic())))
        lines = logged(log)
        now = look(process.pid, time.monotonic() - begun, lines[-1] if lines else (0, 0.0))
        if now is None or process.poll() is not None:
            continue
        found.looks.append(now)
        if len(found.looks) % WINDOW == 0:
            found.yardsticks.append((time.monotonic() - begun, stopped(process.pid)))
    if process.poll() is not None:
        found.ended_by = f"itself, with code {process.returncode}"
    else:
        process.send_signal(signal.SIGTERM if last else signal.SIGKILL)
        process.wait()
        found.ended_by = "SIGTERM" if last else "SIGKILL"
    if before and found.looks:
        found.first_env_steps = min(look.env_steps for look in found.looks)
        found.steps_lost = max(0, before[-1][0] - found.first_env_steps)
    return found


def verdict(stretches: list[Stretch], full_env_steps: int) -> dict[str, Any]:
    """What is asked of a soak, and what came.

    Args:
        stretches: in their order.
        full_env_steps: from when on the replay grows no more.
    """
    long = [one for one in stretches if one.settled()]
    late = [looks for one in stretches if (looks := one.settled(CHECKED_SECONDS))]
    full = [
        [look.memory_bytes for look in looks]
        for looks in late
        if looks[0].env_steps >= full_env_steps
    ]
    medians = [statistics.median(memory) for memory in full]
    within = [
        statistics.median(memory[-WINDOW:]) / statistics.median(memory[:WINDOW]) - 1
        for memory in full
    ]

    def growth(name: str) -> float | None:
        """By how much more of something there is, from stretch to stretch or within most of them.

        Medians: a checkpoint that is being written has some files and threads for a moment.
        """
        if len(long) < 2:
            return None
        first, last = (
            statistics.median(getattr(look, name) for look in one.settled())
            for one in (long[0], long[-1])
        )
        had = [[getattr(look, name) for look in looks] for looks in late]
        inside = [statistics.median(h[-WINDOW:]) - statistics.median(h[:WINDOW]) for h in had]
        return float(max(last - first, statistics.median(inside) if inside else 0))

    plain = [rate for one in long if (rate := one.steps_per_second()) is not None]
    rates = [rate for one in long if (rate := one.relative_rate()) is not None]
    ended = [one.ended_by for one in stretches if one.ended_by.startswith("itself")]
    found: dict[str, Any] = {
        "kills": sum(one.ended_by == "SIGKILL" for one in stretches),
        "steps_lost": [one.steps_lost for one in stretches[1:]],
        "memory_growth": medians[-1] / medians[0] - 1 if len(full) > 1 else None,
        "memory_growth_within_a_stretch": statistics.median(within) if within else None,
        "last_rate_to_first": rates[-1] / rates[0] if len(rates) > 1 and rates[0] else None,
        "without_yardstick": plain[-1] / plain[0] if len(plain) > 1 and plain[0] else None,
        "ended_by_itself": ended,
    }
    for name in ("files", "threads", "processes"):
        found[f"{name}_growth"] = growth(name)
    growths = [found["memory_growth"], found["memory_growth_within_a_stretch"]]
    rate = found["last_rate_to_first"]
    broken = [
        name
        for name, holds in {
            "memory grows": all(growth is None or growth <= GROWTH for growth in growths),
            "it slows down": rate is None or rate >= 1 - SLOWER,
            "files grow": not (found["files_growth"] or 0) > 0,
            "threads grow": not (found["threads_growth"] or 0) > 0,
            "processes grow": not (found["processes_growth"] or 0) > 0,
            "it ended by itself": not ended,
        }.items()
        if not holds
    ]
    unknown = [name for name in ("memory_growth", "last_rate_to_first") if found[name] is None]
    return found | {"broken": broken, "not_long_enough_for": unknown}


def main(words: list[str] | None = None) -> int:
    """Runs the soak that the command line asks for."""
    words = sys.argv[1:] if words is None else words
    cut = words.index("--") if "--" in words else len(words)
    parser = argparse.ArgumentParser(prog="python -m bench.soak", description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--minutes", type=float, default=120.0)
    parser.add_argument("--kill-every", type=float, default=10.0, metavar="MINUTES")
    parser.add_argument("--folder", type=Path, help="of the run; a temporary one by default")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    options = parser.parse_args(words[:cut])
    folder = options.folder or Path(tempfile.mkdtemp(prefix="soak-")) / "run"
    train = [*(words[cut + 1 :] or DEFAULT), "--train.max-minutes", "None"]
    command = [
        *(sys.executable, "-m", "mudreamer_fast.cli.main", "train"),
        *(*train, "--resume-or-start", str(folder)),
    ]
    folder.parent.mkdir(parents=True, exist_ok=True)
    begun, moments = time.monotonic(), random.Random(options.seed)
    end = begun + 60 * options.minutes
    stretches: list[Stretch] = []
    with (folder.parent / "soak.log").open("w") as said:
        while time.monotonic() < end:
            until = time.monotonic() + 60 * options.kill_every * moments.uniform(0.8, 1.2)
            last = until > end - 60 * options.kill_every / 2
            one = stretch(command, folder, begun, end if last else until, last, said)
            stretches.append(one)
            if one.ended_by.startswith("itself"):
                break
            rate, relative = one.steps_per_second(), one.relative_rate()
            print(
                f"{(time.monotonic() - begun) / 60:.1f} min: {one.ended_by}, "
                f"{f'{rate:.0f} steps/s' if rate else 'too short for a rate'}, "
                f"{f'{relative:.2f} by update, ' if relative else ''}"
                f"{one.steps_lost:,} steps lost by the kill before",
                flush=True,
            )
    config = read_config(RunFolder(folder).config)
    capacity = config.replay.capacity_steps * config.env.action_repeat
    found = verdict(stretches, capacity)
    content = {
        **surroundings(),
        "command": shlex.join(["mudreamer-fast", "train", *train, "--resume-or-start", "RUN"]),
        "minutes": options.minutes,
        "verdict": found,
        "stretches": [asdict(one) for one in stretches],
    }
    options.out.write_text(json.dumps(content, indent=1) + "\n")
    print(json.dumps(found, indent=2))
    return 1 if found["broken"] else 0


if __name__ == "__main__":
    sys.exit(main())
