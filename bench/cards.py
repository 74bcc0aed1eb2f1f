"""What kernels need of a card, as a Markdown table from compilation ahead of time.

    python -m bench.cards bench/results/kernels-triton-*.json

Each file is what `python -m tests.kernels.compile_kernels` printed under one version of Triton. A
cell has the most that any kernel of its row needs, over all cards and versions: registers of a
thread, bytes of stack of a thread where there are any, and KB of shared memory of a program.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

Row = dict[str, Any]


def group(row: Row) -> str:
    """The line of the table that a kernel belongs to."""
    if "precision" not in row:
        return f"rows, {row['dtype']}"
    direction = "forward" if "fwd" in row["kernel"] else "backward"
    multiplied = "tf32" if row["precision"] == "tf32" else row["dtype"]
    kept = ", weights kept" if row["keeps_weights"] else ""
    return f"persistent {direction}, {multiplied}{kept}"


def cell(rows: Sequence[Row]) -> str:
    """The most that any of these needs."""
    if not rows:
        return "-"
    registers, stack, shared = (
        max(row[name] for row in rows) for name in ("reg", "stack", "dynamic_shared")
    )
    spilled = f" +{stack} B" if stack else ""
    return f"{registers}{spilled}, {shared / 1024:.1f}"


def table(rows: Sequence[Row], versions: Iterable[str]) -> str:
    """The whole table."""
    sizes = list(dict.fromkeys(row["size"] for row in rows))
    groups = sorted({group(row) for row in rows})
    cards = sorted({row["architecture"] for row in rows})
    lines = [
        f"Compute capability {', '.join(f'{card / 10:.1f}' for card in cards)}; Triton "
        f"{', '.join(versions)}; {len(rows)} kernels compiled. Registers of a thread, bytes of its "
        "stack where it spills, KB of shared memory of a program:",
        "",
        f"| kernels | {' | '.join(sizes)} |",
        f"|---|{'---|' * len(sizes)}",
    ]
    for name in groups:
        cells = (
            cell([row for row in rows if (group(row), row["size"]) == (name, size)])
            for size in sizes
        )
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> int:
    """Prints the table of the files that the command line names."""
    if not sys.argv[1:]:
        print(__doc__, file=sys.stderr)
        return 2
    files = [json.loads(Path(name).read_text()) for name in sys.argv[1:]]
    rows = [row for file in files for row in file["kernels"]]
    print(table(rows, sorted(file["triton"] for file in files)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
