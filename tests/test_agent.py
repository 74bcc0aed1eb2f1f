from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mudreamer_fast.agent import Agent
from mudreamer_fast.envs.vector_env import ActionSpec
from mudreamer_fast.machine.seeds import SeedUse, derived_seed
from tests import tiny
from tests.tolerances import ALIKE, LEARNED_ALIKE, OVERFIT_RATIO, REORDERED, assert_close

CPU = torch.device("cpu")
SEEN = {
    "pixels": {"image": tiny.IMAGE},
    "vector": {"vector": tiny.VECTOR},
    "both": {"image": tiny.IMAGE, "vector": tiny.VECTOR},
}
ACTIONS = {"continuous": tiny.CONTINUOUS, "discrete": tiny.DISCRETE}


@pytest.fixture
def _algorithms_of_real_runs(_surroundings: None) -> None:
    """Repeatability is claimed for runs, which do not ask for deterministic algorithms."""
    torch.set_deterministic_debug_mode("default")


def made_agent(
    seen: str = "vector",
    action: ActionSpec = tiny.CONTINUOUS,
    device: torch.device = CPU,
    seed: int = 0,
    behaviour: dict[str, Any] | None = None,
    **model: Any,
) -> Agent:
    return Agent(tiny.config(model, behaviour, seed), SEEN[seen], action, device)


def made_batch(
    seen: str = "vector", action: ActionSpec = tiny.CONTINUOUS, seed: int = 0, **sizes: int
) -> dict[str, np.ndarray]:
    return tiny.batch(SEEN[seen], action, seed=seed, **sizes)


def flat(state: Any, prefix: str = "") -> dict[str, Any]:
    """Every leaf of a nested state, by its path, as copies."""
    if isinstance(state, dict):
        items = state.items()
    elif isinstance(state, (list, tuple)):
        items = enumerate(state)
    else:
        return {prefix: state.clone() if isinstance(state, Tensor) else state}
    found: dict[str, Any] = {}
    for name, part in items:
        found |= flat(part, f"{prefix}/{name}")
    return found


def differences(one: Agent, other: Agent) -> set[str]:
    """Paths of all that is not bitwise the same in two agents."""
    a, b = flat(one.state_dict()), flat(other.state_dict())
    same = {
        name: torch.equal(a[name], b[name]) if isinstance(a[name], Tensor) else a[name] == b[name]
        for name in a.keys() & b.keys()
    }
    return {name for name, equal in same.items() if not equal} | (a.keys() ^ b.keys())


def stayed(agent: Agent, batch: dict[str, np.ndarray]) -> set[str]:
    """Weights, averages and moments that are after an update what they were before.

    The weights are at random first: before a zero head nothing has a gradient.
    """
    for module in (agent.world_model, agent.behaviour):
        tiny.randomise(module)
    before = flat(agent.state_dict())
    agent.update(batch)
    after = flat(agent.state_dict())
    return {
        name
        for name, value in after.items()
        if isinstance(value, Tensor)
        and torch.equal(value, before.get(name, torch.zeros_like(value)))
    }


def act_steps(agent: Agent, steps: int, mode: str = "sample", rows: int = 3) -> list[np.ndarray]:
    """Actions on a fixed stream of observations, from a fresh state."""
    data = made_batch(rows=rows, steps=steps, action=agent.action_spec)
    state, actions = agent.initial_state(rows), []
    for t in range(steps):
        observation = {name: data[name][:, t] for name in agent.observations}
        action, state = agent.act(observation, data["is_first"][:, t], state, mode)
        actions.append(action)
    return actions


@pytest.mark.usefixtures("_algorithms_of_real_runs")
@pytest.mark.parametrize("action", ACTIONS.values(), ids=ACTIONS)
def test_agent_repeats_itself_bitwise_with_the_same_seed(action: ActionSpec) -> None:
    agents = [made_agent(action=action) for _ in range(2)]
    assert not differences(*agents)
    for i in range(3):
        batch = made_batch(action=action, seed=i)
        torch.manual_seed(i)  # the global generator has no part in it
        first = agents[0].update(batch)
        assert first == agents[1].update(batch)
    assert not differences(*agents)


def test_agent_depends_on_its_seed() -> None:
    assert any("weight" in name for name in differences(made_agent(seed=0), made_agent(seed=1)))


