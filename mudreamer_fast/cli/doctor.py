"""Checks what the program needs to run on this machine; nothing is built or downloaded.

What ends a process when it goes wrong (simulators, OpenGL) is tried in a process of its own.
"""

from __future__ import annotations

import contextlib
import fcntl
import getpass
import importlib
import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mudreamer_fast.config import Config
from mudreamer_fast.envs.interpreter import python_command
from mudreamer_fast.machine.handles import LEAST_HANDLES, allowed_handles
from mudreamer_fast.machine.memory import GIB, available_bytes

MIB = 1 << 20
TRIAL_SECONDS = 120
"""After this long a trial in a process of its own counts as failed."""
IMAGE_SHAPE, ACTIONS = (3, 64, 64), 6
"""Of walker walk from pixels, at whose sizes kernels are checked."""
LOW_DISK_BYTES = 2 * GIB
"""Room for the checkpoints of a short run: twice the replay and model of the quick preset."""
LOW_MEMORY_BYTES = 4 * GIB
"""Room for a small model and the quick preset's replay."""
LOW_SHARED_BYTES = MIB
"""Of multiprocessing's semaphores, many times over."""
CLOCK_SECONDS = 5.0
"""How far a file's date may be from the clock; some file systems round to 2 s."""

_RENDERER_TRIAL = """
from mudreamer_fast.envs.graphics import renderer_name
print(renderer_name())
"""
_SIMULATOR_TRIAL = """
import importlib.metadata
from mudreamer_fast.config import EnvConfig
from mudreamer_fast.envs import make_env
config = EnvConfig("dmc/cartpole_balance", backend="{backend}", render_profile="light")
env = make_env(config, 1, 0)
image = env.reset().observation["image"]
env.close()
if image.std() == 0:
    raise RuntimeError("images are blank")
print(importlib.metadata.version("{backend}"), "steps and renders")
"""


@dataclass(frozen=True)
class Finding:
    """What one check found."""

    name: str
    """What was checked."""
    ok: bool
    """Whether training can do with it."""
    detail: str
    """What is there, or what is wrong and what to do."""

    def line(self) -> str:
        """The finding as one line."""
        return f"{'ok  ' if self.ok else 'FAIL'}  {self.name:12} {' '.join(self.detail.split())}"


def examine() -> list[Finding]:
    """Runs all checks, in the order in which a run would meet the trouble."""
    envpool, dm_control = _simulator("envpool"), _simulator("dm_control")
    either = envpool.ok or dm_control.ok
    first: list[Callable[[], Finding]] = [_python, _torch, _replay]
    return [
        *(check() for check in first),
        *_kernels(),
        _renderer(),
        # One simulator is enough: the other's absence is told, not held against the machine.
        *(
            Finding(f.name, f.ok or either, f.detail if f.ok else f"not usable: {f.detail}")
            for f in (envpool, dm_control)
        ),
        _video(),
        _extras(),
        _disk(),
        *_files(),
        _memory(),
        _shared(),
        _handles(),
    ]


def _python() -> Finding:
    good = sys.version_info >= (3, 10)
    return Finding("python", good, platform.python_version() + ("" if good else ": needs 3.10"))


def _torch() -> Finding:
    try:
        import torch
    except ImportError as error:
        return Finding("torch", False, f"{error}: pip install torch")
    place = f"CPU, {torch.get_num_threads()} threads; no CUDA GPU"
    if torch.cuda.is_available():
        place = ", ".join(
            torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())
        )
    return Finding("torch", True, f"{torch.__version__} on {place}")


def _replay() -> Finding:
    try:
        module = importlib.import_module("mudreamer_fast._replay")
    except ImportError as error:
        return Finding("replay", False, f"the C++ module is missing ({error}): pip install .")
    return Finding("replay", True, f"C++ module {Path(str(module.__file__)).name}")


def _kernels() -> list[Finding]:
    """The fused operations against the reference, where they can run."""
    try:
        from mudreamer_fast.backend.load import (
            NEEDS_TRITON,
            check_fused,
            choose,
            fused_runs_on,
            run_sizes,
        )
        from mudreamer_fast.machine.device import resolve_device
        from mudreamer_fast.networks.encoder import embed_size
    except ImportError:  # no torch, which has been told
        return []
    device = resolve_device("auto")
    if not fused_runs_on(device):
        detail = f"not usable: it {NEEDS_TRITON}"
        return [Finding("kernels", True, detail)] if device.type == "cuda" else []
    config = Config()
    embed = embed_size(config.model, {"image": IMAGE_SHAPE})
    sizes = run_sizes(config, embed, ACTIONS, continuous=True)
    found = check_fused(device, sizes, anew=True)
    backend = choose(found)
    detail = f"auto takes {backend}: on {device} {backend.why}"
    for _, reason in backend.replaced:
        detail += f"; not usable: {reason}"
    uses = [use for verdict in found for use in verdict.uses if use.ok]
    if uses:
        detail += f"; nearest to its limit {max(uses, key=lambda one: one.error / one.limit)}"
    # Training can do without them.
    return [Finding("kernels", True, detail), _compiler(), _caches()]


