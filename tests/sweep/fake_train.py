"""Stands for the command line of a sweep's runs: `train PRESET ... --resume-or-start FOLDER`.

A run takes 20 steps of some milliseconds. Each is kept in the folder, so that nothing is done twice
by a run that was killed; what began and ended it is written beside. By what the folder is called it
fails once, always, or is held by another process a moment after the sweep has looked.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

from mudreamer_fast.config import ConfigError
from mudreamer_fast.machine.signals import StopSignals
from mudreamer_fast.run.lock import RunLock

STEPS = 20
STEP_SECONDS = 0.03


def note(folder: Path, name: str, text: object = "") -> int:
    """Adds a line to a file of the folder; gives how many it has then."""
    with (folder / name).open("a") as file:
        file.write(f"{text}\n")
    return len((folder / name).read_text().splitlines())


def main() -> int:
    assert sys.argv[1] == "train"
    folder = Path(sys.argv[-1])
    try:
        lock = RunLock(folder)
    except ConfigError as error:
        print(f"error: {error}")
        return 2
    with lock, StopSignals() as stop:
        begun = note(folder, "begun", sys.argv[1:])
        note(folder, "cores", sorted(os.sched_getaffinity(0)))
        note(folder, "gpu", os.environ.get("CUDA_VISIBLE_DEVICES"))
        if "broken" in folder.name or ("fails_once" in folder.name and begun == 1):
            print("some lines before\nerror: the simulator did not start")
            return 2
        steps = folder / "steps"
        while not steps.exists() or len(steps.read_text().splitlines()) < STEPS:
            if stop.received is not None:
                return 128 + stop.received
            time.sleep(STEP_SECONDS)
            note(folder, "steps")
        note(folder, "ended")
        (folder / "result.json").write_text(json.dumps({"scores": [1.0, 3.0]}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
