from __future__ import annotations

import pytest
import torch

from mudreamer_fast import backend, kernels, reference
from mudreamer_fast.backend import load_ops, resolve_backend
from mudreamer_fast.config import ConfigError

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def missing(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    monkeypatch.setattr(backend, "missing_fused_ops", lambda: list(names))


def test_resolve_backend_takes_the_reference_on_a_cpu() -> None:
    assert resolve_backend("auto", CPU) == "reference"
    assert resolve_backend("reference", CPU) == "reference"


def test_resolve_backend_takes_the_kernels_on_a_gpu_once_all_exist(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    missing(monkeypatch)
    assert resolve_backend("auto", CUDA) == "fused"
    assert resolve_backend("fused", CUDA) == "fused"
    assert resolve_backend("reference", CUDA) == "reference"
    missing(monkeypatch, "two_hot_loss")
    assert resolve_backend("auto", CUDA) == "reference"


def test_resolve_backend_says_why_the_kernels_can_not_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(ConfigError, match="fused needs a CUDA device, got cpu"):
        resolve_backend("fused", CPU)
    missing(monkeypatch, "two_hot_loss", "rssm_observe")
    with pytest.raises(ConfigError, match="lacks two_hot_loss, rssm_observe"):
        resolve_backend("fused", CUDA)


def test_resolve_backend_refuses_unknown_names() -> None:
    with pytest.raises(ConfigError, match="must be auto, reference or fused, got 'fast'"):
        resolve_backend("fast", CPU)


def test_load_ops_gives_the_module_of_that_name() -> None:
    assert load_ops("reference") is reference
    assert load_ops("fused") is kernels
    assert all(callable(getattr(reference, name)) for name in reference.__all__)
