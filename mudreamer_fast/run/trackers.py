"""Services in which people follow their runs: Weights & Biases, MLflow and trackio.

The scalars of `metrics.jsonl` go there too. A resumed run goes on in the run that it was, by what
`tracker.json` says of it. What keeps a service from being reached after the start costs a warning.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from mudreamer_fast.config import Config, ConfigError
from mudreamer_fast.run.folder import read_result, settings_of, write_json

TRACKER_FILE = "tracker.json"
MLFLOW_PARAMETERS = 100
"""Parameters of a run that MLflow takes at once."""


class Tracker(Protocol):
    """A run of a service."""

    id: str
    """What the service calls the run, by which it is found again."""

    def log(self, env_steps: int, values: Mapping[str, float]) -> None:
        """Takes scalars at a number of simulator steps."""

    def close(self) -> None:
        """Sends what is left."""


def open_tracker(config: Config, folder: Path) -> Tracker | None:
    """Begins a run of the service that the configuration names, or goes on with the folder's.

    Args:
        config: the run's; `train.tracker` says which service and `train.tracker_project` where.
        folder: run folder, which gives the run its name there.

    Returns:
        The run, or None where no service is named.

    Raises:
        ConfigError: its package is not installed, or the service cannot be reached.
    """
    kind, project = config.train.tracker, config.train.tracker_project
    if kind == "none":
        return None
    stored = read_result(folder / TRACKER_FILE)
    here = (stored.get("tracker"), stored.get("project")) == (kind, project)
    known = str(stored["id"]) if here and "id" in stored else None
    settings = settings_of(config)
    try:
        tracker = _TRACKERS[kind](project, folder, settings, known)
    except ImportError:
        raise ConfigError(
            f"train.tracker {kind} takes its package: pip install 'mudreamer-fast[{kind}]'"
        ) from None
    except Exception as error:  # of a library that has no common base for them
        said = " ".join(str(error).split()) or type(error).__name__
        raise ConfigError(f"train.tracker {kind}: {said}") from None
    write_json(folder / TRACKER_FILE, {"tracker": kind, "project": project, "id": tracker.id})
    return tracker


class _Wandb:
    def __init__(
        self, project: str, folder: Path, settings: Mapping[str, Any], known: str | None
    ) -> None:
        import wandb

        self._run = wandb.init(
            project=project,
            name=folder.name,
            dir=folder,
            config=dict(settings),
            id=known,
            resume="allow",
            settings=wandb.Settings(console="off"),
        )
        # A resumed run goes back to its checkpoint, which a step of W&B's own cannot.
        self._run.define_metric("*", step_metric="env_steps")
        self.id: str = self._run.id

    def log(self, env_steps: int, values: Mapping[str, float]) -> None:
        self._run.log({"env_steps": env_steps, **values})

    def close(self) -> None:
        self._run.finish()


class _Mlflow:
    def __init__(
        self, project: str, folder: Path, settings: Mapping[str, Any], known: str | None
    ) -> None:
        from mlflow.entities import Metric, Param
        from mlflow.tracking import MlflowClient

        self._metric, self._client = Metric, MlflowClient()
        if known is None:
            experiment = self._client.get_experiment_by_name(project)
            place = experiment.experiment_id if experiment else None
            place = place or self._client.create_experiment(project)
            self.id: str = self._client.create_run(place, run_name=folder.name).info.run_id
            parameters = [Param(name, str(value)) for name, value in settings.items()]
            for start in range(0, len(parameters), MLFLOW_PARAMETERS):
                some = parameters[start : start + MLFLOW_PARAMETERS]
                self._client.log_batch(self.id, params=some)
        else:
            self.id = known
            self._client.update_run(known, status="RUNNING")

    def log(self, env_steps: int, values: Mapping[str, float]) -> None:
        now = int(time.time() * 1e3)
        metrics = [self._metric(name, value, now, env_steps) for name, value in values.items()]
        self._client.log_batch(self.id, metrics=metrics)

    def close(self) -> None:
        self._client.set_terminated(self.id)


class _Trackio:
    def __init__(
        self, project: str, folder: Path, settings: Mapping[str, Any], known: str | None
    ) -> None:
        import trackio

        self.id = known or folder.name
        self._run = trackio.init(
            project=project, name=self.id, config=dict(settings), resume="allow", embed=False
        )

    def log(self, env_steps: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=env_steps)

    def close(self) -> None:
        self._run.finish()


_TRACKERS: dict[str, Callable[[str, Path, Mapping[str, Any], str | None], Tracker]] = {
    "wandb": _Wandb,
    "mlflow": _Mlflow,
    "trackio": _Trackio,
}
