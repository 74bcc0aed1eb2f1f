from __future__ import annotations

import io
import json
import math
from pathlib import Path

import pytest

from mudreamer_fast.collect import Episode
from mudreamer_fast.run import reporter as reporter_module
from mudreamer_fast.run.reporter import Progress, Reporter, Speed, Standing, clock_text, span_text
from mudreamer_fast.run.watch import FEATURE_STD, LINES
from tests import tiny_run


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0:00"),
        (59.6, "1:00"),
        (3599, "59:59"),
        (3661, "1:01:01"),
        (math.inf, "?"),
        (-3, "0:00"),
    ],
)
def test_clock_text(seconds: float, text: str) -> None:
    assert clock_text(seconds) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (45.4, "45 s"), (119.0, "2 min"), (3000.0, "50 min"), (4800.0, "1 h 20 min"),
        (86_399.0, "1 d 0 h"), (183_600.0, "2 d 3 h"), (float("inf"), "?"),
    ],
)  # fmt: skip
def test_span_text(seconds: float, text: str) -> None:
    assert span_text(seconds) == text


def test_terminal_line_is_drawn_over_and_cleared_for_messages(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = iter([1.0, 1.1, 2.0])
    monkeypatch.setattr(reporter_module.time, "monotonic", lambda: next(now))
    terminal = Terminal()
    progress = Progress(10.0, terminal)
    progress.show(lambda: "first line")
    progress.show(lambda: pytest.fail("drawn too soon"))
    progress.show(lambda: "second")
    assert terminal.getvalue() == "\rfirst line\rsecond    "
    progress.message("told")
    assert terminal.getvalue().endswith("\r      \rtold\n")


def test_terminal_line_is_ended_once_where_there_is_one() -> None:
    terminal = Terminal()
    progress = Progress(10.0, terminal)
    progress.close()
    assert terminal.getvalue() == ""
    progress.show(lambda: "line")
    progress.close()
    progress.close()
    assert terminal.getvalue() == "\rline\n"


def test_file_gets_whole_lines_at_the_log_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([1.0, 5.0, 11.5])
    monkeypatch.setattr(reporter_module.time, "monotonic", lambda: next(now))
    file = io.StringIO()
    progress = Progress(10.0, file)
    for _ in range(3):
        progress.show(lambda: "line")
    progress.message("told")
    progress.close()
    assert file.getvalue() == "line\nline\ntold\n"


def test_terminal_line_never_wraps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    terminal = Terminal()
    Progress(1.0, terminal).show(lambda: "x" * 99)
    assert terminal.getvalue() == "\r" + "x" * 19


def test_speed_forgets_what_is_older_than_the_window() -> None:
    speed = Speed(window_seconds=10.0)
    speed.mark(0.0, 0, 0)
    assert speed.rates() == (0.0, 0.0)
    speed.mark(1.0, 1000, 1)
    for second in range(2, 31):
        speed.mark(float(second), 1000 + 5 * second, second)
    assert speed.rates() == pytest.approx((5.0, 1.0))


def standing(env_steps: int = 100, updates: int = 10, learning: int = 40) -> Standing:
    return Standing(env_steps, env_steps // 2, learning, updates, 1, 5.0, math.inf, 0.5, 2.0)


def test_reported_ratio_is_replayed_steps_per_policy_step(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = iter(range(0, 1000, 20))
    monkeypatch.setattr(reporter_module.time, "monotonic", lambda: float(next(now)))
    reporter = Reporter(tiny_run.config(log_every_seconds=1.0), tmp_path, None, (-1.0, 1.0))
    reporter.update({"loss": 1.0})
    reporter.update({"loss": 2.0})
    reporter.update({"loss": math.nan})  # its step was skipped
    reporter.episode(Episode(12.5, 7, 0, {"success": 1.0}), 90, 4.0)
    reporter.tick(standing())
    episode, line = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert episode == {
        "env_steps": 90, "seconds": 4.0, "episode/success": 1.0,
        "episode/score": 12.5, "episode/length_steps": 7,
    }  # fmt: skip
    assert line["run/train_ratio"] == 10 * 3 * 5 / 40
    assert (line["loss"], line["run/updates"], line["run/policy_steps"]) == (1.5, 10, 50)
    assert line["run/skipped_updates"] == 1
    said = capsys.readouterr().err
    assert "100/120 env steps" in said
    assert "ratio 3.8/5" in said
    assert "return 12.5" in said
    reporter.tick(standing(updates=0, learning=0))
    assert "prefill" in capsys.readouterr().err


def test_collapse_is_shown_and_logged_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = iter(range(0, 10000, 20))
    monkeypatch.setattr(reporter_module.time, "monotonic", lambda: float(next(now)))
    reporter = Reporter(tiny_run.config(log_every_seconds=1.0), tmp_path, None, (-1.0, 1.0))
    for _ in range(LINES + 4):
        reporter.update({FEATURE_STD: 0.0})
        reporter.tick(standing())
    assert capsys.readouterr().err.count("warning: the world model's representation") == 1
    assert (tmp_path / "metrics.jsonl").read_text().count('"warning"') == 1
