"""How long an update of size S takes by backend, and whether the kernels agree there.

    python -m bench.profile_update FILE --ways first

`first` answers within three minutes what matters most: whether it runs, whether the operations
agree with the reference, and the milliseconds of an update, with CUDA graphs and without. `all`
adds operands of TF32 and bfloat16, the longest kernels of an update and the milliseconds of acting;
`compiled` is the reference under torch.compile, which takes minutes to compile.

Each way runs in a process of its own, with a time limit, so that one that hangs or breaks the
device costs no other. FILE is written after each; a way that it already has, of the same commit
and device, is not run again.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import torch
import tyro

from bench.surroundings import DEVICE, surroundings
from mudreamer_fast.agent import Agent
from mudreamer_fast.backend.cuda_graph import SETTLING_CALLS
from mudreamer_fast.config import BehaviourConfig, Config, ModelConfig, Precision, ReplayConfig
from mudreamer_fast.envs import ActionSpec, ArraySpec
from mudreamer_fast.machine.device import settle_arithmetic
from mudreamer_fast.run.folder import write_json

ACTIONS, UPDATES, KERNELS = 6, 10, 25
ACTING_STEPS, ENVIRONMENTS = 50, (1, 4, 16, 64)
WARM_UPS = SETTLING_CALLS + 2
"""Calls before the first that is timed: a graph is recorded and replayed once in them."""
AGREEMENT = "agreement"
"""The way that times nothing, but compares every fused operation with the reference."""
SHORT = Config(
    model=ModelConfig(deter=4, hidden=4, conv=2, layers=1, groups=2, classes=3, bins=5),
    behaviour=BehaviourConfig(horizon=1),
    replay=ReplayConfig(batch_size=2, batch_length=2),
)
"""Small enough for Triton's interpreter."""


class Way(NamedTuple):
    """How updates are made."""

    backend: str
    graph: str
    """As train.cuda_graph."""
    precision: Precision = "float32"

    @property
    def name(self) -> str:
        """What it is called in the file."""
        return f"{self.backend}, cuda_graph {self.graph}, {self.precision}"


FIRST = (
    Way("reference", "off"), AGREEMENT, Way("fused", "on"), Way("persistent", "on"),
    Way("fused", "off"), Way("persistent", "off"), Way("reference", "on"),
)  # fmt: skip
"""What tells the most comes first: the time may not suffice for all."""
FEWER_BITS: tuple[Precision, ...] = ("tf32", "bfloat16")
WAYS: dict[str, tuple[Way | str, ...]] = {
    "first": FIRST,
    "all": (
        *FIRST,
        *(
            Way(name, "on", precision)
            for precision in FEWER_BITS
            for name in ("fused", "persistent", "reference")
        ),
    ),
    "compiled": (Way("compiled", "off"), Way("compiled", "on")),
}


@dataclass(frozen=True)
class Options:
    """Time updates by backend."""

    file: Annotated[Path, tyro.conf.Positional]
    """JSON to write, or to go on with."""
    ways: Literal["first", "all", "compiled"] = "all"
    """Which ways; all but first profile the update and time acting, too."""
    seconds: float = 450.0
    """Time for all ways together; what is not begun by then is left out."""
    way_seconds: float = 120.0
    """Time for each."""
    short: bool = False
    """A tiny model, where there is no GPU in Triton's interpreter: shows that all of it works."""
    only: str | None = None
    """The one way that this process runs itself."""


def batch(config: Config) -> dict[str, np.ndarray]:
    """Random replayed sequences."""
    rows, steps = config.replay.batch_size, config.replay.batch_length
    rng = np.random.default_rng(0)
    return {
        "image": rng.integers(0, 256, (rows, steps, 3, 64, 64), dtype=np.uint8),
        "action": rng.uniform(-1, 1, (rows, steps, ACTIONS)).astype(np.float32),
        "reward": rng.random((rows, steps), dtype=np.float32),
        "is_first": np.zeros((rows, steps), np.bool_),
        "is_terminal": np.zeros((rows, steps), np.bool_),
    }


