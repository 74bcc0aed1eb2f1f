"""The agent: it acts, and one call learns from one batch."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from mudreamer_fast.acting import Acting, AgentPolicy, PolicyState
from mudreamer_fast.actor_critic import ActorCritic
from mudreamer_fast.backend.cuda_graph import Graphed, Tensors, capture_maker
from mudreamer_fast.backend.load import load_ops, resolve_backend, run_sizes
from mudreamer_fast.backend.precision import products_in
from mudreamer_fast.config import (
    ActionChoice,
    BackendName,
    BehaviourConfig,
    Config,
    ModelConfig,
)
from mudreamer_fast.disk.checkpoint import fitting
from mudreamer_fast.envs.vector_env import ActionSpec, ArraySpec
from mudreamer_fast.imagination import imagine
from mudreamer_fast.machine.device import resolve_device
from mudreamer_fast.machine.late import LateValues
from mudreamer_fast.machine.ranks import ALONE, Ranks
from mudreamer_fast.machine.seeds import SeedUse, derived_seed
from mudreamer_fast.networks.encoder import embed_size
from mudreamer_fast.ops.distributions import entropy_range
from mudreamer_fast.ops.signatures import State
from mudreamer_fast.optim import ClippedAdam, move_average
from mudreamer_fast.run.stored import StoredAgent, read_stored
from mudreamer_fast.world_model import WorldModel


class Agent:
    """World model, actor and critic with their optimisers.

    Agents pickle, and deep-copy, as their settings and all that they have learned.

    Args:
        config: the run's configuration.
        observation_spec: of one environment, by name.
        action_spec: of one environment.
        device: where the model lives.
        ranks: the processes that train it, each with a copy, which stay the same.
    """

    def __init__(
        self,
        config: Config,
        observation_spec: Mapping[str, ArraySpec],
        action_spec: ActionSpec,
        device: torch.device,
        ranks: Ranks = ALONE,
    ) -> None:
        self.config = config
        self._ranks = ranks
        self.device = device
        self.observation_spec = dict(observation_spec)
        self.action_spec = action_spec
        shapes = {name: spec.shape for name, spec in observation_spec.items()}
        size, continuous = action_spec.size, action_spec.continuous
        sizes = run_sizes(config, embed_size(config.model, shapes), size, continuous)
        self.operations = resolve_backend(config.train.backend, device, sizes)
        self.backend = self.operations.name
        # whether messages between GPUs can be recorded has not been seen yet
        may_capture = ranks.size == 1 or config.train.cuda_graph == "on"
        graphs = config.train.cuda_graph if may_capture else "off"
        new_capture = capture_maker(graphs, self.backend, device)
        self.graphed = new_capture is not None
        graph_required = config.train.cuda_graph == "on"
        ops = load_ops(self.backend, dict(self.operations.replaced))
        self.observations = tuple(shapes)
        self.batch_shapes = {
            **shapes,
            "action": (size,),
            "reward": (),
            "is_first": (),
            "is_terminal": (),
        }
        with torch.random.fork_rng():
            torch.manual_seed(derived_seed(config.train.seed, SeedUse.WEIGHTS))
            world_model = WorldModel(
                config.model, config.behaviour, shapes, size, continuous, ops, ranks
            )
            behaviour = ActorCritic(
                config.model,
                config.behaviour,
                world_model.rssm.feature_size,
                size,
                continuous,
                ops,
                ranks,
            )
        self.world_model = world_model.to(device)
        self.behaviour = behaviour.to(device)
        self.acting = Acting(
            world_model.encoder,
            world_model.rssm,
            behaviour.actor,
            self.observations,
            action_spec,
            device,
            new_capture,
            graph_required,
        )
        self.generator = torch.Generator(device).manual_seed(
            derived_seed(config.train.seed, SeedUse.LEARN)
        )
        self.updates = 0
        self.optimisers = self._make_optimisers()
        self._metrics: tuple[str, ...] = ()
        self._products = products_in(config.train.precision, device, self.backend)
        self._graphed = Graphed(self._learn, new_capture, graph_required)

    LEARNED = ("world_model", "behaviour")
    """What of `state_dict` are weights."""

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        device: str = "auto",
        checkpoint: Literal["newest", "best"] = "newest",
        backend: BackendName = "auto",
    ) -> Agent:
        """The trained agent of a run; no environment is made.

        Args:
            path: a run folder, one of its checkpoints, or the folder of an exported agent, whose
                optimisers are new.
            device: auto, cpu, cuda or cuda:N, whatever the run was trained on.
            checkpoint: of a run folder, the newest or the one that scored best in its evaluations.
            backend: implementation of the operations, whatever the run was trained with.

        Raises:
            ConfigError: no run there, or a device that is not there.
            checkpoint.CheckpointError: no checkpoint there, or none that can be read.
        """
        return cls.of(read_stored(path, checkpoint), device, backend)

    @classmethod
    def of(cls, stored: StoredAgent, device: str = "auto", backend: BackendName = "auto") -> Agent:
        """The agent that was read from disk; the rest is as for `load`."""
        chosen = resolve_device(device)
        train = dataclasses.replace(stored.config.train, backend=backend, cuda_graph="auto")
        config = dataclasses.replace(stored.config, train=train)
        agent = cls(config, stored.observation_spec, stored.action_spec, chosen)
        with fitting(stored.folder):
            agent.load_state_dict(agent.state_dict() | stored.agent)
        return agent

    def __reduce__(self) -> tuple[Any, ...]:
        made_from = self.config, self.observation_spec, self.action_spec, self.device
        return type(self), made_from, self.state_dict()

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.load_state_dict(state)

    def _make_optimisers(self) -> dict[str, ClippedAdam]:
        model, behaviour = self.config.model, self.config.behaviour

        def adam(
            parameters: Iterable[nn.Parameter], rate: float, section: ModelConfig | BehaviourConfig
        ) -> ClippedAdam:
            return ClippedAdam(parameters, rate, section.adam_eps, section.clip_norm, self._ranks)

        actor, critic = self.behaviour.actor.parameters(), self.behaviour.critic.parameters()
        optimisers = {
            "world_model": adam(self.world_model.trained_parameters(), model.learning_rate, model),
            "actor": adam(actor, behaviour.actor_learning_rate, behaviour),
            "critic": adam(critic, behaviour.critic_learning_rate, behaviour),
        }
        decoder = self.world_model.decoder
        if decoder is not None and not model.reconstruction:
            optimisers["decoder"] = adam(decoder.parameters(), model.learning_rate, model)
        return optimisers

    def initial_state(self, num_envs: int, seed: int | None = None) -> PolicyState:
        """A state for environments that are about to be reset.

        Args:
            num_envs: N.
            seed: of the draws; None takes one of the run's.
        """
        if seed is None:
            seed = derived_seed(self.config.train.seed, SeedUse.ACT)
        return self.acting.initial_state(num_envs, seed)

    def act(
        self,
        observation: Mapping[str, np.ndarray],
        is_first: np.ndarray,
        state: PolicyState,
        choice: ActionChoice = "sample",
    ) -> tuple[np.ndarray, PolicyState]:
        """Look at one step of N environments and act; see `Acting.act`."""
        return self.acting.act(observation, is_first, state, choice)

    def policy(self, num_envs: int, choice: ActionChoice = "sample", seed: int = 0) -> AgentPolicy:
        """What acts in N environments that are about to be reset: `policy(observation, is_first)`.

        It remembers by itself, and follows where the agent goes on learning.

        Args:
            num_envs: N.
            choice: "sample" draws from the policy, "mode" takes its most likely action.
            seed: of the draws; latents are drawn either way.
        """
        state = self.initial_state(num_envs, seed)
        return AgentPolicy(self.act, state, self.observation_spec, choice)

    def update(self, batch: Mapping[str, np.ndarray | Tensor]) -> LateValues:
        """Learn from one batch: the world model, then actor and critic on what it imagines.

        On a GPU the update is launched, and the call does not wait for it. Where several ranks
        train, each is given its own rows, and all call this together: what they learn is what one
        would learn from these batches joined.

        Args:
            batch: observations (B, T, *shape) by name, action (B, T, A), reward, is_first and
                is_terminal (B, T). Arrays and tensors on the CPU are read until the call returns,
                and not after, unless they are pinned; tensors on a GPU, and pinned ones, until the
                metrics are there.

        Returns:
            Metrics of this update by name; who looks at them waits for the update.

        Raises:
            ValueError: an array is missing, or its shape is not the one expected.
        """
        self._check_batch(batch)
        inputs = {name: self._tensor(batch[name]) for name in self.batch_shapes}
        inputs |= self._draw(*inputs["is_first"].shape)
        self.world_model.train()
        values = self._graphed(inputs)["metrics"]
        self.updates += 1
        return LateValues(self._metrics, values)

    def _draw(self, rows: int, steps: int) -> Tensors:
        """All randomness of an update on (B, T) steps, for N = B T rollouts.

        All ranks draw for all; what only a rank's own rows need is cut to these.
        """
        groups, horizon = self.config.model.groups, self.config.behaviour.horizon
        ranks = self._ranks
        rows *= ranks.size
        starts = rows * steps
        uniforms = self._uniforms(self.generator, rows, steps, groups)
        imagined = self._uniforms(self.generator, starts, horizon, groups)
        noise = self.behaviour.actor.draw_noise(self.generator, starts, horizon)
        return {
            "uniforms": uniforms,
            "imagined_uniforms": ranks.own(imagined),
            "action_noise": ranks.own(noise),
        }

    def _learn(self, inputs: Tensors) -> Tensors:
        """The whole update, on the device alone: its metrics in one tensor, named by `_metrics`."""
        with self._products():
            return self._learn_from(inputs)

    def _learn_from(self, inputs: Tensors) -> Tensors:
        config, model, behaviour = self.config, self.world_model, self.behaviour
        adam = self.optimisers

        # The world model, from the replayed sequences.
        seen = model.loss(inputs, inputs["uniforms"])
        metrics = {f"world_model/{name}": value for name, value in seen.metrics.items()}
        if seen.decoder is not None:
            adam["decoder"].step(seen.decoder, retain_graph=True)
        metrics["world_model/grad_norm"] = adam["world_model"].step(seen.total)

        # Actor and critic, from what the new model imagines after each replayed step.
        trajectory = imagine(
            model,
            behaviour.actor,
            seen.state.rows(),
            inputs["is_terminal"].flatten(),
            inputs["imagined_uniforms"],
            inputs["action_noise"],
            config.behaviour,
            behaviour.through_dynamics,
        )
        judged = behaviour.loss(trajectory)
        metrics |= {f"behaviour/{name}": value for name, value in judged.metrics.items()}
        # Both gradients before either step: the losses share one pass of the critic.
        actor_gradients = adam["actor"].gradients(judged.actor, retain_graph=True)
        critic_gradients = adam["critic"].gradients(judged.critic)
        metrics["behaviour/actor_grad_norm"] = adam["actor"].apply(actor_gradients)
        metrics["behaviour/critic_grad_norm"] = adam["critic"].apply(critic_gradients)

        if model.value is not None and model.slow_value is not None:
            move_average(model.slow_value, model.value, config.model.slow_value_decay)
        move_average(behaviour.slow_critic, behaviour.critic, config.behaviour.slow_critic_decay)
        self._metrics = tuple(metrics)
        values = torch.stack([metric.detach().float() for metric in metrics.values()])
        return {"metrics": self._ranks.mean(values)}

    @torch.no_grad()
    def reconstruct(self, batch: Mapping[str, np.ndarray]) -> np.ndarray:
        """Decode the posterior states of a batch into images (B, T, c, h, w) uint8."""
        return self._decoded(self.beliefs(batch))

    @torch.no_grad()
    def dream(
        self, batch: Mapping[str, np.ndarray], observe: int, imagine: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Decode what the model knows of sequences, and what it expects without looking.

        Of every `observe + imagine` steps the first are seen; the others follow from the actions
        alone, with latents of the prior.

        Args:
            batch: observations, action and is_first (B, T, ...), an episode each.
            observe: steps that are seen, at least 1.
            imagine: steps that are not.

        Returns:
            Images (B, T, c, h, w) uint8, from seeing every step, and from seeing some.
        """
        seen = self.beliefs(batch)
        action = self._tensor(batch["action"])
        generator = torch.Generator(self.device).manual_seed(0)
        known = State(*(part.clone() for part in seen))
        for begin in range(observe, action.shape[1], observe + imagine):
            led_here = action[:, begin : begin + imagine]
            start = State(*(part[:, begin - 1] for part in seen))
            draws = self._uniforms(generator, *led_here.shape[:2], self.config.model.groups)
            foreseen = self.world_model.rssm.foresee(start, led_here, draws)
            for part, expected in zip(known, foreseen, strict=True):
                part[:, begin : begin + imagine] = expected
        return self._decoded(seen), self._decoded(known)

    @torch.no_grad()
    def beliefs(self, batch: Mapping[str, np.ndarray]) -> State:
        """The posterior states (B, T) of a batch, as in acting."""
        data = {name: self._tensor(array) for name, array in batch.items()}
        rows, steps = data["is_first"].shape
        self.world_model.eval()
        generator = torch.Generator(self.device).manual_seed(0)
        seen = self.world_model.rssm.observe(
            self.world_model.encoder(data),
            data["action"],
            data["is_first"],
            self._uniforms(generator, rows, steps, self.config.model.groups),
        )
        return seen.state

    def _decoded(self, state: State) -> np.ndarray:
        decoder = self.world_model.decoder
        if decoder is None:
            raise ValueError("this agent has no decoder: set model.decoder and observe pixels")
        images: Tensor = (decoder(state.feature) + 0.5) * 255.0
        pixels: np.ndarray = images.round().clamp(0, 255).to(torch.uint8).cpu().numpy()
        return pixels

    @property
    def policy_entropy(self) -> tuple[float, float]:
        """The lowest and the highest entropy that the policy can have, in nats."""
        action, unimix = self.action_spec, self.config.model.unimix
        return entropy_range(action.size, action.continuous, unimix)

    def parameter_counts(self) -> dict[str, int]:
        """Trained parameters, by part."""
        parts = {
            "encoder": self.world_model.encoder,
            "rssm": self.world_model.rssm,
            "reward": self.world_model.reward,
            "continue": self.world_model.cont,
            "value": self.world_model.value,
            "action_predictor": self.world_model.action,
            "decoder": self.world_model.decoder,
            "vector_decoder": self.world_model.vector_decoder,
            "actor": self.behaviour.actor,
            "critic": self.behaviour.critic,
        }
        return {
            name: sum(parameter.numel() for parameter in part.parameters())
            for name, part in parts.items()
            if part is not None
        }

    def state_dict(self) -> dict[str, Any]:
        """Everything learned, and the generator: weights, moments, averages, update count."""
        return {
            "world_model": self.world_model.state_dict(),
            "behaviour": self.behaviour.state_dict(),
            "optimisers": {name: adam.state_dict() for name, adam in self.optimisers.items()},
            "generator": self.generator.get_state(),
            "updates": self.updates,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        self.world_model.load_state_dict(state["world_model"])
        self.behaviour.load_state_dict(state["behaviour"])
        for name, adam in self.optimisers.items():
            adam.load_state_dict(state["optimisers"][name])
        self.generator.set_state(state["generator"].cpu())
        self.updates = state["updates"]
        self._graphed.forget()

    def _check_batch(self, batch: Mapping[str, np.ndarray | Tensor]) -> None:
        missing = sorted(self.batch_shapes.keys() - batch.keys())
        if missing:
            raise ValueError(f"the batch lacks {', '.join(missing)}; it has {sorted(batch)}")
        leading = batch["is_first"].shape
        for name, shape in self.batch_shapes.items():
            if batch[name].shape != (*leading, *shape) or len(leading) != 2:
                raise ValueError(
                    f"{name} must have shape (B, T, ...) with ... = {shape} and B, T as in "
                    f"is_first, {leading}; got {batch[name].shape}"
                )

    def _tensor(self, array: np.ndarray | Tensor) -> Tensor:
        return torch.as_tensor(array).to(self.device, non_blocking=True)

    def _uniforms(self, generator: torch.Generator, *shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, device=self.device)
