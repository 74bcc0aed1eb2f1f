"""The benchmark of several processes, with one."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from bench import scaling
from tests import tiny


def test_each_number_of_processes_has_its_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny.config()
    config = dataclasses.replace(
        config, replay=dataclasses.replace(config.replay, batch_size=4, batch_length=5)
    )
    monkeypatch.setattr(scaling, "PRESETS", {"quick": ("", config), "dmc_vision": ("", config)})
    monkeypatch.setattr(scaling, "UPDATES", 2)
    monkeypatch.setattr(scaling, "WARM_UPS", 1)
    out = tmp_path / "out.json"
    out.write_text(json.dumps({"processes": {"2": "as before"}}))
    assert scaling.main([str(out)]) == 0
    found = json.loads(out.read_text())
    assert found["processes"]["2"] == "as before"
    for row in found["processes"]["1"].values():
        assert row["rows_of_each"] == 4
        taken = row["milliseconds"]
        assert 0 < taken["min"] <= taken["median"] <= taken["max"]
        steps_a_second = 1e3 * 4 * 5 / taken["median"]
        assert row["replayed_steps_per_second"] == pytest.approx(steps_a_second)
    assert "1 processes, shared" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="expected a file"):
        scaling.main([])
