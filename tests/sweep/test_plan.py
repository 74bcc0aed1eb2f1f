from __future__ import annotations

import json
from pathlib import Path

import pytest

from mudreamer_fast.cli.main import TrainCommand, _parse
from mudreamer_fast.config import PRESETS, ConfigError
from mudreamer_fast.envs.tasks import PAPERS_TASKS
from mudreamer_fast.run.folder import write_config
from mudreamer_fast.run.lock import RunLock
from mudreamer_fast.sweep.plan import PlannedRun, read_plan

SWEEPS = Path(__file__).parents[2] / "sweeps"
EXAMPLE = """
preset = "quick"
tasks = ["dmc/cheetah_run", "dmc/walker_walk"]
seeds = [3, 5]

[settings]
train.max_minutes = "None"
train.eval_episodes = 4

[variants.baseline]

[variants.no-batch-norm]
model.batch_norm = "none"
model.action_predictor = false

[variants.full]
preset = "dmc_vision"
"""


def plan(tmp_path: Path, text: str) -> list[PlannedRun]:
    (tmp_path / "sweep.toml").write_text(text)
    return read_plan(tmp_path / "sweep.toml", tmp_path / "out")


def test_every_task_seed_and_variant_is_a_run_and_first_seeds_come_first(tmp_path: Path) -> None:
    runs = plan(tmp_path, EXAMPLE)
    assert [run.name for run in runs] == [
        f"{variant}/{task}-seed{seed}"
        for seed in (3, 5)
        for variant in ("baseline", "no-batch-norm", "full")
        for task in ("cheetah_run", "walker_walk")
    ]
    assert {run.config.env.task for run in runs} == {"dmc/cheetah_run", "dmc/walker_walk"}
    assert all(run.folder.root == tmp_path / "out" / run.name for run in runs)
    assert all(run.config.train.max_minutes is None for run in runs)
    second = runs[2]
    assert (second.config.train.seed, second.config.model.batch_norm) == (3, "none")
    assert second.config.model.deter == PRESETS["quick"][1].model.deter
    assert runs[4].config.model.deter == PRESETS["dmc_vision"][1].model.deter


def test_a_command_makes_the_very_configuration(tmp_path: Path) -> None:
    for run in plan(tmp_path, EXAMPLE):
        train, preset, *words = run.command()
        assert train == "train"
        parsed = _parse(TrainCommand, "train", words, TrainCommand(PRESETS[preset][1]))
        assert parsed.config == run.config
        assert parsed.resume_or_start == run.folder.root


def test_without_variants_there_is_one_and_without_seeds_seed_0(tmp_path: Path) -> None:
    (run,) = plan(tmp_path, 'tasks = "dmc/walker_walk"')
    assert (run.name, run.preset, run.config.train.seed) == ("walker_walk-seed0", "dmc_vision", 0)
    runs = plan(tmp_path, 'tasks = "paper"\nseeds = 3')
    assert len(runs) == 60
    assert {run.config.env.task for run in runs} == set(PAPERS_TASKS)


@pytest.mark.parametrize(
    ("text", "said"),
    {
        "tasks = ": "is not TOML",
        "": 'tasks must be names of tasks, such as ["dmc/walker_walk"], or "paper"',
        "tasks = []": "tasks must be names of tasks",
        "tasks = [3]": "tasks must be names of tasks",
        'tasks = ["walker"]': ": task must read dmc/NAME",
        'task = "dmc/walker_walk"': "unknown key 'task'; there are preset, tasks, seeds",
        'tasks = "paper"\nseeds = 0': "seeds must be how many or a list of them, got 0",
        'tasks = "paper"\nseeds = true': "seeds must be how many",
        'tasks = "paper"\nseeds = [-1]': "seed must not be negative, got -1",
        'tasks = "paper"\npreset = "slow"': "unknown preset 'slow'; there are dmc_vision",
        'tasks = "paper"\nsettings = 3': "settings must be a table, got 3",
        'tasks = "paper"\nvariants.a = 3': "variants.a must be a table, got 3",
        'tasks = "paper"\nsettings.modle.deter = 3': "settings: unknown part 'modle'; there",
        'tasks = "paper"\nsettings.model = 3': "settings: model has settings of its own, got 3",
        'tasks = "paper"\nvariants.a.model.depth = 3': "variants.a: model: unknown field 'depth'",
        'tasks = "paper"\nvariants.a.model.deter = "x"': "variants.a: model: deter cannot be 'x'",
        'tasks = ["dmc/walker_walk", "dmc/walker_walk"]': "two runs would be called walker_walk-se",
        'tasks = "paper"\n[variants."a b"]\n[variants."a_b"]': "two runs would be called a_b/",
    }.items(),
)
def test_a_mistake_is_one_line_that_names_the_place(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigError) as error:
        plan(tmp_path, text)
    assert said in str(error.value)
    assert str(error.value).startswith(str(tmp_path / "sweep.toml"))


def test_no_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no file .*nothing\.toml"):
        read_plan(tmp_path / "nothing.toml", tmp_path)


def test_a_run_knows_how_far_it_is(tmp_path: Path) -> None:
    (run,) = plan(tmp_path, 'tasks = "dmc/walker_walk"')
    assert (run.begun, run.held, run.finished) == (False, False, False)
    with RunLock(run.folder.root):
        write_config(run.config, run.folder.config)
        assert (run.begun, run.held, run.finished) == (True, True, False)
    assert not run.held
    run.folder.result.write_text("{}")
    assert not run.finished
    run.folder.result.write_text(json.dumps({"scores": [1.0]}))
    assert run.finished


def test_a_folder_with_other_settings_is_refused(tmp_path: Path) -> None:
    text = 'preset = "quick"\ntasks = "dmc/walker_walk"\n'
    (before,) = plan(tmp_path, f"{text}[settings]\ntrain.max_minutes = 5\n")
    before.folder.root.mkdir(parents=True)
    write_config(before.config, before.folder.config)
    (same,) = plan(tmp_path, text)
    same.check()  # the minutes may differ
    (other,) = plan(tmp_path, f'{text}[settings]\nmodel.batch_norm = "none"\n')
    with pytest.raises(
        ConfigError, match=r"was made with model.batch_norm both, the file says none"
    ):
        other.check()


@pytest.mark.parametrize("file", sorted(SWEEPS.glob("*.toml")), ids=lambda file: file.stem)
def test_the_sweeps_that_come_along_can_be_read(tmp_path: Path, file: Path) -> None:
    runs = read_plan(file, tmp_path)
    assert len(runs) >= 6
    assert file.read_text().startswith("# ")
