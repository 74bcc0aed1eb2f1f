"""One operation that never ends."""

from __future__ import annotations

import time
from typing import Any

from mudreamer_fast.reference import *  # noqa: F403


def lambda_return(*given: Any, **named: Any) -> Any:
    """Waits for what does not come."""
    while True:
        time.sleep(1000.0)
