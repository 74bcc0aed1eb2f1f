from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from mudreamer_fast import reference
from mudreamer_fast.ops.signatures import Observed
from mudreamer_fast.world_model import WorldModel
from tests import tiny
from tests.tolerances import HAND, PLAIN_LOOP, assert_close

F64 = torch.float64
ROWS, STEPS = 3, 5
DISCOUNT, LAM = 0.9, 0.7


def made_model(continuous: bool = True, pixels: bool = False, **overrides: Any) -> WorldModel:
    """A float64 model with random weights everywhere, its slow value head included."""
    action = tiny.CONTINUOUS if continuous else tiny.DISCRETE
    shapes = {"vector": tiny.VECTOR.shape} | ({"image": tiny.IMAGE.shape} if pixels else {})
    model = WorldModel(
        tiny.model_config(**overrides),
        tiny.behaviour_config(discount=DISCOUNT, lam=LAM),
        shapes,
        action.size,
        continuous,
        reference,
    ).double()
    tiny.randomise(model)
    return model


def made_batch(continuous: bool = True, pixels: bool = False, steps: int = STEPS) -> dict[str, Any]:
    observation = {"vector": tiny.VECTOR} | ({"image": tiny.IMAGE} if pixels else {})
    action = tiny.CONTINUOUS if continuous else tiny.DISCRETE
    return tiny.tensors(tiny.batch(observation, action, ROWS, steps))


def made_uniforms(model: WorldModel, steps: int = STEPS) -> Tensor:
    draw = torch.Generator().manual_seed(5)
    return torch.rand(ROWS, steps, model.config.groups, generator=draw, dtype=F64)


