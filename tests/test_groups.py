"""Groups of runs side by side: what is drawn, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.groups import (
    CURVES,
    KINDS,
    PROBED,
    GroupsError,
    Probed,
    curve,
    draw,
    grouped,
    main,
    probed_runs,
)
from mudreamer_fast.run.metrics import METRICS_FILE


def write_run(folder: Path, level: float) -> Path:
    """Twenty logged values of every spread, and an evaluation after each ten."""
    folder.mkdir()
    with (folder / METRICS_FILE).open("w") as file:
        for step in range(20):
            row = {"env_steps": step, **{name: level + step for name in CURVES}}
            if step % 10 != 9:
                del row["evaluation/score"]
            file.write(json.dumps(row) + "\n")
    return folder


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    return [write_run(tmp_path / name, level) for name, level in (("a", 0.0), ("b", 5.0))]


@pytest.fixture
def probed(runs: list[Path], tmp_path: Path) -> Path:
    names = [*map(str, runs), "untrained"]
    values = {kind: {"mean_r2": 0.5, "effective_rank": 0.5} for kind in KINDS}
    (tmp_path / "probe.json").write_text(json.dumps({"runs": dict.fromkeys(names, values)}))
    return tmp_path / "probe.json"


def test_a_spread_is_averaged_and_an_evaluation_is_not(runs: list[Path]) -> None:
    assert curve(runs[1], "world_model/feature_std") == ([4.5, 14.5], [9.5, 19.5])
    assert curve(runs[1], "evaluation/score") == ([9, 19], [14.0, 24.0])


def test_every_run_has_a_line_in_each_panel_and_every_group_a_name(
    runs: list[Path], probed: Path
) -> None:
    figure = draw({"before": runs[:1], "after": runs[1:]}, probed_runs([probed]))
    curves = figure.axes[: len(CURVES)]
    assert [len(axes.lines) for axes in curves] == [2] * len(CURVES)
    legend = curves[0].get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["before", "after"]
    # A mark of the group and a bar of the untrained each; nothing was behind the robots.
    marks = figure.axes[len(CURVES) :]
    assert [len(axes.lines) for axes in marks] == [4 * len(KINDS)] * (len(PROBED) - 1)


def test_backgrounds_are_drawn_of_the_groups_that_have_some(
    runs: list[Path], probed: Path, tmp_path: Path
) -> None:
    found = json.loads(probed.read_text())["runs"]
    for name in (str(runs[1]), "untrained"):
        found[name] = {
            kind: {**found[name][kind], "background": {"mean_r2": 0.25}} for kind in KINDS
        }
    both = probed_runs([probed]) | {str(runs[1]): Probed(found[str(runs[1])], found["untrained"])}
    figure = draw({"still": runs[:1], "moving": runs[1:]}, both)
    (behind,) = (axes for axes in figure.axes if axes.get_ylabel() == PROBED["background"])
    levels = [float(y) for line in behind.lines for y in line.get_ydata()]
    assert levels == [0.25] * 2 * len(KINDS)


def test_what_several_probes_tell_is_put_together_where_they_agree(
    runs: list[Path], probed: Path, tmp_path: Path
) -> None:
    (other := tmp_path / "other.json").write_text(json.dumps({"runs": {"untrained": 2, "c": 1}}))
    assert probed_runs([probed, other]) == probed_runs([probed]) | {"c": Probed(1, 2)}  # type: ignore[arg-type]
    other.write_text(json.dumps({"runs": {"untrained": 2, str(runs[0]): 3}}))
    with pytest.raises(GroupsError, match=f"{other} has other values of {runs[0]} than"):
        probed_runs([probed, other])


@pytest.mark.parametrize(("named", "message"), [([], "at least one"), (["runs/a"], "NAME=RUN")])
def test_runs_without_a_group_are_refused(named: list[str], message: str) -> None:
    with pytest.raises(GroupsError, match=message):
        grouped(named)


def test_a_run_that_was_not_probed_is_one_line(
    runs: list[Path],
    probed: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    arguments = ["groups", f"a={runs[0]}", "a=elsewhere", "--probe", str(probed), "--out", "x.png"]
    monkeypatch.setattr("sys.argv", arguments)
    assert main() == 2
    assert capsys.readouterr().err == f"{probed} has nothing of elsewhere\n"
