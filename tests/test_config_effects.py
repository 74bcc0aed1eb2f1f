"""Every setting of model and behaviour changes what is learned, and only where it should."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from mudreamer_fast import reference
from mudreamer_fast.agent import Agent
from mudreamer_fast.config import BehaviourConfig, ModelConfig
from mudreamer_fast.envs.vector_env import ActionSpec
from mudreamer_fast.world_model import WorldModel
from tests import tiny

CPU = torch.device("cpu")
PRIOR = frozenset({"rssm.prior_hidden", "rssm.prior_out"})
BELIEF = frozenset(
    {"encoder", *(f"rssm.{part}" for part in (
        "initial", "input", "gru", "posterior_hidden", "posterior_out",
    ))}
)  # fmt: skip
"""What every loss on model states reaches."""
HEADS = frozenset({"reward", "cont", "value", "action"})
WORLD = PRIOR | BELIEF | HEADS
ACTING = frozenset({"actor", "critic"})
NONE: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Effect:
    """What differs between two agents after an update, of which one has another setting."""

    setting: str
    values: tuple[Any, Any]
    gradients: frozenset[str]
    """Parts with other gradients, and no others."""
    moved: frozenset[str] = NONE
    """Parts of other weights or averages beside these, the slow copies of those left out."""
    under: dict[str, Any] = field(default_factory=dict)
    """Other settings that it needs to have an effect."""
    seen: str = "vector"


EVERYTHING = WORLD | ACTING
# Where the world model is another after its step, so is what is imagined with it.
EFFECTS = [
    Effect("model.unimix", (0.01, 0.1), EVERYTHING - HEADS, frozenset({"scale"})),
    Effect(
        "model.batch_norm_statistics", ("step", "running"), EVERYTHING,
        frozenset({"scale", "rssm.running"}),
    ),
    Effect("model.batch_norm_update", ("pooled", "step"), NONE, frozenset({"rssm.running"})),
    Effect(
        "model.batch_norm_momentum", (0.1, 0.5), NONE,
        frozenset({"rssm.running", "encoder.running"}), {"model.batch_norm": "both"},
    ),
    Effect(
        "model.norm_eps", (1e-3, 1e-1), EVERYTHING, frozenset({"scale", "rssm.running"}),
    ),
    Effect("model.free_nats", (0.0, 1e3), EVERYTHING - HEADS, frozenset({"scale"})),
    Effect("model.prediction_scale", (1.0, 0.5), EVERYTHING - PRIOR, frozenset({"scale"})),
    # The posterior is no parameter of the prior's own loss, nor the prior of the posterior's.
    Effect("model.dynamics_scale", (0.95, 0.5), EVERYTHING - HEADS, frozenset({"scale"})),
    Effect(
        "model.representation_scale", (0.05, 0.1), EVERYTHING - HEADS - PRIOR,
        frozenset({"scale"}),
    ),
    Effect("model.slow_value_decay", (0.98, 0.5), NONE, frozenset({"slow_value"})),
    Effect(
        "model.learning_rate", (1e-2, 1e-3), ACTING,
        WORLD | {"decoder", "slow_value", "scale"}, {"model.decoder": True}, "image",
    ),
    Effect(
        "model.adam_eps", (1e-2, 1.0), ACTING,
        WORLD | {"decoder", "slow_value", "scale"}, {"model.decoder": True}, "image",
    ),
    Effect(
        "model.clip_norm", (1e3, 0.01), EVERYTHING | {"decoder"}, frozenset({"scale"}),
        {"model.decoder": True}, "image",
    ),
    Effect("behaviour.horizon", (3, 2), ACTING, frozenset({"scale"})),
    Effect(
        "behaviour.discount", (0.997, 0.9), ACTING | BELIEF | {"value"}, frozenset({"scale"}),
    ),
    Effect("behaviour.lam", (0.95, 0.5), ACTING | BELIEF | {"value"}, frozenset({"scale"})),
    # Alone in the behaviour, where the world model learns from no values.
    Effect(
        "behaviour.discount", (0.997, 0.9), ACTING, frozenset({"scale"}),
        {"model.prediction_scale": 0.0},
    ),
    Effect(
        "behaviour.lam", (0.95, 0.5), ACTING, frozenset({"scale"}), {"model.prediction_scale": 0.0}
    ),
    Effect("behaviour.actor_gradient", ("dynamics", "reinforce"), frozenset({"actor"})),
    Effect("behaviour.entropy_scale", (3e-4, 3e-3), frozenset({"actor"})),
    Effect("behaviour.return_decay", (0.9, 0.5), frozenset({"actor"}), frozenset({"scale"})),
    Effect("behaviour.slow_critic_decay", (0.98, 0.5), NONE, frozenset({"slow_critic"})),
    Effect("behaviour.slow_critic_scale", (1.0, 0.5), frozenset({"critic"})),
    Effect("behaviour.actor_learning_rate", (1e-2, 1e-3), NONE, frozenset({"actor"})),
    Effect(
        "behaviour.critic_learning_rate", (1e-2, 1e-3), NONE, frozenset({"critic", "slow_critic"})
    ),
    Effect("behaviour.adam_eps", (1e-2, 1.0), NONE, ACTING | {"slow_critic"}),
    Effect("behaviour.clip_norm", (100.0, 0.01), ACTING),
]  # fmt: skip

SIZES: dict[str, Callable[[Agent], set[int]]] = {
    "model.deter": lambda agent: {agent.world_model.rssm.initial.numel()},
    "model.hidden": lambda agent: {
        agent.world_model.encoder.vector.size,
        *(len(getattr(agent.world_model.rssm, name).weight)
          for name in ("input", "prior_hidden", "posterior_hidden")),
        *(layer.weight.shape[0] for mlp in mlps(agent) for layer in mlp.hidden),
    },
    "model.conv": lambda agent: {
        agent.world_model.encoder.image.kernels[0].shape[0],
        agent.world_model.decoder.kernels[-1].shape[0],
    },
    "model.layers": lambda agent: {
        len(agent.world_model.encoder.vector.weights), *(len(mlp.hidden) for mlp in mlps(agent)),
    },
    "model.groups": lambda agent: {agent.initial_state(1).stoch.shape[1]},
    "model.classes": lambda agent: {agent.initial_state(1).stoch.shape[2]},
    "model.bins": lambda agent: {
        head.mlp.out.bias.numel()
        for head in (agent.world_model.reward, agent.world_model.value, agent.behaviour.critic)
    },
}  # fmt: skip
"""What has the setting's size."""

