"""Videos for backgrounds: which are found, what is read of them, and what is kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mudreamer_fast.config import ConfigError, EnvConfig
from mudreamer_fast.envs import footage
from mudreamer_fast.envs.footage import DRAWN, clips, decode, draw, find
from mudreamer_fast.run.pictures import write_video

SIZE = 64
SHAPE = (SIZE, SIZE)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "mudreamer_fast" / "videos"


def config(**options: Any) -> EnvConfig:
    return EnvConfig(**({"background": "video"} | options))


def film(path: Path, frames: int = 3, shape: tuple[int, int] = (48, 80), first: int = 0) -> Path:
    """A video whose frame n is of one grey, 20 n + first: encoders change a flat picture little."""
    path.parent.mkdir(parents=True, exist_ok=True)
    levels = range(first, first + 20 * frames, 20)
    pictures = [np.full((*shape, 3), level, np.uint8) for level in levels]
    assert write_video(pictures, path, fps=10.0) == path
    return path


def levels(clip: np.ndarray[Any, Any]) -> list[int]:
    """Of the frames that `film` wrote, whatever an encoder made of them."""
    assert clip.std((1, 2, 3)).max() < 2
    return [20 * round(float(mean) / 20) for mean in clip.mean((1, 2, 3))]


def test_a_video_is_read_frame_by_frame_as_another_library_reads_it(tmp_path: Path) -> None:
    pictures = np.random.default_rng(0).integers(256, size=(5, SIZE, SIZE, 3), dtype=np.uint8)
    images = [Image.fromarray(picture).quantize(64) for picture in pictures]
    path = tmp_path / "noise.gif"
    images[0].save(path, save_all=True, append_images=images[1:], duration=50)
    with Image.open(path) as file:
        expected = []
        for number in range(5):
            file.seek(number)
            expected.append(np.asarray(file.convert("RGB")).transpose(2, 0, 1))
    clip = decode(path, SHAPE, 100, grey=False)
    np.testing.assert_array_equal(clip, expected)
    np.testing.assert_array_equal(decode(path, SHAPE, 3, grey=False), expected[:3])


def test_a_video_of_another_shape_is_squeezed_into_that_of_the_images(tmp_path: Path) -> None:
    clip = decode(film(tmp_path / "wide.mp4", frames=4), (84, 128), 100, grey=False)
    assert (clip.shape, clip.dtype) == ((4, 3, 84, 128), np.uint8)
    assert levels(clip) == [0, 20, 40, 60]
    halves = np.zeros((40, 120, 3), np.uint8)
    halves[:, 60:] = 200
    write_video([halves] * 2, tmp_path / "halves.mp4", fps=10.0)
    clip = decode(tmp_path / "halves.mp4", SHAPE, 100, grey=False)
    assert clip[..., :28].mean() < 10
    assert clip[..., 36:].mean() > 190


def test_grey_is_the_luminance_in_every_channel(tmp_path: Path) -> None:
    colours = [np.broadcast_to(np.array(c, np.uint8), (32, 32, 3)) for c in ((200, 0, 0), (0,) * 3)]
    write_video(colours, tmp_path / "red.gif", fps=10.0)
    red, grey = (decode(tmp_path / "red.gif", SHAPE, 9, grey=grey) for grey in (False, True))
    expected = np.asarray(Image.fromarray(red[0].transpose(1, 2, 0)).convert("L"))
    assert red[0, 0].mean() > 190
    for channel in grey[0]:
        np.testing.assert_allclose(channel.astype(int), expected.astype(int), atol=1)


def names(found: dict[Any, list[Path]]) -> dict[str, list[str]]:
    return {use: [path.name for path in paths] for use, paths in found.items()}


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


@pytest.mark.parametrize("kept", ["eval", "test", "val", "validation", "evaluation"])
def test_folders_tell_training_from_evaluation(tmp_path: Path, kept: str) -> None:
    touch(tmp_path, "train/b.mp4", "train/a/x.AVI", "train/notes.txt", f"{kept}/c.webm", "d.mp4")
    expected = {"train": ["x.AVI", "b.mp4"], "evaluation": ["c.webm"]}
    assert names(find(str(tmp_path))) == expected


@pytest.mark.parametrize(
    ("count", "kept"), [(2, ["1.mp4"]), (4, ["3.mp4"]), (5, ["4.mp4"]), (11, ["4.mp4", "9.mp4"])]
)
def test_of_one_folder_or_list_every_fifth_is_kept_for_evaluation(
    tmp_path: Path, count: int, kept: list[str]
) -> None:
    order = [f"{number}.mp4" for number in range(min(count, 10))] + ["x.mp4"] * (count > 10)
    touch(tmp_path / "all", *order)
    (tmp_path / "list.txt").write_text("\n".join(f"all/{name}" for name in order) + "\n\n")
    for place in (tmp_path / "all", tmp_path / "list.txt"):
        found = names(find(str(place)))
        assert found == {"train": [n for n in order if n not in kept], "evaluation": kept}


@pytest.mark.parametrize(
    ("files", "place", "message"),
    [
        ((), "nowhere", "does not exist"),
        (("folder/notes.txt",), "folder", "has no video for train"),
        (("folder/one.mp4",), "folder", "has no video for train: .* at least two videos"),
        (("folder/train/a.mp4",), "folder", "has no video for evaluation"),
        (("folder/eval/a.mp4",), "folder", "has no video for train"),
        (("one.mp4",), "one.mp4", "is one video: give a folder, or a list"),
    ],
)
def test_videos_that_are_missing_are_one_line(
    tmp_path: Path, files: tuple[str, ...], place: str, message: str
) -> None:
    touch(tmp_path, *files)
    with pytest.raises(ConfigError, match=f"^background_videos .*{message}"):
        find(str(tmp_path / place))


def test_evaluation_shows_none_of_the_training(tmp_path: Path) -> None:
    touch(tmp_path, "train/a.mp4", "eval/b.mp4")
    (tmp_path / "eval" / "again.mp4").symlink_to(tmp_path / "train" / "a.mp4")
    with pytest.raises(ConfigError, match=r"a\.mp4 is a video for training and one for evaluation"):
        find(str(tmp_path))


def broken(tmp_path: Path, kind: str) -> Path:
    path = tmp_path / f"{kind}.mp4"
    if kind == "text":
        path.write_text("no video\n")
    elif kind == "empty":
        path.touch()
    elif kind == "cut":
        path.write_bytes(film(tmp_path / "whole.mp4").read_bytes()[:200])
    elif kind == "still":
        film(path, frames=1)
    elif kind == "folder":
        path.mkdir()
    return path


@pytest.mark.parametrize("kind", ["text", "empty", "cut", "still", "folder", "missing"])
def test_a_video_that_cannot_be_used_is_one_line_with_its_name(tmp_path: Path, kind: str) -> None:
    path = broken(tmp_path, kind)
    (tmp_path / "list.txt").write_text(f"{path}\n{film(tmp_path / 'good.mp4')}\n")
    with pytest.raises(ConfigError, match=rf"{kind}\.mp4") as caught:
        clips(config(background_videos=str(tmp_path / "list.txt")))
    assert "\n" not in str(caught.value)
    assert ("at least two" in str(caught.value)) == (kind == "still")


def test_a_list_that_is_no_text_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "list").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="is no list: it has bytes that are no text"):
        find(str(tmp_path / "list"))


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    for number in range(3):
        film(tmp_path / "videos" / "train" / f"{number}.mp4", first=60 * number)
    film(tmp_path / "videos" / "eval" / "0.mp4", first=180)
    return tmp_path / "videos"


def test_settings_say_which_videos_and_how_much_of_them(videos: Path) -> None:
    def read(**options: Any) -> list[list[int]]:
        return [levels(clip) for clip in clips(config(background_videos=str(videos), **options))]

    assert read() == [[0, 20, 40], [60, 80, 100], [120, 140, 160]]
    assert read(background_set="evaluation") == [[180, 200, 220]]
    assert read(background_max_videos=2) == [[0, 20, 40], [60, 80, 100]]
    assert read(background_max_frames=2, background_max_videos=1) == [[0, 20]]


def test_a_video_is_decoded_once(
    videos: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[str] = []

    def counted(path: Path, *how: Any) -> Any:
        decoded.append(path.name)
        return decode(path, *how)

    monkeypatch.setattr(footage, "decode", counted)
    asked = config(background_videos=str(videos), background_max_videos=1)
    before = clips(asked)
    after = clips(asked)
    np.testing.assert_array_equal(before, after)
    assert isinstance(after[0], np.memmap)
    assert decoded == ["0.mp4"]
    file = next(cache.glob("*.npy"))

    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)  # damaged
    np.testing.assert_array_equal(clips(asked), before)
    file.write_bytes(b"")
    np.testing.assert_array_equal(clips(asked), before)
    assert decoded == ["0.mp4"] * 3

    film(videos / "train" / "0.mp4", first=100)  # another one of that name
    assert levels(clips(asked)[0]) == [100, 120, 140]
    clips(config(background_videos=str(videos), background_max_videos=1, image_size=84))
    assert decoded == ["0.mp4"] * 5
    assert not list(cache.glob("*.tmp"))


def test_a_cache_that_cannot_be_written_is_none(
    videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert len(clips(config(background_videos=str(videos)))) == 3


def test_the_cache_keeps_what_was_used_last(
    videos: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = config(background_videos=str(videos))
    clips(asked)
    one = next(cache.glob("*.npy")).stat().st_size
    monkeypatch.setattr(footage, "CACHE_BYTES", 2 * one)
    kept = clips(config(background_videos=str(videos), background_set="evaluation"))
    assert len(list(cache.glob("*.npy"))) == 2
    monkeypatch.setattr(footage, "decode", None)
    again = clips(config(background_videos=str(videos), background_set="evaluation"))
    np.testing.assert_array_equal(again, kept)


def test_without_videos_clips_are_drawn_that_move_and_differ() -> None:
    uses = {use: clips(config(background_set=use)) for use in DRAWN}
    assert {use: len(found) for use, found in uses.items()} == DRAWN
    drawn = [clip for found in uses.values() for clip in found]
    for clip in drawn:
        assert (clip.shape[1:], clip.dtype) == ((3, SIZE, SIZE), np.uint8)
        assert 0.5 < np.abs(np.diff(clip[:20].astype(int), axis=0)).mean() < 40
        assert clip[0].std() > 5
    firsts = np.stack([clip[0] for clip in drawn]).astype(int)
    for number, one in enumerate(firsts):
        assert all(np.abs(one - other).mean() > 5 for other in firsts[:number])
    np.testing.assert_array_equal(draw("train", 3, SHAPE), uses["train"][3])
    grey = clips(config(background_grey=True))[1]
    np.testing.assert_array_equal(grey, np.repeat(grey[:, :1], 3, axis=1))
