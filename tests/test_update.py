"""Whole updates of the agent, held to a twin that shares no code with it: see `tests/twin`."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from mudreamer_fast import agent as agent_module
from mudreamer_fast.agent import Agent
from tests import tiny
from tests.graph_emulator import EmulatedCapture
from tests.tolerances import TWIN_METRIC, TWIN_STATE
from tests.twin import Twin
from tests.updates import Case, assert_same_metrics, assert_same_state, tensors_of

UPDATES = 5

REFERENCE = {
    "vector": Case(),
    "vector-discrete": Case(action="discrete", model={"layers": 2}),
    "vector-reinforce": Case(behaviour={"actor_gradient": "reinforce"}),
    "vector-discrete-dynamics": Case(action="discrete", behaviour={"actor_gradient": "dynamics"}),
    "vector-encoder": Case(model={"batch_norm": "encoder", "layers": 2}),
    "vector-none": Case(model={"batch_norm": "none"}),
    "vector-running": Case(model={"batch_norm_statistics": "running"}),
    "vector-by-step": Case(action="discrete", model={"batch_norm_update": "step"}),
    "vector-running-by-step": Case(
        model={
            "batch_norm": "both", "batch_norm_statistics": "running", "batch_norm_update": "step",
        }
    ),
    "vector-without-action-predictor": Case(model={"action_predictor": False}),
    "vector-without-value-predictor": Case(action="discrete", model={"value_predictor": False}),
    "vector-without-predictors": Case(
        model={"action_predictor": False, "value_predictor": False, "batch_norm": "none"}
    ),
    "vector-reconstruction": Case(model={"reconstruction": True, "layers": 2}),
    "both-dreamerv3": Case(
        "both",
        model={
            "reconstruction": True, "batch_norm": "none", "value_predictor": False,
            "action_predictor": False,
        },
    ),
    "pixels-reconstruction-with-decoder": Case(
        "pixels", "discrete", {"reconstruction": True, "decoder": True}
    ),
    "vector-without-unimix": Case(action="discrete", model={"unimix": 0.0}),
    "pixels": Case("pixels"),
    "pixels-discrete-decoder": Case("pixels", "discrete", {"decoder": True}),
    "pixels-encoder": Case("pixels", model={"batch_norm": "encoder"}),
    "pixels-none-decoder": Case("pixels", model={"batch_norm": "none", "decoder": True}),
    "both-decoder": Case("both", model={"batch_norm": "both", "decoder": True}),
    "both-discrete": Case("both", "discrete", {"batch_norm": "both"}),
}  # fmt: skip

FUSED = {
    "continuous": Case("both", backend="fused"),
    "discrete-none": Case(action="discrete", backend="fused", model={"batch_norm": "none"}),
    "persistent": Case(
        action="discrete", backend="persistent", model={"batch_norm_statistics": "running"}
    ),
}
INTERPRETED_UPDATES = {"continuous": 2, "discrete": 1}
"""The interpreter takes two or three seconds for each."""


def assert_alike(agent: Agent, twin: Twin, batch: Mapping[str, Tensor], given: object) -> None:
    """The same metrics and the same state after an update, the agent's from what it is `given`."""
    dtype = batch["reward"].dtype
    found = agent.update(given)  # type: ignore[arg-type]
    expected = twin.update(batch)
    assert_same_metrics(found, expected, TWIN_METRIC[dtype])
    assert_same_state(tensors_of(agent.state_dict()), twin.state(), TWIN_STATE[dtype])
    assert agent.updates == twin.updates


def assert_learns_as_its_twin(case: Case, updates: int = UPDATES) -> None:
    agent = case.agent()
    twin = case.twin(agent)
    for number in range(updates):
        batch = case.batch(number)
        assert_alike(agent, twin, batch, {name: value.clone() for name, value in batch.items()})


@pytest.mark.parametrize("case", REFERENCE.values(), ids=REFERENCE)
def test_update_changes_the_state_as_the_twin_does(case: Case) -> None:
    assert_learns_as_its_twin(case)


