"""No operation runs, as where Triton finds no compiler."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mudreamer_fast import reference


def _no_compiler(*given: Any, **named: Any) -> Any:
    raise RuntimeError("Failed to find C compiler. Please specify via CC environment variable.")


def __getattr__(name: str) -> Callable[..., Any]:
    if name not in reference.__all__:
        raise AttributeError(name)
    return _no_compiler
