from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from mudreamer_fast import kernels
from tests.kernels import test_rssm_observe as sequences
from tests.kernels.agreement import DEVICE, evaluate
from tests.kernels.programs import SideBySide

PROGRAMS = 4
PASSES = ["fwd", "bwd"]
BARRIERS = 5

interpreted = pytest.mark.skipif(DEVICE.type == "cuda", reason="the kernels run on a GPU")


def module(direction: str) -> ModuleType:
    return importlib.import_module(f"mudreamer_fast.kernels.rssm_observe_{direction}")


def kernel_name(direction: str) -> str:
    return f"rssm_observe_persistent_{direction}_kernel"


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> dict[str, Tensor]:
    """Sequences of a model whose columns four programs share out, the last tiles cut short."""
    for name, size in {"DETER": 27, "HIDDEN": 20, "GROUPS": 4}.items():
        monkeypatch.setattr(sequences, name, size)
    return sequences.inputs(3, 2)


def found(given: dict[str, Tensor], norm: str = "batch") -> dict[str, Tensor]:
    """Outputs and gradients."""
    op = kernels.rssm_observe_persistent
    return evaluate(lambda given: sequences.call(op, given, norm), given, torch.float32, DEVICE)


def side_by_side(
    monkeypatch: pytest.MonkeyPatch, direction: str, kernel: Any, slow: int | None = None
) -> SideBySide:
    """Have one pass run by processes."""
    programs = SideBySide(kernel, PROGRAMS, slow)
    monkeypatch.setattr(module(direction), kernel_name(direction), programs)
    return programs


@interpreted
@pytest.mark.parametrize("norm", sequences.NORMS)
def test_programs_side_by_side_do_what_one_alone_does(
    given: dict[str, Tensor], norm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = found(given, norm)
    runs = []
    for direction in PASSES:
        kernel = getattr(module(direction), kernel_name(direction))
        runs.append(side_by_side(monkeypatch, direction, kernel, slow=1))
    together = found(given, norm)
    assert [run.launches for run in runs] == [1, 1]
    assert alone.keys() == together.keys()
    assert [name for name in alone if not torch.equal(alone[name], together[name])] == []


@interpreted
@pytest.mark.parametrize("norm", sequences.NORMS)
def test_programs_that_keep_their_weights_agree(
    given: dict[str, Tensor], norm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = module("fwd")
    monkeypatch.setattr(forward, "KEPT_DTYPES", (torch.float32,))
    monkeypatch.setattr(forward, "programs", lambda wanted, device: wanted)
    kernel = forward.rssm_observe_persistent_fwd_kernel
    side_by_side(monkeypatch, "fwd", Keeping(kernel))
    sequences.agree(kernels.rssm_observe_persistent, given, norm)


class Keeping:
    """A kernel that must be told to keep its weights."""

    def __init__(self, kernel: Any) -> None:
        self._kernel = kernel

    def __getitem__(self, grid: Any) -> Any:
        def launch(*args: Any, **kwargs: Any) -> None:
            assert kwargs["KEEP"]
            self._kernel[grid](*args, **kwargs)

        return launch


def without_barrier(direction: str, which: int, folder: Path) -> Any:
    """The kernel without one of its barriers."""
    source = Path(module(direction).__file__ or "").read_text()
    barrier = "        met += programs\n        wait_for_all(p_arrived, met)\n"
    parts = source.split(barrier)
    assert len(parts) == BARRIERS + 1
    barriers = [barrier] * BARRIERS
    barriers[which] = ""
    path = folder / f"without_{direction}_{which}.py"
    path.write_text("".join(a + b for a, b in zip(parts, [*barriers, ""], strict=True)))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    changed = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = changed
    spec.loader.exec_module(changed)
    return getattr(changed, kernel_name(direction))


@interpreted
@pytest.mark.parametrize("direction", PASSES)
def test_without_any_one_barrier_the_results_differ(
    given: dict[str, Tensor], direction: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    alone = found(given)
    caught = []
    for which in range(BARRIERS):
        side_by_side(monkeypatch, direction, without_barrier(direction, which, tmp_path), slow=0)
        together = found(given)
        if any(not torch.equal(alone[name], together[name]) for name in alone):
            caught.append(which)
    assert caught == list(range(BARRIERS))


@pytest.mark.gpu
def test_ten_thousand_replays_give_the_same(given: dict[str, Tensor]) -> None:
    moved = {
        name: tensor.float().cuda() if tensor.is_floating_point() else tensor.cuda()
        for name, tensor in given.items()
    }
    leaves = [moved[name].requires_grad_() for name in moved if name.startswith("model.")]

    def both() -> list[Tensor]:
        out = sequences.call(kernels.rssm_observe_persistent, moved, "batch")
        loss = sum(out[name].square().sum() for name in ("deter", "posterior", "prior"))
        grads = torch.autograd.grad(loss, leaves, allow_unused=True)
        return [*out.values(), *(grad for grad in grads if grad is not None)]

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        both()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        recorded = both()
    graph.replay()
    first = [tensor.clone() for tensor in recorded]
    different = torch.zeros((), dtype=torch.int64, device="cuda")
    for _ in range(10_000):
        graph.replay()
        for a, b in zip(first, recorded, strict=True):
            different += (a != b).any()
    assert different.item() == 0
