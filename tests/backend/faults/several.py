"""One operation each that computes wrongly, does not compile, is not launched, or kills."""

from __future__ import annotations

import os
import signal
from typing import Any

import torch

from mudreamer_fast import reference
from mudreamer_fast.reference import *  # noqa: F403


def categorical_entropy(*given: Any, **named: Any) -> Any:
    """Ends its process, as a driver may."""
    os.kill(os.getpid(), signal.SIGSEGV)


def categorical_kl(*given: Any, **named: Any) -> Any:
    """Is off by one in a thousand."""
    return 1.001 * reference.categorical_kl(*given, **named)


def rssm_initial(*given: Any, **named: Any) -> Any:
    """Leaves its process without a device: from then on nothing is computed."""

    def lost(*arguments: Any, **options: Any) -> Any:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    torch.zeros = lost
    lost()


def two_hot_loss(*given: Any, **named: Any) -> Any:
    """Does not compile."""
    raise RuntimeError("PassManager::run failed\nand more that nobody needs")


def two_hot_mean(*given: Any, **named: Any) -> Any:
    """Is not launched."""
    raise RuntimeError("out of resource: shared memory")
