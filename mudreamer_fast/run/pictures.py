"""Pictures of a run: the learning curve, a video of an episode, a strip of what the agent saw."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from mudreamer_fast.run.metrics import is_number, read_lines

Frame = np.ndarray[Any, np.dtype[np.uint8]]

VIDEO_CODECS = ("libx264", "libopenh264", "h264", "mpeg4")
"""Encoders to try in turn: H.264 plays everywhere, MPEG-4 is in every build of FFmpeg."""


def plot_curve(metrics: str | os.PathLike[str], picture: str | os.PathLike[str]) -> Path:
    """Draws returns over environment steps: training episodes, evaluations, the random policy.

    Args:
        metrics: the run's metrics.jsonl.
        picture: PNG to write.

    Returns:
        The picture's path.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = list(read_lines(metrics))
    figure = Figure(figsize=(7.0, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    episodes = _points(rows, "episode/score")
    if episodes:
        axes.plot(*zip(*episodes, strict=True), ".", ms=3, alpha=0.4, label="training episodes")
    evaluations = _points(rows, "evaluation/score")
    if evaluations:
        axes.plot(*zip(*evaluations, strict=True), "o-", color="C1", label="evaluation, mean")
        spread = [r["evaluation/scores"] for r in rows if r.get("evaluation/score") is not None]
        low, high = [min(s) for s in spread], [max(s) for s in spread]
        steps = [step for step, _ in evaluations]
        axes.fill_between(
            steps, low, high, color="C1", alpha=0.15, lw=0, label="evaluation, lowest to highest"
        )
    random = _points(rows, "random/score")
    if random:
        axes.axhline(random[-1][1], ls="--", color="0.4", label="random policy")
    axes.set_xlabel("environment steps")
    axes.set_ylabel("return of an episode")
    axes.grid(alpha=0.3)
    if axes.has_data():
        axes.legend(loc="best", fontsize="small")
    figure.savefig(picture, format="png", dpi=120)
    return Path(picture)


def plot_runs(
    runs: Mapping[str, str | os.PathLike[str]], metric: str, picture: str | os.PathLike[str]
) -> Path:
    """Draws one metric of several runs over environment steps.

    Args:
        runs: metrics.jsonl of each run, by the name it is drawn under.
        metric: such as "world_model/feature_std".
        picture: PNG to write.

    Returns:
        The picture's path.

    Raises:
        ValueError: a run has no such metric.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.0, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for name, metrics in runs.items():
        rows = list(read_lines(metrics))
        points = _points(rows, metric)
        if not points:
            known = sorted({key for row in rows for key in row if "/" in key})
            raise ValueError(f"{metrics} has no {metric}; it has {', '.join(known) or 'nothing'}")
        text = os.fsencode(name).decode(errors="replace")  # a folder's name need not be text
        axes.plot(*zip(*points, strict=True), label=text)
    axes.set_xlabel("environment steps")
    axes.set_ylabel(metric)
    axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
    axes.grid(alpha=0.3)
    axes.legend(loc="best", fontsize="small")
    figure.savefig(picture, format="png", dpi=120)
    return Path(picture)


def _points(rows: Sequence[dict[str, Any]], name: str) -> list[tuple[int, float]]:
    return [(row["env_steps"], row[name]) for row in rows if is_number(row.get(name))]


def write_video(frames: Sequence[Frame], path: str | os.PathLike[str], fps: float) -> Path:
    """Writes frames (H, W, 3) uint8 as MP4, or as GIF where no encoder is to be had.

    Args:
        frames: at least one frame, all of one size.
        path: ends in .mp4 or .gif; the suffix is changed to .gif on the fall-back.
        fps: frames per second.

    Returns:
        The path written.

    Raises:
        ValueError: no frames, or a path that `check_video_path` refuses.
    """
    path = Path(path)
    if not frames:
        raise ValueError("a video needs at least one frame")
    check_video_path(path)
    if path.suffix.lower() == ".mp4":
        for codec in video_codecs():
            _encode(frames, path, fps, codec)
            return path
    path = path.with_suffix(".gif")
    _write_gif(frames, path, fps)
    return path


def check_video_path(path: Path) -> None:
    """Refuses a path that no video could be written to.

    Raises:
        ValueError: a folder that is not there, or a suffix other than .mp4 and .gif.
    """
    if path.suffix.lower() not in (".mp4", ".gif"):
        raise ValueError(f"a video's name must end in .mp4 or .gif, got {path.name!r}")
    if not path.parent.is_dir():
        raise ValueError(f"no folder {path.parent} to write the video {path.name!r} to")


def video_codecs() -> list[str]:
    """Names of the encoders in `VIDEO_CODECS` that are there, best first."""
    try:
        import av
    except ImportError:
        return []
    names = []
    for name in VIDEO_CODECS:
        try:
            av.codec.Codec(name, "w")
        except (ValueError, av.FFmpegError):
            continue
        names.append(name)
    return names


def _encode(frames: Sequence[Frame], path: Path, fps: float, codec: str) -> None:
    import av

    # Chroma is subsampled by two, so odd sizes lose their last row or column.
    height, width = (size // 2 * 2 for size in frames[0].shape[:2])
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=Fraction(fps).limit_denominator(1000))
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        if codec == "libx264":
            stream.options = {"crf": "20"}
        else:
            stream.bit_rate = 4_000_000
        for frame in frames:
            pixels = np.ascontiguousarray(frame[:height, :width])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())


def _write_gif(frames: Sequence[Frame], path: Path, fps: float) -> None:
    from PIL import Image

    # Viewers slow down GIF frames shorter than 20 ms: drop frames instead.
    stride = max(1, round(fps / 50))
    images = [Image.fromarray(frame) for frame in frames[::stride]]
    duration_ms = max(20, round(1000 * stride / fps))
    images[0].save(path, save_all=True, append_images=images[1:], duration=duration_ms, loop=0)


def write_picture(frame: Frame, path: str | os.PathLike[str]) -> None:
    """Writes a picture (H, W, 3) as a PNG."""
    from PIL import Image

    Image.fromarray(frame).save(path, format="PNG")


def write_strip(
    frames: Sequence[Frame], path: str | os.PathLike[str], count: int = 8, scale: int = 2
) -> None:
    """Writes `count` frames, evenly spread over the episode, side by side as a PNG."""
    if not frames:
        raise ValueError("a strip needs at least one frame")
    chosen = np.linspace(0, len(frames) - 1, min(count, len(frames))).round().astype(int)
    gap = np.full((frames[0].shape[0], 2, 3), 255, np.uint8)
    parts: list[Frame] = []
    for index in chosen:
        parts += [gap, frames[index]]
    strip = np.concatenate(parts[1:], axis=1).repeat(scale, axis=0).repeat(scale, axis=1)
    write_picture(strip, path)
