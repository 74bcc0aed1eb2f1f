"""What acts: the encoder looks, the RSSM remembers, the actor chooses."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from mudreamer_fast.backend.cuda_graph import Capture, Graphed, Tensors
from mudreamer_fast.config import ActionChoice
from mudreamer_fast.envs.vector_env import ActionSpec, ArraySpec
from mudreamer_fast.networks import ActionHead, Encoder, Rssm
from mudreamer_fast.ops.distributions import bound_action
from mudreamer_fast.ops.signatures import State


@dataclass
class PolicyState:
    """What is remembered between two steps of the same environments."""

    deter: Tensor
    """(N, D)."""
    stoch: Tensor
    """(N, G, C)."""
    action: Tensor
    """(N, A), the last action."""
    generator: torch.Generator
    """Draws latents and actions."""

    def state_dict(self) -> dict[str, Tensor]:
        """All of it, for `Acting.restored_state`."""
        tensors = {"deter": self.deter, "stoch": self.stoch, "action": self.action}
        return {**tensors, "generator": self.generator.get_state()}


def policy_step(
    encoder: Encoder, rssm: Rssm, actor: ActionHead, inputs: Mapping[str, Tensor]
) -> Tensors:
    """One step of a policy, with all that it depends on among its inputs.

    Args:
        encoder: sees observations.
        rssm: keeps the state.
        actor: chooses.
        inputs: observations (N, 1, *shape), is_first (N, 1) and uniforms (N, 1, G), the latents'
            randomness; deter, stoch and action of the step before; and action_noise, without
            which the action is the most likely one.

    Returns:
        The action (N, A), and deter and stoch after the step.
    """
    seen = rssm.observe(
        encoder(inputs),
        inputs["action"][:, None],
        inputs["is_first"],
        inputs["uniforms"],
        State(inputs["deter"], inputs["stoch"]),
    )
    state = State(seen.deter[:, 0], seen.stoch[:, 0])
    policy = actor(state.feature)
    noise = inputs.get("action_noise")
    action = policy.mode if noise is None else policy.sample(noise)
    return {**state._asdict(), "action": bound_action(action)}


class Acting:
    """The parts of the agent that act, the learner's own or copies of them.

    Args:
        encoder: sees observations.
        rssm: keeps the state.
        actor: chooses.
        observations: what the encoder sees, by name.
        action_spec: of one environment.
        device: where the parts live.
        new_capture: makes what records a step as a CUDA graph; None runs steps as they are.
        graph_required: whether a step that can not be recorded is an error.
    """

    def __init__(
        self,
        encoder: Encoder,
        rssm: Rssm,
        actor: ActionHead,
        observations: tuple[str, ...],
        action_spec: ActionSpec,
        device: torch.device,
        new_capture: Callable[[], Capture] | None = None,
        graph_required: bool = True,
    ) -> None:
        self._parts = nn.ModuleList([encoder, rssm, actor])
        self._encoder, self._rssm, self._actor = encoder, rssm, actor
        self._observations, self._action_spec = observations, action_spec
        self._device = device
        self._stream: torch.cuda.Stream | None = None
        self._new_capture, self._graph_required = new_capture, graph_required
        self._graphed = Graphed(self._step, new_capture, graph_required)

    def apart(self) -> Acting:
        """Copies with weights of their own, that act while the originals learn.

        On a GPU they work on a stream of their own.
        """
        # What the parts share with the whole program, their operations, is no part of the copy.
        shared = {id(self._rssm.ops): self._rssm.ops}
        made = Acting(
            copy.deepcopy(self._encoder, shared),
            copy.deepcopy(self._rssm, shared),
            copy.deepcopy(self._actor, shared),
            self._observations,
            self._action_spec,
            self._device,
            self._new_capture,
            self._graph_required,
        )
        made._parts.requires_grad_(False)
        if self._device.type == "cuda":
            made._stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
            made._stream.wait_stream(torch.cuda.current_stream(self._device))
        return made

    @torch.no_grad()
    def follow(self, other: Acting) -> None:
        """Take over the weights of another; neither may be at work meanwhile."""
        for mine, theirs in zip(
            (*self._parts.parameters(), *self._parts.buffers()),
            (*other._parts.parameters(), *other._parts.buffers()),
            strict=True,
        ):
            mine.copy_(theirs)
        if self._stream is not None:
            self._stream.wait_stream(torch.cuda.current_stream(self._device))

    def initial_state(self, num_envs: int, seed: int) -> PolicyState:
        """A state for environments that are about to be reset.

        Args:
            num_envs: N.
            seed: of the draws.
        """
        with self._own_stream():
            state = self._rssm.empty_state(num_envs)
            action = state.deter.new_zeros(num_envs, self._action_spec.size)
            generator = torch.Generator(self._device).manual_seed(seed)
            return PolicyState(*state, action, generator)

    def restored_state(self, saved: Mapping[str, Tensor]) -> PolicyState:
        """The state that `PolicyState.state_dict` gave, on the device."""
        state = self.initial_state(len(saved["action"]), 0)
        with self._own_stream():
            for name in ("deter", "stoch", "action"):
                getattr(state, name).copy_(saved[name])
        state.generator.set_state(saved["generator"].cpu())
        return state

    @torch.no_grad()
    def act(
        self,
        observation: Mapping[str, np.ndarray],
        is_first: np.ndarray,
        state: PolicyState,
        choice: ActionChoice = "sample",
    ) -> tuple[np.ndarray, PolicyState]:
        """Look at one step of N environments and act.

        Args:
            observation: (N, *shape) by name.
            is_first: (N,) bool; where it holds, what `state` remembers is forgotten.
            state: from `initial_state` or from the last call.
            choice: "sample" draws from the policy, "mode" takes its most likely action.

        Returns:
            Actions (N, A) float32, in [-1, 1] or one-hot, and the next state.
        """
        with self._own_stream():
            rows, groups = len(is_first), self._rssm.config.groups
            self._parts.eval()
            inputs = {name: self._tensor(observation[name][:, None]) for name in self._observations}
            inputs |= {
                "is_first": self._tensor(is_first[:, None]),
                "deter": state.deter,
                "stoch": state.stoch,
                "action": state.action,
                "uniforms": torch.rand(
                    rows, 1, groups, generator=state.generator, device=self._device
                ),
            }
            if choice == "sample":
                inputs["action_noise"] = self._actor.draw_noise(state.generator, rows)
            outputs = self._graphed(inputs)
            # Copies: the caller may keep the state, and the next call may write over what it got.
            deter, stoch, action = (outputs[name].clone() for name in ("deter", "stoch", "action"))
            return action.cpu().numpy(), PolicyState(deter, stoch, action, state.generator)

    def _step(self, inputs: Tensors) -> Tensors:
        return policy_step(self._encoder, self._rssm, self._actor, inputs)

    def _own_stream(self) -> AbstractContextManager[Any]:
        return contextlib.nullcontext() if self._stream is None else torch.cuda.stream(self._stream)

    def _tensor(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(self._device, non_blocking=True)


Act: TypeAlias = Callable[
    [Mapping[str, np.ndarray], np.ndarray, PolicyState, ActionChoice],
    tuple[np.ndarray, PolicyState],
]
"""`Acting.act`, or what does as it does."""


class AgentPolicy:
    """An agent's policy in N environments, with what it remembers of them.

    Args:
        act: looks at a step, remembers, and chooses.
        state: of environments that are about to be reset.
        observation_spec: what one environment shows, by name.
        choice: "sample" draws from the policy, "mode" takes its most likely action.
    """

    def __init__(
        self,
        act: Act,
        state: PolicyState,
        observation_spec: Mapping[str, ArraySpec],
        choice: ActionChoice,
    ) -> None:
        self._act, self._choice = act, choice
        self._spec = dict(observation_spec)
        self.state = state
        """What is remembered, and the generator of the draws."""

    def __call__(self, observation: Mapping[str, np.ndarray], is_first: np.ndarray) -> np.ndarray:
        """Look at one step of the environments and act.

        Args:
            observation: (N, *shape) by name, as a `VectorStep` has it.
            is_first: (N,) bool, where an episode begins: what was remembered is forgotten there.

        Returns:
            Actions (N, A) float32, in [-1, 1] or one-hot.

        Raises:
            ValueError: an array is missing, or its shape or dtype is not the one expected.
        """
        rows = len(self.state.action)
        self._check("is_first", is_first, (rows,), np.dtype(np.bool_))
        for name, spec in self._spec.items():
            if name not in observation:
                raise ValueError(f"the observation lacks {name}; it has {sorted(observation)}")
            self._check(name, observation[name], (rows, *spec.shape), spec.dtype)
        action, self.state = self._act(observation, is_first, self.state, self._choice)
        return action

    @staticmethod
    def _check(name: str, array: Any, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        is_array = isinstance(array, np.ndarray)
        if not is_array or array.shape != shape or array.dtype != dtype:
            got = f"{array.dtype} of shape {array.shape}" if is_array else type(array).__name__
            raise ValueError(f"{name} must be {dtype} of shape {shape}, got {got}")
