"""Launch shapes. Chosen by counting, not yet by timing: no GPU has run these kernels.

Every kernel here reads whole rows. A row of up to 1024 elements takes four warps, eight elements a
thread; longer rows take more warps, so that what a thread holds stays in its registers.
"""

from __future__ import annotations

import triton

REDUCTION_PROGRAMS = 512
"""Programs that share a sum over rows (about four for each of 132 multiprocessors); each leaves one
partial sum, and the partial sums are added in a fixed order."""

GROUP_TILE = 1024
"""Logits that a program of the categorical kernels holds: 32 groups of 32 classes."""


def block(width: int) -> int:
    """Length of the power of two that a row of `width` elements is read in."""
    return max(16, int(triton.next_power_of_2(width)))


def warps(width: int) -> int:
    """Warps for a row of `width` elements."""
    return min(16, max(1, block(width) // 256))


def launch(warps: int) -> dict[str, int]:
    """Options of every launch, and of every compilation ahead of time.

    What Triton takes for the fusion of a product with a sum where nothing is said is to change.
    """
    return {"num_warps": warps, "enable_fp_fusion": True}


def rows_each(rows: int) -> int:
    """Rows that each program of a reduction takes; a power of two."""
    return int(triton.next_power_of_2(max(1, -(-rows // REDUCTION_PROGRAMS))))
