"""Recorded work gives what the same work gives unrecorded, bit by bit, for agents as for sums."""

from __future__ import annotations

import gc
import io
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mudreamer_fast import agent as agent_module
from mudreamer_fast.agent import Agent
from mudreamer_fast.backend.cuda_graph import (
    KEPT_SHAPES,
    SETTLING_CALLS,
    CudaCapture,
    Graphed,
    Tensors,
    _tell,
    capture_maker,
)
from mudreamer_fast.config import ConfigError
from mudreamer_fast.envs.vector_env import ActionSpec
from mudreamer_fast.kernels.device import INTERPRETED
from tests import tiny
from tests.graph_emulator import CaptureError, EmulatedCapture
from tests.tolerances import ALIKE

interpreted = pytest.mark.skipif(not INTERPRETED, reason="the kernels run on a GPU")
CPU, CUDA = torch.device("cpu"), torch.device("cuda")
SEEN = {"vector": tiny.VECTOR}
ACTIONS = {"continuous": tiny.CONTINUOUS, "discrete": tiny.DISCRETE}


@pytest.fixture
def captures(monkeypatch: pytest.MonkeyPatch) -> list[EmulatedCapture]:
    """The emulated captures of all agents whose cuda_graph is on: of updates and of acting."""
    made: list[EmulatedCapture] = []

    def new() -> EmulatedCapture:
        made.append(EmulatedCapture())
        return made[-1]

    monkeypatch.setattr(
        agent_module, "capture_maker", lambda setting, *_: new if setting == "on" else None
    )
    return made


def made_agent(
    graph: str,
    action: ActionSpec = tiny.CONTINUOUS,
    backend: str = "reference",
    device: torch.device = CPU,
    behaviour: dict[str, Any] | None = None,
    seen: dict[str, Any] = SEEN,
    **model: Any,
) -> Agent:
    config = tiny.config(model, behaviour)
    train = replace(config.train, backend=backend, cuda_graph=graph)  # type: ignore[arg-type]
    return Agent(replace(config, train=train), seen, action, device)


def made_batch(action: ActionSpec, seed: int, **sizes: Any) -> dict[str, np.ndarray]:
    return tiny.batch(sizes.pop("seen", SEEN), action, seed=seed, **sizes)


def leaves(state: Any) -> list[Any]:
    if isinstance(state, dict):
        return [leaf for part in state.values() for leaf in leaves(part)]
    if isinstance(state, list):
        return [leaf for part in state for leaf in leaves(part)]
    return [state]


def assert_same_state(one: Agent, other: Agent) -> None:
    for a, b in zip(leaves(one.state_dict()), leaves(other.state_dict()), strict=True):
        assert torch.equal(a, b) if isinstance(a, Tensor) else a == b


def assert_same_updates(
    graphed: Agent, plain: Agent, seeds: range, action: ActionSpec, **sizes: Any
) -> None:
    for seed in seeds:
        batch = made_batch(action, seed, **sizes)
        assert graphed.update(batch) == plain.update(batch), f"update {seed}"
    assert_same_state(graphed, plain)


def acted(agent: Agent, rows: int, modes: list[str]) -> list[Tensor]:
    """Actions and states of a step for each mode, compared only after the last."""
    data = made_batch(agent.action_spec, 7, rows=rows, steps=len(modes))
    state, kept = agent.initial_state(rows), []
    for t, mode in enumerate(modes):
        observation = {name: data[name][:, t] for name in agent.observations}
        action, state = agent.act(observation, data["is_first"][:, t], state, mode)  # type: ignore[arg-type]
        kept += [torch.from_numpy(action), state.deter, state.stoch, state.action]
    return kept


def running_sum() -> tuple[Tensor, Callable[[Tensors], Tensors]]:
    total = torch.zeros(3)

    def add(inputs: Tensors) -> Tensors:
        total.add_(inputs["x"])
        return {"mean": total.mean(), "double": 2 * total[:2]}

    return total, add