def test_agent_leaves_the_global_generator_alone() -> None:
    before = torch.random.get_rng_state()
    agent = made_agent()
    agent.update(made_batch())
    act_steps(agent, 2)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("seen", SEEN)
@pytest.mark.parametrize("action", ACTIONS.values(), ids=ACTIONS)
@pytest.mark.parametrize("placement", ["posterior", "encoder", "both", "none"])
def test_agent_learns_in_every_part_from_every_kind_of_observation_and_action(
    seen: str, action: ActionSpec, placement: str
) -> None:
    agent = made_agent(seen, action, batch_norm=placement, free_nats=0.0)
    assert stayed(agent, made_batch(seen, action)) == set()


@pytest.mark.parametrize(
    "model",
    [
        {"batch_norm_statistics": "running"},
        {"batch_norm_update": "step"},
        {"batch_norm": "both", "batch_norm_statistics": "running", "batch_norm_update": "step"},
        {"action_predictor": False},
        {"value_predictor": False},
        {"reconstruction": True},
        {"decoder": True},
        {"reconstruction": True, "decoder": True},
        {"unimix": 0.0},
        {"layers": 2},
    ],
    ids=str,
)
def test_agent_learns_in_every_part_under_every_option(model: dict[str, Any]) -> None:
    seen = "pixels" if "decoder" in model else "vector"
    agent = made_agent(seen, free_nats=0.0, **model)
    assert stayed(agent, made_batch(seen)) == set()


@pytest.mark.parametrize(
    ("action", "gradient"), [(tiny.CONTINUOUS, "reinforce"), (tiny.DISCRETE, "dynamics")]
)
def test_agent_learns_with_the_other_actor_gradient(action: ActionSpec, gradient: str) -> None:
    agent = made_agent(action=action, behaviour={"actor_gradient": gradient}, free_nats=0.0)
    assert stayed(agent, made_batch(action=action)) == set()


@pytest.mark.parametrize(
    ("rows", "steps", "expected"),
    [
        (1, 4, {"rssm.posterior_hidden"}),
        (3, 1, {"value", "action"}),
        (1, 1, {"rssm.posterior_hidden", "encoder", "value", "action"}),
    ],
)
def test_agent_learns_what_it_can_from_a_single_sequence_or_step(
    rows: int, steps: int, expected: set[str]
) -> None:
    """A row alone is its own mean: behind batch norm its posterior sees nothing of it. Behind a
    first step there is no action that led there, and before the last none that it is the value of.
    """
    agent = made_agent(free_nats=0.0)
    names = stayed(agent, made_batch(rows=rows, steps=steps))
    weights = {name.removeprefix("/world_model/") for name in names if "optimisers" not in name}
    assert {name for name in weights if not name.startswith(tuple(expected))} == set()
    assert {name for name in expected if any(weight.startswith(name) for weight in weights)} == (
        expected
    )
    assert "rssm.posterior_hidden.norm_bias" not in weights


def test_agent_overfits_one_batch() -> None:
    agent = made_agent("vector", learning_rate=1e-2)
    batch = made_batch("vector")
    losses = [agent.update(batch)["world_model/loss"] for _ in range(60)]
    assert np.mean(losses[-5:]) < OVERFIT_RATIO * losses[0]


@pytest.mark.usefixtures("_algorithms_of_real_runs")
@pytest.mark.parametrize("action", ACTIONS.values(), ids=ACTIONS)
def test_agent_continues_bitwise_from_a_saved_state(action: ActionSpec) -> None:
    straight = made_agent("both", action, decoder=True)
    for seed in range(2):
        straight.update(made_batch("both", action, seed))
    file = io.BytesIO()
    torch.save(straight.state_dict(), file)
    file.seek(0)
    resumed = made_agent("both", action, seed=77, decoder=True)
    assert differences(straight, resumed)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    assert not differences(straight, resumed)
    assert resumed.updates == 2
    for seed in range(2, 4):
        batch = made_batch("both", action, seed)
        assert straight.update(batch) == resumed.update(batch)
    assert not differences(straight, resumed)


@pytest.mark.usefixtures("_algorithms_of_real_runs")
def test_acting_changes_nothing_that_is_learned() -> None:
    busy, idle = made_agent(), made_agent()
    for seed in range(2):
        act_steps(busy, 3)
        assert busy.update(made_batch(seed=seed)) == idle.update(made_batch(seed=seed))
    act_steps(busy, 3)
    assert not differences(busy, idle)


