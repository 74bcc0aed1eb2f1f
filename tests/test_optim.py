from __future__ import annotations

import copy
import math
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mudreamer_fast import optim
from mudreamer_fast.optim import ClippedAdam, move_average
from tests.tolerances import FUSED_ADAM, HAND, assert_close


def quadratic(parameters: list[nn.Parameter]) -> Tensor:
    return sum((parameter.square() * (i + 1)).sum() for i, parameter in enumerate(parameters))


def two_parameters() -> list[nn.Parameter]:
    torch.manual_seed(7)
    return [nn.Parameter(torch.randn(5, 3)), nn.Parameter(torch.randn(7))]


@pytest.mark.parametrize("clip_norm", [0.5, 1e3], ids=["clipped", "free"])
def test_clipped_adam_is_adam_on_gradients_scaled_by_hand(clip_norm: float) -> None:
    ours, theirs = two_parameters(), two_parameters()
    optimiser = ClippedAdam(ours, learning_rate=0.1, eps=1e-3, clip_norm=clip_norm)
    adam = torch.optim.Adam(theirs, lr=0.1, eps=1e-3, foreach=False, fused=False)
    for _ in range(3):
        reported = optimiser.step(quadratic(ours))
        adam.zero_grad()
        quadratic(theirs).backward()
        norm = torch.stack([p.grad.square().sum() for p in theirs]).sum().sqrt()
        assert (norm > clip_norm) == (clip_norm < 1)  # else the two cases would be one
        for parameter in theirs:
            parameter.grad *= min(1.0, clip_norm / norm.item())
        adam.step()
        assert_close(reported, norm, FUSED_ADAM)
        for mine, other in zip(ours, theirs, strict=True):
            assert_close(mine.detach(), other.detach(), FUSED_ADAM)


def test_clipped_adam_applies_a_gradient_in_any_memory_layout_to_the_right_weights() -> None:
    torch.manual_seed(8)
    mine = nn.Parameter(torch.randn(5, 3, 4, 2))
    other = nn.Parameter(mine.detach().clone())
    optimiser = ClippedAdam([mine], learning_rate=0.1, eps=1e-3, clip_norm=1e9)
    adam = torch.optim.Adam([other], lr=0.1, eps=1e-3, foreach=False, fused=False)
    gradient = torch.randn(5, 3, 4, 2)
    strided = torch.empty(5, 3, 4, 5)[..., 1::2].copy_(gradient)
    for laid_out in (
        gradient.to(memory_format=torch.channels_last),
        gradient.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0),
        strided,
        torch.ones(()).expand(5, 3, 4, 2),
    ):
        assert laid_out.stride() != mine.stride()
        optimiser.apply([laid_out])
        other.grad = laid_out.clone(memory_format=torch.contiguous_format)
        adam.step()
        assert_close(mine.detach(), other.detach(), FUSED_ADAM)


def test_clipped_adam_copies_no_gradient_that_lies_as_its_parameter_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    contiguous = nn.Parameter(torch.randn(5, 3, 4, 2))
    channels_last = nn.Parameter(torch.randn(5, 3, 4, 2).to(memory_format=torch.channels_last))
    gradients = [torch.randn_like(contiguous), torch.randn_like(channels_last)]
    optimiser = ClippedAdam([contiguous, channels_last], 0.1, 1e-8, 1e9)
    seen: list[int] = []
    step = optim.adam

    def look(parameters: list[Tensor], gradients: list[Tensor], *rest: Any, **named: Any) -> None:
        seen.extend(gradient.data_ptr() for gradient in gradients)
        step(parameters, gradients, *rest, **named)

    monkeypatch.setattr(optim, "adam", look)
    optimiser.apply(gradients)
    assert seen == [gradient.data_ptr() for gradient in gradients]


def test_clipped_adam_first_step_is_the_learning_rate_against_the_gradients_sign() -> None:
    parameter = nn.Parameter(torch.tensor([2.0, -3.0]))
    # Bias-corrected moments after one step are g and g^2: each moves by lr g / (|g| + eps).
    ClippedAdam([parameter], 0.1, eps=1e-12, clip_norm=1e9).step(parameter.square().sum())
    assert_close(parameter.detach(), torch.tensor([1.9, -2.9]), FUSED_ADAM)


def test_clipped_adam_moves_its_own_parameters_only_and_leaves_no_gradients() -> None:
    mine, other, unused = (nn.Parameter(torch.ones(3)) for _ in range(3))
    optimiser = ClippedAdam([mine, unused], 0.1, 1e-8, 1.0)
    optimiser.step((mine * other).sum())
    assert (mine != 1).all()
    assert (unused == 1).all()
    assert (other == 1).all()
    assert mine.grad is None
    assert unused.grad is None
    assert other.grad is None


