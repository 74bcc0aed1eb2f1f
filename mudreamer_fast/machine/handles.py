"""How many files the system lets a process have open."""

from __future__ import annotations

import resource

from mudreamer_fast.config import ConfigError

LEAST_HANDLES = 64
"""Of a run whose environments are all in its own process, several times over."""
ENVIRONMENT_HANDLES = 8
"""Of an environment in a process of its own, twice over: one more is there during evaluations."""


def allowed_handles() -> int | None:
    """Files that a process may have open, once it has raised its limit; None for any number."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    return None if most == resource.RLIM_INFINITY else most


def raise_handle_limit(num_envs: int) -> None:
    """Raises this process's limit to what a run may need, as far as the system allows it.

    Args:
        num_envs: environments that may be in processes of their own.

    Raises:
        ConfigError: fewer than any run needs are allowed.
    """
    allowed = allowed_handles()
    if allowed is not None and allowed < LEAST_HANDLES:
        raise ConfigError(
            f"{allowed} open files are allowed, and a run needs {LEAST_HANDLES}: "
            "raise the limit (ulimit -n)"
        )
    wanted = LEAST_HANDLES + ENVIRONMENT_HANDLES * num_envs
    now, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if now != resource.RLIM_INFINITY and now < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(wanted, allowed or wanted), most))
