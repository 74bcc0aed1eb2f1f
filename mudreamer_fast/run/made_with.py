"""What a run is made with, and whether what stands here is the same.

Another simulator, or another version of it, may show other images and answer actions otherwise: an
agent that goes on there is judged on a task that it has not learned. Other libraries only round
otherwise.
"""

from __future__ import annotations

import importlib.metadata
import json
import platform
from collections.abc import Mapping
from pathlib import Path

from mudreamer_fast.agent import Agent
from mudreamer_fast.config import ConfigError
from mudreamer_fast.envs import VectorEnv, without_layers
from mudreamer_fast.machine.screen import say
from mudreamer_fast.run.folder import write_json

SIMULATORS = {
    "EnvPoolEnv": ("envpool",),
    "AtariEnv": ("envpool",),
    "DmcEnv": ("dm_control", "mujoco"),
    "GymEnv": ("gymnasium",),
}
"""The packages that decide what an environment shows, by the class that stands before them."""
ALIKE = ({"envpool": "1.2.5"}, {"dm_control": "1.0.38", "mujoco": "3.6.0"})
"""Simulators that give the same episodes, bit for bit."""
LIBRARIES = ("numpy", "torch", "triton", "mudreamer-fast")
ALLOW = "--allow-other-simulator"
"""The option that lets a run go on with another simulator."""


def simulator(env: VectorEnv) -> dict[str, str]:
    """The versions of what simulates and renders, by package."""
    return _versions(SIMULATORS.get(type(without_layers(env)).__name__, ()))


def write(path: Path, env: VectorEnv, agent: Agent) -> None:
    """Store all that a run is made with besides its settings."""
    content = {
        "simulator": simulator(env),
        "libraries": _libraries(),
        "device": str(agent.device),
        **agent.operations.facts(),
    }
    write_json(path, content)


def check(path: Path, env: VectorEnv, allowed: bool) -> None:
    """Refuse a simulator that is not the run's; say so where libraries differ.

    Args:
        path: what `write` stored; a run that has none was made before there was one.
        env: environments of the run's task, made here.
        allowed: whether another simulator will do.

    Raises:
        ConfigError: it may show the agent something else, and that is not allowed.
    """
    try:
        before = json.loads(path.read_text())
        theirs, libraries = dict(before["simulator"]), dict(before["libraries"])
    except FileNotFoundError:
        return
    except (OSError, ValueError, KeyError, TypeError):
        say(f"warning: {path} cannot be read: what the run was made with is not known\n")
        return
    ours = simulator(env)
    if theirs != ours and not (theirs in ALIKE and ours in ALIKE):
        said = f"the run was made with {_in_words(theirs)}, and here is {_in_words(ours)}"
        if not allowed:
            raise ConfigError(
                f"{said}: the agent may see other images and its actions may do something else; "
                f"install what it was made with, or take the difference with {ALLOW}"
            )
        say(f"warning: {said}\n")
    here = _libraries()
    changed = [
        f"{name} {libraries.get(name, 'none')} (here {here.get(name, 'none')})"
        for name in dict.fromkeys((*libraries, *here))
        if libraries.get(name) != here.get(name)
    ]
    if changed:
        say(f"made with {', '.join(changed)}: results may differ by rounding\n")


def _libraries() -> dict[str, str]:
    return {"python": platform.python_version(), **_versions(LIBRARIES)}


def _versions(packages: tuple[str, ...]) -> dict[str, str]:
    found = {}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _in_words(versions: Mapping[str, str]) -> str:
    words = " with ".join(f"{package} {version}" for package, version in versions.items())
    return words or "an unknown simulator"