def _compiler() -> Finding:
    """What Triton builds its launchers with; without it training takes the reference operations."""
    name = os.environ.get("CC")
    found = shutil.which(name) if name else shutil.which("gcc") or shutil.which("clang")
    header = Path(sysconfig.get_path("include"), "Python.h")
    if found is None:
        wanted = (
            f"CC names {name}, which is not there" if name else "neither gcc nor clang is there"
        )
        detail = f"not usable: {wanted}: install gcc, which Triton needs"
    elif not header.exists():
        detail = f"not usable: {header} is missing: install python3-dev, which Triton needs"
    else:
        detail = found
    return Finding("compiler", True, detail)


def _caches() -> Finding:
    """Where compiled kernels are kept; without it training takes the reference operations."""
    home = os.environ.get("TRITON_HOME") or os.path.expanduser("~")
    folders = {"TRITON_CACHE_DIR": Path(home, ".triton", "cache")}
    with contextlib.suppress(KeyError, OSError):  # a user without a name
        name = f"torchinductor_{getpass.getuser()}"
        folders["TORCHINDUCTOR_CACHE_DIR"] = Path(tempfile.gettempdir(), name)
    folders = {name: Path(os.environ.get(name) or path) for name, path in folders.items()}
    closed = [
        f"cannot write to {path}: set {name}"
        for name, path in folders.items()
        if not _is_writable(path)
    ]
    return Finding("caches", True, "; ".join(closed) or ", ".join(map(str, folders.values())))


def _is_writable(folder: Path) -> bool:
    """Whether a folder, which need not be there yet, can be written to."""
    # os.path: what lies in a folder that is closed to us counts as not there
    there = next(path for path in (folder, *folder.absolute().parents) if os.path.exists(path))
    return os.path.isdir(there) and os.access(there, os.W_OK | os.X_OK)


def _renderer() -> Finding:
    ok, detail = _trial(_RENDERER_TRIAL)
    return Finding("opengl", ok, detail)


def _simulator(backend: str) -> Finding:
    ok, detail = _trial(_SIMULATOR_TRIAL.format(backend=backend))
    return Finding(backend, ok, detail)


def _trial(code: str) -> tuple[bool, str]:
    """Runs code in a new interpreter; gives success and the last line that it said."""
    try:
        done = subprocess.run(
            python_command(code), capture_output=True, text=True, timeout=TRIAL_SECONDS
        )
    except subprocess.TimeoutExpired:
        return False, f"no answer within {TRIAL_SECONDS} s"
    said = (done.stdout if done.returncode == 0 else done.stderr).strip().splitlines()
    last = said[-1] if said else f"ended with exit code {done.returncode}"
    return done.returncode == 0, last


def _video() -> Finding:
    from mudreamer_fast.run.pictures import video_codecs

    codecs = video_codecs()
    if not codecs:
        return Finding("video", True, "no encoder (pip install av): videos become GIFs")
    return Finding("video", True, f"mp4 by {codecs[0]}")


def _extras() -> Finding:
    versions = []
    for name in ("matplotlib", "tensorboard"):
        try:
            versions.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            versions.append(f"no {name}")
    return Finding("reports", not versions[0].startswith("no"), ", ".join(versions))


def _disk() -> Finding:
    free = shutil.disk_usage(Path.cwd()).free
    detail = f"{free / GIB:.1f} GiB free in {Path.cwd()}"
    if free < LOW_DISK_BYTES:
        detail += f": checkpoints may need {LOW_DISK_BYTES / GIB:.0f}, see train.save-replay"
    return Finding("disk", free >= LOW_DISK_BYTES, detail)


def _files() -> list[Finding]:
    """What the file system of the current folder does with a file."""
    folder = Path.cwd()
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".mudreamer_fast_") as file:
            lock = f"there are locks in {folder}"
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                lock = f"none in {folder} ({error.strerror}): a replay on disk needs another folder"
            ahead = os.fstat(file.fileno()).st_mtime - time.time()
    except OSError as error:
        reason = f"cannot write to {folder} ({error.strerror}): give train --run-dir"
        return [Finding("files", False, reason)]
    clock = f"files are dated {abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} the clock"
    if abs(ahead) <= CLOCK_SECONDS:
        clock = "files are dated by it"
    # Training can do without either.
    return [Finding("locks", True, lock), Finding("clock", True, clock)]


def _handles() -> Finding:
    allowed = allowed_handles()
    if allowed is None:
        return Finding("handles", True, "any number of open files")
    detail = f"up to {allowed} open files"
    if allowed < LEAST_HANDLES:
        detail += f", and a run needs {LEAST_HANDLES}: ulimit -n 1024"
    return Finding("handles", allowed >= LEAST_HANDLES, detail)


def _shared(folder: str = "/dev/shm") -> Finding:
    """Where multiprocessing's semaphores are, which Gymnasium's processes need and no others."""
    try:
        free = shutil.disk_usage(folder).free
    except OSError as error:
        detail = f"not usable: {folder}: {error.strerror}"
    else:
        detail = f"{free / MIB:.1f} MiB free in {folder}"
        if free >= LOW_SHARED_BYTES and _is_writable(Path(folder)):
            return Finding("shared", True, detail)
        if free >= LOW_SHARED_BYTES:
            detail = f"not usable: cannot write to {folder}"
    # Training can do without.
    return Finding("shared", True, f"{detail}: gym tasks need --env.backend sync")


def _memory() -> Finding:
    available = available_bytes()
    if available is None:
        return Finding("memory", True, "unknown")
    detail = f"{available / GIB:.1f} GiB available"
    if available < LOW_MEMORY_BYTES:
        detail += ": lower replay.capacity-steps"
    return Finding("memory", available >= LOW_MEMORY_BYTES, detail)
