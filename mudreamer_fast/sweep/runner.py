"""A sweep on one machine: some runs at a time, each on its own cores and, where there are, its GPU.

Whatever ends the sweep, its runs save and end with it; started again, it goes on with them.
"""

from __future__ import annotations

import collections
import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mudreamer_fast.machine.signals import StopSignals
from mudreamer_fast.run.folder import read_result
from mudreamer_fast.sweep.plan import PlannedRun

PROGRAM = (sys.executable, "-m", "mudreamer_fast.cli.main")
ATTEMPTS = 2
"""How often a run is begun that ends with an error."""
LOOK_SECONDS = 0.2
LOGS = "logs"
"""Folder of what runs say below the sweep's."""
PR_SET_PDEATHSIG = 1
"""Of prctl(2): the signal that a process gets when the one that started it ends."""


@dataclass
class Job:
    """A run that is under way."""

    run: PlannedRun
    process: subprocess.Popen[bytes]
    log: Path


def run_sweep(
    runs: Sequence[PlannedRun],
    out: Path,
    jobs: int,
    gpus: int,
    say: Callable[[str], None],
    program: Sequence[str] = PROGRAM,
) -> int:
    """Brings all runs of a sweep to their ends.

    A run on which another process is at work, of another sweep for instance, is waited for.

    Args:
        runs: those of the plan; finished ones are left as they are.
        out: folder of the sweep, for the logs of its runs.
        jobs: runs at a time.
        gpus: those of this machine, which the jobs share evenly.
        say: shows a line to the user.
        program: words before a run's command.

    Returns:
        0, 1 where a run has failed, or 128 and the number of the signal that stopped the sweep.
    """
    waiting = collections.deque(run for run in runs if not run.finished)
    attempts: collections.Counter[str] = collections.Counter()
    failed: list[str] = []
    under_way: dict[int, Job] = {}
    done = len(runs) - len(waiting)
    say(f"{len(runs)} runs, {done} finished; {jobs} at a time")
    with StopSignals() as stop:
        while (waiting or under_way) and stop.received is None:
            for slot in sorted(set(range(jobs)) - set(under_way)):
                run = _next(waiting)
                if run is None:
                    break
                say(f"{'go on' if run.begun else 'start':8} {run.name}")
                under_way[slot] = _begin(run, out, _place(slot, jobs, gpus), program)
            time.sleep(LOOK_SECONDS)
            for slot, job in list(under_way.items()):
                code, run = job.process.poll(), job.run
                if code is None or stop.received is not None:
                    continue
                del under_way[slot]
                attempts[run.name] += 1
                if code == 0:
                    done += 1
                    say(f"finished {run.name}{_score(run)} ({done} of {len(runs)})")
                elif run.held:  # another process took it up a moment before
                    attempts[run.name] = 0
                    waiting.append(run)
                elif attempts[run.name] < ATTEMPTS:
                    waiting.append(run)
                    say(f"again    {run.name}: {_end(code)}; {_last_line(job.log)}")
                else:
                    failed.append(run.name)
                    say(f"failed   {run.name}: {_end(code)}; {_last_line(job.log)}")
        if stop.received is not None:
            say(f"stopping: {len(under_way)} runs save; start the sweep again to go on")
            for job in under_way.values():
                with contextlib.suppress(ProcessLookupError):
                    job.process.send_signal(signal.SIGTERM)
            for job in under_way.values():
                job.process.wait()
            return 128 + stop.received
    if failed:
        say(f"{len(failed)} of {len(runs)} runs failed: {', '.join(failed)}")
    return 1 if failed else 0


def cores_of(slot: int, jobs: int, cores: Sequence[int]) -> list[int]:
    """The cores of one of several jobs: an even share, or all where there are too few."""
    if jobs > len(cores):
        return list(cores)
    return list(cores[slot * len(cores) // jobs : (slot + 1) * len(cores) // jobs])


@dataclass(frozen=True)
class _Place:
    """Where a job runs."""

    cores: list[int]
    gpu: int | None


def _place(slot: int, jobs: int, gpus: int) -> _Place:
    cores = sorted(os.sched_getaffinity(0))
    return _Place(cores_of(slot, jobs, cores), slot % gpus if gpus else None)


def _next(waiting: collections.deque[PlannedRun]) -> PlannedRun | None:
    """Takes the first run that nobody else is at work on; None where there is none."""
    for _ in range(len(waiting)):
        run = waiting.popleft()
        if not run.held:
            return run
        waiting.append(run)
    return None


def _begin(run: PlannedRun, out: Path, place: _Place, program: Sequence[str]) -> Job:
    log = out / LOGS / f"{run.name.replace('/', '-')}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    environment = dict(os.environ)
    if place.gpu is not None:
        visible = environment.get("CUDA_VISIBLE_DEVICES") or ""
        known = visible.split(",") if visible else list(map(str, range(place.gpu + 1)))
        environment["CUDA_VISIBLE_DEVICES"] = known[place.gpu]
    sweep, libc = os.getpid(), ctypes.CDLL(None)

    def settle() -> None:
        os.sched_setaffinity(0, place.cores)
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != sweep:  # it has ended meanwhile
            os._exit(1)

    with log.open("ab") as said:
        process = subprocess.Popen(
            [*program, *run.command()],
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=subprocess.STDOUT,
            env=environment,
            preexec_fn=settle,
        )
    return Job(run, process, log)


def _score(run: PlannedRun) -> str:
    scores = read_result(run.folder.result).get("scores")
    return f": {sum(scores) / len(scores):.1f}" if scores else ""


def _end(code: int) -> str:
    return f"killed by signal {-code}" if code < 0 else f"exit code {code}"


def _last_line(log: Path) -> str:
    return (log.read_text(errors="replace").strip().splitlines() or ["it said nothing"])[-1]
