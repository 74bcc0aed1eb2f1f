from __future__ import annotations

from typing import Any

import pytest
import torch

from mudreamer_fast.reference import rssm_imagine
from tests import tiny
from tests.reference import plain_rssm
from tests.tolerances import HAND, PLAIN_LOOP, assert_close

F64 = torch.float64
DETER, HIDDEN, ACTION, GROUPS, CLASSES = 5, 7, 2, 3, 4


def imagine_arguments(
    rows: int, horizon: int, continuous: bool, through_dynamics: bool = True
) -> dict[str, Any]:
    stoch = torch.eye(CLASSES, dtype=F64)[torch.randint(CLASSES, (rows, GROUPS))]
    noise = (
        torch.randn(rows, horizon, ACTION, dtype=F64)
        if continuous
        else torch.rand(rows, horizon, 1, dtype=F64)
    )
    outputs = 2 * ACTION if continuous else ACTION
    return {
        "deter": torch.randn(rows, DETER, dtype=F64, requires_grad=True),
        "stoch": stoch.requires_grad_(True),
        "weights": tiny.rssm_weights(DETER, HIDDEN, 1, ACTION, GROUPS, CLASSES),
        "actor": tiny.mlp_weights(DETER + GROUPS * CLASSES, HIDDEN, 2, outputs),
        "uniforms": torch.rand(rows, horizon, GROUPS, dtype=F64),
        "action_noise": noise,
        "continuous": continuous,
        "through_dynamics": through_dynamics,
        "unimix": 0.01,
        "eps": 1e-3,
    }


@pytest.mark.parametrize("continuous", [True, False])
@pytest.mark.parametrize("through_dynamics", [True, False])
@pytest.mark.parametrize(("rows", "horizon"), [(5, 4), (1, 1)])
def test_rssm_imagine_matches_the_plain_loop_in_every_output_and_gradient(
    continuous: bool, through_dynamics: bool, rows: int, horizon: int
) -> None:
    arguments = imagine_arguments(rows, horizon, continuous, through_dynamics)
    plain = plain_rssm.imagine(**arguments)
    ours = rssm_imagine(**arguments)._asdict()
    assert ours.keys() == plain.keys()
    for name in plain:
        assert_close(ours[name].detach(), plain[name].detach(), PLAIN_LOOP, name)

    actor = tiny.named_tensors(arguments["actor"])
    for name in plain:  # one output at a time: each has its own path to the actor
        if not ours[name].requires_grad:
            assert not through_dynamics, name
            continue
        direction = torch.randn_like(plain[name])
        # States before the first action are constants.
        expected, gradients = (
            torch.autograd.grad(
                (outputs[name] * direction).sum(), actor.values(), retain_graph=True
            )
            for outputs in (plain, ours)
        )
        for part, ours_grad, plain_grad in zip(actor, gradients, expected, strict=True):
            assert_close(ours_grad, plain_grad, PLAIN_LOOP, f"{name} to {part}")


@pytest.mark.parametrize("continuous", [True, False])
def test_rssm_imagine_carries_a_gradient_to_actions_only_when_asked(continuous: bool) -> None:
    for through_dynamics in (True, False):
        rollout = rssm_imagine(**imagine_arguments(3, 2, continuous, through_dynamics))
        assert rollout.deter.requires_grad is through_dynamics
        assert rollout.stoch.requires_grad is through_dynamics
        assert rollout.action.requires_grad is through_dynamics
        assert rollout.policy.requires_grad


def test_rssm_imagine_sends_no_gradient_to_the_starts_or_the_world_model() -> None:
    arguments = imagine_arguments(3, 4, continuous=True)
    rollout = rssm_imagine(**arguments)
    loss = sum(output.square().sum() for output in rollout)
    parts = tiny.named_tensors(arguments["weights"])
    parts |= {"deter": arguments["deter"], "stoch": arguments["stoch"]}
    gradients = torch.autograd.grad(loss, parts.values(), allow_unused=True)
    assert {name for name, grad in zip(parts, gradients, strict=True) if grad is not None} == set()


def test_rssm_imagine_begins_with_its_starts() -> None:
    arguments = imagine_arguments(5, 3, continuous=True)
    rollout = rssm_imagine(**arguments)
    assert torch.equal(rollout.deter[:, 0], arguments["deter"])
    assert torch.equal(rollout.stoch[:, 0], arguments["stoch"])
    assert rollout.deter.shape == (5, 4, DETER)
    assert rollout.action.shape == (5, 3, ACTION)


def test_rssm_imagine_of_many_steps_equals_single_steps_from_carried_states() -> None:
    arguments = imagine_arguments(5, 4, continuous=False)
    whole = rssm_imagine(**arguments)
    state = {"deter": arguments["deter"], "stoch": arguments["stoch"]}
    for t in range(4):
        now = {name: arguments[name][:, t : t + 1] for name in ("uniforms", "action_noise")}
        step = rssm_imagine(**(arguments | now | state))
        for name in ("deter", "stoch"):
            state[name] = getattr(step, name)[:, 1]
            assert_close(state[name], getattr(whole, name)[:, t + 1], HAND, name)
        assert_close(step.policy[:, 0], whole.policy[:, t], HAND)
        assert torch.equal(step.action[:, 0], whole.action[:, t])


def test_rssm_imagine_bounds_actions_only_on_their_way_into_the_model() -> None:
    arguments = imagine_arguments(5, 1, continuous=True)
    arguments["action_noise"] += 10.0
    rollout = rssm_imagine(**arguments)
    assert (rollout.action > 1).all()  # as drawn
    expected = plain_rssm.recur(
        arguments["deter"],
        arguments["stoch"],
        torch.ones_like(rollout.action[:, 0]),
        arguments["weights"],
        1e-3,
    )
    assert_close(rollout.deter[:, 1].detach(), expected.detach(), HAND)
