"""What is wrong with fused operations costs a warning and not the run.

The faults are those of the modules in `faults/`, which stand in for the kernels; all else is what
a run with `backend auto` does.
"""

from __future__ import annotations

import dataclasses
import importlib
import io
import json
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from mudreamer_fast import reference
from mudreamer_fast.agent import Agent
from mudreamer_fast.backend import load, trial, verdicts
from mudreamer_fast.backend.selfcheck import SMALL, Agreement, Sizes
from mudreamer_fast.backend.trial import Verdict, try_ops
from mudreamer_fast.backend.verdicts import keep, question, recall
from mudreamer_fast.config import Config
from mudreamer_fast.disk.manifest import read_manifest, write_manifest
from mudreamer_fast.train import train
from tests import tiny, tiny_run

CPU = torch.device("cpu")
FEW = Sizes(
    rows=2, steps=2, envs=1, starts=4, horizon=1, embed=3, actions=1, bins=3, deter=2, hidden=2,
    layers=1, groups=1, classes=2, continuous=True, dynamics=True, batch_norm=True,
)  # fmt: skip
Stand = Callable[[str], ModuleType]


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Stand:
    """Puts a module of `faults` where the kernels are, and has `auto` look at it on the CPU."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    # Other processes do not search the current folder.
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    for cached in (load.check_fused, load._checked):
        cached.cache_clear()

    def put(name: str) -> ModuleType:
        module = importlib.import_module(f"faults.{name}")
        monkeypatch.setattr(load, "kernels", module)
        monkeypatch.setattr(load, "checks_fused", lambda device: True)
        return module

    return put


def test_run_goes_on_without_the_operations_that_fail(
    stand_in: Stand,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    module = stand_in("several")
    tiny_run.patch_envs(monkeypatch)
    result = train(tiny_run.config(backend="auto"), tmp_path / "run")
    assert result.updates > 0
    wrong = [
        "categorical_entropy",
        "categorical_kl",
        "rssm_initial",
        "two_hot_loss",
        "two_hot_mean",
    ]
    said = capsys.readouterr()
    assert (
        f"warning: backend auto takes the reference for {', '.join(wrong)}: on cpu "
        "categorical_entropy: its process was ended by SIGSEGV, and 4 more\n"
    ) in said.err
    assert f"fused operations, but {', '.join(wrong)} by reference" in said.out + said.err
    found = len(reference.__all__) - len(wrong)
    why = f"{found} of {len(reference.__all__)} fused operations agree with the reference; "
    assert f"backend auto: {why}persistent is not usable: {load.PERSISTENT}, " in said.err
    recorded = json.loads((tmp_path / "run" / "made_with.json").read_text())
    assert recorded["operations"] == "fused"
    assert recorded["why"].startswith(why)
    reasons = recorded["by_reference"]
    assert list(reasons) == wrong
    assert "off by 1.0e-03" in reasons["categorical_kl"]
    assert reasons["two_hot_loss"] == "two_hot_loss: RuntimeError: PassManager::run failed"
    assert "out of resource" in reasons["two_hot_mean"]
    assert "illegal memory access" in reasons["rssm_initial"]
    ops = load.load_ops("fused", reasons)
    for op in reference.__all__:
        assert getattr(ops, op) is getattr(reference if op in reasons else module, op)

    # The next run tries again what gave nothing to compare, and nothing else.
    asked: list[str] = []

    def note(*request: Any) -> list[Verdict]:
        asked.extend(request[3])
        return [Verdict(op, (), "still broken") for op in request[3]]

    monkeypatch.setattr(load, "try_ops", note)
    load.check_fused.cache_clear()
    load._checked.cache_clear()
    agent = made_agent(tiny_run.config(backend="auto"))
    assert asked == [*(op for op in wrong if op != "categorical_kl"), load.PERSISTENT]
    assert [op for op, _ in agent.operations.replaced] == wrong


def test_operation_that_hangs_is_given_up(stand_in: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "OPERATION_SECONDS", 0.1)
    fused = stand_in("hanging").__name__
    (verdict,) = try_ops(fused, reference.__name__, CPU, ["lambda_return"], FEW)
    assert not verdict.ok
    assert not verdict.compared
    assert verdict.reason == "lambda_return: no answer within 0.1 s"


def test_agent_learns_by_the_reference_where_nothing_compiles(
    stand_in: Stand, capsys: pytest.CaptureFixture[str]
) -> None:
    stand_in("uncompiled")
    agent = made_agent(replace_backend(tiny.config(), "auto"))
    assert str(agent.operations) == "reference operations, where fused ones fail"
    assert "takes the reference for all operations: on cpu " in capsys.readouterr().err
    plain = made_agent(tiny.config())
    batch = tiny.batch({"vector": tiny.VECTOR}, tiny.CONTINUOUS)
    assert agent.update(batch) == plain.update(batch)


def test_process_that_does_not_begin_is_told_by_its_last_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(trial, "_PROGRAM", "raise OSError('no driver')")
    found = try_ops("a", "b", CPU, ["mlp", "lambda_return"], FEW)
    assert [one.reason for one in found] == [
        "mlp: OSError: no driver", "lambda_return: OSError: no driver",
    ]  # fmt: skip


def test_what_is_left_when_the_time_is_up_is_not_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "ALL_SECONDS", -1.0)
    (found,) = try_ops("a", "b", CPU, ["mlp"], FEW)
    assert found.trouble == "not begun, as the others took -1 s"


def test_process_that_no_signal_ends_is_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    class Stuck:
        def kill(self) -> None:
            pass

        def wait(self, timeout: float) -> int:
            raise subprocess.TimeoutExpired("check", timeout)

    stuck: Any = Stuck()
    assert not trial._end(stuck)
    assert trial._how_it_ended(stuck, io.BytesIO()) == "its process hung up"
    end = trial._end
    monkeypatch.setattr(trial, "_end", lambda process: not end(process))
    monkeypatch.setattr(trial, "_PROGRAM", "raise OSError('no driver')")
    found = try_ops("a", "b", CPU, ["mlp", "lambda_return"], FEW)
    assert {one.trouble for one in found} == {"OSError: no driver, and no signal ends its process"}


def made_agent(config: Config) -> Agent:
    return Agent(config, {"vector": tiny.VECTOR}, tiny.CONTINUOUS, CPU)


def replace_backend(config: Config, backend: Any) -> Config:
    return replace(config, train=replace(config.train, backend=backend))


GOOD = Verdict("mlp", (Agreement("mlp", "the output", 1e-7, 5e-6),))


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return question(reference.__name__, reference.__name__, CPU, SMALL)


def test_verdicts_are_kept(asked: dict[str, Any]) -> None:
    assert recall(asked) == {}
    bad = Verdict("two_hot_mean", (Agreement("two_hot_mean", "the output", float("inf"), 5e-6),))
    raised = Verdict("two_hot_loss", (Agreement("two_hot_loss", "", 0.0, 0.0, "OSError: no"),))
    lost = Verdict("lambda_return", (), "no answer")
    keep(asked, [GOOD, lost])
    keep(asked, [bad, raised])
    assert recall(asked) == {one.op: one for one in (GOOD, lost, bad, raised)}


@pytest.mark.parametrize("change", ["card", "driver", "torch", "triton", "sources", "sizes"])
def test_verdicts_are_for_one_card_and_version_and_size(asked: dict[str, Any], change: str) -> None:
    keep(asked, [GOOD])
    assert recall(asked | {change: "another"}) == {}


@pytest.mark.parametrize(
    "entries",
    [
        {"question": {}},
        {"verdicts": {"mlp": {"trouble": "", "uses": [{"op": 3}]}}},
        {"verdicts": {"mlp": {"trouble": "", "uses": [{"error": "small"}]}}},
    ],
)
def test_verdicts_of_another_kind_are_not_taken(
    asked: dict[str, Any], entries: dict[str, Any]
) -> None:
    keep(asked, [GOOD])
    folder = verdicts._folder(asked)
    whole = read_manifest(folder, verdicts.KIND, verdicts.VERSION)
    for verdict in entries.get("verdicts", {}).values():
        verdict["uses"] = [dataclasses.asdict(GOOD.uses[0]) | use for use in verdict["uses"]]
    write_manifest(folder, verdicts.KIND, verdicts.VERSION, whole | entries)
    assert recall(asked) == {}


def test_a_question_needs_sources_and_does_without_triton(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(ModuleNotFoundError, match="no module named no_such_module"):
        question("no_such_module", reference.__name__, CPU, SMALL)
    assert verdicts._version("no-such-package") == ""


def test_sources_and_sizes_are_part_of_the_question(asked: dict[str, Any]) -> None:
    other = question(load.kernels.__name__, reference.__name__, CPU, FEW)
    assert {name for name in asked if asked[name] != other[name]} == {"sources", "sizes"}


def test_verdicts_that_are_damaged_or_cannot_be_kept_are_not_there(
    asked: dict[str, Any], tmp_path: Path
) -> None:
    keep(asked, [GOOD])
    (kept,) = tmp_path.rglob("manifest.json")
    whole = kept.read_text()
    for damaged in ("", "[]", whole[:50], whole.replace("1e-07", "1e-09"), '{"verdicts": 3}'):
        kept.write_text(damaged)
        assert recall(asked) == {}
    keep(asked, [GOOD])
    assert recall(asked) == {"mlp": GOOD}
    kept.unlink()
    kept.parent.rmdir()
    kept.parent.write_text("no folder")
    keep(asked, [GOOD])
    assert recall(asked) == {}
