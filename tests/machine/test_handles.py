from __future__ import annotations

import resource

import pytest

from mudreamer_fast.config import ConfigError
from mudreamer_fast.machine.handles import (
    ENVIRONMENT_HANDLES,
    LEAST_HANDLES,
    allowed_handles,
    raise_handle_limit,
)

WANTED = LEAST_HANDLES + 5 * ENVIRONMENT_HANDLES
ANY = resource.RLIM_INFINITY


@pytest.mark.parametrize(
    ("now", "most", "becomes"),
    [
        (WANTED, ANY, WANTED),
        (ANY, ANY, ANY),
        (70, 4096, WANTED),
        (70, ANY, WANTED),
        (70, 80, 80),
        (20, LEAST_HANDLES, LEAST_HANDLES),
        (20, LEAST_HANDLES - 1, None),
    ],
)
def test_the_limit_becomes_what_a_run_needs_as_far_as_it_may(
    now: int, most: int, becomes: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = [(now, most)]
    monkeypatch.setattr(resource, "getrlimit", lambda kind: limits[-1])
    monkeypatch.setattr(resource, "setrlimit", lambda kind, pair: limits.append(pair))
    if becomes is None:
        with pytest.raises(ConfigError, match="63 open files are allowed, and a run needs 64"):
            raise_handle_limit(5)
    else:
        raise_handle_limit(5)
        assert limits[-1] == (becomes, most)
    assert allowed_handles() == (None if most == ANY else most)
