from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mudreamer_fast.run import pictures
from mudreamer_fast.run.pictures import plot_curve, plot_runs, write_strip, write_video


def frames(count: int, height: int = 30, width: int = 41) -> list[pictures.Frame]:
    """A grey that brightens over the episode."""
    return [np.full((height, width, 3), 40 + 10 * i, np.uint8) for i in range(count)]


@pytest.mark.parametrize("codecs", [pictures.VIDEO_CODECS, ("mpeg4",)], ids=["first", "last"])
def test_video_holds_every_frame_in_order(
    codecs: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import av

    monkeypatch.setattr(pictures, "VIDEO_CODECS", codecs)
    path = write_video(frames(13), tmp_path / "x.mp4", fps=25)
    assert path == tmp_path / "x.mp4"
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert float(stream.average_rate or 0) == 25
        means = [frame.to_ndarray(format="rgb24").mean() for frame in container.decode(video=0)]
        assert (stream.height, stream.width) == (30, 40)
    np.testing.assert_allclose(means, [40 + 10 * i for i in range(13)], atol=4)


def test_video_becomes_a_gif_where_there_is_no_encoder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pictures, "VIDEO_CODECS", ("no-such-encoder",))
    path = write_video(frames(5), tmp_path / "x.mp4", fps=25)
    assert path == tmp_path / "x.gif"
    with Image.open(path) as image:
        assert (image.n_frames, image.size, image.info["duration"]) == (5, (41, 30), 40)


def test_video_becomes_a_gif_where_av_is_not_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    assert write_video(frames(2), tmp_path / "x.mp4", fps=25) == tmp_path / "x.gif"


@pytest.mark.parametrize("name", ["x.avi", "x"])
def test_video_of_another_kind_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=r"must end in \.mp4 or \.gif"):
        write_video(frames(2), tmp_path / name, fps=25)


def test_pictures_of_nothing_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one frame"):
        write_video([], tmp_path / "x.mp4", fps=25)
    with pytest.raises(ValueError, match="at least one frame"):
        write_strip([], tmp_path / "x.png")


def test_strip_shows_first_to_last_frame_evenly(tmp_path: Path) -> None:
    write_strip(frames(15, 6, 5), tmp_path / "x.png", count=8, scale=1)
    pixels = np.asarray(Image.open(tmp_path / "x.png"))
    assert pixels.shape == (6, 8 * 5 + 7 * 2, 3)
    assert pixels[0, ::7, 0].tolist() == [40 + 10 * i for i in range(0, 15, 2)]


def test_strip_of_a_short_episode_repeats_nothing(tmp_path: Path) -> None:
    write_strip(frames(3, 6, 5), tmp_path / "x.png", count=8, scale=2)
    assert Image.open(tmp_path / "x.png").size == (2 * (3 * 5 + 2 * 2), 12)


def draw(folder: Path, rows: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> Any:
    """The axes of the drawn curve; the picture itself is checked to be one."""
    import matplotlib.figure

    figures = []
    save = matplotlib.figure.Figure.savefig

    def keep(figure: Any, *args: Any, **kwargs: Any) -> None:
        figures.append(figure)
        save(figure, *args, **kwargs)

    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", keep)
    metrics = folder / "metrics.jsonl"
    metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))
    picture = plot_curve(metrics, folder / "curve.png")
    assert Image.open(picture).size[0] > 500
    return figures[0].axes[0]


def test_curve_draws_episodes_evaluations_and_the_random_policy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    axes = draw(
        tmp_path,
        [
            {"env_steps": 0, "random/score": 5.0, "random/scores": [5.0]},
            {"env_steps": 10, "episode/score": 7.0},
            {"env_steps": 20, "episode/score": 8.0, "loss": 1.0},
            {"env_steps": 25, "evaluation/score": 30.0, "evaluation/scores": [20.0, 40.0]},
            {"env_steps": 50, "evaluation/score": 60.0, "evaluation/scores": [60.0, 60.0]},
        ],
        monkeypatch,
    )
    drawn = {line.get_label(): line.get_xydata().tolist() for line in axes.lines}
    assert drawn["training episodes"] == [[10, 7], [20, 8]]
    assert drawn["evaluation, mean"] == [[25, 30], [50, 60]]
    random = next(line for line in axes.lines if line.get_label() == "random policy")
    assert random.get_ydata() == [5.0, 5.0]
    assert random.get_linestyle() == "--"


def test_curve_of_an_empty_run_is_an_empty_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert draw(tmp_path, [], monkeypatch).lines[:] == []


def test_plot_draws_each_run_under_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import matplotlib.axes

    drawn = {}
    plot = matplotlib.axes.Axes.plot

    def keep(axes: Any, x: Any, y: Any, label: str) -> Any:
        drawn[label] = (list(x), list(y))
        return plot(axes, x, y, label=label)

    monkeypatch.setattr(matplotlib.axes.Axes, "plot", keep)
    runs = {}
    for name, spread in (("posterior", 0.3), ("none", 0.01)):
        runs[name] = tmp_path / f"{name}.jsonl"
        rows = [{"env_steps": step, "std": spread * step} for step in (1, 2)]
        runs[name].write_text("".join(json.dumps(row) + "\n" for row in rows))
    picture = plot_runs(runs, "std", tmp_path / "std.png")
    assert Image.open(picture).size[0] > 500
    assert drawn == {"posterior": ([1, 2], [0.3, 0.6]), "none": ([1, 2], [0.01, 0.02])}
    with pytest.raises(ValueError, match=r"has no other/name; it has"):
        plot_runs(runs, "other/name", tmp_path / "x.png")
