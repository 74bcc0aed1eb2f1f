"""Export the policy of a trained agent and run it step by step without the package.

python examples/export_policy.py RUN
"""

import sys

import torch

from mudreamer_fast import Agent
from mudreamer_fast.export import PolicyStep, export_policy

agent = Agent.load(sys.argv[1])
program = export_policy(agent, choice="mode")
torch.export.save(program, "policy.pt2")

step = torch.export.load("policy.pt2").module()
inputs = PolicyStep(agent).example_inputs(choice="mode", num_envs=3)
for _ in range(5):
    inputs["vector"] = torch.randn_like(inputs["vector"])  # what the environments show
    inputs["uniforms"] = torch.rand_like(inputs["uniforms"])  # draws the latents
    inputs["action"], inputs["deter"], inputs["stoch"] = step(inputs)
    inputs["is_first"] = torch.zeros(3, dtype=torch.bool)
    print(inputs["action"].flatten().tolist())
