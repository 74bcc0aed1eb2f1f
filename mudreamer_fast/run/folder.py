"""The folder of one run: what lies where, and its configuration on disk."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import re
import time
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mudreamer_fast.config import Config, ConfigError


@dataclasses.dataclass(frozen=True)
class RunFolder:
    """Paths inside a run folder."""

    root: Path
    """The folder itself."""

    @property
    def config(self) -> Path:
        """The resolved configuration."""
        return self.root / "config.json"

    @property
    def made_with(self) -> Path:
        """Simulator, libraries, device and operations, as they were found."""
        return self.root / "made_with.json"

    @property
    def checkpoint(self) -> Path:
        """Folder of the newest checkpoints."""
        return self.root / "checkpoint"

    @property
    def best(self) -> Path:
        """Folder of the agent that scored best in an evaluation."""
        return self.root / "best"

    @property
    def replay(self) -> Path:
        """Folder of the replay buffer's steps, where they are stored on disk."""
        return self.root / "replay"

    @property
    def curve(self) -> Path:
        """Picture of the returns over environment steps."""
        return self.root / "curve.png"

    @property
    def strip(self) -> Path:
        """Picture of some frames that the agent saw."""
        return self.root / "agent_view.png"

    @property
    def video(self) -> Path:
        """One evaluation episode; written as .gif where there is no video encoder."""
        return self.root / "evaluation.mp4"

    @property
    def weights(self) -> Path:
        """Weights alone, in the folder of an exported agent."""
        return self.root / "agent.safetensors"

    @property
    def card(self) -> Path:
        """What an exported agent is, in words."""
        return self.root / "README.md"

    @property
    def result(self) -> Path:
        """The final scores."""
        return self.root / "result.json"


def default_run_dir(config: Config, preset: str) -> Path:
    """`runs/<task>-<preset>-seed<seed>-<time>`, the task without slashes and the like.

    Of two runs that start in the same second the later one's name ends in -2.
    """
    task = re.sub(r"[^\w.-]+", "_", config.env.task).strip("_")
    moment = time.strftime("%Y%m%d-%H%M%S")
    first = Path("runs") / f"{task}-{preset}-seed{config.train.seed}-{moment}"
    names = itertools.chain(
        [first], (first.with_name(f"{first.name}-{n}") for n in itertools.count(2))
    )
    return next(path for path in names if not path.exists())


def write_json(path: Path, content: Any) -> Path:
    """Writes JSON so that readers see the old file or the new one; gives the path."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.unlink(missing_ok=True)
    with temporary.open("x") as file:  # not through a link that someone has put there
        file.write(json.dumps(content, indent=2) + "\n")
    os.replace(temporary, path)
    return path


def write_config(config: Config, path: Path) -> None:
    """Stores every field of the configuration."""
    write_json(path, dataclasses.asdict(config))


IMMATERIAL = frozenset(
    f"{part}.{name}"
    for part, names in {
        "env": ("background_set", "simulator_threads"),
        "replay": ("batches_ahead", "flush_every_seconds", "gather_threads"),
        "train": (
            "checkpoint_every_seconds", "device", "exact_resume", "keep_checkpoints",
            "log_every_seconds", "max_minutes", "save_replay", "threads", "tracker",
            "tracker_project",
        ),
    }.items()
    for name in names
)  # fmt: skip
"""Settings that say where and how a run is made, not what it computes."""


def settings_of(config: Config) -> dict[str, Any]:
    """All settings by dotted name, such as `model.batch_norm`."""
    return {
        f"{part}.{name}": value
        for part, fields in dataclasses.asdict(config).items()
        for name, value in fields.items()
    }


def read_config(path: Path) -> Config:
    """Reads what `write_config` wrote; fields that the file lacks take their defaults.

    Raises:
        ConfigError: no such file, not JSON, an unknown field, or a value of the wrong type.
    """
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        raise ConfigError(f"{path.parent} is not a run folder: it has no {path.name}") from None
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror or error}") from None
    except (ValueError, RecursionError):
        raise ConfigError(f"{path} is not JSON") from None
    return build_config(content, str(path))


def build_config(content: Any, where: str) -> Config:
    """A configuration from nested objects; fields that they lack take their defaults.

    Args:
        content: values by part and name.
        where: named in errors.

    Raises:
        ConfigError: an unknown field, or a value of the wrong type or out of its range.
    """
    try:
        return typing.cast(Config, _build(Config, _as_called_today(content), where))
    except ConfigError as error:
        text = str(error)
        raise ConfigError(text if text.startswith(where) else f"{where}: {text}") from None


def _as_called_today(content: Any) -> Any:
    """The same settings where one of them had another name when they were written."""
    train = content.get("train") if isinstance(content, Mapping) else None
    if not isinstance(train, Mapping) or not isinstance(train.get("tf32"), bool):
        return content
    rest = {name: value for name, value in train.items() if name != "tf32"}
    precision = "tf32" if train["tf32"] else "float32"
    return {**content, "train": {"precision": precision, **rest}}


def read_result(path: Path) -> dict[str, Any]:
    """A run's final scores, as an object of JSON; empty where there is none that can be read."""
    try:
        content = json.loads(path.read_text(errors="replace"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _build(kind: type, content: Any, where: str) -> Any:
    if not isinstance(content, Mapping):
        raise ConfigError(f"{where}: expected an object, got {content!r}")
    types_by_name = typing.get_type_hints(kind)
    values = {}
    for name, value in content.items():
        if name not in types_by_name:
            raise ConfigError(f"{where}: unknown field {name!r}")
        wanted = types_by_name[name]
        if dataclasses.is_dataclass(wanted):
            values[name] = _build(typing.cast(type, wanted), value, f"{where}: {name}")
        elif _fits(value, wanted):
            values[name] = value
        else:
            raise ConfigError(f"{where}: {name} cannot be {value!r}")
    return kind(**values)


def _fits(value: Any, wanted: Any) -> bool:
    """Whether a JSON value is of a field's type: a class, a union, or literals."""
    origin = typing.get_origin(wanted)
    if origin is typing.Literal:
        return value in typing.get_args(wanted)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, choice) for choice in typing.get_args(wanted))
    if isinstance(value, bool):
        return wanted is bool
    if wanted is float:
        return isinstance(value, float) or (isinstance(value, int) and abs(value) < 2**63)
    return isinstance(value, wanted)