def synchronize() -> None:
    """Wait for the device."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def timed(work: Callable[[], object], times: int, warm_ups: int = WARM_UPS) -> dict[str, float]:
    """Milliseconds of a call, waiting included, after some that are not counted."""
    for _ in range(warm_ups):
        work()
    taken = []
    for _ in range(times):
        synchronize()
        start = time.perf_counter()
        work()
        synchronize()
        taken.append((time.perf_counter() - start) * 1e3)
    return {
        "median": statistics.median(taken), "min": min(taken), "max": max(taken), "rounds": times,
    }  # fmt: skip


def acting(agent: Agent, rows: int, steps: int) -> dict[str, float]:
    """Milliseconds of a step in a number of environments."""
    observation = {"image": np.zeros((rows, 3, 64, 64), np.uint8)}
    is_first = np.zeros(rows, np.bool_)
    state = agent.initial_state(rows)
    return timed(lambda: agent.act(observation, is_first, state), steps)


def longest_kernels(work: Callable[[], object]) -> dict[str, Any]:
    """What the device spends the time of a call on; on the CPU, what PyTorch's operations take."""
    from torch.profiler import ProfilerActivity, profile

    on_gpu = DEVICE.type == "cuda"
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * on_gpu
    with profile(activities=activities) as trace:
        work()
        synchronize()

    def microseconds(event: Any) -> float:
        spent = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        return float(spent)

    events = [event for event in trace.key_averages() if microseconds(event) > 0]
    events.sort(key=lambda event: -microseconds(event))
    return {
        "device_operations": sum(event.count for event in events),
        "kernels": [
            {"name": event.key, "calls": event.count, "microseconds": microseconds(event)}
            for event in events[:KERNELS]
        ],
    }


def measure(way: Way, everything: bool, short: bool, note: Callable[[Any], object]) -> None:
    """Times updates, and with `everything` acting; `note` is told what is known so far."""
    settle_arithmetic(None, way.precision)
    config = SHORT if short else Config()
    train = replace(config.train, backend=way.backend, cuda_graph=way.graph)  # type: ignore[arg-type]
    train = replace(train, precision=way.precision)
    config = replace(config, train=train)
    spec = {"image": ArraySpec((3, 64, 64), np.dtype(np.uint8))}
    start = time.perf_counter()
    agent = Agent(config, spec, ActionSpec(ACTIONS, continuous=True), DEVICE)
    data = batch(config)
    learn = lambda: agent.update(data)  # noqa: E731
    metrics = learn()
    synchronize()
    found: dict[str, Any] = {
        "seconds_to_first_update": time.perf_counter() - start,  # with what had to be compiled
        "finite": all(np.isfinite(value) for value in metrics.values()),
    }
    note(found)
    found["milliseconds"] = timed(learn, 1 if short else UPDATES, 0 if short else WARM_UPS)
    note(found)
    if everything:
        found |= longest_kernels(learn)
        found["acting_milliseconds"] = {}
        for rows in ENVIRONMENTS[: 1 if short else None]:
            steps = 2 if short else ACTING_STEPS
            found["acting_milliseconds"][rows] = acting(agent, rows, steps)
            note(found)


def agreement(note: Callable[[Any], object]) -> None:
    """Compares every fused operation with the reference in float64."""
    from mudreamer_fast import kernels, reference
    from mudreamer_fast.backend.load import PERSISTENT
    from mudreamer_fast.backend.selfcheck import check_ops

    start = time.perf_counter()
    checks = check_ops(kernels, reference, DEVICE, [*reference.__all__, PERSISTENT])
    wrong = [str(check) for check in checks if not check.ok]
    note({"seconds": time.perf_counter() - start, "compared": len(checks), "disagree": wrong})


