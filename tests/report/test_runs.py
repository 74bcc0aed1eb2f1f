from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from mudreamer_fast.report.runs import find_folders, names_of, read_runs, variants
from tests.report.folders import RANDOM, STEPS, configuration, write_run


def test_a_finished_run_is_read_with_its_scores(tmp_path: Path) -> None:
    ((run,), others) = read_runs([write_run(tmp_path / "a", configuration(seed=3), (90.0, 110.0))])
    assert not others
    assert (run.name, run.task, run.seed) == ("a", "dmc/cheetah_run", 3)
    assert (run.score, run.random_scores) == (100.0, RANDOM)
    assert (run.env_steps, run.updates, run.seconds, run.scored_at) == (STEPS, 6_000, 600.0, STEPS)
    assert run.rate("speed/env_steps_per_second") == 156.0
    assert (run.device, run.state) == ("cpu", "finished")


def test_a_run_that_stopped_half_way_has_its_last_evaluation(tmp_path: Path) -> None:
    ((run,), _) = read_runs([write_run(tmp_path / "a", configuration(), (90.0, 110.0), False)])
    assert (run.score, run.scored_at, run.env_steps) == (50.0, STEPS // 2, STEPS // 2)
    assert (run.updates, run.seconds) == (3_000, 300.0)
    assert run.state == "not finished: 50,000 of 100,000 steps"


def test_a_run_that_has_only_begun_has_no_score(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a", configuration(), finished=False)
    (folder / "metrics.jsonl").unlink()
    ((run,), _) = read_runs([folder])
    assert (run.score, run.env_steps, run.updates) == (None, 0, 0)
    assert run.rate("speed/updates_per_second") is None
    assert run.state.startswith("not begun")


@pytest.mark.parametrize(
    "content",
    ["", "[]", '{"scores": 3, "updates": "many", "seconds": NaN}', '{"scores": ["x"]}', "{"],
)
def test_a_damaged_result_is_as_good_as_none(tmp_path: Path, content: str) -> None:
    folder = write_run(tmp_path / "a", configuration(), (90.0, 110.0), False)
    for name in ("result.json", "made_with.json"):
        (folder / name).write_text(content)
    ((run,), _) = read_runs([folder])
    assert not run.finished
    assert (run.score, run.updates, run.seconds) == (50.0, 3_000, 300.0)


def test_folders_that_are_no_runs_are_told_and_left_out(tmp_path: Path) -> None:
    write_run(tmp_path / "good", configuration())
    (tmp_path / "empty").mkdir()
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "config.json").write_text(json.dumps({"algorithm": "ppo"}))
    (tmp_path / "file").write_text("")
    names = ("good", "empty", "foreign", "file", "missing")
    runs, others = read_runs([tmp_path / name for name in names])
    assert [run.name for run in runs] == ["good"]
    assert len(others) == 4
    assert others[0].endswith("empty is not a run folder: it has no config.json")
    assert "unknown field 'algorithm'" in others[1]
    assert others[2].endswith("file is not a folder")


def test_a_folder_of_runs_stands_for_them_and_none_is_read_twice(tmp_path: Path) -> None:
    folders = [write_run(tmp_path / "runs" / name, configuration()) for name in ("x/b", "a")]
    write_run(folders[0] / "best", configuration())
    (tmp_path / "runs" / "notes").mkdir()
    (tmp_path / "link").symlink_to(folders[0])
    found = find_folders([tmp_path / "runs", folders[1], tmp_path / "link"])
    assert found == [folders[1], folders[0]]


def test_runs_of_one_name_are_told_apart() -> None:
    paths = [Path("/x/one/run"), Path("/x/two/run"), Path("/x/two/other")]
    assert names_of(paths) == ["one/run", "two/run", "two/other"]
    assert names_of([Path("/run"), Path("/x/run")]) == ["run", "x/run"]
    assert names_of([]) == []


def test_variants_differ_in_more_than_task_and_seed(tmp_path: Path) -> None:
    configs = {
        "a": configuration(seed=0),
        "b": configuration(seed=1),
        "c": configuration(seed=0, batch_norm="none"),
        "d": configuration("dmc/walker_walk", action_predictor=False),
    }
    train = dataclasses.replace(configs["b"].train, tracker="wandb", device="cpu")  # no matter
    configs["b"] = dataclasses.replace(configs["b"], train=train)
    runs, _ = read_runs([write_run(tmp_path / name, config) for name, config in configs.items()])
    named = {label: [run.name for run in group] for label, group in variants(runs).items()}
    # The walker's action predictor sets nothing apart: no other run of its task has one.
    assert named == {"baseline": ["a", "b", "d"], "model.batch_norm none": ["c"]}
    assert list(variants(runs[:2])) == ["all runs"]


@pytest.mark.parametrize(
    ("folders", "expected"),
    [
        (("plain/a", "plain/b", "bare/a"), ["plain", "bare"]),
        (("plain/a", "other/b", "bare/a"), ["baseline", "model.batch_norm none"]),
        (("plain/a", "bare/b", "bare/a"), ["baseline", "model.batch_norm none"]),
        (("x/runs/a", "x/runs/b", "y/runs/a"), ["baseline", "model.batch_norm none"]),
    ],
)
def test_a_variant_with_a_folder_of_its_own_is_called_by_it(
    folders: tuple[str, ...], expected: list[str], tmp_path: Path
) -> None:
    configs = [configuration(), configuration(seed=1), configuration(batch_norm="none")]
    places = [
        write_run(tmp_path / name, config) for name, config in zip(folders, configs, strict=True)
    ]
    assert list(variants(read_runs(places)[0])) == expected
