"""A sweep on a cluster, by submitit: a job for each run, and another one where its time is up."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mudreamer_fast.config import ConfigError
from mudreamer_fast.sweep.plan import PlannedRun

JOBS = "jobs"
"""Folder of submitit's files below the sweep's."""


class TrainingJob:
    """A run as a job. submitit asks it for a successor where its time is up or its node is lost.

    Args:
        program: the command line, which takes words and gives an exit code.
    """

    def __init__(self, program: Callable[[Sequence[str]], int]) -> None:
        self._program = program

    def __call__(self, words: Sequence[str]) -> str:
        """Trains.

        Args:
            words: of the command line.

        Raises:
            RuntimeError: the run ended with an error.
        """
        code = self._program(words)
        if code:
            raise RuntimeError(f"exit code {code}: {' '.join(words)}")
        return words[-1]

    def checkpoint(self, words: Sequence[str]) -> Any:
        """The job to queue in this one's place: the same command, which goes on."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, words)


def parameters(words: Sequence[str]) -> dict[str, str | int]:
    """NAME=VALUE pairs as submitit takes them, whole numbers as such.

    Raises:
        ConfigError: one has no name.
    """
    found: dict[str, str | int] = {}
    for word in words:
        name, sign, value = word.partition("=")
        if not name or not sign:
            raise ConfigError(f"job must be NAME=VALUE, such as timeout_min=600, got {word!r}")
        found[name] = int(value) if value.isdecimal() else value
    return found


def submit(
    runs: Sequence[PlannedRun],
    out: Path,
    cluster: str,
    parameters: Mapping[str, Any],
    program: Callable[[Sequence[str]], int],
) -> list[Any]:
    """Queues the runs that are not finished, and on which nobody is at work.

    Args:
        runs: those of the plan.
        out: folder of the sweep.
        cluster: "slurm", or "local" for processes of this machine.
        parameters: submitit's, such as timeout_min, slurm_partition or gpus_per_node.
        program: the command line.

    Returns:
        submitit's jobs.

    Raises:
        ConfigError: submitit or the cluster is not there, or a parameter that it does not know.
    """
    try:
        import submitit
    except ImportError:
        raise ConfigError(
            "a cluster takes submitit: pip install 'mudreamer-fast[cluster]'"
        ) from None
    try:
        executor = submitit.AutoExecutor(folder=out / JOBS, cluster=cluster)
        executor.update_parameters(name="mudreamer-fast", **parameters)
    except (NameError, RuntimeError, TypeError, ValueError) as error:
        raise ConfigError(f"submitit: {error}") from None
    with executor.batch():
        return [
            executor.submit(TrainingJob(program), run.command())
            for run in runs
            if not run.finished and not run.held
        ]
