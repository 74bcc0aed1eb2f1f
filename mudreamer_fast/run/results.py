"""What a finished run leaves to look at: table, curve, video, strip, and the scores as JSON."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mudreamer_fast.config import ActionChoice, Config, EnvConfig
from mudreamer_fast.evaluate import Evaluation
from mudreamer_fast.run import pictures
from mudreamer_fast.run.folder import RunFolder, write_json
from mudreamer_fast.run.metrics import METRICS_FILE

POLICY_STEPS_PER_SECOND = 25.0
"""At which videos play at an action repeat of 2: near the robots' own speed in most tasks."""


@dataclass(frozen=True)
class TrainResult:
    """What a run came to."""

    run_dir: Path
    """Run folder."""
    env_steps: int
    """Simulator steps taken, action repeats counted."""
    updates: int
    """Gradient updates done."""
    seconds: float
    """Wall time of the whole run, resumed parts included."""
    random_scores: list[float]
    """Returns of the random policy on the evaluation's episodes."""
    evaluation: Evaluation | None
    """The final evaluation; None where the run was stopped before it."""
    stopped_by: int | None
    """The signal that stopped the run early."""


def score_table(
    scores: Sequence[float], random_scores: Sequence[float], eval_policy: ActionChoice
) -> str:
    """The returns beside the random policy's, and their ratio, as plain text."""
    agent = {"sample": "agent, sampled", "mode": "agent, mode"}[eval_policy]
    lines = [f"{'':14} {'mean':>8} {'std':>8} {'lowest':>8} {'highest':>8} {'episodes':>8}"]
    for name, values in ((agent, scores), ("random policy", random_scores)):
        if values:
            lines.append(
                f"{name:14} {statistics.fmean(values):8.1f} {statistics.pstdev(values):8.1f} "
                f"{min(values):8.1f} {max(values):8.1f} {len(values):8}"
            )
    ratio = score_ratio(scores, random_scores)
    if ratio is not None:
        lines.append(f"{'ratio':14} {ratio:8.2f}")
    return "\n".join(lines)


def score_ratio(scores: Sequence[float], random_scores: Sequence[float]) -> float | None:
    """How many times the random policy's mean return; None where that is not above zero."""
    if not scores or not random_scores or statistics.fmean(random_scores) <= 0:
        return None
    return statistics.fmean(scores) / statistics.fmean(random_scores)


def frames_per_second(env: EnvConfig) -> float:
    """Policy steps a second of a video."""
    return POLICY_STEPS_PER_SECOND * 2 / env.action_repeat


def write_film(
    evaluation: Evaluation, video: Path, strip: Path | None, env: EnvConfig
) -> list[Path]:
    """Writes the video of a filmed episode and the strip of what was seen; gives their paths.

    Writes nothing where no episode was filmed.
    """
    if not evaluation.frames:
        return []
    written = [pictures.write_video(evaluation.frames, video, frames_per_second(env))]
    if strip is not None:
        pictures.write_strip(evaluation.seen or evaluation.frames, strip)
        written.append(strip)
    return written


def write_results(
    result: TrainResult, folder: RunFolder, config: Config, warn: Callable[[str], None]
) -> list[Path]:
    """Writes everything that a finished run leaves beside its checkpoint.

    Args:
        result: the run's, with its final evaluation.
        folder: run folder.
        config: the run's.
        warn: told of what could not be written; the run's score must not be lost for a picture.

    Returns:
        The paths written.
    """
    evaluation = result.evaluation
    if evaluation is None:
        raise ValueError("a run without its final evaluation has no results to write")
    metrics = folder.root / METRICS_FILE
    facts = {
        "task": config.env.task,
        "eval_policy": config.train.eval_policy,
        "env_steps": result.env_steps,
        "updates": result.updates,
        "seconds": result.seconds,
        "scores": evaluation.scores,
        "random_scores": result.random_scores,
        "facts": evaluation.mean_facts,
    }
    steps: list[Callable[[], list[Path]]] = [
        lambda: [write_json(folder.result, facts)],
        lambda: [pictures.plot_curve(metrics, folder.curve)],
        lambda: write_film(evaluation, folder.video, folder.strip, config.env),
    ]
    written: list[Path] = []
    for step in steps:
        try:
            written += step()
        except OSError as error:
            warn(f"warning: cannot write to {folder.root}: {error.strerror or error}")
    return written


def present(
    result: TrainResult, folder: RunFolder, config: Config, tell: Callable[[str], None]
) -> None:
    """Writes what a finished run leaves and tells its scores and where all of it lies.

    Args:
        result: the run's.
        folder: run folder.
        config: the run's.
        tell: shows lines to the user.
    """
    written = write_results(result, folder, config, tell)
    if result.evaluation is not None:
        scores = result.evaluation.scores
        tell(score_table(scores, result.random_scores, config.train.eval_policy))
    for path in (*written, folder.checkpoint):
        tell(f"  {path}")
