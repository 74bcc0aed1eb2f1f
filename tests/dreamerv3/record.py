"""What DreamerV3's own program makes of weights, batches and draws: `recorded.json`.

    python -m tests.dreamerv3.record FOLDER

FOLDER has the folder `dreamerv3` of https://github.com/danijar/dreamerv3 at commit 8fa35f8, the
last one of arXiv 2301.04104v1. An environment of its own is best, as of Python 3.11 with
`pip install jax==0.4.13 jaxlib==0.4.13 tensorflow-probability==0.20.1 'numpy<1.26' 'scipy<1.12'
'chex<0.1.83' 'optax<0.1.8' 'ruamel.yaml<0.18'`. Its source stays as it is; only its draws are
replaced by given ones, and what it imports for environments and devices by nothing.
"""

from __future__ import annotations

import json
import pathlib
import sys
import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tests.dreamerv3 import given

RECORDED = pathlib.Path(__file__).parent / "recorded.json"
PIXELS = 4
"""Height and width of what the last convolution leaves."""
CHANNELS = given.SIZES["conv"] * 8


class Readable(type(pathlib.Path())):  # type: ignore[misc]
    """A path as the program's own library has them."""

    def read(self) -> str:
        return str(self.read_text())


class Settings(dict[str, Any]):
    """A dictionary whose items are attributes too."""

    def __getattr__(self, name: str) -> Any:
        return self[name]


def program(folder: str) -> tuple[Any, Any, Any]:
    """Its modules agent, nets and ninjax, with the draws replaced."""
    embodied, package = types.ModuleType("embodied"), types.ModuleType("dreamerv3")
    wrapper = types.ModuleType("dreamerv3.jaxagent")
    embodied.Path = Readable  # type: ignore[attr-defined]
    package.__path__ = [f"{folder}/dreamerv3"]
    wrapper.Wrapper = lambda agent: agent  # type: ignore[attr-defined]
    package.jaxagent = wrapper  # type: ignore[attr-defined]
    sys.modules |= {
        "embodied": embodied, "dreamerv3": package, "dreamerv3.jaxagent": wrapper,
    }  # fmt: skip
    from dreamerv3 import agent, jaxutils, nets, ninjax  # type: ignore[import-not-found]

    def one_hot(self: Any, sample_shape: Any = (), seed: Any = None) -> Any:
        probs = self.probs_parameter()
        chance = jnp.cumsum(jax.lax.stop_gradient(probs), -1)
        index = (chance <= given.HALF * chance[..., -1:]).sum(-1)
        drawn = jax.nn.one_hot(index, probs.shape[-1]) + probs - jax.lax.stop_gradient(probs)
        lead = tuple(np.atleast_1d(np.asarray(sample_shape, int)))
        return jnp.broadcast_to(drawn, lead + drawn.shape)

    def normal(self: Any, n: Any, seed: Any) -> Any:
        return jnp.broadcast_to(self.loc + given.NOISE * self.scale, (n, *self.loc.shape))

    jaxutils.OneHotDist.sample = one_hot
    nets.tfd.Normal._sample_n = normal
    return agent, nets, ninjax


def settings(defaults: dict[str, Any]) -> Settings:
    """Its defaults at the sizes given."""

    def nested(found: dict[str, Any]) -> Settings:
        return Settings({k: nested(v) if isinstance(v, dict) else v for k, v in found.items()})

    config, sizes = nested(defaults), given.SIZES
    layers, units = sizes["layers"], sizes["hidden"]
    config.rssm.update(
        deter=sizes["deter"], units=units, stoch=sizes["groups"], classes=sizes["classes"]
    )
    for part in ("encoder", "decoder"):
        config[part].update(mlp_layers=layers, mlp_units=units, cnn_depth=sizes["conv"])
    for part in ("reward_head", "cont_head", "actor", "critic"):
        config[part].update(layers=layers, units=units)
    config["imag_horizon"] = given.HORIZON
    config.jax["jit"] = False
    return config