@pytest.mark.parametrize("emulated", [True, False])
def test_graphed_function_gives_what_it_would(emulated: bool) -> None:
    capture = EmulatedCapture()
    total, add = running_sum()
    graphed = Graphed(add, (lambda: capture) if emulated else None)
    for i in range(1, 7):
        found = graphed({"x": torch.full((3,), float(i))})
        assert total.tolist() == [i * (i + 1) / 2] * 3
        assert found["mean"].item() == i * (i + 1) / 2
        assert found["double"].tolist() == [i * (i + 1)] * 2
    replayed = 6 - SETTLING_CALLS
    expected = (SETTLING_CALLS, 1, replayed) if emulated else (0, 0, 0)
    assert (capture.settled, capture.recorded, capture.replayed) == expected


def test_graphed_function_runs_no_python_once_it_is_recorded() -> None:
    calls = []

    def note(inputs: Tensors) -> Tensors:
        calls.append(1)
        return {"y": inputs["x"] + 1}

    graphed = Graphed(note, EmulatedCapture)
    for i in range(7):
        assert graphed({"x": torch.tensor(float(i))})["y"].item() == i + 1
    assert len(calls) == SETTLING_CALLS + 1


def test_graphed_function_is_recorded_anew_for_other_shapes_and_after_forgetting() -> None:
    capture = EmulatedCapture()
    graphed = Graphed(lambda inputs: {"y": inputs["x"].sum()}, lambda: capture)

    def used(x: Tensor) -> None:
        for _ in range(SETTLING_CALLS + 2):
            assert graphed({"x": x})["y"].item() == x.sum().item()

    used(torch.ones(3))
    used(torch.ones(4))
    used(torch.ones(3, dtype=torch.float64))
    assert capture.recorded == 3
    used(torch.ones(3))
    assert capture.recorded == 3
    graphed.forget()
    used(torch.ones(3))
    assert capture.recorded == 4
    for size in range(KEPT_SHAPES):
        used(torch.ones(10 + size))
    assert capture.recorded == 4 + KEPT_SHAPES
    used(torch.ones(3))
    assert capture.recorded == 5 + KEPT_SHAPES


def test_state_that_is_bound_anew_is_caught() -> None:
    state = {"total": torch.zeros(())}

    def rebind(inputs: Tensors) -> Tensors:
        state["total"] = state["total"] + inputs["x"]
        return {"total": state["total"]}

    graphed = Graphed(rebind, EmulatedCapture)
    found = [graphed({"x": torch.ones(())})["total"].item() for _ in range(SETTLING_CALLS + 3)]
    settled = float(SETTLING_CALLS)
    assert found == [*(i + 1.0 for i in range(SETTLING_CALLS)), *[settled + 1] * 3]


def test_recording_changes_nothing_and_leaves_no_results() -> None:
    total, add = running_sum()
    recorded = EmulatedCapture().record(lambda: add({"x": torch.ones(3)}))
    assert total.tolist() == [0, 0, 0]
    assert recorded.outputs["mean"].isnan()
    recorded.replay()
    recorded.replay()
    assert recorded.outputs["mean"].item() == 2
    assert total.tolist() == [2, 2, 2]


@pytest.mark.parametrize(
    "forbidden",
    [
        lambda x: x.sum().item(),
        lambda x: x.tolist(),
        lambda x: bool(x.any()),
        lambda x: float(x[0]),
        lambda x: x.cpu(),
        lambda x: x.numpy(),
        lambda x: x.nonzero(),
        lambda x: x[x > 0],
        lambda x: x.masked_select(x > 0),
        lambda x: torch.where(x > 0),
        lambda x: x + torch.tensor([1.0, 2.0, 3.0]),
        lambda x: x + torch.as_tensor([1.0, 2.0, 3.0]),
        lambda x: torch.nn.functional.one_hot(x.long(), 4),
        lambda x: torch.equal(x, x),
        lambda x: x.unique(),
        lambda x: x + torch.rand(3),
        lambda x: x.to("meta"),
        lambda x: torch.randn_like(x),
        lambda x: torch.nn.functional.dropout(x, 0.5),
    ],
)
def test_what_a_graph_can_not_hold_is_refused(forbidden: Callable[[Tensor], Any]) -> None:
    def work(inputs: Tensors) -> Tensors:
        forbidden(inputs["x"])
        return {}

    graphed = Graphed(work, EmulatedCapture)
    for _ in range(SETTLING_CALLS):
        graphed({"x": torch.arange(3.0)})
    with pytest.raises(RuntimeError, match="cuda_graph off runs without") as caught:
        graphed({"x": torch.arange(3.0)})
    assert isinstance(caught.value.__cause__, CaptureError)


