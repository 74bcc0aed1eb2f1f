"""The runs of a sweep: read from a file, each with its folder, its settings and its command."""

from __future__ import annotations

import dataclasses
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mudreamer_fast.config import PRESETS, Config, ConfigError
from mudreamer_fast.disk.lock import LockedError, open_locked
from mudreamer_fast.envs.tasks import PAPERS_TASKS
from mudreamer_fast.run.folder import (
    IMMATERIAL,
    RunFolder,
    build_config,
    read_config,
    read_result,
    settings_of,
)
from mudreamer_fast.run.lock import LOCK_FILE

KEYS = ("preset", "tasks", "seeds", "settings", "variants")


@dataclass(frozen=True)
class PlannedRun:
    """One run of a sweep."""

    name: str
    """Of its folder below the sweep's."""
    folder: RunFolder
    preset: str
    config: Config

    def options(self) -> list[str]:
        """What makes the preset this run's configuration, as words of a command line."""
        words: list[str] = []
        preset = settings_of(PRESETS[self.preset][1])
        for name, value in settings_of(self.config).items():
            part, _, field = name.partition(".")
            field = field.replace("_", "-")
            if value == preset[name]:
                continue
            if isinstance(value, bool):
                words.append(f"--{part}.{field}" if value else f"--{part}.no-{field}")
            else:
                words += [f"--{part}.{field}", str(value)]
        return words

    def command(self) -> list[str]:
        """Words for the command line that start it or go on with it."""
        folder = str(self.folder.root)
        return ["train", self.preset, *self.options(), "--resume-or-start", folder]

    @property
    def finished(self) -> bool:
        """Whether its final scores are there."""
        return bool(read_result(self.folder.result).get("scores"))

    @property
    def begun(self) -> bool:
        """Whether something of it is there."""
        return self.folder.config.exists()

    @property
    def held(self) -> bool:
        """Whether a process is at work on it."""
        if not (self.folder.root / LOCK_FILE).exists():
            return False
        try:
            open_locked(self.folder.root / LOCK_FILE).close()
        except LockedError:
            return True
        return False

    def check(self) -> None:
        """Refuses a folder that holds another run.

        Raises:
            ConfigError: settings of the run that is there are not the file's.
        """
        if not self.begun:
            return
        wanted, there = settings_of(self.config), settings_of(read_config(self.folder.config))
        for name, value in wanted.items():
            if there[name] != value and name not in IMMATERIAL:
                raise ConfigError(
                    f"{self.folder.root} was made with {name} {there[name]}, the file says "
                    f"{value}: name another folder by --out"
                )


def read_plan(file: Path, out: Path) -> list[PlannedRun]:
    """The runs that a file asks for, in the order in which they begin: seeds last.

    So every variant and task has its first seed before any has its second.

    Args:
        file: TOML with `preset`, `tasks`, `seeds`, `settings` and `variants`.
        out: folder of the runs.

    Raises:
        ConfigError: no such file, a key or setting that there is none of, a value out of place, or
            two runs of one name.
    """
    content = _read(file)
    if unknown := sorted(set(content) - set(KEYS)):
        raise ConfigError(f"{file}: unknown key {unknown[0]!r}; there are {', '.join(KEYS)}")
    tasks = _tasks(content.get("tasks"), file)
    seeds = _seeds(content.get("seeds", 1), file)
    settings = _table(content.get("settings", {}), "settings", file)
    variants = _table(content.get("variants", {"": {}}), "variants", file)
    runs: dict[str, PlannedRun] = {}
    for seed in seeds:
        for variant, own in variants.items():
            own = dict(_table(own, f"variants.{variant}", file))
            preset = own.pop("preset", content.get("preset", "dmc_vision"))
            if preset not in PRESETS:
                raise ConfigError(
                    f"{file}: unknown preset {preset!r}; there are {', '.join(PRESETS)}"
                )
            for task in tasks:
                name = "/".join(filter(None, [_slug(variant), f"{_slug(task)}-seed{seed}"]))
                if name in runs:
                    raise ConfigError(f"{file}: two runs would be called {name}")
                where = f"{file}: variants.{variant}" if variant else str(file)
                merged = dataclasses.asdict(PRESETS[preset][1])
                _merge(merged, settings, f"{file}: settings")
                _merge(merged, own, where)
                _merge(merged, {"env": {"task": task}, "train": {"seed": seed}}, where)
                config = build_config(merged, where)
                runs[name] = PlannedRun(name, RunFolder(out / name), preset, config)
    return list(runs.values())


def _read(file: Path) -> dict[str, Any]:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        content: dict[str, Any] = tomllib.loads(file.read_text())
    except FileNotFoundError:
        raise ConfigError(f"no file {file}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} is not TOML: {error}") from None
    return content


def _tasks(value: Any, file: Path) -> list[str]:
    if value == "paper":
        return list(PAPERS_TASKS)
    if isinstance(value, str):
        value = [value]
    if not isinstance(value, list) or not value or not all(isinstance(v, str) for v in value):
        raise ConfigError(
            f'{file}: tasks must be names of tasks, such as ["dmc/walker_walk"], or "paper" for '
            f"the 20 of the paper, got {value!r}"
        )
    return value


def _seeds(value: Any, file: Path) -> list[int]:
    if type(value) is int and value > 0:
        return list(range(value))
    if not isinstance(value, list) or not value or not all(type(v) is int for v in value):
        raise ConfigError(f"{file}: seeds must be how many or a list of them, got {value!r}")
    return value


def _table(value: Any, name: str, file: Path) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise ConfigError(f"{file}: {name} must be a table, got {value!r}")
    return value


def _merge(into: dict[str, Any], changes: Mapping[str, Any], where: str) -> None:
    """Lays settings over others; TOML knows no None, so that it is written as "None"."""
    for name, value in changes.items():
        if isinstance(value, dict):
            if not isinstance(into.get(name), dict):
                raise ConfigError(f"{where}: unknown part {name!r}; there are {', '.join(into)}")
            _merge(into[name], value, f"{where}: {name}")
        elif isinstance(into.get(name), dict):
            raise ConfigError(f"{where}: {name} has settings of its own, got {value!r}")
        else:
            into[name] = None if value == "None" else value


def _slug(text: str) -> str:
    return re.sub(r"[^\w.-]+", "_", text.removeprefix("dmc/")).strip("_")
