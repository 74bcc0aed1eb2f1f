"""Simulators that have wheels for this Python; where one has, the tests need it."""

from __future__ import annotations

import sys

import pytest

HERE = {"envpool": sys.version_info >= (3, 11), "dm_control": sys.version_info < (3, 13)}
"""As `pyproject.toml` has it."""


def needs(*names: str) -> pytest.MarkDecorator:
    """Leaves a test out where one of the simulators has no wheel."""
    missing = [name for name in names if not HERE[name]]
    return pytest.mark.skipif(
        bool(missing), reason=f"no wheel of {' and '.join(missing)} for this Python"
    )


EACH = [pytest.param(name, marks=needs(name)) for name in HERE]
"""Arguments of tests that run on either."""
