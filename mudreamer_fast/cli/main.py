"""The command line; `mudreamer-fast --help` lists its commands.

What a user can get wrong ends in one line on standard error and exit code 2. Only the standard
library, tyro and light modules are imported before a command runs, so that --help is quick.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import io
import os
import re
import resource
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, cast

import tyro

from mudreamer_fast.config import (
    PRESETS,
    ActionChoice,
    BackendName,
    Config,
    ConfigError,
    EnvConfig,
)
from mudreamer_fast.machine.allocator import keep_freed_memory
from mudreamer_fast.machine.screen import say, silence
from mudreamer_fast.run.folder import RunFolder, default_run_dir, read_config
from mudreamer_fast.run.metrics import METRICS_FILE

if TYPE_CHECKING:
    from mudreamer_fast.run.stored import StoredAgent

PROGRAM = "mudreamer-fast"
DEFAULT_PRESET = "dmc_vision"
SIGNAL_EXIT = 128
"""Added to a signal's number for the exit code, as shells do: 130 after Ctrl-C."""

_Command = TypeVar("_Command")


def _preset_lines() -> str:
    width = max(map(len, PRESETS))
    return "\n".join(f"  {name:{width}} {text}" for name, (text, _) in PRESETS.items())


HELP = f"""\
usage: {PROGRAM} COMMAND [options]

commands:
  train [PRESET] [options]   train an agent; --resume RUN goes on with a stopped run,
                             --resume-or-start RUN with one that may not have begun
  plot RUN... [options]      draw one metric of several runs side by side
  sweep FILE [options]       train many: tasks, seeds and variants from one file
  report RUN... [options]    write a page on runs: scores beside published ones, curves, films
  evaluate RUN [options]     score a run's newest or best checkpoint, and film it
  dream RUN [options]        film an episode beside what the model knows and expects of it
  export RUN DIR [options]   write a run's agent to a folder of its own, with a card
  info [PRESET] [options]    tasks, presets, versions, and how long the preset takes here
  check-env TASK [options]   play any environment and say what the agent will see of it
  videos [PATH] [options]    check videos for backgrounds and draw a sheet of them
  doctor                     check what the program needs on this machine

presets (the default is {DEFAULT_PRESET}):
{_preset_lines()}

{PROGRAM} COMMAND --help lists a command's options. --debug shows the whole trace of an error.
"""


@dataclass(frozen=True)
class TrainCommand:
    """Train an agent."""

    config: Annotated[Config, tyro.conf.arg(name="")]
    run_dir: Path | None = None
    """Run folder; None makes runs/<task>-<preset>-seed<seed>-<time>."""
    resume: Path | None = None
    """Run folder to go on with, by its own settings; those of train may be given anew."""
    resume_or_start: Path | None = None
    """Run folder to go on with where it has a checkpoint, and to start in where it has none, by
    the preset and options given: one command for a scheduler that starts a job again."""
    allow_other_simulator: bool = False
    """Go on with another simulator, or another version of it, than the run was made with."""


@dataclass(frozen=True)
class InfoCommand:
    """Say what there is and time a few updates and environment steps."""

    config: Annotated[Config, tyro.conf.arg(name="")]
    seconds: float = 30.0
    """Time to measure for, at most; one update is always finished."""


@dataclass(frozen=True)
class CheckEnvCommand:
    """Play an environment at random and say what the agent will see of it."""

    env: EnvConfig
    steps: int = 300
    """Policy steps of each environment."""
    seed: int = 0
    """Seed of the environment and of the actions."""


@dataclass(frozen=True)
class VideosCommand:
    """Check the videos of `--env.background-videos`, and draw a sheet with some frames of each."""

    size: int = 64
    """Height and width that they are squeezed into."""
    max_videos: int = 100
    """As env.background_max_videos."""
    max_frames: int = 1000
    """As env.background_max_frames."""
    grey: bool = False
    """As env.background_grey."""
    out: Path = Path("videos.png")
    """PNG to write."""


