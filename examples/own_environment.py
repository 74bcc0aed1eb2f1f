"""Train an agent on an environment of your own, load it, act with it and score it.

python examples/own_environment.py [RUN]
"""

import sys

import gymnasium
import numpy as np

from mudreamer_fast import Agent, Config, make_env
from mudreamer_fast.config import EnvConfig, ModelConfig, ReplayConfig, TrainConfig
from mudreamer_fast.evaluate import evaluate
from mudreamer_fast.train import train

RUN = sys.argv[1] if len(sys.argv) > 1 else "runs/corridor"


class Corridor(gymnasium.Env):
    """A corridor to walk along: every step earns as much as it leads to the right."""

    observation_space = gymnasium.spaces.Box(-10, 10, (1,))
    action_space = gymnasium.spaces.Box(-1, 1, (1,))
    render_mode = "rgb_array"

    def reset(self, seed=None, options=None):
        """Start in the middle."""
        super().reset(seed=seed)
        self.place, self.steps = np.zeros(1, np.float32), 0
        return self.place.copy(), {}

    def step(self, action):
        """Walk."""
        self.place += action
        self.steps += 1
        return self.place.copy(), float(action[0]), False, self.steps == 8, {}

    def render(self):
        """A dot on a line, for the film of the last evaluation."""
        picture = np.zeros((32, 32, 3), np.uint8)
        picture[16, int(16 + self.place[0])] = 255
        return picture


# A model this small learns nothing worth having: it shows how things are done, in seconds.
config = Config(
    env=EnvConfig(observation="vector", action_repeat=1, num_envs=2, backend="sync"),
    model=ModelConfig(deter=16, hidden=16, layers=1, groups=4, classes=4, bins=21),
    replay=ReplayConfig(capacity_steps=1000, batch_size=4, batch_length=8),
    train=TrainConfig(
        env_steps=80, prefill_steps=40, train_ratio=8.0, eval_episodes=2, eval_every_env_steps=0
    ),
)
result = train(config, RUN, env=Corridor)
print(result.updates, "updates; scores", result.evaluation.scores)

agent = Agent.load(RUN)
env = make_env(agent.config.env, num_envs=2, seed=7)
policy = agent.policy(num_envs=2, choice="mode")
step = env.reset()
while not step.is_last.any():
    step = env.step(policy(step.observation, step.is_first))

played = evaluate(env, agent.policy(num_envs=2), episodes=4)
print("scores", played.scores, "of episodes of", played.lengths_steps)
env.close()
