from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from mudreamer_fast import kernels, reference
from mudreamer_fast.backend import load
from mudreamer_fast.backend.load import load_ops, missing_fused_ops, resolve_backend
from mudreamer_fast.backend.selfcheck import Agreement
from mudreamer_fast.config import ConfigError
from mudreamer_fast.ops.operations import Operations
from tests.tolerances import REORDERED, assert_close

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(autouse=True)
def _nothing_checked_yet() -> Iterator[None]:
    load.check_fused.cache_clear()
    load._trusts_fused.cache_clear()
    yield
    load.check_fused.cache_clear()
    load._trusts_fused.cache_clear()


@pytest.fixture
def checked(monkeypatch: pytest.MonkeyPatch) -> list[Agreement]:
    """What the check of the kernels finds."""
    found = [Agreement("mlp", "the output", 1e-7, 5e-6)]
    monkeypatch.setattr(load, "check_ops", lambda fused, reference, device: list(found))
    return found


def test_resolve_backend_takes_kernels_that_agree_on_a_gpu_and_the_reference_elsewhere(
    checked: list[Agreement], capsys: pytest.CaptureFixture[str]
) -> None:
    assert resolve_backend("auto", CUDA) == "fused"
    assert resolve_backend("auto", CPU) == "reference"
    assert resolve_backend("reference", CPU) == "reference"
    assert resolve_backend("compiled", CPU) == "compiled"
    assert capsys.readouterr().err == ""


def test_resolve_backend_takes_the_reference_where_kernels_disagree_and_tells_once(
    checked: list[Agreement], capsys: pytest.CaptureFixture[str]
) -> None:
    checked.append(Agreement("rssm_observe, layer norm", "gradient of embed", 2e-3, 1e-5))
    checked.append(Agreement("two_hot_mean", "", float("inf"), 0.0, "OSError: no compiler"))
    for _ in range(2):
        assert resolve_backend("auto", CUDA) == "reference"
    assert capsys.readouterr().err == (
        "warning: backend auto takes reference, as on cuda fused disagrees with it: rssm_observe, "
        "layer norm: gradient of embed is off by 2.0e-03 of 1e-05 allowed, and 1 more\n"
    )


def test_resolve_backend_checks_once_and_not_what_is_asked_for_by_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    checks = []

    def note(fused: Any, reference: Any, device: torch.device) -> list[Agreement]:
        checks.append(device)
        return []

    monkeypatch.setattr(load, "check_ops", note)
    assert resolve_backend("fused", CUDA) == "fused"
    assert checks == []
    for _ in range(2):
        resolve_backend("auto", CUDA)
    assert checks == [CUDA]


def test_resolve_backend_auto_does_without_triton(
    monkeypatch: pytest.MonkeyPatch, checked: list[Agreement]
) -> None:
    monkeypatch.setattr(load, "missing_fused_ops", lambda: reference.__all__)
    assert resolve_backend("auto", CUDA) == "reference"


@pytest.mark.gpu
def test_resolve_backend_takes_the_kernels_on_this_gpu() -> None:
    assert resolve_backend("auto", CUDA) == "fused"


def test_resolve_backend_says_why_the_kernels_can_not_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(load, "runs_on", lambda device: device.type == "cuda")
    with pytest.raises(ConfigError, match="fused needs a CUDA device, got cpu"):
        resolve_backend("fused", CPU)
    monkeypatch.setattr(load, "missing_fused_ops", lambda: reference.__all__)
    with pytest.raises(ConfigError, match="fused needs Triton"):
        resolve_backend("fused", CUDA)


def test_resolve_backend_refuses_unknown_names() -> None:
    with pytest.raises(
        ConfigError, match="must be auto, reference, compiled, fused, persistent, got 'fast'"
    ):
        resolve_backend("fast", CPU)


def test_load_ops_gives_every_operation() -> None:
    assert load_ops("reference") is reference
    for name in ("compiled", "fused", "persistent"):
        ops = load_ops(name)
        assert all(callable(getattr(ops, op)) for op in reference.__all__)


def test_persistent_operations_differ_in_one() -> None:
    ops = load_ops("persistent")
    different = [op for op in reference.__all__ if getattr(ops, op) is not getattr(kernels, op)]
    assert different == ["rssm_observe"]
    assert ops.rssm_observe is kernels.rssm_observe_persistent


def test_fused_operations_are_the_kernels() -> None:
    ops = load_ops("fused")
    assert missing_fused_ops() == []
    assert all(getattr(ops, op) is getattr(kernels, op) for op in reference.__all__)


def test_compiled_operations_agree_with_the_reference() -> None:
    given = [torch.rand(3, 4) for _ in range(3)]
    expected = reference.lambda_return(*given, 0.9, 0.95)
    found = load_ops("compiled").lambda_return(*given, 0.9, 0.95)
    assert_close(found, expected, REORDERED)


def test_protocol_of_operations_names_those_of_the_reference_and_their_arguments() -> None:
    named = {name for name in vars(Operations) if not name.startswith("_")}
    assert named == {*reference.__all__}
    for name in named:
        _, *arguments = inspect.signature(getattr(Operations, name)).parameters
        assert arguments == [*inspect.signature(getattr(reference, name)).parameters], name