@pytest.mark.parametrize("placement", ["posterior", "encoder", "both"])
def test_agent_running_statistics_move_in_training_only(placement: str) -> None:
    agent = made_agent("both", batch_norm=placement, decoder=True)

    def running() -> dict[str, Tensor]:
        state = agent.world_model.state_dict()
        return {name: state[name].clone() for name in state if "running." in name}

    fresh = running()
    in_encoder, in_rssm = (any(name.startswith(p) for name in fresh) for p in ("encoder", "rssm"))
    assert in_encoder == (placement in ("encoder", "both"))
    assert in_rssm == (placement in ("posterior", "both"))
    state = agent.initial_state(3)
    batch = made_batch("both")
    agent.act({name: batch[name][:, 0] for name in agent.observations}, batch["is_first"][:, 0],
              state)  # fmt: skip
    agent.reconstruct(batch)
    assert all(torch.equal(fresh[name], value) for name, value in running().items())
    agent.update(batch)
    assert not any(torch.equal(fresh[name], value) for name, value in running().items())


@pytest.mark.parametrize("action", ACTIONS.values(), ids=ACTIONS)
def test_acting_gives_bounded_or_one_hot_float32_actions(action: ActionSpec) -> None:
    for mode in ("sample", "mode"):
        for given in act_steps(made_agent(action=action), 5, mode):
            assert given.shape == (3, action.size)
            assert given.dtype == np.float32
            if action.continuous:
                assert np.abs(given).max() <= 1
            else:
                assert set(given.flatten()) == {0.0, 1.0}
                assert (given.sum(1) == 1).all()


@pytest.mark.parametrize("action", ACTIONS.values(), ids=ACTIONS)
@pytest.mark.parametrize("mode", ["sample", "mode"])
def test_acting_repeats_itself_from_the_same_state(action: ActionSpec, mode: str) -> None:
    agent = made_agent(action=action)
    for one, other in zip(act_steps(agent, 4, mode), act_steps(agent, 4, mode), strict=True):
        assert np.array_equal(one, other)


def test_acting_in_evaluation_takes_the_most_likely_action() -> None:
    agent = made_agent(action=tiny.DISCRETE)
    with torch.no_grad():  # a policy that prefers the second action, and seldom takes the others
        agent.behaviour.actor.mlp.out.weight.zero_()
        agent.behaviour.actor.mlp.out.bias.copy_(torch.tensor([0.0, 0.5, 0.0]))
    assert all((given.argmax(1) == 1).all() for given in act_steps(agent, 5, "mode", rows=16))
    drawn = np.concatenate(act_steps(agent, 5, "sample", rows=16)).argmax(1)
    assert set(drawn) == {0, 1, 2}


def test_acting_forgets_the_past_where_an_episode_begins() -> None:
    agent = made_agent()
    data = made_batch(rows=3, steps=2)
    fresh, used = agent.initial_state(3), agent.initial_state(3)
    used.deter += 0.5
    used.action += 0.5
    observation = {"vector": data["vector"][:, 0]}
    is_first = np.array([True, False, True])
    one, _ = agent.act(observation, is_first, fresh, "mode")
    other, _ = agent.act(observation, is_first, used, "mode")
    assert np.array_equal(one[[0, 2]], other[[0, 2]])
    assert not np.array_equal(one[1], other[1])


def test_acting_believes_what_observing_its_own_steps_makes_it_believe() -> None:
    agent, steps = made_agent(), 4
    agent.update(made_batch())  # running statistics away from zero and one
    data = made_batch(rows=3, steps=steps)
    state, actions = agent.initial_state(3), [np.zeros((3, 2), np.float32)]
    for t in range(steps):
        seen = {"vector": data["vector"][:, t]}
        given, state = agent.act(seen, data["is_first"][:, t], state, "mode")
        actions.append(given)
    # The same draws: in evaluation a step takes the latents' uniforms and nothing else.
    draw = torch.Generator().manual_seed(derived_seed(0, SeedUse.ACT))
    groups = agent.config.model.groups
    uniforms = torch.cat([torch.rand(3, 1, groups, generator=draw) for _ in range(steps)], 1)
    world_model = agent.world_model.eval()
    observed = world_model.rssm.observe(
        world_model.encoder({"vector": torch.from_numpy(data["vector"])}),
        torch.from_numpy(np.stack(actions[:-1], 1)),
        torch.from_numpy(data["is_first"]),
        uniforms,
    )
    assert data["is_first"][:, 1:].any()
    assert_close(state.deter, observed.deter[:, -1].detach(), REORDERED)
    assert torch.equal(state.stoch, observed.stoch[:, -1])
    assert np.array_equal(state.action.numpy(), actions[-1])


