from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from tests.patience import PATIENCE_SECONDS

ROOT = Path(__file__).parents[2]
SHARED_LIMIT = {80: 166_912, 90: 232_448}
"""Bytes of shared memory that a launch may ask for, by compute capability (CUDA's guide)."""
REGISTERS = 80
"""Above what any kernel takes (64), and low enough for six warps on each scheduler. Persistent
kernels have a multiprocessor to themselves, and all of its registers."""
SPILLED = {"L": 8} | ({"S": 16} if version("triton").startswith("3.6.") else {})
"""Bytes of stack a thread, by size: one address, back through a state of 2048; and what Triton 3.6
makes of float32 at size S for sm_80."""
BARRIERS = 5


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    environment = os.environ | {"TRITON_CACHE_DIR": str(tmp_path_factory.mktemp("triton"))}
    environment.pop("TRITON_INTERPRET", None)
    command = [sys.executable, "-m", "tests.kernels.compile_kernels"]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    running = [
        subprocess.Popen([*command, str(architecture)], cwd=ROOT, env=environment, **pipes)
        for architecture in SHARED_LIMIT
    ]
    rows = []
    for process in running:
        out, errors = process.communicate(timeout=PATIENCE_SECONDS)
        assert process.returncode == 0, errors[-3000:]
        rows += json.loads(out)["kernels"]
    return {"kernels": rows}


def test_every_kernel_is_compiled(report: dict[str, Any]) -> None:
    written = {
        line.removeprefix("def ").split("(")[0]
        for path in (ROOT / "kernels").glob("*.py")
        for line in path.read_text().splitlines()
        if line.startswith("def ") and line.split("(")[0].endswith("_kernel")
    }
    assert written == {row["kernel"] for row in report["kernels"]}
    assert {row["architecture"] for row in report["kernels"]} == set(SHARED_LIMIT)


def test_kernels_spill_nothing_and_fit(report: dict[str, Any]) -> None:
    alone = [row for row in report["kernels"] if "size" not in row]
    assert [row for row in alone if row["stack"] or row["local"]] == []
    assert [row for row in alone if row["reg"] > REGISTERS] == []
    assert over_shared_limit(report["kernels"]) == []


def test_persistent_kernels_spill_next_to_nothing(report: dict[str, Any]) -> None:
    rows = [row for row in report["kernels"] if "size" in row]
    assert len(rows) == 16
    assert [row for row in rows if row["stack"] > SPILLED.get(row["size"][0], 0)] == []
    assert [row for row in rows if row["local"]] == []


def test_persistent_kernels_wait_for_one_another(report: dict[str, Any]) -> None:
    rows = [row for row in report["kernels"] if "size" in row]
    assert [row for row in rows if not row["cooperative"]] == []
    # Each barrier arrives once, and looks once before its loop and once in it.
    assert {(row["releases"], row["acquires"]) for row in rows} == {(BARRIERS, 2 * BARRIERS)}


def test_persistent_kernels_multiply_on_tensor_cores(report: dict[str, Any]) -> None:
    rows = [row for row in report["kernels"] if "size" in row]
    exact = [row for row in rows if row["size"] == "S, torch.float32, ieee"]
    assert [row for row in exact if row["tensor_core_products"]] == []
    others = [row for row in rows if row not in exact]
    assert others
    assert [row for row in others if not row["tensor_core_products"]] == []


def over_shared_limit(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [row for row in rows if row["dynamic_shared"] > SHARED_LIMIT[row["architecture"]]]