@pytest.mark.parametrize("case", FUSED.values(), ids=FUSED)
def test_update_by_kernels_changes_the_state_as_the_twin_does(case: Case) -> None:
    gpu = torch.cuda.is_available()
    sizes = {"model": tiny.FEWEST | case.model, "behaviour": {"horizon": 2}, "steps": 2}
    device = "cuda" if gpu else "cpu"
    case = replace(case, device=device, dtype=torch.float32, **sizes)  # type: ignore[arg-type]
    agent = case.agent()
    twin = case.twin(agent)
    assert agent.backend == case.backend
    for number in range(UPDATES if gpu else INTERPRETED_UPDATES[case.action]):
        batch = case.batch(number)
        assert_alike(agent, twin, batch, batch)
        # No rounding of float32 takes a draw to another class.
        assert min(twin.seen.margin, twin.judged.imagined.margin) > 1e-5


@pytest.mark.gpu
@pytest.mark.parametrize("case", REFERENCE.values(), ids=REFERENCE)
def test_update_on_a_gpu_changes_the_state_as_the_twin_does(case: Case) -> None:
    assert_learns_as_its_twin(replace(case, device="cuda"))


def test_update_that_is_recorded_changes_the_state_as_the_twin_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    captures: list[EmulatedCapture] = []

    def new() -> EmulatedCapture:
        captures.append(EmulatedCapture())
        return captures[-1]

    monkeypatch.setattr(agent_module, "capture_maker", lambda *_: new)
    assert_learns_as_its_twin(Case("both", model={"decoder": True}))
    assert sum(capture.replayed for capture in captures) == UPDATES - 2


def fortran(case: Case, number: int) -> Iterator[dict[str, np.ndarray | Tensor]]:
    """NumPy arrays whose first axis is the densest."""
    while True:
        yield {name: np.asfortranarray(x.numpy()) for name, x in case.batch(number).items()}
        number += 1


def interleaved(case: Case, number: int) -> Iterator[dict[str, np.ndarray | Tensor]]:
    """Every other number of a larger tensor; channels last, where there are channels."""
    while True:
        yield {
            name: x.movedim(2, -1).contiguous().movedim(-1, 2) if name == "image"
            else torch.stack([x, x.roll(1)], -1)[..., 0]
            for name, x in case.batch(number).items()
        }  # fmt: skip
        number += 1


def shared(case: Case, number: int) -> Iterator[dict[str, np.ndarray | Tensor]]:
    """Views of two buffers that overlap, and that the next batch is written to."""
    floats = np.empty((case.rows, case.steps, 4))
    flags = np.empty((case.rows, case.steps, 3), bool)
    images = np.empty((case.rows, case.steps, 3, 64, 64), np.uint8)
    while True:
        batch = case.batch(number)
        floats[..., :2], floats[..., 2:] = batch["action"], batch["vector"][..., :2]
        flags[..., 0], flags[..., 2] = batch["is_first"], batch["is_terminal"]
        images[:] = batch["image"]
        yield {
            "action": floats[..., :2], "vector": floats[..., 1:], "reward": floats[..., 2],
            "is_first": flags[..., 0], "is_terminal": flags[..., 2], "image": images,
        }  # fmt: skip
        floats[:], flags[:], images[:] = np.nan, True, 255
        number += 1


@pytest.mark.parametrize("layout", [fortran, interleaved, shared])
def test_update_reads_a_batch_however_it_lies_in_memory(
    layout: Callable[[Case, int], Iterator[dict[str, np.ndarray | Tensor]]],
) -> None:
    case = Case("both", model={"batch_norm": "both", "decoder": True})
    agent = case.agent()
    twin = case.twin(agent)
    given = layout(case, 0)
    for _ in range(2):
        batch = next(given)
        plain = {name: torch.as_tensor(x).clone().contiguous() for name, x in batch.items()}
        assert_alike(agent, twin, plain, batch)
        assert all(torch.equal(torch.as_tensor(x), plain[name]) for name, x in batch.items())