def in_a_process(options: Options, name: str, limit: float) -> dict[str, Any]:
    """What a way gave, run by a process of its own, and why it gave no more."""
    part = options.file.with_suffix(".part")
    part.unlink(missing_ok=True)
    command = [
        sys.executable, "-m", "bench.profile_update", str(part.resolve()), "--only", name,
        "--ways", options.ways, *(["--short"] if options.short else []),
    ]  # fmt: skip
    environment = dict(os.environ)
    if options.short and DEVICE.type == "cpu":
        environment["TRITON_INTERPRET"] = "1"
    why = ""
    try:
        child = subprocess.run(
            command, cwd=Path(__file__).parents[1], env=environment, timeout=limit,
            stdout=sys.stderr, stderr=subprocess.PIPE, text=True, check=False,
        )  # fmt: skip
        sys.stderr.write(child.stderr)
        if child.returncode:
            lines = child.stderr.strip().splitlines() or [f"exit code {child.returncode}"]
            why = lines[-1]
    except subprocess.TimeoutExpired:
        why = f"ended after {limit:.0f} s"
    found: dict[str, Any] = json.loads(part.read_text()) if part.exists() else {}
    part.unlink(missing_ok=True)
    return found | ({"error": why} if why else {})


def line(name: str, result: Mapping[str, Any]) -> str:
    """A way's result in a line."""
    said = []
    if "compared" in result:
        wrong = result["disagree"]
        said.append(f"{result['compared']} compared, {len(wrong)} disagree{': ' * bool(wrong)}")
        said += wrong
    if "milliseconds" in result:
        ms = result["milliseconds"]
        said.append(f"{ms['median']:.2f} ms an update ({ms['min']:.2f} to {ms['max']:.2f})")
    for rows, ms in result.get("acting_milliseconds", {}).items():
        said.append(f"acting in {rows}: {ms['median']:.2f} ms")
    if result.get("finite") is False:
        said.append("not finite")
    for key in ("error", "left_out"):
        if key in result:
            said.append(f"{key.replace('_', ' ')}: {result[key]}")
    return f"{name}: {', '.join(said)}"


def complete(result: Mapping[str, Any], everything: bool) -> bool:
    """Whether a way need not be run again."""
    return "error" not in result and ("compared" in result or not everything or "kernels" in result)


def failed(result: Mapping[str, Any]) -> bool:
    """Whether a result is not what it should be."""
    return bool("error" in result or result.get("disagree") or result.get("finite") is False)


def run(options: Options) -> int:
    """Runs the ways that the file lacks; 1 where one of them failed or the time ran out."""
    here = surroundings() | {"short": str(options.short)}
    results: dict[str, dict[str, Any]] = {}
    if options.file.exists():
        before = json.loads(options.file.read_text())
        if all(before.get(key) == value for key, value in here.items()):
            results = before["update"]
    everything = options.ways != "first"
    end = time.monotonic() + options.seconds
    bad = False
    for way in WAYS[options.ways]:
        name = way if isinstance(way, str) else way.name
        if complete(results.get(name, {"error": ""}), everything):
            print(f"{line(name, results[name])} (from before)", flush=True)
            bad |= failed(results[name])
            continue
        if isinstance(way, Way) and way.graph == "on" and DEVICE.type == "cpu":
            print(line(name, {"left_out": "there are no CUDA graphs without a GPU"}))
            continue
        limit = min(options.way_seconds, end - time.monotonic())
        if limit <= 0:
            print(line(name, {"left_out": f"the {options.seconds:.0f} s are over"}))
            bad = True
            continue
        results[name] = in_a_process(options, name, limit)
        write_json(options.file, here | {"update": results})
        print(line(name, results[name]), flush=True)
        bad |= failed(results[name])
    return int(bad)


def main() -> int:
    """Runs all ways as processes, or one of them in this."""
    options = tyro.cli(Options, prog="python -m bench.profile_update", description=__doc__)
    if DEVICE.type == "cpu" and not options.short:
        print("error: PyTorch finds no CUDA GPU here; --short shows that it works", file=sys.stderr)
        return 2
    if options.only is None:
        return run(options)
    note = lambda found: write_json(options.file, found)  # noqa: E731
    if options.only == AGREEMENT:
        agreement(note)
        return 0
    ways = {way.name: way for way in WAYS[options.ways] if isinstance(way, Way)}
    measure(ways[options.only], options.ways != "first", options.short, note)
    return 0


if __name__ == "__main__":
    sys.exit(main())
