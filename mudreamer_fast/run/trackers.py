"""Services in which people follow their runs: Weights & Biases, MLflow and trackio.

The scalars of `metrics.jsonl` go there too. A resumed run goes on in the run that it was, by what
`tracker.json` says of it. What keeps a service from being reached after the start costs a warning.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from mudreamer_fast.config import Config, ConfigError
from mudreamer_fast.run.folder import read_result, settings_of, write_json

TRACKER_FILE = "tracker.json"
MLFLOW_PARAMETERS = 100
"""Parameters of a run that MLflow takes at once."""

CLOSE_SECONDS = 30.0
"""How long a run that is over waits for a service to take the last of its metrics."""


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


class _Behind:
    """Sends in a thread of its own what would otherwise hold training up.

    An error of the service is raised by the next `log`, or by `close`. What the service has not
    taken some seconds after the end of the run is lost.

    Args:
        log: sends scalars, and returns when they have been taken.
    """

    def __init__(self, log: Callable[[int, Mapping[str, float], float], None]) -> None:
        self._log = log
        self._waiting: queue.SimpleQueue[tuple[int, Mapping[str, float], float] | None]
        self._waiting = queue.SimpleQueue()
        self._error: Exception | None = None
        # The interpreter does not wait for it: a service that hangs is no reason to hang.
        self._thread = threading.Thread(target=self._send, name="tracker", daemon=True)
        self._thread.start()

    def log(self, env_steps: int, values: Mapping[str, float]) -> None:
        """Hands scalars over."""
        self._waiting.put((env_steps, dict(values), time.time()))
        self._raise()

    def close(self) -> None:
        """Waits for what has been handed over to be sent."""
        self._waiting.put(None)
        self._thread.join(CLOSE_SECONDS)
        self._raise()
        if self._thread.is_alive():
            raise TimeoutError(f"it has not taken all metrics {CLOSE_SECONDS:g} s after the run")

    def _send(self) -> None:
        while (item := self._waiting.get()) is not None:
            try:
                self._log(*item)
            except Exception as error:  # of a library that has no common base for them
                self._error = error

    def _raise(self) -> None:
        error, self._error = self._error, None
        if error is not None:
            raise error


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
        self._behind = _Behind(self._send)  # every batch is a request, which is answered or not
        self.log = self._behind.log

    def _send(self, env_steps: int, values: Mapping[str, float], seconds: float) -> None:
        then = int(seconds * 1e3)
        metrics = [self._metric(name, value, then, env_steps) for name, value in values.items()]
        self._client.log_batch(self.id, metrics=metrics)

    def close(self) -> None:
        self._behind.close()
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
