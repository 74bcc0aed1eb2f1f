"""What an update is predicted to take: what is counted, against what is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mudreamer_fast.agent import Agent
from mudreamer_fast.cli import predict
from mudreamer_fast.cli.predict import Prediction, Work, count
from mudreamer_fast.envs import ArraySpec
from tests import tiny


def made(horizon: int) -> Agent:
    config = tiny.config(behaviour={"horizon": horizon})
    return Agent(config, {"vector": tiny.VECTOR}, tiny.CONTINUOUS, torch.device("cpu"))


def test_count_leaves_the_agent_alone_and_grows_with_the_rollout() -> None:
    agent = made(1)
    before = {name: value.clone() for name, value in agent.world_model.state_dict().items()}
    one, two, three = count(agent), count(made(2)), count(made(3))
    assert two.flops - one.flops == three.flops - two.flops > 0
    assert two.operations > one.operations
    after = agent.world_model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_a_decoder_is_counted() -> None:
    spec = {"image": ArraySpec((3, 64, 64), np.dtype(np.uint8))}
    plain, decoding = (
        Agent(tiny.config(model={"decoder": decoder}), spec, tiny.CONTINUOUS, torch.device("cpu"))
        for decoder in (False, True)
    )
    assert count(decoding).flops > 1.1 * count(plain).flops


def test_prediction_adds_products_and_beginnings() -> None:
    assert Prediction(Work(4_000, 7), 1_000.0, 0.5, 3.0).seconds == 5.5


def test_kernels_in_a_graph_are_fewer_and_closer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predict, "count", lambda agent: Work(0, 1_000))
    monkeypatch.setattr(predict, "flops_per_second", lambda device: 1.0)
    monkeypatch.setattr(predict, "begin_seconds", lambda device: 1e-5)
    agent = made(1)
    plain = predict.predict(agent)
    agent.backend, agent.graphed = "persistent", True
    graphed = predict.predict(agent)
    assert plain.seconds == pytest.approx(1e-2)
    assert graphed.seconds == pytest.approx(110 * 2.3e-6)