def metrics(model: WorldModel, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    steps = batch["is_first"].shape[1]
    found = model.loss(batch, made_uniforms(model, steps)).metrics
    return {name: value.detach() for name, value in found.items()}


def beliefs(model: WorldModel, batch: dict[str, Tensor]) -> tuple[Observed, Tensor, Tensor]:
    """The posterior along the batch, its features, and the embeddings."""
    embed = model.encoder(batch)
    uniforms = made_uniforms(model, batch["is_first"].shape[1])
    seen = model.rssm.observe(embed, batch["action"], batch["is_first"], uniforms)
    return seen, seen.state.feature.detach(), embed.detach()


def cross_entropy(logits: Tensor, target: float) -> float:
    """To a two-hot vector over 21 bins, which are 2 apart in symlog space."""
    log_probs = (logits - logits.exp().sum().log()).tolist()
    y = math.copysign(math.log1p(abs(target)), target)
    k = math.floor((y + 20) / 2)
    above = (y + 20) / 2 - k
    return -(1 - above) * log_probs[k] - above * log_probs[k + 1]


def test_world_model_value_loss_is_the_cross_entropy_to_returns_within_each_episode() -> None:
    model, batch = made_model(), made_batch()
    _, feature, _ = beliefs(model, batch)
    logits = model.value(feature).detach()
    bootstrap = model.slow_value.mean(model.slow_value(feature)).tolist()
    reward, first, terminal = (
        batch[name].tolist() for name in ("reward", "is_first", "is_terminal")
    )
    losses = []
    for row in range(ROWS):
        future = bootstrap[row][-1]
        for t in reversed(range(STEPS - 1)):
            if first[row][t + 1]:  # nothing to learn here, and the value is all that goes on
                future = bootstrap[row][t]
                continue
            mixed = (1 - LAM) * bootstrap[row][t + 1] + LAM * future
            goes_on = 0.0 if terminal[row][t + 1] else 1.0
            future = reward[row][t + 1] + DISCOUNT * goes_on * mixed
            losses.append(cross_entropy(logits[row, t], future))
    assert len(losses) == ROWS * (STEPS - 1) - 2
    expected = torch.tensor(sum(losses) / len(losses), dtype=F64)
    assert_close(metrics(model, batch)["loss_value"], expected, HAND)


def test_world_model_value_loss_ignores_rewards_of_first_steps() -> None:
    model, batch = made_model(), made_batch()
    before = metrics(model, batch)
    batch["reward"][batch["is_first"]] += 100.0
    after = metrics(model, batch)
    assert torch.equal(before["loss_value"], after["loss_value"])
    assert not torch.equal(before["loss_reward"], after["loss_reward"])


def test_world_model_value_loss_sends_no_gradient_to_the_slow_head() -> None:
    model, batch = made_model(), made_batch()
    assert not any(parameter.requires_grad for parameter in model.slow_value.parameters())
    model.slow_value.requires_grad_(True)
    loss = model.loss(batch, made_uniforms(model)).total
    gradients = torch.autograd.grad(loss, list(model.slow_value.parameters()), allow_unused=True)
    assert all(gradient is None for gradient in gradients)


def test_world_model_has_no_value_loss_on_single_steps() -> None:
    model, batch = made_model(), made_batch(steps=1)
    found = metrics(model, batch)
    assert found["loss_value"] == 0
    assert found["loss_action"] == 0  # every step is a first one
    divergence = found["loss_dynamics"]  # above the free nats both terms are the same number
    rest = found["loss_reward"] + found["loss_continue"]
    assert_close(found["loss"], rest + (0.95 + 0.05) * divergence, HAND)


@pytest.mark.parametrize("continuous", [True, False])
def test_world_model_action_loss_predicts_what_led_here_from_features_and_the_state_before(
    continuous: bool,
) -> None:
    model, batch = made_model(continuous), made_batch(continuous)
    _, feature, embed = beliefs(model, batch)
    losses = []
    for row in range(ROWS):
        for t in range(STEPS):
            if batch["is_first"][row, t]:
                continue
            out = model.action.mlp(torch.cat([embed[row, t], feature[row, t - 1]]))
            action = batch["action"][row, t]
            if continuous:
                mean, std = out.chunk(2)
                normal = torch.distributions.Normal(mean.tanh(), 0.9 * (std + 2).sigmoid() + 0.1)
                losses.append(-normal.log_prob(action).sum())
            else:
                probs = 0.99 * out.softmax(-1) + 0.01 / 3
                losses.append(-probs[int(action.argmax())].log())
    assert len(losses) == ROWS * STEPS - 5
    expected = torch.stack(losses).mean().detach()
    assert_close(metrics(model, batch)["loss_action"], expected, HAND)


def test_world_model_loss_leaves_out_the_actions_of_first_steps() -> None:
    model, batch = made_model(), made_batch()
    before = metrics(model, batch)
    batch["action"][batch["is_first"]] = 0.77
    after = metrics(model, batch)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_world_model_without_action_predictor_has_neither_loss_nor_parameters_for_it() -> None:
    model, batch = made_model(action_predictor=False), made_batch()
    assert model.action is None
    assert metrics(model, batch)["loss_action"] == 0


def test_world_model_reward_and_continue_losses_are_means_over_all_steps() -> None:
    model, batch = made_model(), made_batch()
    _, feature, _ = beliefs(model, batch)
    logits = model.reward(feature).detach()
    reward = [
        cross_entropy(logits[row, t], batch["reward"][row, t].item())
        for row in range(ROWS)
        for t in range(STEPS)
    ]
    goes_on = 1 / (1 + torch.exp(-model.cont(feature)))
    likelihood = torch.where(batch["is_terminal"], 1 - goes_on, goes_on)
    found = metrics(model, batch)
    mean = torch.tensor(sum(reward) / len(reward), dtype=F64)
    assert_close(found["loss_reward"], mean, HAND)
    assert_close(found["loss_continue"], -likelihood.log().mean().detach(), HAND)


@pytest.mark.parametrize("free_nats", [0.0, 2.1])
def test_world_model_kl_is_held_at_the_free_nats_step_by_step(free_nats: float) -> None:
    model, batch = made_model(free_nats=free_nats), made_batch()
    seen, _, _ = beliefs(model, batch)
    q, p = (0.99 * logits.softmax(-1) + 0.01 / 5 for logits in (seen.posterior, seen.prior))
    kl = (q * (q / p).log()).sum((-2, -1)).detach()
    assert kl.min() < 2.1 < kl.max()  # else the bound would not show
    found = metrics(model, batch)
    assert_close(found["kl"], kl.mean(), HAND)
    assert_close(found["loss_dynamics"], kl.clamp(min=free_nats).mean(), HAND)


def test_world_model_loss_is_the_weighted_sum_of_its_parts() -> None:
    scales = {"prediction_scale": 0.3, "dynamics_scale": 0.7, "representation_scale": 0.11}
    found = metrics(made_model(**scales), made_batch())
    predictions = sum(found[f"loss_{name}"] for name in ("reward", "continue", "value", "action"))
    # Both KL terms have the same value; only their gradients differ.
    expected = 0.3 * predictions + (0.7 + 0.11) * found["loss_dynamics"]
    assert_close(found["loss"], expected, HAND)


def kl_gradients(dynamics: float, representation: float, free_nats: float) -> dict[str, bool]:
    """Which parameters have any gradient from the KL alone, on sequences of one step.

    In longer ones the prior also reaches earlier posteriors, through the recurrent state.
    """
    model = made_model(
        prediction_scale=0.0,
        dynamics_scale=dynamics,
        representation_scale=representation,
        free_nats=free_nats,
    )
    model.loss(made_batch(steps=1), made_uniforms(model, 1)).total.backward()
    return {
        name: parameter.grad is not None and bool((parameter.grad != 0).any())
        for name, parameter in model.named_parameters()
    }


def test_world_model_dynamics_loss_moves_the_prior_and_not_the_posterior() -> None:
    moved = kl_gradients(1.0, 0.0, free_nats=0.0)
    assert moved["rssm.prior_hidden.weight"]
    assert moved["rssm.prior_out.weight"]
    assert moved["rssm.gru.weight"]
    still = [name for name in moved if "posterior" in name or name.startswith("encoder")]
    assert still
    assert not any(moved[name] for name in still)


def test_world_model_representation_loss_moves_the_posterior_and_not_the_prior() -> None:
    moved = kl_gradients(0.0, 1.0, free_nats=0.0)
    assert moved["rssm.posterior_hidden.weight"]
    assert moved["rssm.posterior_out.weight"]
    assert moved["encoder.vector.weights.0"]
    assert not any(moved[name] for name in moved if "prior_" in name)


def test_world_model_kl_below_the_free_nats_moves_nothing() -> None:
    assert not any(kl_gradients(1.0, 1.0, free_nats=1e3).values())


def test_world_model_kl_gradients_balance_by_their_weights() -> None:
    # The gradient of the sum is the sum of the gradients of the two halves.
    def gradient(dynamics: float, representation: float) -> Tensor:
        torch.manual_seed(1)
        model = made_model(
            prediction_scale=0.0, dynamics_scale=dynamics, representation_scale=representation
        )
        total = model.loss(made_batch(), made_uniforms(model)).total
        return torch.autograd.grad(total, model.rssm.gru.weight)[0]

    assert_close(
        gradient(0.95, 0.05), 0.95 * gradient(1.0, 0.0) + 0.05 * gradient(0.0, 1.0), PLAIN_LOOP
    )


def test_world_model_decoder_teaches_the_world_model_nothing() -> None:
    model = made_model(pixels=True, decoder=True)
    loss = model.loss(made_batch(pixels=True), made_uniforms(model))
    trained = model.trained_parameters()
    gradients = torch.autograd.grad(
        loss.decoder, trained, allow_unused=True, retain_graph=True, materialize_grads=False
    )
    assert all(gradient is None for gradient in gradients)
    own = list(model.decoder.parameters())
    assert all((grad != 0).any() for grad in torch.autograd.grad(loss.decoder, own))
    # Nor is it part of the world model's loss.
    into = torch.autograd.grad(
        model.loss(made_batch(pixels=True), made_uniforms(model)).total, own, allow_unused=True
    )
    assert all(gradient is None for gradient in into)


@pytest.mark.parametrize("pixels", [True, False])
def test_world_model_that_reconstructs_learns_from_what_it_sees_alone(pixels: bool) -> None:
    """Without another teacher the encoder learns to tell what the decoder is to draw."""
    model = made_model(
        pixels=pixels, reconstruction=True, value_predictor=False, action_predictor=False
    )
    batch, uniforms = made_batch(pixels=pixels), made_uniforms(model)
    loss = model.loss(batch, uniforms)
    assert loss.decoder is None
    assert loss.metrics["loss_value"] == loss.metrics["loss_action"] == 0
    part = model.decoder if pixels else model.vector_decoder
    assert {name.split(".")[0] for name, _ in model.named_parameters()}.isdisjoint(
        ("value", "slow_value", "action")
    )
    trained = {id(parameter) for parameter in model.trained_parameters()}
    assert all(id(parameter) in trained for parameter in part.parameters())
    reached = torch.autograd.grad(
        loss.metrics["loss_decoder"],
        [*model.encoder.parameters(), *part.parameters()],
        retain_graph=True,
    )
    assert all((gradient != 0).any() for gradient in reached)
    parts = ("reward", "continue", "decoder")
    expected = (
        sum(loss.metrics[f"loss_{name}"] for name in parts)
        + (model.config.dynamics_scale + model.config.representation_scale)
        * loss.metrics["loss_dynamics"]
    )
    torch.testing.assert_close(loss.total, expected)


def test_world_model_trains_all_but_the_decoder_and_the_slow_value_head() -> None:
    model = made_model(pixels=True, decoder=True)
    trained = {id(parameter) for parameter in model.trained_parameters()}
    names = {name for name, parameter in model.named_parameters() if id(parameter) not in trained}
    assert names == {
        name for name in dict(model.named_parameters()) if name.split(".")[0] in
        ("decoder", "slow_value")
    }  # fmt: skip
    total = model.loss(made_batch(pixels=True), made_uniforms(model)).total
    gradients = torch.autograd.grad(total, model.trained_parameters(), allow_unused=True)
    assert all(gradient is not None for gradient in gradients)


@pytest.mark.parametrize("collapsed", [True, False])
def test_world_model_metrics_show_a_collapse(collapsed: bool) -> None:
    model, batch = made_model(), made_batch()
    if collapsed:
        batch["vector"][:] = batch["vector"][0, 0].clone()
    spread = metrics(model, batch)["feature_std"].item()
    assert (spread < 1e-12) is collapsed
