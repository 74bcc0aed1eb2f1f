from __future__ import annotations

import torch


def test_surroundings_fill_uninitialised_memory_with_nan() -> None:
    assert torch.empty(7, 3).isnan().all()
    assert torch.zeros(5).new_empty(9).isnan().all()
    assert torch.empty_like(torch.zeros(2, 2, dtype=torch.bfloat16)).isnan().all()


def test_surroundings_use_one_thread() -> None:
    assert torch.get_num_threads() == 1