def test_function_that_can_not_be_recorded_runs_as_it_is_and_is_told_once(
    capsys: pytest.CaptureFixture[str],
) -> None:
    _tell.cache_clear()
    total = torch.zeros(3)
    capture = EmulatedCapture()

    def look(inputs: Tensors) -> Tensors:
        total.add_(inputs["x"])
        return {"sum": total.sum() + inputs["x"].max().item()}

    graphed = Graphed(look, lambda: capture, required=False)
    for i in range(1, SETTLING_CALLS + 4):
        assert graphed({"x": torch.ones(3)})["sum"].item() == 3 * i + 1
        assert total.tolist() == [i] * 3
    assert capture.recorded == 1
    said = capsys.readouterr().err
    assert said.startswith("warning: going on without CUDA graphs, as one could not be recorded: ")
    assert said.count("\n") == 1


@pytest.mark.parametrize("part", ["reward", "behaviour", "slow_critic"])
def test_agent_whose_graph_fails_anywhere_in_an_update_has_done_no_half_of_it(
    captures: list[EmulatedCapture], monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    failing, plain = made_agent("on"), made_agent("off")
    failing._graphed._required = failing.acting._graphed._required = False
    learn, move = agent_module.imagine, agent_module.move_average

    def looks(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            result = real(*arguments)
            torch.ones(()).item()
            return result

        return call

    if part == "reward":
        failing.world_model.loss = looks(failing.world_model.loss)  # type: ignore[method-assign]
    monkeypatch.setattr(agent_module, "imagine", looks(learn) if part == "behaviour" else learn)
    monkeypatch.setattr(
        agent_module, "move_average", looks(move) if part == "slow_critic" else move
    )
    assert_same_updates(failing, plain, range(SETTLING_CALLS + 3), tiny.CONTINUOUS)
    assert (captures[0].recorded, captures[1].recorded) == (0, 1)
    assert captures[1].replayed == 0


def test_agent_and_its_graphs_are_freed_without_the_garbage_collector(
    captures: list[EmulatedCapture],
) -> None:
    agent = made_agent("on")
    for seed in range(SETTLING_CALLS + 2):
        agent.update(made_batch(tiny.CONTINUOUS, seed))
    acted(agent, 2, ["sample"] * (SETTLING_CALLS + 2))
    apart = agent.acting.apart()
    known = [*agent._graphed._known.values(), *agent.acting._graphed._known.values()]
    held = [
        one.recorded.outputs[name]
        for one in known
        if one.recorded
        for name in ("metrics", "action")
        if name in one.recorded.outputs
    ]
    assert len(held) == 2
    gone = [weakref.ref(thing) for thing in (agent, agent.acting, apart, *held)]
    gone += [weakref.ref(parameter) for parameter in agent.world_model.parameters()]
    del known, held
    gc.collect()
    gc.disable()
    try:
        captures.clear()
        del agent, apart
        assert [ref() for ref in gone if ref() is not None] == []
    finally:
        gc.enable()


def test_capture_maker_takes_graphs_where_they_pay_and_says_where_there_are_none() -> None:
    assert capture_maker("auto", "fused", CPU) is None
    assert capture_maker("auto", "fused", CUDA) is not None
    assert capture_maker("auto", "persistent", CUDA) is not None
    assert capture_maker("auto", "reference", CUDA) is None
    assert capture_maker("on", "reference", CUDA) is not None
    assert capture_maker("off", "fused", CUDA) is None
    with pytest.raises(ConfigError, match="cuda_graph on needs a CUDA device, got cpu"):
        capture_maker("on", "reference", CPU)


@pytest.mark.parametrize("placement", ["posterior", "both", "none"])
@pytest.mark.parametrize("action", ACTIONS.values(), ids=ACTIONS)
def test_agent_learns_the_same_bitwise_from_a_graph(
    captures: list[EmulatedCapture], action: ActionSpec, placement: str
) -> None:
    graphed, plain = (made_agent(graph, action, batch_norm=placement) for graph in ("on", "off"))
    assert graphed.graphed
    assert not plain.graphed
    assert_same_updates(graphed, plain, range(SETTLING_CALLS + 4), action)
    assert sorted(capture.replayed for capture in captures) == [0, 4]


@pytest.mark.parametrize(
    "model",
    [
        {"batch_norm_statistics": "running", "batch_norm_update": "step"},
        {"decoder": True, "seen": {"image": tiny.IMAGE}},
        {"action_predictor": False, "unimix": 0.0},
    ],
    ids=str,
)
def test_agent_learns_the_same_from_a_graph_under_every_option(
    captures: list[EmulatedCapture], model: dict[str, Any]
) -> None:
    seen = model.pop("seen", SEEN)
    graphed, plain = (made_agent(graph, seen=seen, **model) for graph in ("on", "off"))
    seeds = range(SETTLING_CALLS + 2)
    assert_same_updates(graphed, plain, seeds, tiny.CONTINUOUS, seen=seen)


@interpreted
@pytest.mark.parametrize(
    ("action", "placement"), [("continuous", "posterior"), ("discrete", "none")]
)
def test_agent_learns_the_same_from_a_graph_of_fused_operations(
    captures: list[EmulatedCapture], action: str, placement: str
) -> None:
    graphed, plain = (
        made_agent(graph, ACTIONS[action], "fused", behaviour={"horizon": 1},
                   batch_norm=placement, **tiny.FEWEST)
        for graph in ("on", "off")
    )  # fmt: skip
    seeds = range(SETTLING_CALLS + 2)
    assert_same_updates(graphed, plain, seeds, ACTIONS[action], rows=2, steps=2)


def test_agent_learns_the_same_from_batches_of_two_shapes(captures: list[EmulatedCapture]) -> None:
    graphed, plain = (made_agent(graph) for graph in ("on", "off"))
    for first, rows in ((0, 3), (10, 2), (20, 3)):
        seeds = range(first, first + SETTLING_CALLS + 2)
        assert_same_updates(graphed, plain, seeds, tiny.CONTINUOUS, rows=rows)
    assert max(capture.recorded for capture in captures) == 2


def test_agent_with_a_graph_goes_on_from_a_state_it_is_given(
    captures: list[EmulatedCapture],
) -> None:
    graphed, plain = (made_agent(graph) for graph in ("on", "off"))
    assert_same_updates(graphed, plain, range(SETTLING_CALLS + 2), tiny.CONTINUOUS)
    file = io.BytesIO()
    torch.save(plain.state_dict(), file)
    assert_same_updates(graphed, plain, range(20, 24), tiny.CONTINUOUS)
    for agent in (graphed, plain):
        file.seek(0)
        agent.load_state_dict(torch.load(file, weights_only=True))
    assert_same_updates(graphed, plain, range(30, 34 + SETTLING_CALLS), tiny.CONTINUOUS)
    assert acted_alike(graphed, plain, 2, ["sample"] * (SETTLING_CALLS + 2))


def acted_alike(one: Agent, other: Agent, rows: int, modes: list[str]) -> bool:
    pairs = zip(acted(one, rows, modes), acted(other, rows, modes), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize(
    ("action", "backend"),
    [
        ("continuous", "reference"),
        ("discrete", "reference"),
        pytest.param("continuous", "fused", marks=interpreted),
    ],
)
def test_agent_acts_the_same_bitwise_from_a_graph(
    captures: list[EmulatedCapture], action: str, backend: str
) -> None:
    spec = ACTIONS[action]
    graphed, plain = (made_agent(graph, spec, backend, **tiny.FEWEST) for graph in ("on", "off"))
    for rows in (1, 5):
        assert acted_alike(graphed, plain, rows, ["sample", "mode", "sample", "mode"] * 2)
    assert max(capture.recorded for capture in captures) == 4
    assert max(capture.replayed for capture in captures) == 4 * (4 - SETTLING_CALLS)


def test_agent_acts_on_weights_that_learning_has_changed(captures: list[EmulatedCapture]) -> None:
    graphed, plain = (made_agent(graph) for graph in ("on", "off"))
    modes = ["sample"] * (SETTLING_CALLS + 1)
    assert acted_alike(graphed, plain, 2, modes)
    for seed in range(SETTLING_CALLS + 2):
        assert_same_updates(graphed, plain, range(seed, seed + 1), tiny.CONTINUOUS)
        assert acted_alike(graphed, plain, 2, modes)


def test_copies_that_act_follow_in_the_graph_that_they_have(
    captures: list[EmulatedCapture],
) -> None:
    graphed, plain = (made_agent(graph) for graph in ("on", "off"))
    apart = [graphed.acting.apart(), plain.acting.apart()]
    data = made_batch(tiny.CONTINUOUS, 0)
    states = [acting.initial_state(3, 0) for acting in apart]
    for seed in range(SETTLING_CALLS + 3):
        for agent, acting in zip((graphed, plain), apart, strict=True):
            agent.update(made_batch(tiny.CONTINUOUS, seed))
            acting.follow(agent.acting)
        found = [
            acting.act({"vector": data["vector"][:, 0]}, data["is_first"][:, 0], state)
            for acting, state in zip(apart, states, strict=True)
        ]
        states = [state for _, state in found]
        assert np.array_equal(found[0][0], found[1][0])
    assert captures[-1].replayed == 3


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["reference", "fused", "persistent"])
@pytest.mark.parametrize("action", ACTIONS.values(), ids=ACTIONS)
def test_agents_with_and_without_a_cuda_graph_learn_alike(action: ActionSpec, backend: str) -> None:
    graphed, plain = (made_agent(graph, action, backend, CUDA) for graph in ("on", "off"))
    for step in range(8):
        batch = made_batch(action, step)
        found, expected = graphed.update(batch), plain.update(batch)
        for metric, value in expected.items():
            limit = ALIKE.absolute + ALIKE.relative * abs(value)
            assert abs(found[metric] - value) <= limit, f"{metric} of update {step}"


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["reference", "fused", "persistent"])
@pytest.mark.parametrize("rows", [1, 5, 64])
def test_agents_with_and_without_a_cuda_graph_act_alike(rows: int, backend: str) -> None:
    graphed, plain = (made_agent(graph, backend=backend, device=CUDA) for graph in ("on", "off"))
    modes = ["sample", "mode", "sample", "mode"] * 2
    for a, b in zip(acted(graphed, rows, modes), acted(plain, rows, modes), strict=True):
        torch.testing.assert_close(a.cpu(), b.cpu(), rtol=ALIKE.relative, atol=ALIKE.absolute)


@pytest.mark.gpu
def test_cuda_capture_records_without_doing_and_replays_in_place() -> None:
    total = torch.zeros(3, device=CUDA)
    given = {"x": torch.ones(3, device=CUDA)}

    def work() -> Tensors:
        total.add_(given["x"])
        return {"double": 2 * total}

    capture = CudaCapture(torch.device("cuda", torch.cuda.current_device()))
    assert capture.settle(work)["double"].tolist() == [2, 2, 2]
    recorded = capture.record(work)
    assert total.tolist() == [1, 1, 1]
    given["x"].fill_(3.0)
    recorded.replay()
    assert recorded.outputs["double"].tolist() == [8, 8, 8]


@pytest.mark.gpu
def test_agents_graph_is_recorded_beside_one_that_acts() -> None:
    agent = made_agent("on", backend="fused", device=CUDA)
    acting = agent.acting.apart()
    state = acting.initial_state(3, 0)
    data = made_batch(tiny.CONTINUOUS, 0)
    with ThreadPoolExecutor(1) as thread:
        learning = [
            thread.submit(agent.update, made_batch(tiny.CONTINUOUS, seed)) for seed in range(8)
        ]
        while not all(job.done() for job in learning):
            seen = {"vector": data["vector"][:, 0]}
            given, state = acting.act(seen, data["is_first"][:, 0], state)
            assert np.isfinite(given).all()
    assert all(np.isfinite(value) for job in learning for value in job.result().values())