@pytest.mark.parametrize(
    "case", [Case(), Case("both", model={"decoder": True})], ids=["vector", "both"]
)
def test_update_is_compared_in_every_tensor_of_the_state(case: Case) -> None:
    agent = case.agent()
    twin = case.twin(agent)
    agent.update(case.batch(0))
    twin.update(case.batch(0))
    state, expected = tensors_of(agent.state_dict()), twin.state()
    print("\n".join(sorted(state)))  # pytest -rP shows them
    assert state.keys() == expected.keys()
    learned = {
        f"{part}/{name}"
        for part, module in (("world_model", agent.world_model), ("behaviour", agent.behaviour))
        for name, _ in [*module.named_parameters(), *module.named_buffers()]
    }
    moments = {
        f"optimisers/{part}/state/{i}/{kind}"
        for part, optimiser in agent.optimisers.items()
        for i in range(len(optimiser.parameters))
        for kind in ("exp_avg", "exp_avg_sq", "step")
    }
    assert state.keys() == learned | moments | {"generator"}
    for left_out in state:
        fewer = {name: x for name, x in state.items() if name != left_out}
        for one, other in ((fewer, expected), (expected, fewer)):
            with pytest.raises(AssertionError, match="only one of the two holds"):
                assert_same_state(one, other, 1.0)


def test_update_changes_every_tensor_of_the_state() -> None:
    case = Case("both", model={"decoder": True, "batch_norm": "both"})
    agent = case.agent()
    agent.update(case.batch(0))
    before = {name: x.clone() for name, x in tensors_of(agent.state_dict()).items()}
    agent.update(case.batch(1))
    after = tensors_of(agent.state_dict())
    assert [name for name, x in before.items() if torch.equal(x, after[name])] == []


def test_update_is_tried_on_both_sides_of_every_bound() -> None:
    clipped: set[tuple[str, bool]] = set()
    divergences, actions, scales = [], [], []
    for case in (REFERENCE["vector"], REFERENCE["vector-reinforce"]):
        twin = case.twin(case.agent())
        for number in range(UPDATES):
            metrics = twin.update(case.batch(number))
            clipped |= {(part, adam.clipped) for part, adam in twin.adams.items()}
            divergences.append(twin.seen.divergence)
            actions.append(twin.judged.imagined.actions)
            scales.append(metrics["behaviour/return_scale"])
    parts = ("world_model", "actor", "critic")
    assert clipped == {(part, whether) for part in parts for whether in (True, False)}
    free = torch.stack(divergences) < REFERENCE["vector"].config.model.free_nats
    beyond = torch.stack(actions).abs() > 1
    for share in (free, beyond):
        assert 0.2 < share.double().mean() < 0.8
    assert min(scales) > 1


@pytest.mark.parametrize(
    "name",
    ["vector-reinforce", "vector-discrete-dynamics", "vector-running-by-step", "both-decoder"],
)
def test_update_looks_at_no_value(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors on the `meta` device have none: a host that asks for one gets an error."""
    case = REFERENCE[name]
    agent = case.agent()
    agent.update(case.batch(0))  # Adam makes its moments where a device has memory
    monkeypatch.setattr(torch.__future__, "_swap_module_params_on_conversion", True)
    for module in (agent.world_model, agent.behaviour):
        module.to("meta")
    for optimiser in agent.optimisers.values():
        for moments in optimiser.state.values():
            moments |= {name: value.to("meta") for name, value in moments.items()}
    inputs = case.batch(1) | agent._draw(case.rows, case.steps)
    (metrics,) = agent._learn({name: x.to("meta") for name, x in inputs.items()}).values()
    assert metrics.is_meta
    assert metrics.shape == (len(agent._metrics),)
    tensors = tensors_of(agent.state_dict())
    assert [name for name, x in tensors.items() if not x.is_meta] == ["generator"]
    with pytest.raises((NotImplementedError, RuntimeError), match="meta"):
        metrics.tolist()


def test_twin_imports_nothing_of_the_package() -> None:
    files = sorted((Path(__file__).parent / "twin").glob("*.py"))
    imports = [
        name
        for file in files
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for name in (
            [node.module or "."] if isinstance(node, ast.ImportFrom)
            else [alias.name for alias in node.names]
        )
    ]  # fmt: skip
    foreign = {name for name in imports if not name.startswith("tests.twin")}
    assert foreign == {
        "__future__", "collections.abc", "dataclasses", "math", "torch", "torch.nn.functional",
        "typing",
    }  # fmt: skip
    assert len(files) > 1
