"""Functions of the user's that make environments, found by name or handed over in Python."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from typing import Any

from mudreamer_fast.config import ConfigError

Factory = Callable[..., Any]
"""Makes one environment; a class, a function, or any other callable that can be pickled."""

_handed_over: dict[str, Factory] = {}


def remember(factory: Factory) -> str:
    """The task's name of a function that makes Gymnasium environments.

    Where the name can be imported, other processes find the function by it, as when the run is
    evaluated on the command line; otherwise only this one does.

    Raises:
        ConfigError: what is no function.
    """
    if not callable(factory):
        raise ConfigError(
            f"env must be a function that makes a gymnasium.Env, got {type(factory).__name__}"
        )
    named = factory if hasattr(factory, "__qualname__") else type(factory)
    module, name = named.__module__, named.__qualname__
    found: Any = sys.modules.get(module)
    for part in name.split("."):
        found = getattr(found, part, None)
    if found is not factory or module == "__main__":
        name = f"<{name.replace('<', '').replace('>', '')}>"
    task = f"gym:{module}:{name}"
    _handed_over[task] = factory
    return task


def remembered(task: str) -> Factory | None:
    """The function that was handed over in this process under a task's name."""
    return _handed_over.get(task)


def import_module(task: str, name: str) -> Any:
    """A module of the user's; the current folder is searched last.

    Args:
        task: whose name says it, for the message.
        name: dotted.

    Raises:
        ConfigError: there is no such module, or it fails.
    """
    folder = os.getcwd()
    if folder not in sys.path:
        sys.path.append(folder)
    try:
        return importlib.import_module(name)
    except Exception as error:
        raise ConfigError(
            f"{task}: module {name!r} does not import ({type(error).__name__}: {error})"
        ) from None


def import_factory(task: str, module: str, name: str) -> Factory:
    """A function of a module of the user's.

    Raises:
        ConfigError: there is no such module or function.
    """
    found = import_module(task, module)
    for part in name.split("."):
        found = getattr(found, part, None)
    if not callable(found):
        raise ConfigError(f"{task}: module {module!r} has no function {name!r}")
    factory: Factory = found
    return factory
