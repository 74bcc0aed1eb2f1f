"""Triton's interpreter without work that it does many times over."""

from __future__ import annotations

import functools
import inspect
from types import FunctionType
from typing import Any

_active: set[str] = set()


class _Patched:
    """Undoes what was patched for a launch; nothing, for what was called inside of one."""

    def __init__(self, scope: Any, modules: frozenset[str]) -> None:
        self._scope, self._modules = scope, modules

    def restore(self) -> None:
        if self._scope is not None:
            self._scope.restore()
        _active.difference_update(self._modules)


def patch_once_a_launch() -> None:
    """Have the language patched once in a launch: about half of the time, the same results.

    The interpreter does it again for each device function that a kernel calls, as often as it calls
    it, every time around the wrapper from the time before.
    """
    import triton.language as tl
    from triton.runtime import interpreter

    patch = interpreter._patch_lang

    @functools.cache
    def used(fn: FunctionType) -> frozenset[str]:
        modules = [value for value in fn.__globals__.values() if inspect.ismodule(value)]
        return frozenset(module.__name__ for module in modules if module in (tl, tl.core))

    def once(fn: FunctionType) -> _Patched:
        new = used(fn) - _active
        if not new:
            return _Patched(None, new)
        _active.update(new)
        return _Patched(patch(fn), new)

    interpreter._patch_lang = once