def test_acting_remembers_the_step_before() -> None:
    agent = made_agent()
    data = made_batch(rows=3, steps=2)
    state = agent.initial_state(3)
    _, state = agent.act({"vector": data["vector"][:, 0]}, np.ones(3, bool), state, "sample")
    going_on, _ = agent.act({"vector": data["vector"][:, 1]}, np.zeros(3, bool), state, "mode")
    again, _ = agent.act({"vector": data["vector"][:, 1]}, np.ones(3, bool), state, "mode")
    assert not np.array_equal(going_on, again)


def changed_parts(one: Agent, other: Agent) -> set[str]:
    """World model, actor or critic, where their weights differ after one update each."""
    batch = made_batch()
    one.update(batch)
    other.update(batch)
    parts = {"world_model", "behaviour/actor", "behaviour/critic"}
    return {part for part in parts if any(f"/{part}" in name for name in differences(one, other))}


def test_agent_actor_loss_moves_the_actor_alone() -> None:
    greedy, curious = (made_agent(behaviour={"entropy_scale": scale}) for scale in (0.0, 1.0))
    assert changed_parts(greedy, curious) == {"behaviour/actor"}


def test_agent_critic_loss_moves_the_critic_alone() -> None:
    free, held = (made_agent(behaviour={"slow_critic_scale": scale}) for scale in (0.0, 1.0))
    for agent in (free, held):  # away from zero, where both targets agree
        torch.manual_seed(0)
        tiny.randomise(agent.behaviour.slow_critic)
    assert changed_parts(free, held) == {"behaviour/critic"}


def test_agent_decoder_leaves_the_world_model_bitwise_as_it_is() -> None:
    plain, decoding = made_agent("pixels"), made_agent("pixels", decoder=True)
    # Building the decoder draws weights, so the rest is copied.
    decoding.world_model.load_state_dict(plain.world_model.state_dict(), strict=False)
    decoding.behaviour.load_state_dict(plain.behaviour.state_dict())
    decoder = {name: w.clone() for name, w in decoding.world_model.decoder.named_parameters()}
    for seed in range(2):
        batch = made_batch("pixels", seed=seed)
        plain.update(batch)
        decoding.update(batch)
    ours, theirs = decoding.world_model.state_dict(), plain.world_model.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    for name, weight in decoding.world_model.decoder.named_parameters():
        assert not torch.equal(weight, decoder[name]), name


def test_agent_slow_networks_follow_at_their_decays() -> None:
    agent = made_agent(slow_value_decay=0.5, behaviour={"slow_critic_decay": 0.75})
    agent.update(made_batch())
    pairs = [
        (agent.world_model.slow_value, agent.world_model.value, 0.5),
        (agent.behaviour.slow_critic, agent.behaviour.critic, 0.25),
    ]
    for slow, fast, share in pairs:  # both outputs began at zero
        expected = share * fast.mlp.out.weight
        assert (expected != 0).any()
        torch.testing.assert_close(slow.mlp.out.weight, expected.detach(), rtol=1e-6, atol=0)


def test_agent_leaves_no_gradients_behind() -> None:
    agent = made_agent("pixels", decoder=True)
    agent.update(made_batch("pixels"))
    parameters = [*agent.world_model.parameters(), *agent.behaviour.parameters()]
    assert all(parameter.grad is None for parameter in parameters)


def test_agent_reconstructs_images_only_with_a_decoder() -> None:
    agent = made_agent("pixels", decoder=True)
    images = agent.reconstruct(made_batch("pixels"))
    assert images.shape == (3, 5, 3, 64, 64)
    assert images.dtype == np.uint8
    with pytest.raises(ValueError, match="no decoder"):
        made_agent("pixels").reconstruct(made_batch("pixels"))


