"""Other Python interpreters that run this package, and nothing that lies in the current folder."""

from __future__ import annotations

import os
import sys
from pathlib import Path

_PROLOGUE = """
import sys
sys.path[:] = [{root!r}]
import mudreamer_fast
sys.path[:] = {path!r}
"""
"""The package is imported from where this interpreter has it, and finds its own modules then."""


def python_command(program: str, *arguments: str) -> list[str]:
    """The command that runs a program in a new interpreter.

    `python -c` looks for modules in the current folder first, where anything may lie: a
    dataclasses.py there would be run in place of Python's own. The new interpreter searches what
    this one searches, without the current folder, and imports the package that this one has.

    Args:
        program: Python code, run as `__main__`.
        arguments: what it finds in `sys.argv[1:]`.
    """
    root = str(Path(__file__).parents[2])
    path = [entry for entry in map(str, sys.path) if not _is_current_folder(entry)]
    code = _PROLOGUE.format(root=root, path=path) + program
    return [sys.executable, "-c", code, *arguments]


def _is_current_folder(entry: str) -> bool:
    try:
        return os.path.samefile(entry or os.curdir, os.curdir)
    except OSError:  # no such file
        return False