BUILT: dict[str, dict[Any, Callable[[Agent], bool]]] = {
    "model.batch_norm": {
        placement: lambda agent, expected=expected: normed_by_batch(agent) == expected
        for placement, expected in {
            "posterior": {"rssm"}, "encoder": {"encoder"}, "both": {"rssm", "encoder"},
            "none": set(),
        }.items()
    },
    "model.decoder": {
        False: lambda agent: agent.world_model.decoder is None,
        True: lambda agent: agent.reconstruct(batch("both"))[0, 0].shape == (3, 64, 64),
    },
    "model.reconstruction": {
        False: lambda agent: taught(agent).isdisjoint({"decoder", "vector_decoder"}),
        True: lambda agent: taught(agent) >= {"decoder", "vector_decoder"},
    },
    "model.value_predictor": {
        False: lambda agent: agent.world_model.value is None and "value" not in taught(agent),
        True: lambda agent: "value" in taught(agent),
    },
    "model.action_predictor": {
        False: lambda agent: action_loss(agent) == 0,
        True: lambda agent: action_loss(agent) != 0,
    },
}  # fmt: skip
"""What an agent has or has not, by the setting's value."""

COVERED = {effect.setting for effect in EFFECTS} | SIZES.keys() | BUILT.keys() | {"model.size"}
"""Settings that a test below shows to change what is learned."""

SEEN = {
    "vector": {"vector": tiny.VECTOR},
    "image": {"image": tiny.IMAGE},
    "both": {"image": tiny.IMAGE, "vector": tiny.VECTOR},
}


def made_agent(
    settings: dict[str, Any], seen: str = "vector", action: ActionSpec = tiny.CONTINUOUS
) -> Agent:
    """An agent with nothing at zero, whose steps are as long as the gradients are large.

    Below Adam's usual epsilon a first step would hardly depend on its gradient.
    """
    usual = {
        "model.adam_eps": 1e-2, "model.learning_rate": 1e-2, "model.free_nats": 0.0,
        "behaviour.adam_eps": 1e-2, "behaviour.actor_learning_rate": 1e-2,
        "behaviour.critic_learning_rate": 1e-2,
    }  # fmt: skip
    sections: dict[str, dict[str, Any]] = {"model": {}, "behaviour": {}}
    for name, value in (usual | settings).items():
        section, setting = name.split(".")
        sections[section][setting] = value
    agent = Agent(tiny.config(**sections), SEEN[seen], action, CPU)
    torch.manual_seed(1)
    for module in (agent.world_model, agent.behaviour):
        tiny.randomise(module, 0.3)
    return agent


def batch(seen: str, action: ActionSpec = tiny.CONTINUOUS) -> Any:
    return tiny.batch(SEEN[seen], action)


def mlps(agent: Agent) -> list[Any]:
    world_model, behaviour = agent.world_model, agent.behaviour
    heads = (world_model.reward, world_model.cont, world_model.value, world_model.action)
    return [head.mlp for head in (*heads, behaviour.actor, behaviour.critic)]