def test_clipped_adam_continues_from_a_saved_state() -> None:
    straight, resumed = two_parameters(), two_parameters()
    one = ClippedAdam(straight, 0.1, 1e-8, 1.0)
    one.step(quadratic(straight))
    with torch.no_grad():
        for twin, parameter in zip(resumed, straight, strict=True):
            twin.copy_(parameter)
    two = ClippedAdam(resumed, 0.1, 1e-8, 1.0)
    two.load_state_dict(copy.deepcopy(one.state_dict()))  # as a file would hold it
    for _ in range(2):
        one.step(quadratic(straight))
        two.step(quadratic(resumed))
    assert all(torch.equal(a, b) for a, b in zip(straight, resumed, strict=True))


def test_clipped_adam_goes_on_from_the_state_of_pytorchs_own() -> None:
    ours, theirs = two_parameters(), two_parameters()
    adam = torch.optim.Adam(theirs, lr=0.1, eps=1e-3, fused=True)
    quadratic(theirs).backward()
    adam.step()
    optimiser = ClippedAdam(ours, 0.1, eps=1e-3, clip_norm=1e9)
    optimiser.load_state_dict(copy.deepcopy(adam.state_dict()))
    with torch.no_grad():
        for mine, other in zip(ours, theirs, strict=True):
            mine.copy_(other)
    adam.zero_grad()
    quadratic(theirs).backward()
    adam.step()
    optimiser.step(quadratic(ours))
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    found, expected = optimiser.state_dict()["state"], adam.state_dict()["state"]
    assert found.keys() == expected.keys()
    for number, moments in expected.items():
        assert found[number].keys() == moments.keys()
        assert all(torch.equal(found[number][name], value) for name, value in moments.items())


def test_clipped_adam_lays_loaded_moments_out_as_its_parameters() -> None:
    channels_last = nn.Parameter(torch.randn(5, 3, 4, 2).to(memory_format=torch.channels_last))
    optimiser = ClippedAdam([channels_last], 0.1, 1e-8, 1e9)
    moments = torch.randn(5, 3, 4, 2)
    state = {"step": torch.tensor(3.0), "exp_avg": moments, "exp_avg_sq": moments.square()}
    group = {"params": [0]}
    optimiser.load_state_dict({"state": {0: state}, "param_groups": [group]})
    taken = optimiser.state[channels_last]
    for name in ("exp_avg", "exp_avg_sq"):
        assert taken[name].stride() == channels_last.stride()
        assert torch.equal(taken[name], state[name])
        assert taken[name].data_ptr() != state[name].data_ptr()
    state["exp_avg"] = moments[:1]
    with pytest.raises(ValueError, match=r"exp_avg of parameter 0 has shape \(1, 3, 4, 2\), expec"):
        optimiser.load_state_dict({"state": {0: state}, "param_groups": [group]})
    with pytest.raises(ValueError, match="moments of 2 parameters, expected 1"):
        optimiser.load_state_dict({"state": {}, "param_groups": [{"params": [0, 1]}]})
    assert optimiser.state[channels_last] is taken


def test_an_update_does_not_import_pytorchs_compiler() -> None:
    """It would take 2 seconds of every start."""
    program = (
        "import sys, torch; from mudreamer_fast.optim import ClippedAdam\n"
        "weight = torch.nn.Parameter(torch.ones(3)); adam = ClippedAdam([weight], 0.1, 1e-8, 1.0)\n"
        "adam.step(weight.sum()); adam.load_state_dict(adam.state_dict())\n"
        "assert 'torch._dynamo' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_move_average_keeps_the_share_of_the_past() -> None:
    slow, fast = nn.Linear(3, 2).double(), nn.Linear(3, 2).double()
    slow.requires_grad_(False)
    before = [parameter.clone() for parameter in slow.parameters()]
    fast_before = [parameter.clone() for parameter in fast.parameters()]
    move_average(slow, fast, decay=0.98)
    for new, old, other in zip(slow.parameters(), before, fast.parameters(), strict=True):
        assert_close(new, 0.98 * old + 0.02 * other.detach(), HAND)
    assert all(torch.equal(a, b) for a, b in zip(fast.parameters(), fast_before, strict=True))
    assert not any(parameter.requires_grad for parameter in slow.parameters())


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_clipped_adam_takes_no_step_where_a_gradient_is_not_finite(bad: float) -> None:
    parameters = two_parameters()
    optimiser = ClippedAdam(parameters, learning_rate=0.1, eps=1e-3, clip_norm=1.0)
    optimiser.step(quadratic(parameters))
    before = copy.deepcopy((parameters, optimiser.state_dict()["state"]))
    gradients = [torch.ones_like(parameter) for parameter in parameters]
    gradients[1][3] = bad
    assert not optimiser.apply(gradients).isfinite()
    for now, then in zip(parameters, before[0], strict=True):
        assert torch.equal(now, then)
    for now, then in zip(optimiser.state_dict()["state"].values(), before[1].values(), strict=True):
        assert now.keys() == then.keys()
        assert all(torch.equal(now[name], then[name]) for name in now)
    optimiser.step(quadratic(parameters))  # and the next one is taken
    assert not torch.equal(parameters[0], before[0][0])
