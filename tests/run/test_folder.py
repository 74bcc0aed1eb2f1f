from __future__ import annotations

import contextlib
import dataclasses
import json
import random
from pathlib import Path
from typing import Any

import pytest

from mudreamer_fast.config import PRESETS, Config, ConfigError, EnvConfig, TrainConfig
from mudreamer_fast.run.folder import default_run_dir, read_config, write_config
from tests.mutations import ROUNDS, mutate


@pytest.mark.parametrize("preset", PRESETS)
def test_config_survives_the_run_folder(tmp_path: Path, preset: str) -> None:
    path = tmp_path / "config.json"
    config = PRESETS[preset][1]
    write_config(config, path)
    assert read_config(path) == config
    changed = dataclasses.replace(config, train=TrainConfig(max_minutes=2.5, threads=3, seed=9))
    write_config(changed, path)
    assert read_config(path) == changed


def test_every_field_stands_in_the_file(tmp_path: Path) -> None:
    write_config(Config(), tmp_path / "config.json")
    content = json.loads((tmp_path / "config.json").read_text())
    for section in dataclasses.fields(Config):
        names = {field.name for field in dataclasses.fields(getattr(Config(), section.name))}
        assert set(content[section.name]) == names


@pytest.mark.parametrize(("tf32", "precision"), [(True, "tf32"), (False, "float32")])
def test_a_setting_that_had_another_name_is_read(
    tmp_path: Path, tf32: bool, precision: str
) -> None:
    path = tmp_path / "config.json"
    write_config(PRESETS["quick"][1], path)
    content = json.loads(path.read_text())
    del content["train"]["precision"]
    content["train"]["tf32"] = tf32
    path.write_text(json.dumps(content))
    assert read_config(path).train.precision == precision
    content["train"]["tf32"] = "yes"
    path.write_text(json.dumps(content))
    with pytest.raises(ConfigError, match="unknown field 'tf32'"):
        read_config(path)


def test_field_that_the_file_lacks_takes_its_default(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"env": {"task": "dmc/walker_run"}}')
    assert read_config(tmp_path / "config.json") == Config(env=EnvConfig(task="dmc/walker_run"))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "is not JSON"),
        ("[]", "expected an object"),
        ({"env": {"tusk": "x"}}, "unknown field 'tusk'"),
        ({"extra": {}}, "unknown field 'extra'"),
        ({"train": {"env_steps": "many"}}, "env_steps cannot be 'many'"),
        ({"train": {"env_steps": 1.5}}, "env_steps cannot be 1.5"),
        ({"train": {"save_replay": 1}}, "save_replay cannot be 1"),
        ({"train": {"env_steps": True}}, "env_steps cannot be True"),
        ({"env": {"observation": "smell"}}, "observation cannot be 'smell'"),
        ({"env": {"num_envs": 0}}, "num_envs must be positive, got 0"),
    ],
)
def test_file_that_is_no_configuration_is_refused(tmp_path: Path, content: Any, words: str) -> None:
    path = tmp_path / "config.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(ConfigError, match=words):
        read_config(path)


def test_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"is not a run folder: it has no config\.json"):
        read_config(tmp_path / "config.json")


def test_configuration_that_cannot_be_read_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "config.json").mkdir()
    with pytest.raises(ConfigError) as caught:
        read_config(tmp_path / "config.json")
    assert str(caught.value) == f"cannot read {tmp_path / 'config.json'}: Is a directory"


def test_default_folder_names_task_preset_and_seed() -> None:
    config = Config(env=EnvConfig(task="dmc/walker_run"), train=TrainConfig(seed=4))
    path = default_run_dir(config, "quick")
    assert path.parent == Path("runs")
    assert path.name.startswith("dmc_walker_run-quick-seed4-2")


VALUES: list[Any] = [
    None, True, 0, -1, 10**400, 2**63, 0.5, float("nan"), float("inf"), "", "auto", [], {}, [[]],
    {"a": 1},
]  # fmt: skip


def test_any_file_is_a_configuration_or_one_clear_error(tmp_path: Path) -> None:
    path, rng = tmp_path / "config.json", random.Random(0)
    write_config(Config(), path)
    good, read = path.read_bytes(), 0
    tree = json.loads(good)
    for number in range(ROUNDS):
        if number % 2:
            content = mutate(good, rng)
        else:  # sound JSON of the wrong values
            changed = json.loads(good)
            section = rng.choice(list(tree))
            owner = rng.choice([changed, changed[section]])
            owner[rng.choice([*owner, "unknown"])] = rng.choice(VALUES)
            content = json.dumps(changed).encode()
        path.write_bytes(content)
        with contextlib.suppress(ConfigError):
            assert isinstance(read_config(path), Config)
            read += 1
    assert 0 < read < ROUNDS


def test_nesting_without_end_is_no_configuration(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("[" * 100_000)
    with pytest.raises(ConfigError, match="is not JSON"):
        read_config(tmp_path / "config.json")
