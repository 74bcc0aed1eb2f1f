"""Rules on the shape of the source tree, read off its syntax: nothing here is imported.

Each rule takes the repository's root and returns its violations as sentences.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

PACKAGE = "mudreamer_fast"

ROWS: tuple[tuple[str, ...], ...] = (
    ("config", "machine.allocator", "machine.late", "machine.screen"),
    ("machine.ranks",),
    ("ops.symlog", "ops.signatures", "optim"),
    ("run.tensorboard", "run.watch", "run.guard"),
    ("disk.arrays", "disk.lock", "disk.manifest", "_replay"),
    ("ops.operations",),
    ("machine.device", "machine.handles", "machine.memory", "machine.seeds", "machine.signals"),
    ("run.folder", "run.lock", "disk.checkpoint", "backend.cuda_graph", "backend.precision"),
    ("run.trackers",),
    ("run.metrics",),
    ("ops.distributions", "backend.selfcheck", "kernels", "disk.weights"),
    ("reference", "replay", "envs", "run.pictures"),
    ("backend.trial", "networks", "collect", "evaluate", "run.stored"),
    ("backend.verdicts", "run.reporter"),
    ("backend.load",),
    ("world_model", "acting"),
    ("imagination",),
    ("actor_critic",),
    ("agent",),
    ("export", "run.made_with"),
    ("learner", "run.scoring", "run.pace", "run.replay", "run.history"),
    ("run.results", "run.evaluator", "run.saving", "run.dreams"),
    ("run.lessons", "run.shares", "run.card", "report", "sweep"),
    ("run.trainer",),
    ("cli.predict",),
    ("train", "cli.check_env", "cli.doctor", "cli.info", "cli.videos"),
    ("cli.forecast",),
    ("cli.main",),
    ("__main__", "__init__"),
)
"""Who may import whom: a row only from rows above it. A new module takes its place here; the rooms
named with a dot are held to the table module by module, the other folders as a whole."""

ONLY: dict[str, set[str]] = {
    "ops.distributions": {"ops.symlog"},
    "backend.selfcheck": {"ops.signatures"},
    "kernels": {"ops.signatures"},
    "reference": {"ops.symlog", "ops.distributions", "ops.signatures"},
    "replay": {"_replay", "disk.lock", "disk.manifest"},
    "envs": {"config"},
    "networks": {
        "config",
        "machine.ranks",
        "ops.symlog",
        "ops.distributions",
        "ops.signatures",
        "ops.operations",
    },
    "ops.operations": {"ops.signatures"},
    "collect": {"envs", "replay"},
    "evaluate": {"envs"},
}
"""The whole of what these may import, whatever stands above them."""

SOLE_IMPORTER: dict[str, str] = {
    "kernels": "backend.load",
    "reference": "backend.load",
    "_replay": "replay",
}
"""Reached by one module alone: everything else is handed what that module chose."""

OUTSIDE_ONLY: dict[str, set[str]] = {"kernels": {"torch", "triton"}}
"""The packages outside the standard library that these may import."""

WITHOUT: dict[str, set[str]] = {
    "envs": {"torch", "triton"},  # its worker processes start in seconds, not tens of them
    "collect": {"torch", "triton"},
    "evaluate": {"torch", "triton"},
}
"""Packages that these must not import."""

ROOMS = {name.partition(".")[0] for row in ROWS for name in row if "." in name}
"""Folders whose modules have rows of their own."""

LEFTOVERS = {"utils", "util", "common", "helpers", "tools", "misc"}
"""Names of rooms for things that have no place."""

KERNEL_SUPPORT = {"__init__", "barrier", "device", "tiles", "checks"}
"""Modules of `kernels` that are no operations."""

PART = re.compile(r"(_by_step|_persistent)?(_fwd|_bwd|_norm)?$")
"""How the name of a module ends that holds a part of an operation's kernels."""


def unit_of(*parts: str) -> str:
    """What the table calls a module of the package: by its folder, or in a room by its own name."""
    if parts[0] in ROOMS and len(parts) > 1:
        return f"{parts[0]}.{parts[1]}"
    return parts[0]


def sources(root: Path) -> Iterator[tuple[str, Path]]:
    """Every module of the package with the unit it belongs to."""
    package = root / PACKAGE
    for path in sorted(package.rglob("*.py")):
        unit = unit_of(*path.relative_to(package).with_suffix("").parts)
        if unit != "kernels":  # a link to the folder beside the package
            yield unit, path
    for path in sorted((root / "kernels").rglob("*.py")):
        yield "kernels", path


