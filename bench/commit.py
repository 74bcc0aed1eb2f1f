"""Which commit a measurement was made of."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path


def commit() -> str:
    """The commit of this checkout, or what COMMIT says, where only the files were copied."""
    if os.environ.get("COMMIT"):
        return os.environ["COMMIT"]
    if shutil.which("git") is None:
        return "uncommitted"
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    ).stdout.strip()
    return commit or "uncommitted"
