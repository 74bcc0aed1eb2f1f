from __future__ import annotations

import dataclasses
import importlib.metadata
import re
from types import SimpleNamespace

import pytest

from mudreamer_fast.cli import info
from mudreamer_fast.cli.info import Timing, describe, estimate
from mudreamer_fast.cli.predict import Prediction, Work
from mudreamer_fast.config import PRESETS
from mudreamer_fast.envs import EnvError
from tests import tiny_run

PREDICTED = Prediction(Work(flops=3_000_000_000, operations=50), 2e9, 0.005, 100.0)
TIMING = Timing(
    random_step=0.5, agent_step=1.0, update=3.0, steps_timed=5, updates_timed=4, predicted=PREDICTED
)


def test_description_names_every_preset_and_task(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(info, "renderer_name", lambda: "a renderer")
    text = describe("quick", PRESETS["quick"][1])
    for name in (*PRESETS, *info.task_names(), "a renderer", "torch "):
        assert name in text
    assert "  * quick" in text
    assert "    dmc_vision" in text


def test_description_of_a_machine_without_renderer_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail() -> str:
        raise EnvError("no EGL")

    monkeypatch.setattr(info, "renderer_name", fail)
    assert "renderer   none: no EGL" in describe("quick", PRESETS["quick"][1])


def test_description_says_which_package_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        if name == "envpool":
            raise importlib.metadata.PackageNotFoundError(name)
        return "1.5"

    monkeypatch.setattr(info, "renderer_name", lambda: "a renderer")
    monkeypatch.setattr(importlib.metadata, "version", version)
    first = describe("quick", PRESETS["quick"][1]).splitlines()[0]
    assert first.startswith("mudreamer_fast 1.5, Python ")
    assert "torch 1.5" in first
    assert "envpool (none)" in first


def test_estimate_times_the_real_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(info, "make_env", tiny_run.make_env)
    timing, parts = info._measure(tiny_run.config("pixels"), 2.0)
    assert 0 < timing.random_step < timing.agent_step < timing.update < 10
    assert timing.updates_timed > 0
    assert timing.steps_timed > 0
    assert timing.predicted.work.operations > 100
    assert timing.predicted.seconds > 0
    assert "batch 3 x 5" in parts


def test_estimate_adds_up_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(info, "_measure", lambda config, seconds: (TIMING, "parts"))
    config = tiny_run.config(
        env_steps=1200, prefill_steps=120, eval_every_env_steps=600, eval_episodes=3
    )
    text = estimate("tiny", config, 1.0)
    # 600 policy steps, 120 of them random, in 2 environments; 160 updates for the other 480
    assert "1,200 environment steps = 600 policy steps, 160 updates" in text
    assert "learning 12 min, prefill 30 s" in text
    # two evaluations of two rounds of 500 steps, and the random policy's at half the price
    assert "2 evaluations and the random policy's 42 min" in text
    assert re.search(r"160 updates: 54 min$", text, re.MULTILINE)
    assert "max-minutes" not in text
    assert "(median of 4)" in text
    # a second and a half of products, half a second of beginnings
    assert (
        "prediction an update takes 2000.0 ms and all of them 5 min: 3 GFLOP at 2 GFLOP/s" in text
    )
    assert "(median of 5, 2 environments side by side)" in text


@pytest.mark.parametrize("busy", ["", "a load average of 9.0 on 2 cores"])
def test_estimate_warns_where_the_machine_is_busy(
    monkeypatch: pytest.MonkeyPatch, busy: str
) -> None:
    monkeypatch.setattr(info, "_measure", lambda config, seconds: (TIMING, "parts"))
    monkeypatch.setattr(info, "busy_with_others", lambda device: busy)
    text = estimate("tiny", tiny_run.config(), 1.0)
    assert ("busy" in text) == bool(busy)
    assert busy in text


def test_estimate_says_where_the_minutes_run_out(monkeypatch: pytest.MonkeyPatch) -> None:
    timing = dataclasses.replace(TIMING, random_step=0.0, agent_step=0.0)
    monkeypatch.setattr(info, "_measure", lambda config, seconds: (timing, "parts"))
    config = tiny_run.config(env_steps=1200, prefill_steps=120)
    limited = dataclasses.replace(config, train=dataclasses.replace(config.train, max_minutes=4.0))
    assert "stops it before, at about 720 environment steps" in estimate("tiny", limited, 1.0)


def test_timing_leaves_the_first_call_out(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(now=0.0)
    look = lambda: clock.now  # noqa: E731
    monkeypatch.setattr(info, "time", SimpleNamespace(monotonic=look, perf_counter=look))
    lengths = iter([4.0, 1.0, 2.0, 0.5, 1.5, 9.0])

    def act() -> None:
        clock.now += next(lengths)

    assert info._time(act, most=5, seconds=10.0) == (1.25, 4)
    assert next(lengths) == 9.0
