"""Updates timed by backend: what is timed, kept, and run again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bench import profile_update
from bench.profile_update import AGREEMENT, SHORT, WAYS, Options, Way, failed, measure, run
from mudreamer_fast.config import Config

DONE = {"finite": True, "milliseconds": {"median": 2.0, "min": 1.0, "max": 3.0, "rounds": 4}}


def test_a_way_is_noted_as_it_goes() -> None:
    notes: list[dict[str, Any]] = []
    measure(
        Way("reference", "off"), False, True,
        lambda known: notes.append(json.loads(json.dumps(known))),
    )  # fmt: skip
    assert [len(note) for note in notes] == [2, 3]
    assert notes[0]["finite"]
    assert notes[1]["milliseconds"]["median"] > 0


def test_what_ran_is_kept_and_only_the_rest_is_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran: list[str] = []

    def child(options: Options, name: str, limit: float) -> dict[str, Any]:
        assert 0 < limit <= options.way_seconds
        ran.append(name)
        broken = name == "reference, cuda_graph off, float32" and len(ran) == 1
        agrees = {"compared": 3, "disagree": []}
        return {"error": "ended"} if broken else agrees if name == AGREEMENT else DONE

    monkeypatch.setattr(profile_update, "in_a_process", child)
    monkeypatch.setattr(profile_update, "surroundings", lambda: {"device": "a GPU", "commit": "c"})
    monkeypatch.setattr(profile_update, "WAYS", {"first": (Way("reference", "off"), AGREEMENT)})
    options = Options(tmp_path / "updates.json", "first")
    assert run(options) == 1
    assert ran == ["reference, cuda_graph off, float32", AGREEMENT]
    assert run(options) == 0
    assert ran[2:] == ["reference, cuda_graph off, float32"]
    kept = json.loads(options.file.read_text())
    assert kept["device"] == "a GPU"
    assert kept["update"] == {ran[0]: DONE, AGREEMENT: {"compared": 3, "disagree": []}}
    assert "2.00 ms an update (1.00 to 3.00)" in capsys.readouterr().out
    monkeypatch.setattr(profile_update, "surroundings", lambda: {"device": "other", "commit": "c"})
    run(options)
    assert ran[3:] == ["reference, cuda_graph off, float32", AGREEMENT]


def test_what_the_time_does_not_suffice_for_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(profile_update, "in_a_process", None)
    assert run(Options(tmp_path / "updates.json", "first", seconds=0.0)) == 1
    assert "agreement: left out: the 0 s are over" in capsys.readouterr().out


@pytest.mark.parametrize(
    "result", [{"error": "x"}, {"compared": 1, "disagree": ["mlp"]}, {**DONE, "finite": False}]
)
def test_a_result_that_is_wrong_fails(result: dict[str, Any]) -> None:
    assert failed(result)
    assert not failed(DONE)


def test_the_first_ways_are_those_that_users_have() -> None:
    backends = {(way.backend, way.graph) for way in WAYS["first"] if isinstance(way, Way)}
    kinds = ("reference", "fused", "persistent")
    assert backends == {(kind, graph) for kind in kinds for graph in ("on", "off")}
    assert set(WAYS["first"]) < set(WAYS["all"])
    assert Config() != SHORT
