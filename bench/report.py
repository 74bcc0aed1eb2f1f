"""The benchmarks in a JSON file of pytest-benchmark, as a Markdown table.

    python -m bench.report FILE.json

The machine, the versions and the commit stand above the table. A benchmark that times several
things has a row for each. The spread is the lowest and the highest round; for contenders timed by
`bench/turns.py` it is their rate relative to the base contender's: median and quartiles.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

COLUMNS = ("benchmark", "median", "spread", "rounds")
PARTS = {"seconds": 1.0, "milliseconds_per_step": 1e-3, "microseconds": 1e-6}
"""Names in `extra_info` of what was timed by part, and their units in seconds."""
VERSIONS = ("torch", "triton", "cuda")


class NotBenchmarksError(ValueError):
    """A file that pytest-benchmark did not write; the message is shown to the user as it is."""


def read(path: Path) -> dict[str, Any]:
    """What pytest-benchmark wrote.

    Raises:
        NotBenchmarksError: the file is missing, is not JSON, or does not hold benchmarks.
    """
    try:
        content = json.loads(path.read_text())
    except OSError as error:
        raise NotBenchmarksError(f"{path}: {error.strerror}") from None
    except ValueError:
        raise NotBenchmarksError(f"{path}: expected JSON of pytest-benchmark") from None
    if not isinstance(content, dict) or not {"benchmarks", "machine_info"} <= content.keys():
        raise NotBenchmarksError(f"{path}: expected JSON of pytest-benchmark, got other JSON")
    return content


def duration(seconds: float) -> str:
    """A time with three digits, in the unit that fits it."""
    for unit, length in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= length:
            return f"{seconds / length:.3g} {unit}"
    return f"{seconds / 1e-9:.3g} ns"


def rows(benchmark: Mapping[str, Any]) -> Iterator[tuple[str, str, str, str]]:
    """A benchmark's rows: one, or one for each thing that it timed."""
    name, stats, extra = benchmark["name"], benchmark["stats"], benchmark["extra_info"]
    rounds = str(stats["rounds"])
    parts = False
    for key, unit in PARTS.items():
        for part, times in extra.get(key, {}).items():
            parts = True
            median, low, high = (duration(times[each] * unit) for each in ("median", "min", "max"))
            yield f"{name}: {part}", median, f"{low} to {high}", rounds
    for contender, figures in extra.get("contenders", {}).items():
        parts = True
        spread = next(
            f"{figures[key]['median']:.3g} ({low:.3g} to {high:.3g}) {key}"
            for key in figures
            if key.startswith("over ")
            for low, high in [figures[key]["quartiles"]]
        )
        yield f"{name}: {contender}", duration(figures["milliseconds"] * 1e-3), spread, rounds
    if not parts:
        low, high = duration(stats["min"]), duration(stats["max"])
        yield name, duration(stats["median"]), f"{low} to {high}", rounds


def surroundings(content: Mapping[str, Any]) -> str:
    """Machine, versions and commit, in one line."""
    extra = [benchmark["extra_info"] for benchmark in content["benchmarks"]]
    first = {key: value for each in reversed(extra) for key, value in each.items()}
    machine, commit = content["machine_info"], content.get("commit_info", {})
    cpu = machine.get("cpu", {})
    named = first.get("device") or cpu.get("brand_raw") or machine.get("machine", "unknown machine")
    cores = f", {cpu['count']} cores" if "count" in cpu and "device" not in first else ""
    versions = [f"Python {machine.get('python_version', 'unknown')}"]
    versions += [f"{name} {first[name]}" for name in VERSIONS if name in first]
    dirty = "-dirty" if commit.get("dirty") else ""
    made_of = first.get("commit") or f"{commit.get('id', 'unknown')[:12]}{dirty}"
    return f"{named}{cores}; {', '.join(versions)}; commit {made_of}"


def main(arguments: Sequence[str]) -> int:
    """Prints the table; 2 where FILE is not one of pytest-benchmark."""
    if len(arguments) != 1:
        print(__doc__, file=sys.stderr)
        return 2
    path = Path(arguments[0])
    try:
        content = read(path)
        try:
            lines = [surroundings(content), ""]
            table = [row for benchmark in content["benchmarks"] for row in rows(benchmark)]
        except (KeyError, TypeError, AttributeError, ValueError, StopIteration) as error:
            message = f"{path}: expected benchmarks as pytest-benchmark writes them, {error!r}"
            raise NotBenchmarksError(message) from None
    except NotBenchmarksError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for cells in (COLUMNS, ["---"] * len(COLUMNS), *table):
        lines.append(f"| {' | '.join(cells)} |")
    print("\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
