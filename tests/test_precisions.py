"""The comparison of updates by the precision of their operands."""

from __future__ import annotations

import pytest

from bench import precisions
from tests.simulators import needs


@needs("envpool")
def test_operands_of_fewer_bits_give_gradients_that_are_near_and_not_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(precisions, "COLLECTED", 80)
    found = precisions.compare(2)
    by_precision = found["each_update_from_the_same_state"]
    off = {
        name: by_precision[name]["difference world_model"]["median"]
        for name in ("tf32", "bfloat16")
    }
    assert 0 < off["tf32"] < off["bfloat16"] < 0.5
    for notes in by_precision.values():
        for part in ("world_model", "actor", "critic"):
            assert 0.9 < notes[f"cosine {part}"]["worst"] <= 1
    alone = found["learning_alone_last_fifth"]
    assert alone.keys() == {"float32", "tf32", "bfloat16"}
    exact = alone["float32"]["world_model/loss"]
    assert alone["bfloat16"]["world_model/loss"] == pytest.approx(exact, rel=0.01)
