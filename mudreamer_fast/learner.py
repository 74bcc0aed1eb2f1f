"""Learning beside acting: updates in a thread of their own, while the environments go on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from mudreamer_fast.acting import Acting
from mudreamer_fast.agent import Agent
from mudreamer_fast.machine.late import LateValues, Moment
from mudreamer_fast.replay.prefetch import Prefetcher

ACTING_THREADS = 1
"""CPU threads of PyTorch that act while others learn: a step of few environments feeds no more."""


Update = Callable[[Mapping[str, Tensor]], LateValues]
"""Learns from a batch and gives metrics by name: `Agent.update`."""


class Learner:
    """Does an agent's updates, one job after the other.

    In the background a job depends on the moment of its start alone: it draws from what the replay
    held then, and `acting`, a copy of the agent's weights, acts with those from before it. So the
    same seed gives the same run, however long anything takes.

    The metrics of an update are read when the next one has been launched, so that a GPU has work
    while the host waits for them. With the last ones of a job that is in the job after it.

    Args:
        agent: what learns; nobody else may use it between `start` and `finish`.
        batches: what it learns from.
        in_background: whether `start` returns at once, the job being done by another thread.
        stopped: asked before every update; once it says so the job ends early.
    """

    def __init__(
        self,
        agent: Agent,
        batches: Prefetcher,
        in_background: bool,
        stopped: Callable[[], bool] = lambda: False,
    ) -> None:
        self.acting: Acting = agent.acting.apart() if in_background else agent.acting
        """What may act at any time."""
        self.in_background = in_background
        """Whether updates go on after `start` has returned."""
        self._agent, self._batches, self._stopped = agent, batches, stopped
        self._thread: ThreadPoolExecutor | None = None
        self._threads = torch.get_num_threads()
        if in_background:
            self._thread = ThreadPoolExecutor(1, "learner")
            self._thread.submit(_settle_in, agent.device, self._threads).result()
            torch.set_num_threads(ACTING_THREADS)
        self._job: Future[list[dict[str, float]]] | None = None
        self._unread: LateValues | None = None
        self._ended: Moment | None = None
        self._gaps: list[tuple[Moment, Moment]] = []
        self._idle_seconds = 0.0

    @property
    def idle_seconds(self) -> float:
        """Time that the device spent between a job's end and the next one's start, pauses left out.

        What a GPU has not come to yet is counted later.
        """
        while self._gaps and self._gaps[0][1].past:
            ended, begun = self._gaps.pop(0)
            self._idle_seconds += ended.seconds_until(begun)
        return self._idle_seconds

    def start(self, update: Update, updates: int) -> None:
        """Have `update` called with a batch each, a number of times, after `finish`."""
        if self._job is not None:
            raise RuntimeError("the last job has not been finished")
        if self._ended is not None:
            self._gaps.append((self._ended, Moment(self._agent.device)))
        if self._thread is None:
            done: Future[list[dict[str, float]]] = Future()
            done.set_result(self._learn(update, updates))
            self._job = done  # not before: a job that failed is no job to wait for
            return
        self.acting.follow(self._agent.acting)
        self._batches.hold_view()
        self._job = self._thread.submit(self._learn, update, updates)

    def finish(self, last: bool = True) -> list[dict[str, float]]:
        """Wait for the job under way, if there is one.

        Args:
            last: whether to wait for the metrics of its last update as well, rather than for its
                launch alone.

        Returns:
            The metrics of each of its updates; fewer than were asked for where it was stopped.
            Without the last ones, those come first the next time.
        """
        job, self._job = self._job, None
        metrics = job.result() if job is not None else []
        if last and self._unread is not None:
            unread, self._unread = self._unread, None
            metrics.append(unread.read())
        return metrics

    def catch_up(self) -> None:
        """Have `acting` take over the learner's weights at once; no job may be under way."""
        if self.in_background:
            self.acting.follow(self._agent.acting)

    def pause(self) -> None:
        """Count the time until the next start as no waiting: the caller has other things to do."""
        self._ended = None

    def close(self) -> None:
        """End the thread, after the job under way, and give the caller its threads back."""
        if self._thread is not None:
            self._thread.shutdown(wait=True)
            torch.set_num_threads(self._threads)

    def _learn(self, update: Update, updates: int) -> list[dict[str, float]]:
        metrics: list[dict[str, float]] = []
        try:
            for _ in range(updates):
                if self._stopped():
                    break
                before, self._unread = self._unread, update(self._batches.next())
                if before is not None:
                    metrics.append(before.read())
        finally:
            if self._thread is not None:
                self._batches.release_view()
        self._ended = Moment(self._agent.device)
        return metrics


def _settle_in(device: torch.device, threads: int) -> None:
    """Settle device and number of threads for this thread, whatever others settle later."""
    torch.get_num_threads()  # else the first operation would take over the number of others
    torch.set_num_threads(threads)
    if device.type == "cuda":
        torch.cuda.set_device(device)