def names(kind: given.Kind) -> dict[str, tuple[str, str]]:
    """Our parameter and the order of its elements, by the program's name."""
    found = {}

    def layer(theirs: str, ours: str, order: str = "T", norm: str = "norm_") -> None:
        found[f"{theirs}/kernel"] = ours + ("weight" if norm == "norm_" else ""), order
        place = ours if norm == "norm_" else norm
        found[f"{theirs}/norm/scale"] = place + ("norm_weight" if norm == "norm_" else "weight"), ""
        found[f"{theirs}/norm/bias"] = place + ("norm_bias" if norm == "norm_" else "bias"), ""

    def linear(theirs: str, ours: str, order: str = "T") -> None:
        found[f"{theirs}/kernel"] = f"{ours}.weight", order
        found[f"{theirs}/bias"] = f"{ours}.bias", "pixels" if order == "pixels T" else ""

    def mlp(theirs: str, ours: str, out: str = "dist_out/out") -> None:
        for i in range(given.SIZES["layers"]):
            layer(f"{theirs}/h{i}", f"{ours}.hidden.{i}.")
        linear(f"{theirs}/{out}", f"{ours}.out")

    wm, model = "agent/wm", "world_model"
    for i in range(4):
        encoder = f"{model}.encoder.image"
        layer(f"{wm}/enc/cnn/s{i}res", f"{encoder}.kernels.{i}", "conv", f"{encoder}.norms.{i}.")
    for i in range(given.SIZES["layers"]):
        encoder = f"{model}.encoder.vector"
        layer(f"{wm}/enc/mlp/h{i}", f"{encoder}.weights.{i}", "T", f"{encoder}.norms.{i}.")
    for i in range(3):
        decoder = f"{model}.decoder"
        layer(f"{wm}/dec/cnn/s{i}res", f"{decoder}.kernels.{i}", "deconv", f"{decoder}.norms.{i}.")
    found[f"{wm}/dec/cnn/s3res/kernel"] = f"{model}.decoder.kernels.3", "deconv"
    found[f"{wm}/dec/cnn/s3res/bias"] = f"{model}.decoder.bias", ""
    linear(f"{wm}/dec/cnn/in", f"{model}.decoder.project", "pixels T")
    mlp(f"{wm}/dec/mlp", f"{model}.vector_decoder.mlp", "dist_vector/out")
    mlp(f"{wm}/rew", f"{model}.reward.mlp")
    mlp(f"{wm}/cont", f"{model}.cont.mlp")
    found[f"{wm}/rssm/initial"] = f"{model}.rssm.initial", ""
    layer(f"{wm}/rssm/img_in", f"{model}.rssm.input.")
    layer(f"{wm}/rssm/gru", f"{model}.rssm.gru.", "gru")
    layer(f"{wm}/rssm/img_out", f"{model}.rssm.prior_hidden.")
    layer(f"{wm}/rssm/obs_out", f"{model}.rssm.posterior_hidden.", "posterior")
    linear(f"{wm}/rssm/img_stats", f"{model}.rssm.prior_out")
    linear(f"{wm}/rssm/obs_stats", f"{model}.rssm.posterior_out")
    mlp("agent/task_behavior/critic/net", "behaviour.critic.mlp")
    mlp("agent/task_behavior/ac/actor", "behaviour.actor.mlp")
    if kind == "continuous":  # ours has both in one
        linear("agent/task_behavior/ac/actor/dist_out/out", "behaviour.actor.mlp.out", "mean T")
        linear("agent/task_behavior/ac/actor/dist_out/std", "behaviour.actor.mlp.out", "std T")
        for name in ("out", "std"):
            bias = f"agent/task_behavior/ac/actor/dist_out/{name}/bias"
            found[bias] = "behaviour.actor.mlp.out.bias", {"out": "mean", "std": "std"}[name]
    return found


def reordered(ours: np.ndarray, order: str) -> np.ndarray:
    """Our parameter in the program's order."""
    deter, hidden = given.SIZES["deter"], given.SIZES["hidden"]
    by_pixel = np.arange(CHANNELS * PIXELS**2).reshape(CHANNELS, -1).T.ravel()
    if order == "conv":
        return ours.transpose(2, 3, 1, 0)
    if order == "deconv":
        return ours[:, :, ::-1, ::-1].transpose(2, 3, 1, 0)
    if order == "gru":  # (input, state) to (state, input)
        return np.concatenate([ours[:, hidden:], ours[:, :hidden]], 1).T
    if order == "posterior":  # (image, vector, state) to (state, image by pixel, vector)
        image, vector = ours[:, by_pixel], ours[:, len(by_pixel) : -deter]
        return np.concatenate([ours[:, -deter:], image, vector], 1).T
    if order.startswith("pixels"):
        ours = ours[by_pixel]
    if order.startswith("mean"):
        ours = ours[: given.ACTIONS]
    if order.startswith("std"):
        ours = ours[given.ACTIONS :]
    return ours.T


def ours_of(theirs: dict[str, Any], shapes: dict[str, tuple[int, ...]], table: Any) -> Any:
    """Values by our name and in our order; a parameter of ours may be in several of theirs."""
    found: dict[str, np.ndarray] = {}
    for name, (our_name, order) in table.items():
        if name in theirs:
            shape = shapes[our_name]
            places = reordered(np.arange(int(np.prod(shape))).reshape(shape), order)
            value = found.setdefault(our_name, np.zeros(shape, np.float64))
            value.ravel()[places.ravel()] = np.asarray(theirs[name]).ravel()
    return found


def shape_of(theirs: tuple[int, ...], order: str) -> tuple[int, ...]:
    """The shape of our parameter."""
    if order in ("conv", "deconv"):
        return theirs[3], theirs[2], theirs[0], theirs[1]
    if order.startswith(("mean", "std")):
        return 2 * given.ACTIONS, *theirs[:-1]
    return theirs[::-1]


