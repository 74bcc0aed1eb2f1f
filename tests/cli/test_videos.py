"""`mudreamer-fast videos`: what stands behind the robot, checked and drawn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mudreamer_fast.cli.main import main
from tests.envs.test_footage import film


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def test_a_sheet_shows_each_video_from_its_first_frame_to_its_last(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    film(tmp_path / "videos" / "train" / "a.mp4", frames=8)
    film(tmp_path / "videos" / "train" / "b.mp4", frames=3, first=100)
    film(tmp_path / "videos" / "eval" / "c.mp4", frames=2, first=200)
    assert main(["videos", "videos", "--size", "84", "--out", "sheet.png"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said == [
        "train      2 videos of 3 to 8 frames, 0 MiB at 84 x 84",
        "evaluation 1 videos of 2 to 2 frames, 0 MiB at 84 x 84",
        "sheet.png",
    ]
    sheet = np.asarray(Image.open(tmp_path / "sheet.png")).astype(int)
    assert sheet.shape == (3 * 84, 8 * 84, 3)
    places = sheet[42::84, 42::84, 0]
    rows = [range(0, 160, 20), [100, 100, 120, 120, 120, 120, 140, 140], [200] * 4 + [220] * 4]
    for row, expected in zip(places, rows, strict=True):
        np.testing.assert_allclose(row, list(expected), atol=8)


def test_without_videos_it_shows_what_the_program_draws(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["videos"]) == 0
    assert "train      16 videos of 256 to 256 frames, 48 MiB at 64 x 64" in capsys.readouterr().out
    assert np.asarray(Image.open(tmp_path / "videos.png")).shape == (20 * 64, 8 * 64, 3)


def test_what_is_wrong_with_videos_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "broken.mp4").write_text("no video")
    (tmp_path / "list.txt").write_text(f"broken.mp4\n{film(tmp_path / 'good.mp4')}\n")
    for words, message in (
        (["nowhere"], "background_videos nowhere does not exist"),
        (["list.txt"], "broken.mp4 cannot be read as a video: "),
        (["list.txt", "--max-frames", "1"], "background_max_frames must be at least 2, got 1"),
        (["list.txt", "--size", "65"], "image_size must be one of 64, 84, 96, 128, got 65"),
    ):
        assert main(["videos", *words]) == 2
        said = capsys.readouterr().err
        assert message in said
        assert said.count("\n") == 1
    assert not (tmp_path / "videos.png").exists()