@dataclass(frozen=True)
class EvaluateCommand:
    """Score the agent of a run, or one that was exported."""

    run: tyro.conf.Positional[Path]
    """Run folder, one of its checkpoints, or the folder of an exported agent."""
    episodes: int | None = None
    """Episodes to play; None takes the run's eval_episodes."""
    video: Path | None = None
    """Film the first episode into this file, .mp4 or .gif."""
    seed: int | None = None
    """Seed of the episodes; None takes those that the run itself was evaluated on."""
    policy: ActionChoice | None = None
    """Actions: sampled, or the policy's mode; None takes the run's eval_policy."""
    checkpoint: Literal["newest", "best"] = "newest"
    """The newest, or the one that scored best in the run's evaluations."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N, whatever the run was trained on."""
    backend: BackendName = "auto"
    """Implementation of the model's operations, whatever the run was trained with."""
    background_videos: Path | None = None
    """Where the run's videos lie, if not where they lay then."""
    allow_other_simulator: bool = False
    """Play in another simulator, or another version of it, than the run was made with."""


@dataclass(frozen=True)
class DreamCommand:
    """Film an episode beside what the model makes of it: reconstructed, and imagined.

    Of every OBSERVE + IMAGINE steps the model sees the first; the others it imagines from the
    actions alone, which a white line below the picture tells. It takes a decoder: one that the run
    has trained (--model.decoder, --model.reconstruction), or --train-decoder.
    """

    run: tyro.conf.Positional[Path]
    """Run folder, one of its checkpoints, or the folder of an exported agent."""
    observe: int = 5
    """Steps that the model sees at the beginning of each stretch."""
    imagine: int = 45
    """Steps that it imagines then."""
    steps: int = 250
    """Policy steps to play, fewer where the episode ends."""
    out: Path = Path("dream.mp4")
    """Video to write, .mp4 or .gif."""
    train_decoder: float | None = None
    """Minutes in which a decoder is trained for a model that has none; nothing else changes."""
    seed: int | None = None
    """Seed of the episode; None takes the first of the run's own evaluations."""
    background_videos: Path | None = None
    """Where the run's videos lie, if not where they lay then."""
    checkpoint: Literal["newest", "best"] = "newest"
    """The newest, or the one that scored best in the run's evaluations."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N, whatever the run was trained on."""
    backend: BackendName = "auto"
    """Implementation of the model's operations, whatever the run was trained with."""


@dataclass(frozen=True)
class ExportCommand:
    """Write a run's agent to a folder of its own: weights, settings, scores, curve and a card.

    `Agent.load` reads it.
    """

    run: tyro.conf.Positional[Path]
    """Run folder."""
    folder: tyro.conf.Positional[Path]
    """Folder to make."""
    checkpoint: Literal["newest", "best"] = "newest"
    """The newest, or the one that scored best in the run's evaluations."""


@dataclass(frozen=True)
class PlotCommand:
    """Draw one metric of several runs over environment steps."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Run folders; each is drawn under its folder's name."""
    metric: str = "evaluation/score"
    """A name from metrics.jsonl, such as world_model/feature_std."""
    out: Path = Path("runs.png")
    """PNG to write."""


@dataclass(frozen=True)
class SweepCommand:
    """Train many agents: every task, seed and variant that a file names, some at a time.

    Whatever ends it, started again it goes on with the runs that are not finished.
    """

    file: tyro.conf.Positional[Path]
    """TOML with preset, tasks, seeds, settings and variants; `sweeps/` has some."""
    out: Path | None = None
    """Folder of the runs; None takes runs/ and the file's name."""
    jobs: int | None = None
    """Runs at a time; None takes one for each GPU or, without any, for every two cores."""
    dry_run: bool = False
    """Only say which runs there are, how far they are, and how long they will take here."""
    cluster: Literal["slurm", "local"] | None = None
    """Queue a job for each run by submitit, which goes on in another one where its time is up."""
    job: tuple[str, ...] = ()
    """Parameters of submitit's for these jobs, NAME=VALUE each, such as timeout_min=600
    gpus_per_node=1 slurm_partition=gpu."""


