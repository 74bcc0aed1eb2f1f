"""What benchmarks share."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch


@pytest.fixture
def cpu_threads() -> Iterator[None]:
    """MUDREAMER_BENCH_THREADS threads of PyTorch, or two."""
    before = torch.get_num_threads()
    torch.set_num_threads(int(os.environ.get("MUDREAMER_BENCH_THREADS", "2")))
    yield
    torch.set_num_threads(before)
