"""One step of a policy as a program of its own: for `torch.export`, and for ONNX.

The program takes observations, what is remembered and the random draws, and gives the action and
what is remembered next. It draws nothing itself, so that the same inputs give the same outputs
wherever it runs.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from importlib.util import find_spec

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from mudreamer_fast.acting import policy_step
from mudreamer_fast.agent import Agent
from mudreamer_fast.config import ActionChoice, ConfigError

OUTPUTS = ("action", "deter", "stoch")
"""What the program gives, in this order, each an input of the next step."""
NUM_ENVS = "num_envs"
"""The name of the axis whose length is free."""


class PolicyStep(nn.Module):
    """An agent's policy, one step of N environments: a copy with weights of its own, on the CPU.

    Its inputs are those that `example_inputs` gives, by name.

    Args:
        agent: whose policy it is; its operations are replaced by plain PyTorch.
    """

    def __init__(self, agent: Agent) -> None:
        super().__init__()
        train = dataclasses.replace(agent.config.train, backend="reference", cuda_graph="off")
        config = dataclasses.replace(agent.config, train=train)
        made_from = agent.observation_spec, agent.action_spec, torch.device("cpu")
        plain = Agent(config, *made_from)
        plain.world_model.load_state_dict(agent.world_model.state_dict())
        plain.behaviour.load_state_dict(agent.behaviour.state_dict())
        self.encoder = plain.world_model.encoder
        self.rssm = plain.world_model.rssm
        self.actor = plain.behaviour.actor
        self._shapes = {name: spec.shape for name, spec in agent.observation_spec.items()}
        self._action_size = agent.action_spec.size
        self.requires_grad_(False)
        self.eval()

    def forward(self, inputs: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Look at a step and act.

        Args:
            inputs: by name, see `example_inputs`.

        Returns:
            Action (N, A), which is the next step's input as well, deter (N, D) and stoch (N, G, C).
        """
        steps = {name: inputs[name][:, None] for name in (*self._shapes, "is_first", "uniforms")}
        outputs = policy_step(self.encoder, self.rssm, self.actor, {**inputs, **steps})
        return outputs["action"], outputs["deter"], outputs["stoch"]

    def example_inputs(
        self, choice: ActionChoice = "sample", num_envs: int = 2
    ) -> dict[str, Tensor]:
        """Inputs of an episode's first step: observations of zeros, and draws of zeros.

        Later steps hand back what the step before gave: `action`, `deter` and `stoch`.

        Args:
            choice: "sample" takes noise to draw the action with, "mode" none.
            num_envs: N.

        Returns:
            Observations (N, *shape), is_first (N,) bool, deter, stoch and action of the step
            before, uniforms (N, G) in [0, 1), and with "sample" action_noise: (N, A) normal for
            continuous actions, (N, 1) in [0, 1) for discrete ones.
        """
        kinds = {"image": torch.uint8, "vector": torch.float32}
        inputs = {
            name: torch.zeros(num_envs, *shape, dtype=kinds[name])
            for name, shape in self._shapes.items()
        }
        inputs["is_first"] = torch.ones(num_envs, dtype=torch.bool)
        inputs |= self.rssm.empty_state(num_envs)._asdict()
        inputs["action"] = torch.zeros(num_envs, self._action_size)
        inputs["uniforms"] = torch.zeros(num_envs, self.rssm.config.groups)
        if choice == "sample":
            inputs["action_noise"] = torch.zeros(num_envs, self.actor.noise_size)
        return inputs


def export_policy(agent: Agent, choice: ActionChoice = "sample") -> ExportedProgram:
    """One step of an agent's policy as a program of `torch.export`, for any number of environments.

    Args:
        agent: whose policy it is.
        choice: whether the action is drawn, or the most likely one.

    Returns:
        A program of one argument, `PolicyStep.example_inputs` by name; gives action, deter, stoch.
    """
    step = PolicyStep(agent)
    inputs = step.example_inputs(choice)
    num_envs = Dim(NUM_ENVS, min=1)
    free = {name: {0: num_envs} for name in inputs}
    return torch.export.export(step, (inputs,), dynamic_shapes=(free,))


def export_onnx(
    agent: Agent, path: str | os.PathLike[str], choice: ActionChoice = "sample"
) -> None:
    """One step of an agent's policy as an ONNX file, weights included.

    Its inputs have the names of `PolicyStep.example_inputs`, and its outputs are next_action,
    next_deter and next_stoch, the inputs action, deter and stoch of the step after.

    Args:
        agent: whose policy it is.
        path: .onnx file to write.
        choice: whether the action is drawn, or the most likely one.

    Raises:
        ConfigError: ONNX is not installed.
    """
    missing = [name for name in ("onnx", "onnxscript") if find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"ONNX files need {' and '.join(missing)}, which are not installed: "
            "pip install 'mudreamer-fast[export]'"
        )
    program = export_policy(agent, choice)
    (inputs,), _ = program.example_inputs
    torch.onnx.export(
        program,
        f=os.fspath(path),
        input_names=list(inputs),
        output_names=[f"next_{name}" for name in OUTPUTS],
        dynamo=True,
        external_data=False,
        verbose=False,
    )
