from __future__ import annotations

import inspect
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from mudreamer_fast import kernels, reference
from mudreamer_fast.backend import load
from mudreamer_fast.backend.load import (
    Backend,
    check_fused,
    load_ops,
    missing_fused_ops,
    resolve_backend,
    run_sizes,
)
from mudreamer_fast.backend.selfcheck import SMALL, Agreement, Sizes
from mudreamer_fast.backend.trial import Verdict
from mudreamer_fast.config import ConfigError
from mudreamer_fast.ops.operations import Operations
from tests import tiny
from tests.tolerances import REORDERED, assert_close

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(autouse=True)
def _nothing_checked_yet(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    caches = load.check_fused, load._checked
    for cache in caches:
        cache.cache_clear()
    yield
    for cache in caches:
        cache.cache_clear()


@pytest.fixture
def wrong(monkeypatch: pytest.MonkeyPatch) -> dict[str, Agreement]:
    """What the check of the kernels finds wrong, by operation; the rest agree."""
    found: dict[str, Agreement] = {}

    def check(*request: Any) -> tuple[Verdict, ...]:
        good = Agreement("", "the output", 1e-7, 5e-6)
        ops = *reference.__all__, load.PERSISTENT
        return tuple(Verdict(op, (found.get(op, good),)) for op in ops)

    monkeypatch.setattr(load, "check_fused", check)
    return found


def test_resolve_backend_takes_kernels_that_agree_on_a_gpu_and_the_reference_elsewhere(
    wrong: dict[str, Agreement], capsys: pytest.CaptureFixture[str]
) -> None:
    assert resolve_backend("auto", CUDA, SMALL) == Backend("fused")
    assert resolve_backend("auto", CPU, SMALL) == Backend("reference")
    assert resolve_backend("reference", CPU, SMALL) == Backend("reference")
    assert resolve_backend("compiled", CPU, SMALL) == Backend("compiled")
    assert capsys.readouterr().err == ""


def test_resolve_backend_takes_the_reference_for_what_disagrees_and_tells_once(
    wrong: dict[str, Agreement], capsys: pytest.CaptureFixture[str]
) -> None:
    wrong["rssm_observe"] = Agreement("rssm_observe, layer norm", "gradient of embed", 2e-3, 1e-5)
    wrong["two_hot_mean"] = Agreement("two_hot_mean", "", math.inf, 0.0, "OSError: no compiler")
    for _ in range(2):
        backend = resolve_backend("auto", CUDA, SMALL)
        assert backend.name == "fused"
        assert [op for op, _ in backend.replaced] == ["rssm_observe", "two_hot_mean"]
    assert str(backend) == "fused operations, but rssm_observe, two_hot_mean by reference"
    assert capsys.readouterr().err == (
        "warning: backend auto takes the reference for rssm_observe, two_hot_mean: on cuda "
        "rssm_observe, layer norm: gradient of embed is off by 2.0e-03 of 1e-05 allowed, "
        "and 1 more\n"
    )


def test_resolve_backend_says_what_was_found_and_what_of_persistent(
    wrong: dict[str, Agreement], capsys: pytest.CaptureFixture[str]
) -> None:
    wrong["mlp"] = Agreement("mlp", "the output", 2e-3, 1e-5)
    why = resolve_backend("auto", CUDA, SMALL).why
    count = len(reference.__all__)
    assert why == (
        f"{count - 1} of {count} fused operations agree with the reference; "
        "persistent does, too, and is not taken as it has not been timed"
    )
    capsys.readouterr()
    load._checked.cache_clear()
    wrong.clear()
    wrong[load.PERSISTENT] = Agreement(load.PERSISTENT, "", math.inf, 0.0, "RuntimeError: too big")
    backend = resolve_backend("auto", CUDA, SMALL)
    assert backend == Backend("fused")
    assert backend.why == (
        f"{count} of {count} fused operations agree with the reference; "
        "persistent is not usable: rssm_observe_persistent: RuntimeError: too big"
    )
    assert backend.facts()["why"] == backend.why
    assert resolve_backend("fused", CUDA, SMALL).why == ""
    assert capsys.readouterr().err == ""


def test_persistent_that_gave_nothing_is_tried_again_along_with_others_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[list[str]] = []
    broken = {load.PERSISTENT, "mlp"}

    def tried(*request: Any) -> list[Verdict]:
        asked.append(request[3])
        good = (Agreement("", "the output", 0.0, 5e-6),)
        return [
            Verdict(op, (), "no answer within 240 s") if op in broken else Verdict(op, good)
            for op in request[3]
        ]

    monkeypatch.setattr(load, "try_ops", tried)
    for _ in range(2):
        check_fused(CPU, SMALL)
        check_fused.cache_clear()
    assert asked == [[*reference.__all__, load.PERSISTENT], ["mlp", load.PERSISTENT]]
    broken.remove("mlp")
    for _ in range(2):
        *_, persistent = check_fused(CPU, SMALL)
        check_fused.cache_clear()
    assert asked[2:] == [["mlp", load.PERSISTENT]]
    assert persistent.trouble == "no answer within 240 s"
    check_fused(CPU, SMALL, anew=True)
    assert asked[3:] == [[*reference.__all__, load.PERSISTENT]]


def test_resolve_backend_checks_once_and_not_what_is_asked_for_by_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    checks = []

    def note(
        fused: str, reference: str, device: torch.device, ops: list[str], sizes: Sizes
    ) -> list[Verdict]:
        checks.append(device)
        return [Verdict(op, (Agreement(op, "the output", 0.0, 5e-6),)) for op in ops]

    monkeypatch.setattr(load, "try_ops", note)
    monkeypatch.setattr(load, "question", lambda *asked: {"card": "some"})
    assert resolve_backend("fused", CUDA, SMALL) == Backend("fused")
    assert checks == []
    for _ in range(2):
        resolve_backend("auto", CUDA, SMALL)
        assert checks == [CUDA]
        # What another process has found is taken over.
        load.check_fused.cache_clear()
        load._checked.cache_clear()
    check_fused(CUDA, SMALL, anew=True)
    assert checks == [CUDA, CUDA]


def test_resolve_backend_auto_does_without_triton(
    monkeypatch: pytest.MonkeyPatch, wrong: dict[str, Agreement]
) -> None:
    monkeypatch.setattr(load, "missing_fused_ops", lambda: reference.__all__)
    backend = resolve_backend("auto", CUDA, SMALL)
    assert backend == Backend("reference")
    assert backend.why == "fused needs Triton: pip install 'mudreamer-fast[gpu]'"


@pytest.mark.gpu
def test_resolve_backend_takes_the_kernels_on_this_gpu() -> None:
    backend = resolve_backend("auto", torch.device("cuda", 0), SMALL)
    assert backend == Backend("fused")
    assert "persistent does, too" in backend.why


def test_resolve_backend_says_why_the_kernels_can_not_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(load, "runs_on", lambda device: device.type == "cuda")
    with pytest.raises(ConfigError, match="fused needs a CUDA device, got cpu"):
        resolve_backend("fused", CPU, SMALL)
    monkeypatch.setattr(load, "missing_fused_ops", lambda: reference.__all__)
    with pytest.raises(ConfigError, match="fused needs Triton"):
        resolve_backend("fused", CUDA, SMALL)


def test_resolve_backend_refuses_unknown_names() -> None:
    with pytest.raises(
        ConfigError, match="must be auto, reference, compiled, fused, persistent, got 'fast'"
    ):
        resolve_backend("fast", CPU, SMALL)


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


def test_operations_that_are_replaced_are_the_references() -> None:
    ops = load_ops("persistent", ["rssm_observe", "mlp"])
    by_reference = [op for op in reference.__all__ if getattr(ops, op) is getattr(reference, op)]
    assert by_reference == ["mlp", "rssm_observe"]


def test_sizes_are_those_of_the_run() -> None:
    config = tiny.config({"batch_norm": "none"}, {"actor_gradient": "reinforce"})
    sizes = run_sizes(config, 7, 2, continuous=True)
    assert (sizes.rows, sizes.steps, sizes.starts, sizes.envs) == (16, 64, 1024, 4)
    assert (sizes.embed, sizes.actions, sizes.horizon) == (7, 2, 3)
    assert (sizes.deter, sizes.hidden, sizes.layers, sizes.bins) == (9, 7, 1, 21)
    assert (sizes.groups, sizes.classes) == (3, 5)
    assert (sizes.continuous, sizes.dynamics, sizes.batch_norm) == (True, False, False)
    assert run_sizes(tiny.config(), 7, 2, continuous=False).dynamics is False


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
