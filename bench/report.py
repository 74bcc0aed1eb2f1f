"""Files of measurements as Markdown tables: of pytest-benchmark, or of `bench.profile_update`.

    python -m bench.report FILE.json...
    python -m bench.report FILE.json --against OTHER.json

The machine, the versions and the commit stand above a table. A benchmark that times several things
has a row for each. The spread is the lowest and the highest round; for contenders timed by
`bench/turns.py` it is their rate relative to the base contender's: median and quartiles.

Against another file, a row has the time in both and what the other's takes relative to it: above 1
FILE is faster. The spread of that ratio is from the best of one beside the worst of the other to
the reverse, where both files have one.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

COLUMNS = ("benchmark", "median", "spread", "rounds")
BESIDE = ("benchmark", "median", "against", "ratio", "spread of the ratio")
PARTS = {"seconds": 1.0, "milliseconds_per_step": 1e-3, "microseconds": 1e-6}
"""Names in `extra_info` of what was timed by part, and their units in seconds."""
VERSIONS = ("torch", "triton", "cuda", "driver")
SHOWN_ERROR = 100
"""Characters of an error at most."""


class Row(NamedTuple):
    """What was timed, in seconds."""

    name: str
    median: float
    low: float | None
    """The lowest round; None where a file keeps only a rate relative to another's."""
    high: float | None
    spread: str
    """As it is shown."""
    rounds: str

    @classmethod
    def of(cls, name: str, times: Mapping[str, Any], unit: float, rounds: object) -> Row:
        """From median, min and max in a unit of so many seconds."""
        median, low, high = (times[each] * unit for each in ("median", "min", "max"))
        return cls(name, median, low, high, f"{duration(low)} to {duration(high)}", str(rounds))

    def cells(self) -> tuple[str, ...]:
        """In the order of `COLUMNS`."""
        return self.name, duration(self.median), self.spread, self.rounds

    def beside(self, other: Row) -> tuple[str, ...]:
        """In the order of `BESIDE`."""
        spread = "-"
        if self.low and self.high and other.low and other.high:
            spread = f"{other.low / self.high:.3g} to {other.high / self.low:.3g}"
        ratio = f"{other.median / self.median:.3g}"
        return self.name, duration(self.median), duration(other.median), ratio, spread


class NotBenchmarksError(ValueError):
    """A file without measurements; the message is shown to the user as it is."""


def read(path: Path) -> dict[str, Any]:
    """What pytest-benchmark or `bench.profile_update` wrote.

    Raises:
        NotBenchmarksError: the file is missing, is not JSON, or does not hold measurements.
    """
    try:
        content = json.loads(path.read_text())
    except OSError as error:
        raise NotBenchmarksError(f"{path}: {error.strerror}") from None
    except ValueError:
        raise NotBenchmarksError(f"{path}: expected JSON of pytest-benchmark") from None
    known = {"benchmarks", "machine_info"}, {"update", "device"}
    if not isinstance(content, dict) or not any(keys <= content.keys() for keys in known):
        raise NotBenchmarksError(f"{path}: expected JSON of pytest-benchmark, got other JSON")
    return content


def duration(seconds: float) -> str:
    """A time with three digits, in the unit that fits it."""
    for unit, length in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= length:
            return f"{seconds / length:.3g} {unit}"
    return f"{seconds / 1e-9:.3g} ns"


def rows(content: Mapping[str, Any]) -> list[Row]:
    """Everything that a file has of what was timed."""
    if "update" in content:
        return [row for way in content["update"].items() for row in of_way(*way)]
    return [row for benchmark in content["benchmarks"] for row in of_benchmark(benchmark)]


def of_way(name: str, result: Mapping[str, Any]) -> Iterator[Row]:
    """An update's row and those of acting."""
    ms = 1e-3
    timed = result.get("milliseconds")
    if timed:
        yield Row.of(f"update: {name}", timed, ms, timed.get("rounds", "-"))
    for environments, times in result.get("acting_milliseconds", {}).items():
        what = f"acting in {environments}: {name}"
        yield Row.of(what, times, ms, times.get("rounds", "-"))


def of_benchmark(benchmark: Mapping[str, Any]) -> Iterator[Row]:
    """A benchmark's rows: one, or one for each thing that it timed."""
    name, stats, extra = benchmark["name"], benchmark["stats"], benchmark["extra_info"]
    rounds = str(stats["rounds"])
    parts = False
    for key, unit in PARTS.items():
        for part, times in extra.get(key, {}).items():
            parts = True
            yield Row.of(f"{name}: {part}", times, unit, rounds)
    for contender, figures in extra.get("contenders", {}).items():
        parts = True
        spread = next(
            f"{figures[key]['median']:.3g} ({low:.3g} to {high:.3g}) {key}"
            for key in figures
            if key.startswith("over ")
            for low, high in [figures[key]["quartiles"]]
        )
        low, high = (figures.get(f"{end}_milliseconds", 0) * 1e-3 for end in ("min", "max"))
        median = figures["milliseconds"] * 1e-3
        yield Row(f"{name}: {contender}", median, low or None, high or None, spread, rounds)
    if not parts:
        yield Row.of(name, stats, 1.0, rounds)


