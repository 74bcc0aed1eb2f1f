from __future__ import annotations

import pytest
import torch

from mudreamer_fast import backend, kernels, reference
from mudreamer_fast.backend import load_ops, missing_fused_ops, resolve_backend
from mudreamer_fast.config import ConfigError
from tests.tolerances import REORDERED, assert_close

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def test_resolve_backend_takes_the_reference_unless_told() -> None:
    assert resolve_backend("auto", CPU) == "reference"
    assert resolve_backend("auto", CUDA) == "reference"
    assert resolve_backend("reference", CPU) == "reference"
    assert resolve_backend("compiled", CPU) == "compiled"
    assert resolve_backend("fused", CUDA) == "fused"


def test_resolve_backend_says_why_the_kernels_can_not_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(backend, "runs_on", lambda device: device.type == "cuda")
    with pytest.raises(ConfigError, match="fused needs a CUDA device, got cpu"):
        resolve_backend("fused", CPU)
    monkeypatch.setattr(backend, "missing_fused_ops", lambda: reference.__all__)
    with pytest.raises(ConfigError, match="fused needs Triton"):
        resolve_backend("fused", CUDA)


def test_resolve_backend_refuses_unknown_names() -> None:
    with pytest.raises(ConfigError, match="must be auto, reference, compiled, fused, got 'fast'"):
        resolve_backend("fast", CPU)


def test_load_ops_gives_every_operation() -> None:
    assert load_ops("reference") is reference
    for name in ("compiled", "fused"):
        ops = load_ops(name)
        assert all(callable(getattr(ops, op)) for op in reference.__all__)


def test_fused_operations_are_the_kernels() -> None:
    ops = load_ops("fused")
    assert missing_fused_ops() == []
    assert all(getattr(ops, op) is getattr(kernels, op) for op in reference.__all__)


def test_compiled_operations_agree_with_the_reference() -> None:
    given = [torch.rand(3, 4) for _ in range(3)]
    expected = reference.lambda_return(*given, 0.9, 0.95)
    found = load_ops("compiled").lambda_return(*given, 0.9, 0.95)
    assert_close(found, expected, REORDERED)
