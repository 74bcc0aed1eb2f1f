"""The videos that stand behind a robot: found, decoded once, and kept as small arrays.

A video becomes a `Clip` at the size of the agent's images, which is written to the user's cache
(`~/.cache/mudreamer_fast/videos`) and mapped from there, so that all environments and processes
share it. The name of the file tells the video, how it was read, and the CRC-32 of the content.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from mudreamer_fast.config import ConfigError, EnvConfig

Clip: TypeAlias = npt.NDArray[np.uint8]
"""(F, 3, height, width): the frames of a video."""
Use: TypeAlias = Literal["train", "evaluation"]

SUFFIXES = (".avi", ".gif", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm")
"""Files in a folder that are taken for videos."""
FOLDERS: dict[Use, tuple[str, ...]] = {
    "train": ("train",),
    "evaluation": ("eval", "evaluation", "test", "val", "validation"),
}
"""Names of the folders that hold the videos of each use."""
EVERY = 5
"""Without such folders, every so many-th video is kept for evaluation."""
CACHE_BYTES = 8 << 30
"""Clips beyond it are removed, those not used for longest first."""
DRAWN: dict[Use, int] = {"train": 16, "evaluation": 4}
"""How many clips are drawn where there are no videos."""
DRAWN_FRAMES = 256

_LAYOUT = 1
"""Changes with what is in a file of the cache."""


def clips(config: EnvConfig) -> list[Clip]:
    """The clips that an environment shows behind its robot, those of `config.background_set`.

    Raises:
        ConfigError: a video or the folder is missing, or is not what it should be.
    """
    shape, grey, use = config.image_shape, config.background_grey, config.background_set
    if config.background_videos is None:
        drawn = [draw(use, number, shape) for number in range(DRAWN[use])]
        return [_greyed(clip) for clip in drawn] if grey else drawn
    paths = find(config.background_videos)[use][: config.background_max_videos]
    reader = _Reader(shape, config.background_max_frames, grey)
    with ThreadPoolExecutor(min(len(paths), os.cpu_count() or 1)) as threads:
        return list(threads.map(reader.read, paths))


def find(place: str) -> dict[Use, list[Path]]:
    """The videos for training and those for evaluation, of which training shows none.

    Args:
        place: a folder with the folders of `FOLDERS` in it; or one with videos anywhere below it,
            or a text file with a path a line, of which every `EVERY`-th is kept for evaluation.

    Raises:
        ConfigError: there are none, or too few for both, or one of both.
    """
    root = Path(place).expanduser()
    if not root.exists():
        raise ConfigError(
            f"background_videos {root} does not exist: name where they lie, to train by "
            "--env.background-videos, to evaluate and to dream by --background-videos"
        )
    found: dict[Use, list[Path]] = {
        use: [path for name in names for path in _videos_below(root / name)]
        for use, names in FOLDERS.items()
    }
    if not any((root / name).is_dir() for names in FOLDERS.values() for name in names):
        paths = _videos_below(root) if root.is_dir() else _listed(root)
        kept = paths[EVERY - 1 :: EVERY] or paths[-1:]
        found = {"train": [path for path in paths if path not in kept], "evaluation": kept}
    for use, paths in found.items():
        if not paths:
            raise ConfigError(
                f"background_videos {root} has no video for {use}: it takes a folder with the "
                f"folders train and eval, or at least two videos ({', '.join(SUFFIXES)})"
            )
    both = {path.resolve() for path in found["train"]} & {p.resolve() for p in found["evaluation"]}
    if both:
        raise ConfigError(f"{min(both)} is a video for training and one for evaluation")
    return found


def _videos_below(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)


def _listed(file: Path) -> list[Path]:
    if file.suffix.lower() in SUFFIXES:
        raise ConfigError(f"background_videos {file} is one video: give a folder, or a list")
    try:
        lines = file.read_text().splitlines()
    except UnicodeDecodeError:
        raise ConfigError(
            f"background_videos {file} is no list: it has bytes that are no text"
        ) from None
    return [file.parent / Path(line.strip()).expanduser() for line in lines if line.strip()]


def decode(path: Path, shape: tuple[int, int], most_frames: int, grey: bool) -> Clip:
    """The first frames of a video, each squeezed into the shape of the images.

    Args:
        path: of a file that FFmpeg reads.
        shape: height and width of the result.
        most_frames: no more are read.
        grey: whether its colours are left out.

    Raises:
        ConfigError: it cannot be read, or does not move.
    """
    import av
    from av.video.reformatter import Interpolation

    frames: list[npt.NDArray[np.uint8]] = []
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise ConfigError(f"{path} holds no video")
            for frame in container.decode(video=0):
                small = frame.reformat(*shape[::-1], "rgb24", interpolation=Interpolation.AREA)
                frames.append(small.to_ndarray().transpose(2, 0, 1))
                if len(frames) == most_frames:
                    break
    except (av.error.FFmpegError, OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise ConfigError(f"{path} cannot be read as a video: {reason}") from None
    if len(frames) < 2:
        raise ConfigError(f"{path} has {len(frames)} frame(s): a background has at least two")
    clip = np.stack(frames)
    return _greyed(clip) if grey else clip


class _Reader:
    """Reads videos from the cache, or decodes them and keeps them there."""

    def __init__(self, shape: tuple[int, int], most_frames: int, grey: bool) -> None:
        self._how = shape, most_frames, grey
        home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        self._folder = Path(home, "mudreamer_fast", "videos")

    def read(self, path: Path) -> Clip:
        try:
            facts = path.stat()
        except OSError as error:
            raise ConfigError(f"{path}: {error.strerror}") from None
        asked = [str(path.resolve()), facts.st_size, facts.st_mtime_ns, *self._how, _LAYOUT]
        key = hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:32]
        kept = self._kept(key)
        if kept is not None:
            return kept
        clip = decode(path, *self._how)
        with contextlib.suppress(OSError):  # a cache that cannot be written is none
            self._keep(key, clip)
        return clip

    def _kept(self, key: str) -> Clip | None:
        for file in self._folder.glob(f"{key}-*.npy"):
            try:
                clip: Clip = np.load(file, mmap_mode="r", allow_pickle=False)
                os.utime(file)  # it was used
            except (OSError, ValueError, EOFError):
                continue
            shape, most_frames, _ = self._how
            whole = clip.dtype == np.uint8 and clip.ndim == 4 and clip.shape[0] <= most_frames
            if whole and clip.shape[1:] == (3, *shape) and file.stem == _name(key, clip):
                return clip
        return None

    def _keep(self, key: str, clip: Clip) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        unfinished = self._folder / f"{key}.{os.getpid()}.tmp"
        try:
            with unfinished.open("wb") as file:
                np.save(file, clip)
            unfinished.replace(self._folder / f"{_name(key, clip)}.npy")
        finally:
            unfinished.unlink(missing_ok=True)
        self._shrink()

    def _shrink(self) -> None:
        files = [(file, file.stat()) for file in self._folder.glob("*.npy")]
        size = sum(facts.st_size for _, facts in files)
        for file, facts in sorted(files, key=lambda one: one[1].st_mtime):
            if size <= CACHE_BYTES:
                return
            file.unlink(missing_ok=True)
            size -= facts.st_size


def _name(key: str, clip: Clip) -> str:
    return f"{key}-{zlib.crc32(np.ascontiguousarray(clip).data):08x}"


def _greyed(clip: Clip) -> Clip:
    """The same luminance in all channels, by the weights of ITU-R BT.601."""
    weights = np.array([0.299, 0.587, 0.114], np.float32)[:, None, None]
    grey = (clip * weights).sum(1, keepdims=True).round().astype(np.uint8)
    return np.repeat(grey, 3, axis=1)


def draw(use: Use, number: int, shape: tuple[int, int]) -> Clip:
    """A clip of moving textures or shapes, for machines without videos.

    Args:
        use: clips for training and for evaluation differ.
        number: which of them.
        shape: height and width.
    """
    rng = np.random.default_rng([list(DRAWN).index(use), number])
    paint = (_waves, _discs)[number % 2](rng, shape)
    frames = np.empty((DRAWN_FRAMES, 3, *shape), np.uint8)
    for number, frame in enumerate(frames):
        frame[...] = paint(number)
    return frames


_Paint: TypeAlias = Callable[[int], npt.NDArray[Any]]


def _grid(shape: tuple[int, int]) -> Iterator[npt.NDArray[np.float32]]:
    """Down and across, from 0 to 1."""
    height, width = shape
    down, across = np.mgrid[0:height, 0:width].astype(np.float32)
    return iter((down / height, across / width))


def _waves(rng: np.random.Generator, shape: tuple[int, int]) -> _Paint:
    """Three waves of colour that pass through one another."""
    down, across = _grid(shape)
    frequency = rng.uniform(-18, 18, (3, 2)).astype(np.float32)
    speed, colour = rng.uniform(-0.3, 0.3, 3), rng.uniform(0, 45, (3, 3)).astype(np.float32)
    base = rng.uniform(60, 190, 3).astype(np.float32)[:, None, None]

    def paint(number: int) -> npt.NDArray[Any]:
        picture: npt.NDArray[Any] = np.broadcast_to(base, (3, *shape)).copy()
        for (y, x), step, amplitudes in zip(frequency, speed, colour, strict=True):
            wave = np.sin(y * down + x * across + np.float32(step * number))
            picture += amplitudes[:, None, None] * wave
        clipped: npt.NDArray[Any] = picture.clip(0, 255)
        return clipped

    return paint


def _discs(rng: np.random.Generator, shape: tuple[int, int]) -> _Paint:
    """Discs that drift over a gradient and come in again on the other side."""
    down, across = _grid(shape)
    count = 7
    centre, velocity = rng.uniform(0, 1, (count, 2)), rng.uniform(-0.02, 0.02, (count, 2))
    radius = rng.uniform(0.06, 0.22, count)
    colour = rng.uniform(0, 255, (count, 3)).astype(np.float32)
    low, high = rng.uniform(0, 255, (2, 3)).astype(np.float32)[..., None, None]
    ground: npt.NDArray[Any] = low + (high - low) * down

    def paint(number: int) -> npt.NDArray[Any]:
        picture: npt.NDArray[Any] = ground.copy()
        for place, r, c in zip((centre + velocity * number) % 1, radius, colour, strict=True):
            y, x = abs(down - np.float32(place[0])), abs(across - np.float32(place[1]))
            inside = np.minimum(y, 1 - y) ** 2 + np.minimum(x, 1 - x) ** 2 < r * r
            picture[:, inside] = c[:, None]
        return picture

    return paint
