from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from tests.architecture import (
    ONLY,
    ROWS,
    SOLE_IMPORTER,
    four_rooms_violations,
    import_violations,
    leftover_violations,
    sources,
)

ROOT = Path(__file__).parents[1]


def test_imports_follow_the_table() -> None:
    assert import_violations(ROOT) == []


def test_every_fused_operation_has_its_four_rooms() -> None:
    assert four_rooms_violations(ROOT) == []


def test_no_module_is_named_after_nothing() -> None:
    assert leftover_violations(ROOT) == []


def test_import_table_names_each_module_once_and_knows_them_all() -> None:
    units = [unit for row in ROWS for unit in row]
    assert len(units) == len(set(units))
    assert {*ONLY, *SOLE_IMPORTER, *SOLE_IMPORTER.values()} <= set(units)
    # a checker that reads no files finds no faults
    read = {unit for unit, _ in sources(ROOT)}
    assert {"agent", "envs", "kernels", "networks", "reference", "replay", "train"} <= read


def test_kernels_have_one_import_name() -> None:
    with pytest.raises(ImportError, match=r"import this package as mudreamer_fast\.kernels"):
        importlib.import_module("kernels")


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


CLEAN = {
    "mudreamer_fast/__init__.py": "__version__ = '1'",
    "mudreamer_fast/config.py": "import dataclasses",
    "mudreamer_fast/envs/__init__.py": "from mudreamer_fast.envs.tasks import names",
    "mudreamer_fast/envs/tasks.py": "import numpy\nfrom ..config import X\nfrom . import other",
    "mudreamer_fast/evaluate.py": "from mudreamer_fast.envs import VectorEnv",
    "mudreamer_fast/agent.py": "import torch\nfrom mudreamer_fast import backend, __version__",
    "mudreamer_fast/backend/load.py": "from mudreamer_fast import kernels, reference",
    "mudreamer_fast/reference/__init__.py": "",
    "mudreamer_fast/reference/gru.py": "def gru(x, w, *, eps): ...\ndef _part(x): ...",
    "kernels/__init__.py": "from mudreamer_fast.kernels.gru import gru",
    "kernels/tiles.py": "def tiles(): ...",
    "kernels/gru.py": "import math\nimport triton\nfrom mudreamer_fast.kernels import tiles\n"
    "@triton.jit\ndef gru_fwd_kernel(p_x): ...\ndef gru(x, w, *, eps): ...",
    "kernels/gru_bwd.py": "@triton.jit\ndef gru_bwd_kernel(p_x): ...",
    "tests/kernels/test_gru.py": "from mudreamer_fast.kernels import gru",
    "bench/bench_gru.py": "ops.gru(1, 2, eps=3)",
}


def test_rules_accept_a_clean_tree(tmp_path: Path) -> None:
    root = write(tmp_path, CLEAN)
    assert import_violations(root) == []
    assert four_rooms_violations(root) == []
    assert leftover_violations(root) == []


@pytest.mark.parametrize(
    ("file", "text", "words"),
    [
        ("config.py", "import mudreamer_fast.agent", "config imports agent, which is not above"),
        ("config.py", "from .ops.symlog import x", "config imports ops.symlog, which is not above"),
        ("evaluate.py", "from mudreamer_fast.collect import x", "evaluate imports collect"),
        ("evaluate.py", "from mudreamer_fast import config", "config, which it may not"),
        ("envs/tasks.py", "from ..replay import x", "envs imports replay, which is not above"),
        ("envs/tasks.py", "def f():\n    import torch.nn", "imports the package torch"),
        (
            "agent.py",
            "from mudreamer_fast.kernels.gru import gru",
            "kernels is for backend.load",
        ),
        ("agent.py", "from mudreamer_fast import reference", "reference is for backend.load"),
        ("agent.py", "import mudreamer_fast._replay", "_replay is for replay alone"),
        ("../kernels/gru.py", "from ..config import X", "kernels imports config"),
        ("../kernels/gru.py", "import numpy", "kernels imports the package numpy"),
        ("ops/symlog.py", "from ..agent import x", "ops.symlog imports agent, which is not above"),
        ("run/folder.py", "from .trainer import x", "run.folder imports run.trainer, which is not"),
        ("backend/__init__.py", "from mudreamer_fast.backend import load", "imports backend.load"),
        ("brand_new.py", "", "brand_new has no row"),
        ("run/brand_new.py", "", "run.brand_new has no row"),
        ("__init__.py", "import mudreamer_fast.agent", "__init__ imports mudreamer_fast.agent at"),
        ("__init__.py", "from typing import Any", "__init__ imports typing at once"),
    ],
)
def test_import_rule_catches(tmp_path: Path, file: str, text: str, words: str) -> None:
    root = write(tmp_path, CLEAN)
    write(root, {f"mudreamer_fast/{file}": text})
    (violation,) = import_violations(root)
    assert words in violation


@pytest.mark.parametrize(
    ("file", "text", "words"),
    [
        ("mudreamer_fast/reference/gru.py", None, "has no mudreamer_fast/reference/gru.py"),
        ("tests/kernels/test_gru.py", None, "has no tests/kernels/test_gru.py"),
        ("bench/bench_gru.py", None, "has no bench/bench_gru.py"),
        ("mudreamer_fast/reference/gru.py", "def gru(x, v, *, eps): ...", "offers"),
        ("mudreamer_fast/reference/gru.py", "def gruu(x, w, *, eps): ...", "offers"),
        ("tests/kernels/test_gru.py", "", "test_gru.py does not mention gru"),
        ("bench/bench_gru.py", "'gru'", "bench_gru.py does not mention gru"),
        ("kernels/odd_bwd.py", "def odd(): ...", "odd_bwd.py has no bench"),
        ("kernels/empty.py", "", "empty.py defines no public operation"),
    ],
)
def test_four_rooms_rule_catches(tmp_path: Path, file: str, text: str | None, words: str) -> None:
    root = write(tmp_path, CLEAN)
    if text is None:
        (root / file).unlink()
    else:
        write(root, {file: text})
    assert any(words in violation for violation in four_rooms_violations(root))


@pytest.mark.parametrize(
    "file", ["mudreamer_fast/utils.py", "csrc/common.h", "tests/helpers/x.py", "bench/_misc.py"]
)
def test_leftover_rule_catches(tmp_path: Path, file: str) -> None:
    root = write(tmp_path, CLEAN | {file: ""})
    (violation,) = leftover_violations(root)
    assert file.split("/")[0] in violation