def test_agent_counts_its_trained_parameters_by_part() -> None:
    agent = made_agent("pixels", decoder=True)
    trained = [
        parameter
        for module in (agent.world_model, agent.behaviour)
        for parameter in module.parameters()
        if parameter.requires_grad
    ]
    assert sum(agent.parameter_counts().values()) == sum(p.numel() for p in trained)


def assert_backends_learn_alike(
    updates: int,
    action: str,
    gradient: str,
    model: dict[str, Any] | None = None,
    horizon: int = 3,
    **sizes: int,
) -> None:
    """Every metric of every update and all that was learned in them, from the same beginnings."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    metrics: dict[str, list[dict[str, float]]] = {}
    before: dict[str, Any] = {}
    after: dict[str, dict[str, Any]] = {}
    for name in ("reference", "fused"):
        behaviour = {"actor_gradient": gradient, "horizon": horizon}
        settings = tiny.config(model, behaviour)
        settings = replace(settings, train=replace(settings.train, backend=name))
        agent = Agent(settings, SEEN["vector"], ACTIONS[action], device)
        assert agent.backend == name
        before = flat(agent.state_dict())
        metrics[name] = [
            agent.update(made_batch(action=ACTIONS[action], seed=seed, **sizes))
            for seed in range(updates)
        ]
        after[name] = flat(agent.state_dict())
    for step, (fused, reference) in enumerate(
        zip(metrics["fused"], metrics["reference"], strict=True)
    ):
        for metric, value in reference.items():
            limit = ALIKE.absolute + ALIKE.relative * abs(value)
            assert abs(fused[metric] - value) <= limit, f"{metric} of update {step}"
    assert after["fused"].keys() == after["reference"].keys()
    for name, expected in after["reference"].items():
        found = after["fused"][name]
        if not isinstance(expected, Tensor) or not expected.is_floating_point():
            assert (
                torch.equal(found, expected) if isinstance(expected, Tensor) else found == expected
            )
            continue
        # From where it began: what was learned is small beside the weights.
        start = before.get(name, torch.zeros_like(expected)).double()
        learned, difference = (expected - start).norm().item(), (found - expected).norm().item()
        assert difference <= LEARNED_ALIKE * learned, name


@pytest.mark.parametrize(
    ("action", "gradient"),
    [("continuous", "dynamics"), ("continuous", "reinforce"), ("discrete", "reinforce")],
)
def test_agents_on_either_backend_learn_alike(action: str, gradient: str) -> None:
    # The interpreter takes seconds for an update of this size.
    assert_backends_learn_alike(50 if torch.cuda.is_available() else 2, action, gradient)


def test_agents_on_either_backend_learn_alike_over_twenty_updates() -> None:
    assert_backends_learn_alike(
        20, "continuous", "dynamics", tiny.FEWEST, horizon=1, rows=2, steps=2
    )


@pytest.mark.gpu
@pytest.mark.parametrize("action", ACTIONS.values(), ids=ACTIONS)
def test_agent_learns_acts_and_resumes_on_a_gpu(action: ActionSpec) -> None:
    device = torch.device("cuda")
    agent = made_agent("both", action, device, decoder=True)
    batch = made_batch("both", action)
    weights = [*agent.world_model.trained_parameters(), *agent.behaviour.actor.parameters()]
    before = [weight.detach().clone() for weight in weights]
    agent.update(batch)
    moved = [not torch.equal(*pair) for pair in zip(weights, before, strict=True)]
    assert sum(moved) > len(moved) / 2  # before a zero head nothing moves
    file = io.BytesIO()
    torch.save(agent.state_dict(), file)
    file.seek(0)
    resumed = made_agent("both", action, device, seed=77, decoder=True)
    resumed.load_state_dict(torch.load(file, map_location=device, weights_only=True))
    assert not differences(agent, resumed)
    state = agent.initial_state(3)
    seen = {name: batch[name][:, 0] for name in agent.observations}
    given, _ = agent.act(seen, batch["is_first"][:, 0], state)
    assert given.shape == (3, action.size)


def test_agent_update_names_what_is_wrong_with_a_batch() -> None:
    agent, batch = made_agent(), made_batch()
    lacking = {name: array for name, array in batch.items() if name != "reward"}
    with pytest.raises(ValueError, match="lacks reward"):
        agent.update(lacking)
    with pytest.raises(ValueError, match=r"action must have shape .* got"):
        agent.update({**batch, "action": batch["action"][:, :-1]})