def notes(content: Mapping[str, Any]) -> Iterator[str]:
    """What a file says beside times: what was left out or failed, and whether operations agree."""
    for name, result in content.get("update", {}).items():
        if "compared" in result:
            wrong = "; ".join(result["disagree"]) or "all agree with the reference"
            yield f"{name}: {result['compared']} operations compared, {wrong}"
        if result.get("finite") is False:
            yield f"{name}: the first update's metrics are not finite"
        if "error" in result:
            yield f"{name}: {result['error'][:SHOWN_ERROR]}"
    left_out: dict[tuple[str, str], list[str]] = {}
    for benchmark in content.get("benchmarks", []):
        for name, why in benchmark["extra_info"].get("left_out", {}).items():
            left_out.setdefault((name, why[:SHOWN_ERROR]), []).append(benchmark["name"])
    for (name, why), where in left_out.items():
        yield f"{name}: left out of {', '.join(where)}: {why}"


def surroundings(content: Mapping[str, Any]) -> str:
    """Machine, versions and commit, in one line."""
    benchmarks = content.get("benchmarks", [{"extra_info": content}])
    extra = [benchmark["extra_info"] for benchmark in benchmarks]
    first = {key: value for each in reversed(extra) for key, value in each.items()}
    machine, commit = content.get("machine_info", {}), content.get("commit_info", {})
    cpu = machine.get("cpu", {})
    gpu = first.get("device") if first.get("device") != "CPU" else None
    named = gpu or cpu.get("brand_raw") or machine.get("machine", "CPU")
    cores = f", {cpu['count']} cores" if "count" in cpu and not gpu else ""
    versions = [f"Python {machine.get('python_version', first.get('python', 'unknown'))}"]
    versions += [f"{name} {first[name]}" for name in VERSIONS if name in first]
    dirty = "-dirty" if commit.get("dirty") else ""
    made_of = first.get("commit") or f"{commit.get('id', 'unknown')[:12]}{dirty}"
    return f"{named}{cores}; {', '.join(versions)}; commit {made_of}"


def table(columns: Sequence[str], cells: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table."""
    return [f"| {' | '.join(each)} |" for each in (columns, ["---"] * len(columns), *cells)]


def understood(path: Path) -> tuple[str, list[Row], list[str]]:
    """A file's machine, rows and notes.

    Raises:
        NotBenchmarksError: as `read`, or what it holds is of another form.
    """
    content = read(path)
    try:
        return surroundings(content), rows(content), list(notes(content))
    except (KeyError, TypeError, AttributeError, ValueError, StopIteration) as error:
        message = f"{path}: expected benchmarks as pytest-benchmark writes them, {error!r}"
        raise NotBenchmarksError(message) from None


def show(path: Path) -> list[str]:
    """A file as lines."""
    machine, found, said = understood(path)
    lines = [machine, "", *table(COLUMNS, [row.cells() for row in found])]
    return lines + ([""] if said else []) + said


def compare(path: Path, other: Path) -> list[str]:
    """A file beside another as lines; what only one of them has is named below."""
    (machine, found, _), (theirs, before, _) = understood(path), understood(other)
    known = {row.name: row for row in before}
    both = [row.beside(known[row.name]) for row in found if row.name in known]
    lines = [f"{path.name}: {machine}", f"against {other.name}: {theirs}", ""]
    lines += table(BESIDE, both)
    alone = {row.name for row in found} ^ set(known)
    return [*lines, "", f"in one file alone: {', '.join(sorted(alone))}"] if alone else lines


def main(arguments: Sequence[str]) -> int:
    """Prints tables; 2 where a file has no measurements."""
    words = list(arguments)
    other = None
    if "--against" in words[:-1]:
        place = words.index("--against")
        other = Path(words[place + 1])
        del words[place : place + 2]
    if not words or any(word.startswith("-") for word in words) or (other and len(words) > 1):
        print(__doc__, file=sys.stderr)
        return 2
    try:
        paths = [Path(word) for word in words]
        tables = [compare(path, other) if other else show(path) for path in paths]
    except NotBenchmarksError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print("\n\n".join("\n".join(lines) for lines in tables))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