def normed_by_batch(agent: Agent) -> set[str]:
    names = agent.world_model.state_dict()
    return {name.split(".")[0] for name in names if "running" in name}


def action_loss(agent: Agent) -> float:
    return agent.update(batch("both"))["world_model/loss_action"]


def taught(agent: Agent) -> set[str]:
    """Parts of the world model that its loss has moved."""
    agent.update(batch("both"))
    moved = agent.optimisers["world_model"].state
    names = {id(w): name for name, w in agent.world_model.named_parameters()}
    return {names[id(w)].split(".")[0] for w, state in moved.items() if state["exp_avg"].any()}


def learned(agent: Agent) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Weights and averages, and the first moments of gradients, by the weights' names."""
    modules = (agent.world_model, agent.behaviour)
    weights = {name: w for module in modules for name, w in module.state_dict().items()}
    names = {id(w): name for module in modules for name, w in module.named_parameters()}
    moments = {
        names[id(weight)]: adam.state[weight]["exp_avg"]
        for adam in agent.optimisers.values()
        for weight in adam.parameters
    }
    return weights, moments


def different(one: dict[str, Tensor], other: dict[str, Tensor]) -> set[str]:
    """Parts that hold a tensor which is not bitwise the same in both."""
    assert one.keys() == other.keys()
    return {part_of(name) for name in one if not torch.equal(one[name], other[name])}


def part_of(name: str) -> str:
    """The part that a weight belongs to: of the RSSM each layer is one."""
    words = name.split(".")
    if "running" in words:
        return f"{words[0]}.running"
    return ".".join(words[: 2 if words[0] == "rssm" else 1])


def after_an_update(settings: dict[str, Any], seen: str) -> tuple[dict[str, Tensor], ...]:
    agent = made_agent(settings, seen)
    agent.update(batch(seen))
    return learned(agent)


@pytest.mark.parametrize("effect", EFFECTS, ids=lambda effect: effect.setting)
def test_setting_changes_what_is_learned_and_only_where_it_should(effect: Effect) -> None:
    one, again, other = (
        after_an_update(effect.under | {effect.setting: value}, effect.seen)
        for value in (effect.values[0], *effect.values)
    )
    assert not different(one[0], again[0]) | different(one[1], again[1])
    gradients = different(one[1], other[1])
    assert gradients == effect.gradients
    followers = {"value": "slow_value", "critic": "slow_critic"}
    explained = gradients | {slow for fast, slow in followers.items() if fast in gradients}
    moved = different(one[0], other[0])
    assert moved - explained == effect.moved
    # What has another gradient takes another step.
    assert explained <= moved


@pytest.mark.parametrize("setting", SIZES)
def test_setting_is_the_size_of_what_it_names(setting: str) -> None:
    for value in (3, 5):
        agent = made_agent({setting: value, "model.decoder": True}, "both")
        assert SIZES[setting](agent) == {value}


def test_size_sets_all_widths_and_depths() -> None:
    for size, deter, layers in (("XS", 256, 1), ("M", 1024, 3)):
        config = ModelConfig(size=size)  # type: ignore[arg-type]
        with torch.device("meta"):
            world_model = WorldModel(
                config, BehaviourConfig(), {"vector": (3,)}, 2, True, reference
            )
        assert world_model.rssm.deter_size == world_model.rssm.initial.numel() == deter
        assert len(world_model.reward.mlp.hidden) == layers


@pytest.mark.parametrize("setting", BUILT)
def test_setting_says_what_the_agent_has(setting: str) -> None:
    for value, holds in BUILT[setting].items():
        assert holds(made_agent({setting: value}, "both")), value


@pytest.mark.parametrize(
    ("action", "gradient"), [(tiny.CONTINUOUS, "dynamics"), (tiny.DISCRETE, "reinforce")]
)
def test_actor_gradient_auto_goes_by_the_kind_of_actions(action: ActionSpec, gradient: str) -> None:
    agents = []
    for value in ("auto", gradient, {"dynamics": "reinforce"}.get(gradient, "dynamics")):
        agents.append(made_agent({"behaviour.actor_gradient": value}, action=action))
        agents[-1].update(batch("vector", action))
    auto, named, other = (learned(agent)[1] for agent in agents)
    assert not different(auto, named)
    assert different(auto, other) == {"actor"}


def test_every_setting_of_model_and_behaviour_is_shown_to_matter() -> None:
    sections = {"model": ModelConfig, "behaviour": BehaviourConfig}
    every = {
        f"{name}.{setting.name}"
        for name, section in sections.items()
        for setting in dataclasses.fields(section)
    }
    assert every == COVERED