def imported(path: Path, dotted: str) -> Iterator[str]:
    """Full names of what a module imports.

    Args:
        path: its file.
        dotted: the package it is in, for relative imports.
    """
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = dotted.split(".")[: len(dotted.split(".")) - node.level + 1]
                base = ".".join([*package, *filter(None, [node.module])])
            yield from (f"{base}.{alias.name}" for alias in node.names)


def eager_imports(path: Path) -> list[str]:
    """What a module imports whenever it is imported itself."""
    names: list[str] = []
    for node in ast.parse(path.read_text(), str(path)).body:
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names.append(node.module or ".")
    return names


def import_violations(root: Path) -> list[str]:
    """Imports against the table, and modules that have no place in it."""
    row_of = {unit: number for number, row in enumerate(ROWS) for unit in row}
    found = []
    for unit, path in sources(root):
        place = path.relative_to(root)
        if unit not in row_of and not unit.endswith(("__init__", "__main__")):
            found.append(f"{place}: {unit} has no row in the import table")
            continue
        parent = ".".join(place.parts[:-1])
        dotted = parent if parent.startswith(PACKAGE) else f"{PACKAGE}.{parent}"
        if unit == "__init__" and (eager := eager_imports(path)):
            found.append(f"{place}: __init__ imports {', '.join(eager)} at once")
        for name in imported(path, dotted):
            top, _, rest = name.partition(".")
            if top != PACKAGE:
                found += outside_violations(unit, place, top)
                continue
            target = unit_of(*rest.split("."))
            if target == unit or target not in row_of:  # its own parts, or __version__
                continue
            if row_of[target] >= row_of.get(unit, -1):
                found.append(f"{place}: {unit} imports {target}, which is not above it")
            elif target not in ONLY.get(unit, {target}):
                found.append(f"{place}: {unit} imports {target}, which it may not")
            elif SOLE_IMPORTER.get(target, unit) != unit:
                found.append(f"{place}: {target} is for {SOLE_IMPORTER[target]} alone")
    return found


def outside_violations(unit: str, place: Path, top: str) -> list[str]:
    """What is wrong with a unit importing a package other than ours."""
    allowed = OUTSIDE_ONLY.get(unit)
    unlisted = allowed is not None and top not in {*allowed, *sys.stdlib_module_names}
    if unlisted or top in WITHOUT.get(unit, ()):
        return [f"{place}: {unit} imports the package {top}"]
    return []


def public_functions(path: Path) -> dict[str, list[str]]:
    """Argument names by function, of what a module defines for others; no Triton kernels."""
    functions = {}
    for node in ast.parse(path.read_text(), str(path)).body:
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            if any("jit" in ast.unparse(decorator) for decorator in node.decorator_list):
                continue
            arguments = node.args
            functions[node.name] = [
                argument.arg
                for argument in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)
            ]
    return functions


def names_in(path: Path) -> set[str]:
    """Every name and attribute that a module mentions."""
    nodes = list(ast.walk(ast.parse(path.read_text(), str(path))))
    return (
        {node.id for node in nodes if isinstance(node, ast.Name)}
        | {node.attr for node in nodes if isinstance(node, ast.Attribute)}
        | {node.name for node in nodes if isinstance(node, ast.alias)}
    )


def four_rooms_violations(root: Path) -> list[str]:
    """Fused operations without their reference, their test or their benchmark."""
    found = []
    stems = {path.stem for path in (root / "kernels").glob("*.py")}
    for op in sorted(stems - KERNEL_SUPPORT):
        whole = PART.sub("", op)
        if whole != op and whole in stems:
            continue
        functions = public_functions(root / "kernels" / f"{op}.py")
        if not functions:
            found.append(f"kernels/{op}.py defines no public operation")
        rooms = (
            f"{PACKAGE}/reference/{op}.py",
            f"tests/kernels/test_{op}.py",
            f"bench/bench_{op}.py",
        )
        missing = [room for room in rooms if not (root / room).exists()]
        found += [f"kernels/{op}.py has no {room}" for room in missing]
        if missing:
            continue
        twins = public_functions(root / rooms[0])
        if functions != twins:
            found.append(f"kernels/{op}.py offers {functions}, {rooms[0]} {twins}")
        for room in rooms[1:]:
            silent = sorted(functions.keys() - names_in(root / room))
            found += [f"{room} does not mention {name}" for name in silent]
    return found


def leftover_violations(root: Path) -> list[str]:
    """Files and folders named after nothing in particular."""
    return [
        f"{path.relative_to(root)}: {path.stem} says nothing about what it holds"
        for folder in (PACKAGE, "kernels", "csrc", "tests", "bench")
        for path in sorted((root / folder).rglob("*"))
        if path.stem.lower().lstrip("_") in LEFTOVERS
    ]
