"""The check of fused operations in a process of its own, which may crash or hang.

An illegal access leaves a process without its GPU, and a compiler or a kernel may take the whole
process with it or never come back. All of that costs the process here and not the run.
"""

from __future__ import annotations

import contextlib
import importlib
import math
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import IO, Any

import torch

from mudreamer_fast.backend.selfcheck import SMALL, Agreement, Sizes, check_ops
from mudreamer_fast.envs.interpreter import python_command

START_SECONDS = 300.0
"""How long a process may take to begin with its first operation."""
OPERATION_SECONDS = 240.0
"""How long one operation may take: its kernels are compiled at two sizes, and compared."""
ALL_SECONDS = 900.0
"""After this long those that are left are not begun."""
CLOSE_SECONDS = 5.0
"""How long a process may take to end once it is killed."""

_WAIT_SECONDS = 1.0
_PROGRAM = """
import sys
from mudreamer_fast.backend.trial import main
main(int(sys.argv[1]))
"""


@dataclass(frozen=True)
class Verdict:
    """What the check of one operation found."""

    op: str
    """Its name."""
    uses: tuple[Agreement, ...]
    """How each of its uses compares with the reference; none where `trouble` kept it from it."""
    trouble: str = ""
    """What became of the process that tried it."""

    @property
    def ok(self) -> bool:
        """Whether it gives what it should."""
        return not self.trouble and bool(self.uses) and all(use.ok for use in self.uses)

    @property
    def compared(self) -> bool:
        """Whether all of its uses gave something to compare: another try would give the same."""
        return not self.trouble and bool(self.uses) and not any(use.trouble for use in self.uses)

    @property
    def reason(self) -> str:
        """Why it is not to be used, in a line; empty where it is."""
        wrong = [str(use) for use in self.uses if not use.ok]
        return f"{self.op}: {self.trouble}" if self.trouble else wrong[0] if wrong else ""


def try_ops(
    fused: str, reference: str, device: torch.device, ops: Sequence[str], sizes: Sizes
) -> list[Verdict]:
    """Compare operations with the reference, small and at a run's sizes, in other processes.

    One that takes its process with it, or leaves it without its device, costs another process: the
    rest are checked there.

    Args:
        fused: name of the module to check.
        reference: of the one it is held to.
        device: where.
        ops: names in `fused`.
        sizes: the run's.
    """
    verdicts: dict[str, Verdict] = {}
    deadline = time.monotonic() + ALL_SECONDS
    while left := [op for op in ops if op not in verdicts]:
        if time.monotonic() > deadline:
            trouble = f"not begun, as the others took {ALL_SECONDS:.0f} s"
        else:
            found, trouble = _try_in_one_process((fused, reference, str(device), left, sizes))
            verdicts |= {verdict.op: verdict for verdict in found}
            if found:
                continue
        verdicts |= {op: Verdict(op, (), trouble) for op in left}
    return [verdicts[op] for op in ops]


def _try_in_one_process(request: tuple[Any, ...]) -> tuple[list[Verdict], str]:
    """Verdicts until all is done or the process ends; without any, what became of it."""
    ours, theirs = Pipe()
    with tempfile.TemporaryFile() as said, ours:
        process = subprocess.Popen(
            python_command(_PROGRAM, str(theirs.fileno())),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,  # compilers and drivers talk
            stderr=said,
            pass_fds=[theirs.fileno()],
            start_new_session=True,  # a terminal's signals are for the run
        )
        theirs.close()
        verdicts: list[Verdict] = []
        trouble, under_way = "", ""
        try:
            ours.send(request)
            patience = START_SECONDS
            while len(verdicts) < len(request[3]):
                if not _answers(ours, patience):
                    trouble = f"no answer within {patience:g} s"
                    break
                message, patience = ours.recv(), OPERATION_SECONDS
                if isinstance(message, Verdict):
                    verdicts.append(message)
                    under_way = ""
                else:
                    under_way = message
        except (EOFError, OSError):
            trouble = _how_it_ended(process, said)
        finally:
            ended = _end(process)
    if trouble and under_way:
        verdicts.append(Verdict(under_way, (), trouble))
    if not ended:  # a driver holds it: no other process would fare better
        verdicts += [
            Verdict(op, (), f"{trouble}, and no signal ends its process")
            for op in request[3][len(verdicts) :]
        ]
    return verdicts, trouble


def _answers(connection: Connection[Any, Any], seconds: float) -> bool:
    # many short waits: time in which the whole job was suspended counts as one of them
    wait = min(_WAIT_SECONDS, seconds)
    return any(connection.poll(wait) for _ in range(math.ceil(seconds / wait)))


def _how_it_ended(process: subprocess.Popen[bytes], said: IO[bytes]) -> str:
    try:
        code = process.wait(CLOSE_SECONDS)
    except subprocess.TimeoutExpired:
        return "its process hung up"
    if code < 0:
        with contextlib.suppress(ValueError):
            return f"its process was ended by {signal.Signals(-code).name}"
    said.seek(0)
    lines = said.read().decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else f"its process ended with code {code}"


def _end(process: subprocess.Popen[bytes]) -> bool:
    process.kill()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(CLOSE_SECONDS)
        return True
    return False


def main(descriptor: int) -> None:
    """Checks what it is asked to over a connection: each operation's name, then its verdict."""
    signal.alarm(math.ceil(START_SECONDS + ALL_SECONDS))  # should the parent be gone by then
    connection: Connection[Any, Any] = Connection(descriptor)
    fused, reference, device_name, ops, sizes = connection.recv()
    modules = importlib.import_module(fused), importlib.import_module(reference)
    device = torch.device(device_name)
    for op in ops:
        connection.send(op)
        uses = [use for of in (SMALL, sizes) for use in check_ops(*modules, device, [op], of)]
        connection.send(Verdict(op, tuple(uses)))
        if not _still_computes(device):
            break
    connection.close()
    os._exit(0)  # a device that is lost is not to be tidied up


def _still_computes(device: torch.device) -> bool:
    """Whether the process still has its device: an illegal access takes it away for good."""
    try:
        return torch.zeros(1, device=device).add(1).item() == 1
    except Exception:
        return False
