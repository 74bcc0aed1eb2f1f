"""A whole update: world model, then actor and critic, then the moving averages."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from tests.twin.adam import Adam
from tests.twin.behaviour import Judged, behaviour_losses, imagine
from tests.twin.networks import Settings, Weights
from tests.twin.world_model import Seen, world_model_loss


class Twin:
    """Everything that an agent learns, and how one update changes it.

    Args:
        world: weights and running averages of the world model by name, copied.
        acting: likewise, of actor and critic, with the return scale.
        model: settings of the world model, every one of them.
        behaviour: settings of actor and critic, likewise.
        action_size: A.
        continuous: whether actions are continuous.
        generator: state of what draws.
        device: where it draws; all else is done on the CPU.
    """

    def __init__(
        self,
        world: Mapping[str, Tensor],
        acting: Mapping[str, Tensor],
        model: Settings,
        behaviour: Settings,
        action_size: int,
        continuous: bool,
        generator: Tensor,
        device: str,
    ) -> None:
        self.world = copied(world)
        self.acting = copied(acting)
        self.model, self.behaviour = model, behaviour
        self.continuous = continuous
        self.noise_size = action_size if continuous else 1
        self.generator = torch.Generator(device)
        self.generator.set_state(generator)
        self.updates = 0
        parts = "encoder", "rssm", "reward", "cont", "value", "action", "vector_decoder"
        if model["reconstruction"]:
            parts = *parts, "decoder"
        self.adams = {
            "world_model": self._adam(self.world, parts, model["learning_rate"], model),
            "actor": self._adam(
                self.acting, ("actor",), behaviour["actor_learning_rate"], behaviour
            ),
            "critic": self._adam(
                self.acting, ("critic",), behaviour["critic_learning_rate"], behaviour
            ),
        }  # fmt: skip
        if not model["reconstruction"] and any(name.startswith("decoder.") for name in world):
            self.adams["decoder"] = self._adam(
                self.world, ("decoder",), model["learning_rate"], model
            )
        self.seen: Seen
        self.judged: Judged

    @staticmethod
    def _adam(weights: Weights, parts: tuple[str, ...], rate: float, settings: Settings) -> Adam:
        """For all weights of some parts; running averages are none."""
        names = [n for n in weights if n.split(".")[0] in parts and ".running." not in n]
        return Adam(names, rate, settings["adam_eps"], settings["clip_norm"])

    def update(self, batch: Mapping[str, Tensor]) -> dict[str, float]:
        """Learn from one batch, and give the metrics by name."""
        draws = self._draw(*batch["is_first"].shape)
        metrics = self._update_world_model(batch, draws["uniforms"])
        metrics |= self._update_behaviour(batch["is_terminal"].flatten(), draws)
        move(self.world, "slow_value.", "value.", self.model["slow_value_decay"])
        move(self.acting, "slow_critic.", "critic.", self.behaviour["slow_critic_decay"])
        self.updates += 1
        return {name: value.item() for name, value in metrics.items()}

    def _draw(self, rows: int, steps: int) -> dict[str, Tensor]:
        """The randomness of one update, in float32 as the agent's, one number a draw."""
        starts, groups, horizon = rows * steps, self.model["groups"], self.behaviour["horizon"]

        def drawn(make: Callable[..., Tensor], *shape: int) -> Tensor:
            found = make(*shape, generator=self.generator, device=self.generator.device)
            return found.cpu().double()

        noise = torch.randn if self.continuous else torch.rand
        return {
            "uniforms": drawn(torch.rand, rows, steps, groups),
            "imagined_uniforms": drawn(torch.rand, starts, horizon, groups),
            "action_noise": drawn(noise, starts, horizon, self.noise_size),
        }

    def _update_world_model(self, batch: Mapping[str, Tensor], uniforms: Tensor) -> Weights:
        leaves = {name: value.clone().requires_grad_() for name, value in self.world.items()}
        self.seen = seen = world_model_loss(
            leaves, batch, uniforms, self.model, self.behaviour, self.continuous
        )
        metrics = {f"world_model/{name}": value for name, value in seen.metrics.items()}
        adam = self.adams["world_model"]
        gradients = adam.gradients(seen.loss, leaves)
        metrics["world_model/grad_norm"] = adam.step(self.world, gradients)
        if seen.decoder_loss is not None:
            decoder = self.adams["decoder"]
            decoder.step(self.world, decoder.gradients(seen.decoder_loss, leaves))
        self.world |= seen.statistics
        return metrics

    def _update_behaviour(self, is_terminal: Tensor, draws: dict[str, Tensor]) -> Weights:
        """On rollouts of the world model as it has become, from the states it then saw."""
        leaves = {name: value.clone().requires_grad_() for name, value in self.acting.items()}
        deter, stoch = self.seen.deter.flatten(0, 1), self.seen.stoch.flatten(0, 1)
        imagined = imagine(
            self.world, leaves, deter, stoch, draws, self.model, self.behaviour, self.continuous
        )
        self.judged = judged = behaviour_losses(
            self.world, leaves, imagined, is_terminal, self.model, self.behaviour, self.continuous
        )
        metrics = {f"behaviour/{name}": value for name, value in judged.metrics.items()}
        for part, loss in (("actor", judged.actor_loss), ("critic", judged.critic_loss)):
            adam = self.adams[part]
            metrics[f"behaviour/{part}_grad_norm"] = adam.step(
                self.acting, adam.gradients(loss, leaves)
            )
        self.acting |= {"scale.low": judged.low, "scale.high": judged.high}
        return metrics

    def state(self) -> dict[str, Tensor]:
        """Every tensor of an agent's state, by its path."""
        found = {f"world_model/{name}": value for name, value in self.world.items()}
        found |= {f"behaviour/{name}": value for name, value in self.acting.items()}
        for part, adam in self.adams.items():
            found |= {
                f"optimisers/{part}/state/{name}": value for name, value in adam.state().items()
            }
        found["generator"] = self.generator.get_state()
        return found


def copied(weights: Mapping[str, Tensor]) -> Weights:
    return {name: value.detach().cpu().double().clone() for name, value in weights.items()}


def move(weights: Weights, slow: str, fast: str, decay: float) -> None:
    """`w' <- d w' + (1 - d) w`."""
    for name in [name for name in weights if name.startswith(slow)]:
        current = weights[fast + name.removeprefix(slow)]
        weights[name] = decay * weights[name] + (1 - decay) * current