@dataclass(frozen=True)
class ReportCommand:
    """Write a page on runs, finished or not: scores, curves, speed, films, and what is missing.

    It holds its pictures and opens from disk, in any browser.
    """

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Run folders, or folders of run folders."""
    out: Path = Path("report")
    """Folder to write index.html and its pictures to."""
    title: str = "What the runs came to"
    """Title of the page."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; gives the exit code.

    Args:
        arguments: those after the program's name; None takes the process's.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a file's name need not be text
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words or os.environ.get("MUDREAMER_DEBUG") == "1"
    words = [word for word in words if word != "--debug"]
    if arguments is None and words[:1] in (["train"], ["info"]):
        keep_freed_memory()
    try:
        return _dispatch(words)
    except KeyboardInterrupt:
        return SIGNAL_EXIT + 2
    except BrokenPipeError:  # the reader of our output, such as head, has seen enough
        silence(sys.stdout)
        return 1
    except Exception as error:
        if debug or not _is_expected(error):
            raise
        say(f"error: {_one_line(error)}\n")
        return 2


def _dispatch(words: list[str]) -> int:
    commands = {
        "train": _train,
        "evaluate": _evaluate,
        "dream": _dream,
        "export": _export,
        "plot": _plot,
        "sweep": _sweep,
        "report": _report,
        "info": _info,
        "check-env": _check_env,
        "videos": _videos,
        "doctor": _doctor,
    }
    if not words or words[0] in ("-h", "--help", "help"):
        print(HELP, end="")
        return 0
    if words[0] == "--version":
        from mudreamer_fast import __version__

        print(f"{PROGRAM} {__version__}")
        return 0
    if words[0] not in commands:
        raise ConfigError(f"unknown command {words[0]!r}; there are {', '.join(commands)}")
    return commands[words[0]](words[1:])


def _train(words: list[str]) -> int:
    resumed = _value_of("--resume", words)
    if resumed is None:
        preset, config, words = _take_preset(words)
    else:
        preset, config = "", read_config(RunFolder(Path(resumed).expanduser()).config)
    command = _parse(TrainCommand, f"{PROGRAM} train {preset}", words, TrainCommand(config))
    folders = command.run_dir, command.resume, command.resume_or_start
    if sum(folder is not None for folder in folders) > 1:
        raise ConfigError(
            "--run-dir, --resume and --resume-or-start each name the run folder: give one"
        )

    from mudreamer_fast.disk import checkpoint
    from mudreamer_fast.machine.ranks import is_first
    from mudreamer_fast.run.saving import RunOverError
    from mudreamer_fast.train import train

    run_dir = next(filter(None, folders), None) or default_run_dir(command.config, preset)
    folder = RunFolder(run_dir)
    requeued = command.resume_or_start is not None
    resume = command.resume is not None or (requeued and checkpoint.exists(folder.checkpoint))

    def say_how_to_go_on(ended: str) -> None:
        if checkpoint.exists(folder.checkpoint):
            ended += f"; go on with: {PROGRAM} train --resume {shlex.quote(str(run_dir))}"
        if is_first():
            say(f"{ended}\n")

    try:
        result = train(
            command.config,
            run_dir,
            resume,
            allow_other_simulator=command.allow_other_simulator,
        )
    except ConfigError as error:  # the run has not begun
        if requeued and isinstance(error, RunOverError):
            say(f"{error}\n")
            return 0
        raise
    except BaseException:
        say_how_to_go_on("ended")
        raise
    if result.stopped_by is not None:
        say_how_to_go_on(f"stopped at {result.env_steps:,} env steps")
        return SIGNAL_EXIT + result.stopped_by
    if not result.updates:
        say("error: the run ended before its first update: it has learned nothing\n")
        return 1
    return 0


