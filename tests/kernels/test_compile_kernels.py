from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import triton

from mudreamer_fast.config import SIZES
from mudreamer_fast.kernels.rssm_observe_persistent_fwd import KEPT_BYTES
from tests.kernels.cards import BLOCK_REGISTERS, CARDS, SHARED_BYTES
from tests.kernels.compile_kernels import DTYPES
from tests.patience import PATIENCE_SECONDS

Rows = list[dict[str, Any]]

ROOT = Path(__file__).parents[2]
COMMANDS = (["86"], ["90", "--dtypes", "bfloat16"])
"""What is compiled in each run of the tests, side by side, at size S. `bench/results/` holds all
sizes and cards, for each version of Triton."""
TABLES = sorted((ROOT / "bench/results").glob("kernels-triton-*.json"))
REGISTERS = 80
"""Of a thread of a kernel that is not persistent, at size S: six warps fit each scheduler."""
OF_OLDER_TRITON = {"batchnorm_posterior_bwd_kernel": 128}
"""What 3.6 and 3.7 may take for it: four warps."""
SPILLED = 64
"""Bytes of stack that a thread of a persistent kernel may take."""
SET_ASIDE = 8
"""Bytes that a thread of another one may take: on 10.0 the compiler puts two registers there at
sizes M and L, though it uses 56 of 255."""
BARRIERS = 5


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Rows:
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent  # what one worker has compiled the others need not
    environment = os.environ | {"TRITON_CACHE_DIR": str(folder / "triton")}
    environment.pop("TRITON_INTERPRET", None)
    command = [sys.executable, "-m", "tests.kernels.compile_kernels"]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    running = [
        subprocess.Popen([*command, *words], cwd=ROOT, env=environment, **pipes)
        for words in COMMANDS
    ]
    rows = []
    for process in running:
        out, errors = process.communicate(timeout=PATIENCE_SECONDS)
        assert process.returncode == 0, errors[-3000:]
        rows += json.loads(out)["kernels"]
    return rows


def persistent(rows: Rows) -> Rows:
    return [row for row in rows if "precision" in row]


def written() -> set[str]:
    return {
        line.removeprefix("def ").split("(")[0]
        for path in (ROOT / "kernels").glob("*.py")
        for line in path.read_text().splitlines()
        if line.startswith("def ") and line.split("(")[0].endswith("_kernel")
    }


def test_every_kernel_is_compiled(report: Rows) -> None:
    for architecture in (86, 90):
        found = {row["kernel"] for row in report if row["architecture"] == architecture}
        assert found == written()


def test_kernels_spill_nothing_and_fit(report: Rows) -> None:
    alone = [row for row in report if row not in persistent(report)]
    older = OF_OLDER_TRITON if triton.__version__ < "3.8" else {}
    assert [row for row in alone if row["reg"] > older.get(row["kernel"], REGISTERS)] == []
    assert refused(report) == []
    assert spilling(report) == []


def test_persistent_kernels_wait_for_one_another(report: Rows) -> None:
    rows = persistent(report)
    assert [row for row in rows if not row["cooperative"]] == []
    # Each barrier arrives once, and looks once before its loop and once in it.
    assert {(row["releases"], row["acquires"]) for row in rows} == {(BARRIERS, 2 * BARRIERS)}


def test_persistent_kernels_multiply_on_tensor_cores(report: Rows) -> None:
    for row in persistent(report):
        exact = (row["dtype"], row["precision"]) == ("float32", "ieee")
        assert (row["tensor_core_products"] == 0) == exact, row


def test_weights_are_kept_only_where_the_card_has_the_memory(report: Rows) -> None:
    halves = [row for row in persistent(report) if row["dtype"] == "bfloat16"]
    forward = {row["architecture"]: row for row in halves if "fwd" in row["kernel"]}
    assert forward[90]["keeps_weights"]
    assert forward[90]["dynamic_shared"] <= KEPT_BYTES
    assert SHARED_BYTES[90] >= KEPT_BYTES > SHARED_BYTES[86]


@pytest.mark.parametrize("path", TABLES, ids=lambda path: path.stem)
def test_no_card_would_refuse_a_kernel_of_the_tables(path: Path) -> None:
    rows = json.loads(path.read_text())["kernels"]
    assert {row["kernel"] for row in rows} == written()
    every = set(itertools.product(CARDS, SIZES, DTYPES))
    assert {(row["architecture"], row["size"], row["dtype"]) for row in rows} == every
    assert refused(rows) == []
    assert spilling(rows) == []
    assert [row for row in persistent(rows) if not row["cooperative"]] == []


def test_a_row_that_does_not_fit_is_found() -> None:
    fits = {"architecture": 86, "dynamic_shared": 101_376, "reg": 128, "warps": 16}
    assert refused([fits]) == []
    for change in ({"dynamic_shared": 101_377}, {"reg": 129}, {"warps": 32}):
        assert refused([fits | change]) == [fits | change]
    spilled = {"stack": SET_ASIDE + 8, "local": 0}
    assert spilling([spilled, {"stack": SET_ASIDE, "local": 0}]) == [spilled]


def refused(rows: Rows) -> Rows:
    """Those that a card has too little shared memory or too few registers for."""
    return [
        row
        for row in rows
        if row["dynamic_shared"] > SHARED_BYTES[row["architecture"]]
        or -(-row["reg"] // 8) * 8 * 32 * row["warps"] > BLOCK_REGISTERS
    ]


def spilling(rows: Rows) -> Rows:
    return [
        row
        for row in rows
        if row["local"] or row["stack"] > (SPILLED if "precision" in row else SET_ASIDE)
    ]
