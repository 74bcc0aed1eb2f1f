"""Models, weights and batches small enough for a test, with odd sizes."""

from __future__ import annotations

import dataclasses
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mudreamer_fast.config import BehaviourConfig, Config, ModelConfig, TrainConfig
from mudreamer_fast.envs.vector_env import ActionSpec, ArraySpec
from mudreamer_fast.ops.signatures import Linear, MlpWeights, NormLinear, RssmWeights

VECTOR = ArraySpec((3,), np.dtype(np.float32))
IMAGE = ArraySpec((3, 64, 64), np.dtype(np.uint8))
CONTINUOUS = ActionSpec(size=2, continuous=True)
DISCRETE = ActionSpec(size=3, continuous=False)
FEWEST: dict[str, Any] = {"deter": 4, "hidden": 4, "groups": 2, "classes": 3, "bins": 5}
"""Sizes of a model whose kernels the interpreter runs in a second an update."""


def model_config(**overrides: Any) -> ModelConfig:
    sizes: dict[str, Any] = {
        "deter": 9, "hidden": 7, "conv": 2, "layers": 1, "groups": 3, "classes": 5, "bins": 21,
    }  # fmt: skip
    return ModelConfig(**(sizes | overrides))


def behaviour_config(**overrides: Any) -> BehaviourConfig:
    return BehaviourConfig(**({"horizon": 3} | overrides))


def config(
    model: dict[str, Any] | None = None, behaviour: dict[str, Any] | None = None, seed: int = 0
) -> Config:
    return Config(
        model=model_config(**(model or {})),
        behaviour=behaviour_config(**(behaviour or {})),
        train=TrainConfig(seed=seed, backend="reference"),
    )


def settings(config: Config) -> dict[str, Any]:
    """Every setting of a run by `section.field`."""
    return {
        f"{section.name}.{setting}": value
        for section in dataclasses.fields(config)
        for setting, value in vars(getattr(config, section.name)).items()
    }


def batch(
    observation: dict[str, ArraySpec],
    action: ActionSpec,
    rows: int = 3,
    steps: int = 5,
    seed: int = 0,
) -> dict[str, np.ndarray]:
    """A batch with a reset at step 0, one after a time limit, and one after a real ending."""
    rng = np.random.default_rng(seed)
    data: dict[str, np.ndarray] = {}
    for name, spec in observation.items():
        shape = (rows, steps, *spec.shape)
        if name == "image":
            data[name] = rng.integers(0, 256, shape, dtype=np.uint8)
        else:
            data[name] = rng.normal(size=shape).astype(np.float32)
    if action.continuous:
        data["action"] = rng.uniform(-1, 1, (rows, steps, action.size)).astype(np.float32)
    else:
        index = rng.integers(0, action.size, (rows, steps))
        data["action"] = np.eye(action.size, dtype=np.float32)[index]
    data["reward"] = rng.normal(size=(rows, steps)).astype(np.float32)
    data["is_first"] = np.zeros((rows, steps), bool)
    data["is_first"][:, 0] = True
    data["is_terminal"] = np.zeros((rows, steps), bool)
    if steps > 3 and rows > 2:
        data["is_first"][1, 3] = True
        data["is_first"][2, 2] = data["is_terminal"][2, 1] = True
    data["action"][data["is_first"]] = 0.0
    return data


def tensors(data: dict[str, np.ndarray], dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    """A batch as tensors, floats in `dtype`."""
    made = {name: torch.from_numpy(array.copy()) for name, array in data.items()}
    return {name: x.to(dtype) if x.is_floating_point() else x for name, x in made.items()}


def randomise(module: nn.Module, scale: float = 0.5) -> None:
    """Give every parameter a random value: no zero heads, no unit scales of norms."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            centre = 1.0 if name.endswith("norm_weight") else 0.0
            parameter.copy_(centre + scale * torch.randn_like(parameter))


def norm_linear(outputs: int, inputs: int, norm_size: int | None = None) -> NormLinear:
    size = norm_size or outputs
    return NormLinear(
        torch.randn(outputs, inputs, dtype=torch.float64),
        1.0 + 0.3 * torch.randn(size, dtype=torch.float64),
        0.3 * torch.randn(size, dtype=torch.float64),
    )


def linear(outputs: int, inputs: int) -> Linear:
    return Linear(
        torch.randn(outputs, inputs, dtype=torch.float64),
        torch.randn(outputs, dtype=torch.float64),
    )


def rssm_weights(
    deter: int, hidden: int, embed: int, action: int, groups: int, classes: int
) -> RssmWeights:
    latents = groups * classes
    weights = RssmWeights(
        torch.randn(deter, dtype=torch.float64),
        norm_linear(hidden, latents + action),
        norm_linear(3 * deter, hidden + deter),
        norm_linear(hidden, deter),
        linear(latents, hidden),
        norm_linear(hidden, embed + deter),
        linear(latents, hidden),
    )
    require_gradients(weights)
    return weights


def mlp_weights(inputs: int, hidden: int, layers: int, outputs: int) -> MlpWeights:
    widths = [inputs] + [hidden] * layers
    weights = MlpWeights(
        tuple(norm_linear(b, a) for a, b in pairwise(widths)),
        linear(outputs, hidden),
    )
    require_gradients(weights)
    return weights


def named_tensors(weights: Any, prefix: str = "") -> dict[str, Tensor]:
    """Every tensor in nested tuples of weights, by a dotted name."""
    if isinstance(weights, Tensor):
        return {prefix: weights}
    names = getattr(weights, "_fields", range(len(weights)))
    found: dict[str, Tensor] = {}
    for name, part in zip(names, weights, strict=True):
        found |= named_tensors(part, f"{prefix}.{name}".lstrip("."))
    return found


def require_gradients(weights: Any) -> None:
    for tensor in named_tensors(weights).values():
        tensor.requires_grad_(True)