def _evaluate(words: list[str]) -> int:
    command = _parse(EvaluateCommand, f"{PROGRAM} evaluate", words)
    if command.episodes is not None and command.episodes <= 0:
        raise ConfigError(f"episodes must be positive, got {command.episodes}")
    _check_seed(command.seed)

    from mudreamer_fast.agent import Agent
    from mudreamer_fast.run.results import score_table, write_film
    from mudreamer_fast.run.scoring import score_agent
    from mudreamer_fast.run.stored import read_stored

    if command.video is not None:
        _check_video(command.video)
    stored = _before_videos(read_stored(command.run, command.checkpoint), command.background_videos)
    eval_policy = command.policy or stored.config.train.eval_policy
    evaluation = score_agent(
        Agent.of(stored, command.device, command.backend),
        command.episodes,
        command.seed,
        eval_policy,
        command.video is not None,
        RunFolder(stored.folder).made_with,
        command.allow_other_simulator,
    )
    print(score_table(evaluation.scores, stored.random_scores, eval_policy))
    if command.video is not None:
        for path in write_film(evaluation, command.video, None, stored.config.env):
            print(f"  {path}")
    return 0


def _dream(words: list[str]) -> int:
    command = _parse(DreamCommand, f"{PROGRAM} dream", words)
    for name in ("observe", "imagine", "steps", "train_decoder"):
        value = getattr(command, name)
        if value is not None and not value > 0:
            raise ConfigError(f"{name} must be positive, got {value}")
    _check_seed(command.seed)

    from mudreamer_fast.agent import Agent
    from mudreamer_fast.run.dreams import dream, teach_decoder, with_decoder
    from mudreamer_fast.run.pictures import write_video
    from mudreamer_fast.run.results import frames_per_second
    from mudreamer_fast.run.stored import read_stored

    _check_video(command.out)
    stored = _before_videos(read_stored(command.run, command.checkpoint), command.background_videos)
    if command.train_decoder is not None:
        agent = with_decoder(stored, command.device, command.backend)
        teach_decoder(agent, command.train_decoder, print)
    else:
        agent = Agent.of(stored, command.device, command.backend)
        if agent.world_model.decoder is None:
            raise ConfigError(
                f"{command.run} has no decoder to show pictures with: give it one by "
                "--train-decoder MINUTES, or train with --model.decoder"
            )
    found = dream(agent, command.observe, command.imagine, command.steps, command.seed)
    if found.unseen.any():
        print("squared error of a pixel (0 to 1) over the steps that were not seen")
        for name, value in found.errors().items():
            print(f"  {name:20} {value:.5f}")
    print(write_video(found.frames(), command.out, frames_per_second(stored.config.env)))
    return 0


def _check_seed(seed: int | None) -> None:
    if seed is not None and seed < 0:
        raise ConfigError(f"seed must not be negative, got {seed}")


def _check_video(path: Path) -> None:
    from mudreamer_fast.run.pictures import check_video_path

    try:
        check_video_path(path)
    except ValueError as error:
        raise ConfigError(str(error)) from None


def _before_videos(stored: StoredAgent, place: Path | None) -> StoredAgent:
    """An agent whose videos lie elsewhere now; None leaves them."""
    if place is None:
        return stored
    env = dataclasses.replace(stored.config.env, background_videos=str(place))
    return dataclasses.replace(stored, config=dataclasses.replace(stored.config, env=env))


def _export(words: list[str]) -> int:
    command = _parse(ExportCommand, f"{PROGRAM} export", words)

    from mudreamer_fast.run.card import export_run

    for path in export_run(command.run, command.folder, command.checkpoint):
        print(path)
    return 0


def _plot(words: list[str]) -> int:
    command = _parse(PlotCommand, f"{PROGRAM} plot", words)
    folders = [RunFolder(run) for run in command.runs]
    if not folders:
        raise ConfigError("plot needs at least one run folder")
    for folder in folders:
        read_config(folder.config)

    from mudreamer_fast.run.pictures import plot_runs

    names = [folder.root.resolve().name for folder in folders]
    runs = {
        name if names.count(name) == 1 else str(folder.root): folder.root / METRICS_FILE
        for name, folder in zip(names, folders, strict=True)
    }
    try:
        print(plot_runs(runs, command.metric, command.out))
    except ValueError as error:
        raise ConfigError(str(error)) from None
    return 0


