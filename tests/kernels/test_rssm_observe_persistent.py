from __future__ import annotations

import importlib.util
import random
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from mudreamer_fast import kernels
from mudreamer_fast.kernels import barrier
from mudreamer_fast.kernels.device import INTERPRETED
from tests.kernels import test_rssm_observe as sequences
from tests.kernels.agreement import DEVICE, evaluate
from tests.kernels.programs import InTurns, Schedule

PROGRAMS = 3
PASSES = ["fwd", "bwd"]
BARRIERS = 5
ORDERS: dict[str, list[Schedule]] = {
    "batch": [max, random.Random(0).choice],
    "running": [min],
    "layer": [random.Random(1).choice],
}

interpreted = pytest.mark.skipif(not INTERPRETED, reason="the kernels run on a GPU")


def module(direction: str) -> ModuleType:
    return importlib.import_module(f"mudreamer_fast.kernels.rssm_observe_persistent_{direction}")


def kernel_name(direction: str) -> str:
    return f"rssm_observe_persistent_{direction}_kernel"


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> dict[str, Tensor]:
    """Sequences of a model whose columns three programs share out, the last tiles cut short."""
    for name, size in {"DETER": 11, "HIDDEN": 12, "GROUPS": 3}.items():
        monkeypatch.setattr(sequences, name, size)
    return sequences.inputs(3, 2)


def found(given: dict[str, Tensor], norm: str = "batch") -> dict[str, Tensor]:
    """Outputs and gradients."""
    op = kernels.rssm_observe_persistent
    return evaluate(lambda given: sequences.call(op, given, norm), given, torch.float32, DEVICE)


def one_pass(given: dict[str, Tensor], direction: str) -> Callable[[], dict[str, Tensor]]:
    """Runs one pass, however often; what is before it has been run by one program alone."""
    leaves = {
        name: t.detach().float().requires_grad_(name.startswith("model."))
        if t.is_floating_point()
        else t
        for name, t in given.items()
    }
    forward = lambda: sequences.call(kernels.rssm_observe_persistent, leaves, "batch")  # noqa: E731
    if direction == "fwd":
        return forward
    out = forward()
    loss = sum(out[name].square().sum() for name in ("deter", "posterior", "previous_stoch"))
    names = [name for name, t in leaves.items() if t.requires_grad and "model.prior" not in name]
    of = [leaves[name] for name in names]
    return lambda: dict(zip(names, torch.autograd.grad(loss, of, retain_graph=True), strict=True))


def in_turns(
    monkeypatch: pytest.MonkeyPatch, direction: str, kernel: Any, schedule: Schedule = min
) -> InTurns:
    """Have one pass run by processes."""
    programs = InTurns(kernel, PROGRAMS, schedule)
    monkeypatch.setattr(module(direction), kernel_name(direction), programs)
    return programs


def different(first: dict[str, Tensor], second: dict[str, Tensor]) -> list[str]:
    """What is not the same to the bit."""
    assert first.keys() == second.keys()
    return [name for name in first if not torch.equal(first[name], second[name])]


@interpreted
@pytest.mark.parametrize("norm", sequences.NORMS)
def test_programs_do_what_one_alone_does_in_any_order(
    given: dict[str, Tensor], norm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = found(given, norm)
    kernels = {name: getattr(module(name), kernel_name(name)) for name in PASSES}
    for schedule in ORDERS[norm]:
        runs = [in_turns(monkeypatch, name, kernels[name], schedule) for name in PASSES]
        assert different(alone, found(given, norm)) == []
        assert [run.launches for run in runs] == [1, 1]


@interpreted
@pytest.mark.parametrize("norm", sequences.NORMS)
def test_programs_that_keep_their_weights_agree(
    given: dict[str, Tensor], norm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = module("fwd")
    monkeypatch.setattr(forward, "KEPT_DTYPES", (torch.float32,))
    monkeypatch.setattr(forward, "programs", lambda wanted, device: wanted)
    monkeypatch.setattr(forward, "shared_bytes", lambda device: forward.KEPT_BYTES)
    kernel = forward.rssm_observe_persistent_fwd_kernel
    in_turns(monkeypatch, "fwd", Keeping(kernel))
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


class Skipping:
    """A barrier that every step passes by at one of its places."""

    def __init__(self, which: int) -> None:
        self._which, self._calls, self._skipped = which, 0, 0

    def __call__(self, p_arrived: Any, target: Any) -> None:
        here, self._calls = self._calls % BARRIERS, self._calls + 1
        if here == self._which:
            self._skipped += 1
        else:
            barrier.wait_for_all(p_arrived, target - self._skipped * PROGRAMS)


@interpreted
@pytest.mark.parametrize("direction", PASSES)
def test_without_any_one_barrier_the_results_differ(
    given: dict[str, Tensor], direction: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert source(module(direction)).count("wait_for_all(p_arrived, met)") == BARRIERS
    run = one_pass(given, direction)
    alone = run()
    programs = in_turns(monkeypatch, direction, getattr(module(direction), kernel_name(direction)))
    caught = []
    for which in range(BARRIERS):
        monkeypatch.setattr(module(direction), "wait_for_all", Skipping(which))
        if different(alone, run()):
            caught.append(which)
    assert caught == list(range(BARRIERS))
    assert programs.launches == BARRIERS


@interpreted
@pytest.mark.parametrize(
    ("wait", "worse"),
    [
        ("while arrived < target", "while arrived < target - 1"),
        ("while arrived < target", "if arrived < target"),
    ],
)
def test_with_a_barrier_that_lets_some_through_early_the_results_differ(
    given: dict[str, Tensor], wait: str, worse: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run = one_pass(given, "fwd")
    alone = run()
    use_barrier(wait, worse, monkeypatch, tmp_path)
    assert different(alone, run())


@interpreted
def test_with_a_barrier_that_waits_for_a_number_that_may_have_passed_programs_never_end(
    given: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run = one_pass(given, "fwd")
    use_barrier("arrived < target", "arrived != target", monkeypatch, tmp_path)
    with pytest.raises(RuntimeError, match="wait for one another"):
        run()


def use_barrier(wait: str, other: str, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Have the forward pass run in turns, with a barrier that waits otherwise."""
    text = source(barrier)
    assert text.count(wait) == 1
    path = folder / "other_barrier.py"
    path.write_text(text.replace(wait, other))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, path.stem, made)
    spec.loader.exec_module(made)
    forward = module("fwd")
    monkeypatch.setattr(forward, "wait_for_all", made.wait_for_all)
    in_turns(monkeypatch, "fwd", forward.rssm_observe_persistent_fwd_kernel)


def source(of: ModuleType) -> str:
    return Path(of.__file__ or "").read_text()


@pytest.mark.gpu
def test_ten_thousand_replays_give_the_same(given: dict[str, Tensor]) -> None:
    moved = {
        name: tensor.float().cuda() if tensor.is_floating_point() else tensor.cuda()
        for name, tensor in given.items()
    }
    leaves = [moved[name].requires_grad_() for name in moved if name.startswith("model.")]
    batch_norm = sequences.statistics("batch", moved["embed"])

    def both() -> list[Tensor]:
        out = sequences.observe(kernels.rssm_observe_persistent, moved, batch_norm)
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