def record(folder: str, kind: given.Kind) -> dict[str, Any]:
    """Losses, gradients, and three whole updates."""
    module, nets, ninjax = program(folder)
    config = settings(module.Agent.configs["defaults"])

    def space(*shape: int, discrete: bool = False) -> Any:
        return types.SimpleNamespace(shape=shape, discrete=discrete)

    seen = {"image": space(64, 64, 3), "vector": space(given.VECTOR)}
    acted = {"action": space(given.ACTIONS, discrete=kind == "discrete")}
    agent = module.Agent(seen, acted, None, config, name="agent")

    def batch(number: int) -> dict[str, Any]:
        made = given.batch(number, kind)
        none = np.zeros((given.ROWS, 1, given.ACTIONS), np.float32)
        made["action"] = np.concatenate([made["action"][:, 1:], none], 1)  # taken at each step
        made["image"] = made["image"].transpose(0, 1, 3, 4, 2)
        return {name: jnp.asarray(array) for name, array in made.items()}

    key = jax.random.PRNGKey(0)
    train = ninjax.pure(agent.train)
    begin, state = ninjax.pure(lambda: agent.train_initial(given.ROWS))({}, key)
    _, state = train(state, key, batch(0), begin)

    # Weights as given; everything that an update had moved back where it was.
    table = names(kind)
    shapes = {ours: shape_of(state[n].shape, order) for n, (ours, order) in table.items()}
    for name, (ours, order) in table.items():
        value = reordered(given.weight(ours, shapes[ours]), order)
        assert value.shape == state[name].shape, name
        state[name] = jnp.asarray(np.ascontiguousarray(value))
    for name in state:
        if "/slow/" in name:
            state[name] = state[name.replace("/slow/", "/net/")]
        elif "opt/" in name or "retnorm" in name:
            state[name] = jax.tree_util.tree_map(jnp.zeros_like, state[name])
        elif name.endswith("critic/updates/value"):
            state[name] = jnp.asarray(1, jnp.int32)  # at 0 the slow critic would jump to the other
        else:
            assert name in table, f"{name} has no counterpart"

    def losses(data: Any, carry: Any) -> Any:
        model, behaviour = agent.wm, agent.task_behavior.ac
        critic = behaviour.critics["extr"]
        data = agent.preprocess(data)
        parts = [model.encoder, model.rssm, *model.heads.values()]
        total, _, gradient, (_, outs, metrics) = ninjax.grad(model.loss, parts, has_aux=True)(
            data, carry
        )
        start = jax.tree_util.tree_map(
            lambda x: jax.lax.stop_gradient(x.reshape(-1, *x.shape[2:])), {**data, **outs["post"]}
        )

        def act(start: Any) -> Any:
            policy = lambda s: behaviour.actor(nets.sg(s)).sample(seed=ninjax.rng())  # noqa: E731
            imagined = model.imagine(policy, start, given.HORIZON)
            loss, of_actor = behaviour.loss(imagined)
            return loss, (imagined, of_actor)

        actor, _, of_actor, (imagined, more) = ninjax.grad(act, behaviour.actor, has_aux=True)(
            start
        )
        target = nets.sg(critic.score(imagined)[1])
        judged, _, of_critic, _ = ninjax.grad(critic.loss, critic.net, has_aux=True)(
            imagined, target
        )
        named = {
            "world_model/loss": total,
            "world_model/loss_reward": metrics["reward_loss_mean"],
            "world_model/loss_continue": metrics["cont_loss_mean"],
            "world_model/loss_dynamics": metrics["dyn_loss_mean"],
            "world_model/loss_decoder": metrics["image_loss_mean"] + metrics["vector_loss_mean"],
            "behaviour/actor_loss": actor,
            "behaviour/critic_loss": judged,
            "behaviour/entropy": more["policy_entropy_mean"],
            "behaviour/return": more["extr_return_raw_mean"],
        }
        return named, {**gradient, **of_actor, **of_critic}

    (named, gradients), _ = ninjax.pure(losses)(dict(state), key, batch(0), begin)
    before, carry, updates = ours_of(state, shapes, table), begin, []
    for number in range(given.UPDATES):
        (_, carry, metrics), state = train(state, key, batch(number), carry)
        updates.append(
            {
                ours: float(metrics[theirs])
                for ours, theirs in {
                    "world_model/loss": "model_opt_loss",
                    "world_model/grad_norm": "model_opt_grad_norm",
                    "behaviour/actor_loss": "actor_opt_loss",
                    "behaviour/actor_grad_norm": "actor_opt_grad_norm",
                    "behaviour/critic_loss": "extr_critic_critic_opt_loss",
                    "behaviour/critic_grad_norm": "extr_critic_critic_opt_grad_norm",
                }.items()
            }
        )
    after = ours_of(state, shapes, table)
    return {
        "losses": {name: float(value) for name, value in named.items()},
        "gradients": {
            name: given.digest(name, value)
            for name, value in ours_of(gradients, shapes, table).items()
        },
        "updates": updates,
        "moved": {name: given.digest(name, after[name] - before[name]) for name in after},
    }


def main() -> None:
    """Records both kinds of actions."""
    kinds = {kind: record(sys.argv[1], kind) for kind in given.KINDS}
    source = {"source": "danijar/dreamerv3 at 8fa35f8", "jax": jax.__version__}
    RECORDED.write_text(json.dumps(source | kinds, indent=1) + "\n")


if __name__ == "__main__":
    main()
