from __future__ import annotations

import importlib.util
import random
import re
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
MEETING = "        met += programs\n        wait_for_all(p_arrived, met)\n"
LATE = """\
        if tl.program_id(0) == 0:
            for _ in range(300):
                tl.atomic_add(p_arrived, 0, sem="acquire", scope="gpu")
"""
"""Lets the first program begin a phase a fraction of a millisecond after the others."""
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


@pytest.fixture
def of_size_s(monkeypatch: pytest.MonkeyPatch) -> dict[str, Tensor]:
    """Sequences of a batch at size S, but for shorter embeddings, which are no part of a step."""
    sizes = {"DETER": 512, "HIDDEN": 512, "EMBED": 64, "ACTION": 6, "GROUPS": 32, "CLASSES": 32}
    for name, size in sizes.items():
        monkeypatch.setattr(sequences, name, size)
    return sequences.scaled(sequences.inputs(16, 64))


def found(given: dict[str, Tensor], norm: str = "batch") -> dict[str, Tensor]:
    """Outputs and gradients."""
    op = kernels.rssm_observe_persistent
    return evaluate(lambda given: sequences.call(op, given, norm), given, torch.float32, DEVICE)


def moved(given: dict[str, Tensor]) -> dict[str, Tensor]:
    """Leaves where the kernels run, the model's with gradients."""
    return {
        name: t.detach().float().to(DEVICE).requires_grad_(name.startswith("model."))
        if t.is_floating_point()
        else t.to(DEVICE)
        for name, t in given.items()
    }


def one_pass(given: dict[str, Tensor], direction: str) -> Callable[[], dict[str, Tensor]]:
    """Runs one pass, however often; what is before it has been run by one program alone."""
    leaves = moved(given)
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


@interpreted
@pytest.mark.parametrize("direction", PASSES)
def test_without_any_one_barrier_the_results_differ(
    given: dict[str, Tensor], direction: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run = one_pass(given, direction)
    alone = run()
    caught = []
    for which in range(BARRIERS):
        kernel = without_barrier(direction, which, monkeypatch, tmp_path)
        programs = in_turns(monkeypatch, direction, kernel)
        if different(alone, run()):
            caught.append(which)
        assert programs.launches == 1
    assert caught == list(range(BARRIERS))


@pytest.mark.gpu
@pytest.mark.parametrize("direction", PASSES)
def test_on_a_gpu_without_any_one_barrier_the_results_differ(
    of_size_s: dict[str, Tensor],
    direction: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """No tool sees races through global memory; that they would show here, this does."""
    run = one_pass(of_size_s, direction)
    alone = run()
    assert different(alone, run()) == []
    caught = []
    for which in range(BARRIERS):
        kernel = without_barrier(direction, which, monkeypatch, tmp_path, LATE)
        monkeypatch.setattr(module(direction), kernel_name(direction), kernel)
        if different(alone, run()):
            caught.append(which)
    assert caught == list(range(BARRIERS))


def without_barrier(
    direction: str, which: int, monkeypatch: pytest.MonkeyPatch, folder: Path, before: str = ""
) -> Any:
    """The kernel of a pass without one of its barriers, and `before` ahead of the phase there."""
    text = source(module(direction))
    phases = list(re.finditer(r"^        _\w+_phase\(", text, re.MULTILINE))
    assert len(phases) == text.count(MEETING) == BARRIERS
    begin = phases[which].start()
    rest = text[begin:].replace(MEETING, "", 1)
    made = loaded(f"{direction}_{which}", text[:begin] + before + rest, monkeypatch, folder)
    return getattr(made, kernel_name(direction))


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
    made = loaded("other_barrier", text.replace(wait, other), monkeypatch, folder)
    forward = module("fwd")
    monkeypatch.setattr(forward, "wait_for_all", made.wait_for_all)
    in_turns(monkeypatch, "fwd", forward.rssm_observe_persistent_fwd_kernel)


def loaded(name: str, text: str, monkeypatch: pytest.MonkeyPatch, folder: Path) -> ModuleType:
    """A module of that text, in a file, for Triton reads the source of what it compiles."""
    path = folder / f"{name}.py"
    path.write_text(text)
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, made)
    spec.loader.exec_module(made)
    return made


def source(of: ModuleType) -> str:
    return Path(of.__file__ or "").read_text()


@pytest.mark.gpu
def test_ten_thousand_replays_beside_acting_give_the_same(of_size_s: dict[str, Tensor]) -> None:
    """A batch forward and back, while another stream filters single steps as acting does."""
    given, seen = moved(of_size_s), moved(sequences.scaled(sequences.inputs(4, 1)))
    leaves = [tensor for tensor in given.values() if tensor.requires_grad]
    batch_norm = sequences.statistics("batch", given["embed"])
    running = sequences.statistics("running", given["embed"])

    def learn() -> list[Tensor]:
        out = sequences.observe(kernels.rssm_observe_persistent, given, batch_norm)
        loss = sum(out[name].square().sum() for name in ("deter", "posterior", "prior"))
        grads = torch.autograd.grad(loss, leaves, allow_unused=True)
        return [*out.values(), *(grad for grad in grads if grad is not None)]

    @torch.no_grad()
    def act() -> list[Tensor]:
        return list(sequences.observe(kernels.rssm_observe_persistent, seen, running).values())

    work = [Replayed(learn), Replayed(act)]
    for _ in range(10_000):
        for each in work:
            each.again()
    torch.cuda.synchronize()
    assert [each.different.item() for each in work] == [0, 0]


class Replayed:
    """Work recorded as a CUDA graph on a stream of its own, and how often it gave another result.

    Args:
        work: gives tensors.
    """

    def __init__(self, work: Callable[[], list[Tensor]]) -> None:
        self._stream = torch.cuda.Stream()
        self._graph = torch.cuda.CUDAGraph()
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            work()
        torch.cuda.synchronize()
        with torch.cuda.graph(self._graph, stream=self._stream):
            self._recorded = work()
        with torch.cuda.stream(self._stream):
            self.different = torch.zeros((), dtype=torch.int64, device="cuda")
            self._graph.replay()
            self._first = [tensor.clone() for tensor in self._recorded]

    def again(self) -> None:
        """Repeat the work and compare; waits for nothing."""
        with torch.cuda.stream(self._stream):
            self._graph.replay()
            for first, now in zip(self._first, self._recorded, strict=True):
                self.different += (first != now).any()
