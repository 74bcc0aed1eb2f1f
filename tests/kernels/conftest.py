"""Makes the interpreter round to bfloat16 as a GPU does: to the nearest, and ties to even."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mudreamer_fast.kernels.device import INTERPRETED


def rounded(floats: np.ndarray) -> np.ndarray:
    """The upper half of the bits of float32 numbers, as uint16."""
    bits = np.ascontiguousarray(floats).view(np.uint32).astype(np.uint64)
    upper = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(floats), 0x7FC0, upper).astype(np.uint16)


@pytest.fixture(autouse=True)
def _nearest_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    if not INTERPRETED:
        return
    import triton.language as tl
    from triton.runtime import interpreter

    cut = interpreter.InterpreterBuilder.create_fp_trunc

    def nearest(builder: Any, source: Any, target: Any) -> Any:
        if source.dtype.scalar == tl.float32 and target.scalar == tl.bfloat16:
            return interpreter.TensorHandle(rounded(source.data), target.scalar)
        return cut(builder, source, target)

    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_fp_trunc", nearest)
