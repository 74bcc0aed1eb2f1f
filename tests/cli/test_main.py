from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import resource
import runpy
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mudreamer_fast import train
from mudreamer_fast.cli import doctor, info
from mudreamer_fast.cli import main as cli
from mudreamer_fast.cli.main import main
from mudreamer_fast.collect import Collector
from mudreamer_fast.config import PRESETS, Config
from mudreamer_fast.disk import checkpoint
from mudreamer_fast.envs import ArraySpec, EnvError
from mudreamer_fast.evaluate import VIDEO_SIZE
from mudreamer_fast.machine.signals import StopSignals
from mudreamer_fast.replay import ReplayBuffer
from mudreamer_fast.run import pictures, scoring, trainer
from mudreamer_fast.run.folder import RunFolder, read_config, write_config
from mudreamer_fast.run.metrics import METRICS_FILE
from tests import tiny_run
from tests.limits import few_files, little_memory
from tests.patience import PATIENCE_SECONDS

ROOT = Path(__file__).parents[2]


def run(*words: str, program: str = "mudreamer_fast.cli.main", **variables: str) -> Any:
    return subprocess.run(
        [sys.executable, "-m", program, *words],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, **variables},
        timeout=PATIENCE_SECONDS,
    )


def test_the_package_run_as_a_program_is_the_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["mudreamer_fast", "plot"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("mudreamer_fast", run_name="__main__")
    assert ended.value.code == 2
    assert capsys.readouterr().err == "error: plot needs at least one run folder\n"


def parsed(*words: str, monkeypatch: pytest.MonkeyPatch) -> tuple[Config, Path, bool]:
    """What `train` would be called with."""
    calls: list[tuple[Config, Path, bool]] = []

    def note(config: Config, run_dir: Path, resume: bool, **others: bool) -> Any:
        calls.append((config, run_dir, resume))
        return trainer.TrainResult(run_dir, 0, 1, 0.0, [], None, None)

    monkeypatch.setattr(train, "train", note)
    assert main(["train", *words]) == 0
    return calls[0]


@pytest.mark.parametrize("preset", PRESETS)
def test_preset_named_first_is_the_default_of_all_options(
    preset: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, run_dir, resume = parsed(preset, monkeypatch=monkeypatch)
    assert config == PRESETS[preset][1]
    assert run_dir.name.startswith(
        f"{config.env.task.replace('/', '_')}-{preset}-seed{config.train.seed}-"
    )
    assert not resume


def test_train_without_a_preset_takes_the_papers(monkeypatch: pytest.MonkeyPatch) -> None:
    assert parsed(monkeypatch=monkeypatch)[0] == PRESETS["dmc_vision"][1]


def test_options_change_single_fields(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    config, run_dir, _ = parsed(
        "quick", "--env.task", "dmc/walker_walk", "--train.seed=1", "--train.max_minutes", "None",
        "--model.decoder", "--run-dir", str(tmp_path / "x"), monkeypatch=monkeypatch,
    )  # fmt: skip
    preset = PRESETS["quick"][1]
    assert config == dataclasses.replace(
        preset,
        env=dataclasses.replace(preset.env, task="dmc/walker_walk"),
        model=dataclasses.replace(preset.model, decoder=True),
        train=dataclasses.replace(preset.train, seed=1, max_minutes=None),
    )
    assert run_dir == tmp_path / "x"


def test_whole_configuration_survives_the_command_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = tiny_run.config(max_minutes=2.5, threads=1)
    words = tiny_run.options(config, tmp_path)
    assert parsed(*words, monkeypatch=monkeypatch)[0] == config


def test_resume_takes_the_runs_own_configuration(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = tiny_run.config()
    write_config(config, tmp_path / "config.json")
    assert parsed("--resume", str(tmp_path), monkeypatch=monkeypatch) == (config, tmp_path, True)
    longer, _, _ = parsed(
        f"--resume={tmp_path}", "--train.env-steps", "999", monkeypatch=monkeypatch
    )
    assert longer.train == dataclasses.replace(config.train, env_steps=999)
    assert longer.env == config.env


def test_help_shows_every_field_with_its_docstring(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["train", "quick", "--help"])
    assert end.value.code == 0
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for section in dataclasses.fields(Config):
        for field in dataclasses.fields(getattr(Config(), section.name)):
            assert f"--{section.name}.{field.name}".replace("_", "-") in shown
    assert "Replayed steps trained on per policy step." in shown
    assert "Where batch norm stands in place of layer norm; without any" in shown
    assert all(text in shown for text, _ in PRESETS.values())


def test_help_and_version_import_neither_torch_nor_a_simulator() -> None:
    code = (
        "import sys; from mudreamer_fast.cli.main import main;"
        "main(['--help']); main(['--version']);"
        "print([m for m in ('torch', 'numpy', 'envpool', 'dm_control') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"
    assert done.stdout.startswith("usage: mudreamer-fast COMMAND")
    for word in (
        "train", "evaluate", "dream", "plot", "info", "check-env", "videos", "doctor", *PRESETS,
    ):  # fmt: skip
        assert word in done.stdout


ERRORS = {
    "frobnicate": "unknown command 'frobnicate'",
    "train slow": f"unknown preset 'slow'; there are {', '.join(PRESETS)}",
    "train quick --model.size Q": "invalid choice 'Q' for argument '--model.size'",
    "train quick --train.env-steps x": "invalid literal for int() with base 10: 'x'",
    "train quick --no-such-option": "Unrecognized options: --no-such-option",
    "train quick --train.env-step 5": "env-step, 5; perhaps --train.env-steps or --train.ev",
    "train quick stray": "Unrecognized options: stray",
    "train quick --replay.batch-size 0": "batch_size must be positive, got 0",
    "train quick --env.task walker": "task must read dmc/NAME, atari/NAME, crafter/NAME",
    "train quick --env.image-size 80": "image_size must be one of 64, 84, 96, 128, got 80",
    "train --resume /no/such/run": "/no/such/run is not a run folder",
    "train --resume": "error: Missing value for argument '--resume'",
    "train quick --env.task dmc/walker_fly": "'dmc/walker_fly'",
    "train quick --train.device gpu": "device must be auto, cpu, cuda or cuda:N, got 'gpu'",
    "train quick --train.device cuda:99": "cuda:99 was asked for",
    "train quick --train.train-ratio inf": "train_ratio must be a finite number, got inf",
    "train quick --behaviour.discount nan": "discount must be a finite number, got nan",
    "train quick --replay.capacity-steps 2000 --env.num-envs 200": "keeps 10 steps, and batch_len",
    "train quick --train.prefill-steps 60000": "the rest earn 0 updates",
    "train quick --resume-or-start a --run-dir b": "each name the run folder: give one",
    "evaluate /no/such/run --video walk.avi": "must end in .mp4 or .gif, got 'walk.avi'",
    "evaluate /no/such/run --video nowhere/walk.MP4": "no folder nowhere to write the video",
    "evaluate": "PATH",
    "plot": "plot needs at least one run folder",
    "plot /no/such/run": "/no/such/run is not a run folder",
    "evaluate /no/such/run": "/no/such/run is not a run folder",
    "evaluate /no/such/run --episodes 0": "episodes must be positive, got 0",
    "evaluate /no/such/run --seed -1": "seed must not be negative, got -1",
    "info slow": "unknown preset 'slow'",
    "info quick --model.size Q": "invalid choice 'Q'",
    "check-env": "check-env needs the name of a task",
    "check-env dmc/walker_fly": "'dmc/walker_fly'",
    "check-env gym:CartPole-v9 --env.observation vector": "did you mean gym:CartPole-v1",
    "check-env gym:CartPole-v1 --steps 0": "steps must be positive, got 0",
    "train quick --env.task gym:CartPole-v9": "did you mean gym:CartPole-v1",
    "doctor --fast": "doctor takes no options, got --fast",
}


@pytest.mark.parametrize("command", ERRORS)
def test_mistake_is_one_line_and_exit_code_2(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(command.split()) == 2
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = err.splitlines()
    assert re.match(r"error: (--)?[\w'/]", line)
    assert not re.search("---|─|│", line)
    assert ERRORS[command] in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_mistake_is_told_without_a_frame_on_any_terminal(encoding: str) -> None:
    done = run("train", "quick", "--model.size", "Q", PYTHONIOENCODING=encoding)
    assert done.stderr == (
        "error: invalid choice 'Q' for argument '--model.size'. Expected one of "
        "('XS', 'S', 'M', 'L', 'XL') (mudreamer-fast train quick --help lists the options)\n"
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("train quick --env.task dmc/walker_fly", "'dmc/walker_fly'"),
        ("train quick --train.device cuda:99", "cuda:99 was asked for"),
        ("train quick --run-dir /proc/no/run --env.observation vector", "/proc/no"),
    ],
)
def test_mistake_shows_no_traceback(words: str, message: str) -> None:
    done = run(*words.split())
    assert done.returncode == 2
    assert "Traceback" not in done.stdout + done.stderr
    lines = done.stderr.splitlines()
    assert [line for line in lines if line.startswith("error: ")] == lines[-1:]
    assert message in lines[-1]


def test_debug_shows_the_whole_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="unknown preset"):
        main(["--debug", "train", "slow"])
    with pytest.raises(ValueError, match="unknown preset"):
        main(["train", "slow", "--debug"])
    monkeypatch.setenv("MUDREAMER_DEBUG", "1")
    with pytest.raises(ValueError, match="unknown preset"):
        main(["train", "slow"])


def test_fault_of_the_program_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "_doctor", lambda words: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(["doctor"])


def test_ctrl_c_outside_a_run_ends_without_a_word(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(words: list[str]) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_doctor", interrupted)
    assert main(["doctor"]) == 130
    assert capsys.readouterr() == ("", "")


def test_reader_that_has_seen_enough_ends_the_program_without_a_word() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer) as out:
        done = subprocess.run(
            [sys.executable, "-m", "mudreamer_fast.cli.main", "--help"],
            stdout=out,
            stderr=subprocess.PIPE,
            cwd=ROOT,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
            timeout=PATIENCE_SECONDS,
        )
    assert (done.returncode, done.stderr) == (1, b"")


def test_only_one_option_may_name_the_run_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_config(tiny_run.config(), RunFolder(tmp_path).config)
    assert main(["train", "--resume", str(tmp_path), "--run-dir", str(tmp_path / "x")]) == 2
    assert capsys.readouterr().err == (
        "error: --run-dir, --resume and --resume-or-start each name the run folder: give one\n"
    )


@pytest.fixture
def tiny_envs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer, "make_env", tiny_run.make_env)
    monkeypatch.setattr(scoring, "make_env", tiny_run.make_env)


@pytest.mark.usefixtures("tiny_envs")
def test_evaluate_repeats_the_runs_own_score_and_films_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, video = tmp_path / "run", tmp_path / "seen.gif"
    config = tiny_run.config("pixels", env_steps=60)
    assert main(["train", *tiny_run.options(config, folder)]) == 0
    table = [line for line in capsys.readouterr().err.splitlines() if line.startswith("agent, ")]
    assert read_config(folder / "config.json") == config
    assert main(["evaluate", str(folder), "--video", str(video)]) == 0
    out = capsys.readouterr().out
    assert table[0] in out
    assert "random policy" in out
    film = Image.open(video)
    assert film.size == (VIDEO_SIZE, VIDEO_SIZE)
    # The light moves, though not at every step: frames that are alike become one.
    assert 1 < film.n_frames <= tiny_run.EPISODE_STEPS + 1
    assert main(["evaluate", str(folder), "--episodes", "5", "--seed", "77"]) == 0
    (line,) = [row for row in capsys.readouterr().out.splitlines() if row.startswith("agent, ")]
    assert line.split()[-1] == "5"
    for saved in folder.glob("checkpoint/data-*/agent.pt"):
        saved.write_bytes(b"")
    assert main(["evaluate", str(folder)]) == 2
    assert "error: damaged checkpoint: " in capsys.readouterr().err


def test_plot_draws_the_runs_that_it_is_given(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / os.fsdecode(b"walk\xff")
    folder.mkdir()
    write_config(PRESETS["quick"][1], RunFolder(folder).config)
    lines = [f'{{"env_steps": {step}, "evaluation/score": {2 * step}}}\n' for step in range(3)]
    (folder / METRICS_FILE).write_text("".join(lines))
    picture = tmp_path / "runs.png"
    assert main(["plot", str(folder), "--out", str(picture)]) == 0
    assert capsys.readouterr().out == f"{picture}\n"
    assert main(["plot", str(folder), "--out", str(folder / "runs.png")]) == 0
    assert capsys.readouterr().out.endswith("walk\\udcff/runs.png\n")
    assert Image.open(picture).size[0] > 100
    twin = tmp_path / "other" / folder.name
    shutil.copytree(folder, twin)
    named: dict[str, Path] = {}
    with monkeypatch.context() as patch:
        patch.setattr(pictures, "plot_runs", lambda runs, *_: named.update(runs))
        assert main(["plot", str(folder), str(twin), "--out", str(picture)]) == 0
    assert named == {str(run): run / METRICS_FILE for run in (folder, twin)}
    capsys.readouterr()
    assert main(["plot", str(folder), "--metric", "no/such", "--out", str(picture)]) == 2
    assert "no/such" in capsys.readouterr().err
    assert main(["plot"]) == 2
    assert capsys.readouterr().err == "error: plot needs at least one run folder\n"


def test_info_tells_of_the_preset_with_the_options_given(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(info, "describe", lambda preset, config: f"{preset} {config.env.task}")
    monkeypatch.setattr(info, "estimate", lambda preset, config, seconds: f"{seconds:g} s")
    assert main(["info", "quick", "--env.task", "dmc/walker_walk", "--seconds", "3"]) == 0
    assert capsys.readouterr().out == "quick dmc/walker_walk\n3 s\n"


@pytest.mark.parametrize(("ok", "code"), [(True, 0), (False, 1)])
def test_doctor_says_what_it_found_and_fails_where_training_would(
    ok: bool, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    findings = [doctor.Finding("here", True, "it is"), doctor.Finding("there", ok, "who knows")]
    monkeypatch.setattr(doctor, "examine", lambda: findings)
    assert main(["doctor"]) == code
    assert capsys.readouterr().out == "".join(f"{finding.line()}\n" for finding in findings)
    assert main(["doctor", "--loud"]) == 2
    assert capsys.readouterr().err == "error: doctor takes no options, got --loud\n"
    assert main(["doctor", "--help"]) == 0


def wait_for(process: subprocess.Popen[str], word: str) -> list[str]:
    """Reads standard error up to a line with `word`."""
    assert process.stderr is not None
    lines = []
    for line in process.stderr:
        lines.append(line)
        if word in line:
            return lines
    pytest.fail(f"ended without {word!r}: {''.join(lines)}")


def launch(folder: Path, config: Config, **variables: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.tiny_run", "train", *tiny_run.options(config, folder)],
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, **variables},
    )


@pytest.mark.parametrize("number", StopSignals.SIGNALS)
def test_signal_saves_and_says_how_to_go_on(tmp_path: Path, number: signal.Signals) -> None:
    folder = tmp_path / "a run"
    with launch(folder, tiny_run.config(env_steps=10**9)) as process:
        wait_for(process, "ratio 4.")
        process.send_signal(number)
        _, rest = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 128 + number
    assert "Traceback" not in rest
    last = rest.splitlines()[-1]
    assert last.endswith(f"go on with: mudreamer-fast train --resume '{folder}'")
    saved = checkpoint.load(folder / "checkpoint")
    steps = saved["counters"]["policy_steps"]
    assert last.startswith(f"stopped at {2 * steps:,} env steps;")
    assert saved["agent"]["updates"] > 0
    if number != signal.SIGTERM:  # they all leave the same behind
        return

    more = str(2 * steps + 40)
    done = run(
        "train", "--resume", str(folder), "--train.env-steps", more, program="tests.tiny_run"
    )
    assert done.returncode == 0, done.stderr
    assert checkpoint.load(folder / "checkpoint")["counters"]["policy_steps"] == steps + 20


def test_screen_that_goes_away_does_not_end_the_run(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with launch(folder, tiny_run.config(env_steps=800)) as process:
        wait_for(process, "ratio 4.")
        assert process.stderr is not None
        process.stderr.close()
        assert process.wait(PATIENCE_SECONDS) == 0
    assert json.loads((folder / "result.json").read_text())["env_steps"] == 800


def test_error_in_a_run_is_one_line_after_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: Any) -> None:
        raise EnvError("a simulator has crashed")

    monkeypatch.setattr(Collector, "collect", fail)
    folder = tmp_path / "run"
    assert main(["train", *tiny_run.options(tiny_run.config(), folder)]) == 2
    *_, go_on, error = capsys.readouterr().err.splitlines()
    assert go_on == f"ended; go on with: mudreamer-fast train --resume {folder}"
    assert error == "error: a simulator has crashed"


def refuse_memory() -> None:
    raise MemoryError


def refuse_thread() -> None:
    raise RuntimeError("can't start new thread")  # which Python says, of a limit of its own kind


def use_up_files() -> None:
    """As environments do that are being made for an evaluation: they close what they have."""
    with contextlib.ExitStack() as files:
        for _ in range(100):
            files.enter_context(open(os.devnull))


def reserve_replay() -> None:
    fields = {"is_first": ArraySpec((), np.dtype(np.bool_))}
    ReplayBuffer(fields, capacity_steps=2**30, num_streams=1, seed=0)


@pytest.mark.parametrize(
    ("take", "line"),
    [
        (refuse_memory, "out of memory$"),
        (lambda: np.empty(2**27), r"out of memory: Unable to allocate 1\.00 GiB"),
        (lambda: torch.empty(2**28), "out of memory: .*tried to allocate 1073741824 bytes"),
        (reserve_replay, r"out of memory: the system refused 107\d{7} bytes of address space"),
        (use_up_files, r"/dev/null: Too many open files: \d+ are allowed: raise .*ulimit -n"),
        (refuse_thread, r"can't start new thread: raise the limit .*ulimit -u"),
    ],
)
def test_what_the_system_refuses_a_run_is_one_line_and_what_was_learned_is_saved(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    take: Callable[[], object],
    line: str,
) -> None:
    collect, calls = Collector.collect, 0

    def fail(self: Collector, steps: int) -> Any:
        nonlocal calls
        calls += 1
        if calls > 14:
            limits.enter_context(few_files(40))
            limits.enter_context(little_memory(2**29))
            take()
        return collect(self, steps)

    monkeypatch.setattr(Collector, "collect", fail)
    folder = tmp_path / "run"
    config = tiny_run.config(eval_every_env_steps=0, eval_episodes=1)
    with contextlib.ExitStack() as limits:  # they hold while the run is saved, too
        assert main(["train", *tiny_run.options(config, folder)]) == 2
    *_, go_on, error = capsys.readouterr().err.splitlines()
    assert go_on == f"ended; go on with: mudreamer-fast train --resume {folder}"
    assert re.match(f"error: {line}", error)
    saved = checkpoint.load(folder / "checkpoint")
    assert saved["counters"]["policy_steps"] == 2 * 14
    assert saved["agent"]["updates"] > 0


def test_too_few_open_files_are_told_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (40, 40))
    assert main(["train", *tiny_run.options(tiny_run.config(), tmp_path / "run")]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        "error: 40 open files are allowed, and a run needs 64: raise the limit (ulimit -n)"
    )
    assert list(tmp_path.iterdir()) == []


def test_one_command_starts_a_run_and_goes_on_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    words = tiny_run.options(tiny_run.config(), folder)
    words[0] = "--resume-or-start"
    count = Collector.collect

    def stop(self: Collector, steps: int) -> Any:
        if len(self._replay) > 50:
            os.kill(os.getpid(), signal.SIGUSR1)
        return count(self, steps)

    with monkeypatch.context() as patch:
        patch.setattr(Collector, "collect", stop)
        assert main(["train", *words]) == 128 + signal.SIGUSR1
    assert main(["train", *words]) == 0
    assert checkpoint.load(folder / "checkpoint")["counters"]["resumes"] == 1
    assert json.loads((folder / "result.json").read_text())["env_steps"] == 120
    capsys.readouterr()
    assert main(["train", *words]) == 0  # as often as a scheduler starts it
    assert "is over (env_steps 120)" in capsys.readouterr().err
    assert main(["train", *words, "--resume", str(folder)]) == 2
    assert "each name the run folder: give one" in capsys.readouterr().err


def test_run_without_an_update_does_not_end_with_success(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny_run.config(max_minutes=1e-6)
    assert main(["train", *tiny_run.options(config, tmp_path / "run")]) == 1
    assert capsys.readouterr().err.splitlines()[-1] == (
        "error: the run ended before its first update: it has learned nothing"
    )


def test_evaluate_takes_a_run_that_was_trained_elsewhere(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    config = tiny_run.config(
        env={"action_repeat": 10}, env_steps=600, eval_episodes=1, eval_every_env_steps=400
    )
    assert main(["train", *tiny_run.options(config, folder)]) == 0
    there = dataclasses.replace(
        config.train, device="cuda:7", backend="persistent", cuda_graph="on"
    )
    write_config(dataclasses.replace(config, train=there), folder / "config.json")
    capsys.readouterr()
    assert main(["evaluate", str(folder)]) == 0
    newest = capsys.readouterr().out
    assert main(["evaluate", str(folder), "--checkpoint", "best", "--backend", "reference"]) == 0
    best = capsys.readouterr().out

    def mean(table: str) -> float:
        (line,) = [row for row in table.splitlines() if row.startswith("agent, ")]
        return float(line.split()[2])

    assert mean(best) >= mean(newest)


def handles(process: subprocess.Popen[str], number: signal.Signals) -> bool:
    """Whether a process has a handler of its own for a signal."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    return bool(int(status.split("SigCgt:")[1].split()[0], 16) >> (number - 1) & 1)


def test_second_ctrl_c_ends_at_once(tmp_path: Path) -> None:
    config = tiny_run.config(env_steps=10**9, eval_episodes=1)
    with launch(tmp_path, config, TINY_HANG="1") as process:
        wait_for(process, tiny_run.HANGS)
        assert handles(process, signal.SIGINT)
        process.send_signal(signal.SIGINT)
        while handles(process, signal.SIGINT):  # else the second might be one with the first
            time.sleep(0.01)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == -signal.SIGINT