def _sweep(words: list[str]) -> int:
    command = _parse(SweepCommand, f"{PROGRAM} sweep", words)
    if command.jobs is not None and command.jobs <= 0:
        raise ConfigError(f"jobs must be positive, got {command.jobs}")

    from mudreamer_fast.sweep.plan import read_plan

    out = command.out or Path("runs") / command.file.stem
    runs = read_plan(command.file, out)
    for run in runs:
        run.check()

    import torch

    gpus = torch.cuda.device_count()
    jobs = command.jobs or gpus or max(1, len(os.sched_getaffinity(0)) // 2)
    if command.dry_run:
        from mudreamer_fast.cli.forecast import forecast

        for line in forecast(runs, jobs):
            print(line, flush=True)
        return 0
    if command.cluster is not None:
        from mudreamer_fast.sweep.cluster import parameters, submit

        queued = submit(runs, out, command.cluster, parameters(command.job), main)
        print(f"{len(queued)} of {len(runs)} runs queued: {', '.join(j.job_id for j in queued)}")
        return 0

    from mudreamer_fast.sweep.runner import run_sweep

    return run_sweep(runs, out, jobs, gpus, lambda line: print(line, flush=True))


def _report(words: list[str]) -> int:
    command = _parse(ReportCommand, f"{PROGRAM} report", words)

    from mudreamer_fast.report.page import write_report

    for line in write_report(command.runs, command.out, command.title):
        print(line, flush=True)
    return 0


def _info(words: list[str]) -> int:
    preset, config, words = _take_preset(words)
    command = _parse(InfoCommand, f"{PROGRAM} info {preset}", words, InfoCommand(config))

    from mudreamer_fast.cli.info import describe, estimate

    print(describe(preset, command.config), flush=True)
    print(estimate(preset, command.config, command.seconds))
    return 0


def _check_env(words: list[str]) -> int:
    name = words[0] if words and not words[0].startswith("-") else None
    default = EnvConfig(num_envs=1) if name is None else EnvConfig(task=name, num_envs=1)
    program = f"{PROGRAM} check-env TASK"
    command = _parse(CheckEnvCommand, program, words[name is not None :], CheckEnvCommand(default))
    if name is None:
        raise ConfigError(f"check-env needs the name of a task, as in {PROGRAM} check-env dmc/...")
    if command.steps <= 0:
        raise ConfigError(f"steps must be positive, got {command.steps}")

    from mudreamer_fast.cli.check_env import check_env

    for line in check_env(command.env, command.steps, command.seed):
        print(line, flush=True)
    return 0


def _videos(words: list[str]) -> int:
    place = words[0] if words and not words[0].startswith("-") else None
    command = _parse(VideosCommand, f"{PROGRAM} videos PATH", words[place is not None :])
    config = EnvConfig(
        image_size=command.size,
        background="video",
        background_videos=place,
        background_max_videos=command.max_videos,
        background_max_frames=command.max_frames,
        background_grey=command.grey,
    )

    from mudreamer_fast.cli.videos import show_videos

    for line in show_videos(config, command.out):
        print(line, flush=True)
    return 0


def _doctor(words: list[str]) -> int:
    if words:
        if words[0] in ("-h", "--help"):
            print(f"usage: {PROGRAM} doctor\n\nCheck what the program needs on this machine.")
            return 0
        raise ConfigError(f"doctor takes no options, got {' '.join(words)}")

    from mudreamer_fast.cli.doctor import examine

    findings = examine()
    for finding in findings:
        print(finding.line())
    return 0 if all(finding.ok for finding in findings) else 1


def _take_preset(words: list[str]) -> tuple[str, Config, list[str]]:
    """The preset named first, or the default one, and the words after it."""
    if not words or words[0].startswith("-"):
        return DEFAULT_PRESET, PRESETS[DEFAULT_PRESET][1], words
    if words[0] not in PRESETS:
        raise ConfigError(f"unknown preset {words[0]!r}; there are {', '.join(PRESETS)}")
    return words[0], PRESETS[words[0]][1], words[1:]


def _value_of(option: str, words: list[str]) -> str | None:
    """What follows an option that decides how the others are read."""
    for index, word in enumerate(words):
        if word == option and index + 1 < len(words):
            return words[index + 1]
        if word.startswith(f"{option}="):
            return word.removeprefix(f"{option}=")
    return None


def _parse(
    kind: type[_Command], program: str, words: list[str], default: _Command | None = None
) -> _Command:
    """Reads a command's options; tyro's framed messages become one line."""
    described: dict[str, Any] = {"description": _describe(kind)}
    if default is not None:
        described["default"] = default
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            parsed = tyro.cli(kind, args=words, prog=program.strip(), **described)
            return cast(_Command, _with_homes(parsed))
    except SystemExit as end:
        if not end.code:
            raise
        raise ConfigError(_unframe(said.getvalue(), program.strip())) from None


def _with_homes(command: Any) -> Any:
    """A command with every `~` in its paths replaced, which shells do in few places."""

    def home(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(map(home, value))
        return value.expanduser() if isinstance(value, Path) else value

    fields = {
        field.name: home(getattr(command, field.name)) for field in dataclasses.fields(command)
    }
    return dataclasses.replace(command, **fields)


def _describe(kind: type) -> str:
    text = (kind.__doc__ or "").strip()
    if any(field.name == "config" for field in dataclasses.fields(kind)):
        text += f"\n\nPresets, named first:\n{_preset_lines()}"
    return text


def _unframe(message: str, program: str) -> str:
    """What tyro's framed message says, and the options it would suggest, without the frame.

    The frame is drawn with lines or, where the terminal knows none, with hyphens: a title, then
    paragraphs set apart by rules.
    """
    lines = [line.strip("│╭╮╰╯ ") for line in message.splitlines()[1:]]
    rules = [index for index, line in enumerate(lines) if line and not line.strip("─-")]
    start = rules[0] + 1 if rules[:1] == [0] else 0
    end = next((index for index in rules if index > start), len(lines))
    text = re.sub(r"^Error parsing (config\.)?", "", " ".join(lines[start:end])).rstrip(". ")
    suggested = [line.split()[0] for line in lines[end:] if re.match(r"--\w", line)]
    if "Perhaps you meant:" in lines:
        text += f"; perhaps {' or '.join(suggested[:2])}"
    return f"{text} ({program} --help lists the options)"


def _is_expected(error: Exception) -> bool:
    """Whether an error is the user's or the machine's rather than the program's."""
    if isinstance(error, ConfigError | OSError | ImportError):
        return True
    from mudreamer_fast.disk.checkpoint import CheckpointError
    from mudreamer_fast.envs.vector_env import EnvError
    from mudreamer_fast.replay import NonFiniteError, StorageError
    from mudreamer_fast.run.guard import NotFiniteError

    ours = CheckpointError | EnvError | NonFiniteError | NotFiniteError | StorageError
    return _out_of_memory(error) or _no_thread(error) or isinstance(error, ours)


def _out_of_memory(error: Exception) -> bool:
    """Whether memory was refused, by whichever allocator; PyTorch's are known without its import.

    That of the GPU has an exception of its own, that of the CPU has none.
    """
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


def _no_thread(error: Exception) -> bool:
    """Whether Python was refused a thread, for which it has no exception of its own."""
    return isinstance(error, RuntimeError) and str(error) == "can't start new thread"


def _one_line(error: Exception) -> str:
    text = _said(error)
    if os.strerror(errno.EMFILE) in text and os.strerror(errno.ENFILE) not in text:
        allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        return f"{text}: {allowed} are allowed: raise the limit (ulimit -n) or lower env.num-envs"
    if _no_thread(error) or os.strerror(errno.EAGAIN) in text:
        return f"{text}: raise the limit of processes and threads (ulimit -u)"
    return text


def _said(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    text = " ".join(str(error).split())
    if _out_of_memory(error) and "out of memory" not in text:  # the GPU's says so itself
        return f"out of memory: {text}" if text else "out of memory"
    return text or type(error).__name__


if __name__ == "__main__":
    sys.exit(main())
