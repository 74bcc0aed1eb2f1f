"""A barrier between all programs of one launch, which must all be resident at once."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def wait_for_all(p_arrived, target):
    """Return once `target` arrivals were counted, this program's among them.

    What any program stored before it is then seen by all. The count only grows: a program that is
    already past the next barrier can not hide an arrival from one that still waits at this.

    Args:
        p_arrived: int32 counter, 0 before the launch.
        target: programs of the launch times the barriers met, this one included.
    """
    tl.debug_barrier()
    tl.atomic_add(p_arrived, 1, sem="release", scope="gpu")
    arrived = tl.atomic_add(p_arrived, 0, sem="acquire", scope="gpu")
    while arrived < target:
        arrived = tl.atomic_add(p_arrived, 0, sem="acquire", scope="gpu")
    tl.debug_barrier()
