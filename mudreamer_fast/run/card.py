"""A trained agent to hand on: weights, settings, scores, curve, and a card that says what it is."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from mudreamer_fast.agent import Agent
from mudreamer_fast.config import Config, ConfigError
from mudreamer_fast.disk import checkpoint
from mudreamer_fast.disk.checkpoint import CheckpointError
from mudreamer_fast.disk.weights import save_weights
from mudreamer_fast.run import pictures
from mudreamer_fast.run.folder import RunFolder, read_config, write_config
from mudreamer_fast.run.metrics import METRICS_FILE
from mudreamer_fast.run.results import score_table

LOAD = """\
from mudreamer_fast import Agent, make_env

agent = Agent.load("{folder}")
env = make_env(agent.config.env, num_envs=1, seed=0)
policy, step = agent.policy(num_envs=1), env.reset()
while not step.is_last[0]:
    step = env.step(policy(step.observation, step.is_first))
"""
"""What the card says of how to use the agent."""


def export_run(run: Path, folder: Path, which: Literal["newest", "best"] = "newest") -> list[Path]:
    """Writes a run's agent to a folder of its own, which `Agent.load` reads.

    The folder holds what acts and what is needed to go on learning but the optimisers' moments;
    the replay buffer stays behind as well.

    Args:
        run: run folder.
        folder: to be made; may be there if it is empty.
        which: the newest checkpoint, or the one that scored best in an evaluation.

    Returns:
        The paths written.

    Raises:
        ConfigError: no run there, or a folder that is taken.
        checkpoint.CheckpointError: no checkpoint, or none that can be read.
    """
    source, target = RunFolder(run), RunFolder(folder)
    config = read_config(source.config)
    place = source.best if which == "best" else source.checkpoint
    counters = checkpoint.load(place, ("counters",))["counters"]
    agent = Agent.load(place, device="cpu")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder} is taken: name a folder that is empty or not there")
    folder.mkdir(parents=True, exist_ok=True)
    state = agent.state_dict()
    save_weights({part: state[part] for part in Agent.LEARNED}, target.weights)
    write_config(config, target.config)
    written = [target.weights, target.config]
    for file in ("made_with", "result", "strip"):
        if (path := getattr(source, file)).exists():
            written.append(Path(shutil.copyfile(path, getattr(target, file))))
    if (metrics := source.root / METRICS_FILE).exists():
        written.append(pictures.plot_curve(metrics, target.curve))
    text = card(config, agent, counters, _read(target.result), _read(target.made_with))
    text += f"\n## Use\n\n```python\n{LOAD.format(folder=folder)}```\n"
    if target.curve in written:
        text += f"\n![return of an episode over environment steps]({target.curve.name})\n"
    target.card.write_text(text)
    return [*written, target.card]


def card(
    config: Config,
    agent: Agent,
    counters: Mapping[str, Any],
    result: Mapping[str, Any],
    made_with: Mapping[str, Any],
) -> str:
    """What a trained agent is, in Markdown: task, training, scores.

    Args:
        config: the run's.
        agent: the run's.
        counters: of the checkpoint that the agent is of.
        result: what the run's `result.json` says; empty where it was not finished.
        made_with: what its `made_with.json` says.
    """
    env_steps = counters["policy_steps"] * config.env.action_repeat
    shown = ", ".join(
        f"{name} {' x '.join(map(str, spec.shape))}"
        for name, spec in agent.observation_spec.items()
    )
    number = "number" if agent.action_spec.size == 1 else "numbers"
    kind = f"{number} in [-1, 1]" if agent.action_spec.continuous else "choices, one at a time"
    parameters = sum(agent.parameter_counts().values())
    versions = {**made_with.get("simulator", {}), **made_with.get("libraries", {})}
    facts = {
        "task": f"`{config.env.task}`",
        "sees": shown,
        "does": f"{agent.action_spec.size} {kind}",
        "action repeat": config.env.action_repeat,
        "parameters": f"{parameters:,}",
        "trained for": f"{env_steps:,} simulator steps, {agent.updates:,} updates, "
        f"{counters['seconds'] / 3600:.2f} hours",
        "train ratio": f"{config.train.train_ratio:g}",
        "seed": config.train.seed,
        "made with": ", ".join(f"{name} {version}" for name, version in versions.items()),
    }
    lines = [
        f"# MuDreamer on {config.env.task}",
        "",
        "An agent of [MuDreamer](https://arxiv.org/abs/2405.15083), which learns a model of its "
        "world without reconstructing what it sees, trained by `mudreamer_fast`.",
        "",
        "| | |",
        "|---|---|",
        *(f"| {name} | {fact} |" for name, fact in facts.items() if fact != ""),
        "",
        "## Scores",
        "",
    ]
    if result:
        lines += [
            f"Returns of the evaluation at {result['env_steps']:,} simulator steps:",
            "",
            "```",
            score_table(result["scores"], result["random_scores"], result["eval_policy"]),
            "```",
        ]
    elif counters["best_score"] > float("-inf"):
        best = counters["best_score"]
        lines.append(f"The best mean return of an evaluation in training so far is {best:.1f}.")
    else:
        lines.append("It has not been evaluated.")
    return "\n".join(lines) + "\n"


def _read(path: Path) -> dict[str, Any]:
    """The content of a JSON file that may not be there."""
    if not path.exists():
        return {}
    try:
        content: dict[str, Any] = json.loads(path.read_text())
    except ValueError:
        raise CheckpointError(f"{path.name} of the run is not JSON") from None
    return content
