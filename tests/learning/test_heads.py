"""Each head learns a known function of a random feature, down to what no head can foresee."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Categorical, Normal

from mudreamer_fast import reference
from mudreamer_fast.networks import ActionHead, ContinueHead, ScalarHead
from mudreamer_fast.ops.symlog import symexp
from tests import tiny
from tests.learning.training import MARGIN, train
from tests.tolerances import KNOWS_FUNCTION

ACTIONS = 3
FEATURES = 2 * ACTIONS
CONFIG = tiny.model_config(hidden=32, layers=2, bins=41)
STD = 0.3


def features(rows: int) -> tuple[Tensor, Tensor]:
    """Three angles as features (rows, 6) of one length, and known functions (rows, 3) of them."""
    angle = torch.rand(rows, ACTIONS) * 2 * math.pi
    return torch.cat([angle.cos(), angle.sin()], -1), (2 * angle).sin()


@dataclass(frozen=True)
class Task:
    """What a head is to learn; all but `made` are of (known function, target) or the head."""

    made: Callable[[], nn.Module]
    draw: Callable[[Tensor], Tensor]
    """Targets, given the known function (rows, 3)."""
    loss: Callable[[nn.Module, Tensor, Tensor], Tensor]
    """The head's own loss (rows,) on features and targets."""
    least: Callable[[Tensor, Tensor], Tensor]
    """The loss (rows,) of who knows the function."""


def two_hot_entropy(function: Tensor, target: Tensor) -> Tensor:
    """Entropy (rows,) of the two-hot targets: their places on bins that are one apart."""
    upper = 2 * function[:, 0] - (2 * function[:, 0]).floor()
    return torch.special.entr(upper) + torch.special.entr(1 - upper)


SCALAR = Task(
    lambda: ScalarHead(CONFIG, FEATURES, reference),
    lambda function: symexp(2 * function[:, 0]),
    lambda head, feature, target: head.loss(head(feature), target),
    two_hot_entropy,
)
CONTINUE = Task(
    lambda: ContinueHead(CONFIG, FEATURES, reference),
    lambda function: torch.rand(len(function)) > (3 * function[:, 0]).sigmoid(),
    lambda head, feature, is_terminal: head.loss(head(feature), is_terminal),
    lambda function, is_terminal: F.softplus((2.0 * is_terminal - 1.0) * 3 * function[:, 0]),
)
CONTINUOUS = Task(
    lambda: ActionHead(CONFIG, FEATURES, ACTIONS, True, reference),
    lambda function: Normal(function.tanh(), STD).sample(),
    lambda head, feature, action: -head(feature).log_prob(action),
    lambda function, action: -Normal(function.tanh(), STD).log_prob(action).sum(-1),
)
DISCRETE = Task(
    lambda: ActionHead(CONFIG, FEATURES, ACTIONS, False, reference),
    lambda function: F.one_hot(Categorical(logits=3 * function).sample(), ACTIONS).float(),
    lambda head, feature, action: -head(feature).log_prob(action),
    lambda function, action: -((3 * function).log_softmax(-1) * action).sum(-1),
)
TASKS = {
    "reward, value, critic": SCALAR,
    "continue": CONTINUE,
    "continuous action": CONTINUOUS,
    "discrete action": DISCRETE,
}


def excess(task: Task, scrambled: bool = False) -> float:
    """How far above the least the loss on unseen features ends, as a share of the way to it."""
    head = task.made()
    held_out, function = features(4096)
    target = task.draw(function)

    def left() -> float:
        with torch.no_grad():
            over = task.loss(head, held_out, target) - task.least(function, target)
        return over.mean().item()

    def loss() -> Tensor:
        feature, function = features(64)
        return task.loss(head, feature, task.draw(function)).mean()

    before = left()
    train(loss, [head], 300, 5e-3, [head] if scrambled else [])
    return left() / before


@pytest.mark.parametrize("name", TASKS)
def test_head_learns_a_known_function_of_its_feature(name: str) -> None:
    assert excess(TASKS[name]) < KNOWS_FUNCTION


@pytest.mark.parametrize("name", ["reward, value, critic", "discrete action"])
def test_head_with_scrambled_gradients_does_not(name: str) -> None:
    assert excess(TASKS[name], scrambled=True) > MARGIN * KNOWS_FUNCTION
