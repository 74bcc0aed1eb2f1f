"""What every test runs under: fixed seeds, NaN in uninitialised memory, one thread."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
# Without it cuBLAS refuses to run under deterministic algorithms.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

import pytest
import torch

from tests.interpreter import patch_once_a_launch

# Before anything defines a kernel; where there is no GPU the kernels are interpreted.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
    patch_once_a_launch()


# Under nohup SIGHUP is ignored, and so it would be in the programs that tests start and stop by it.
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, lambda number, frame: None)


class GpuTally:
    """Leaves out tests marked `gpu` where there is no GPU, and says at the end how many.

    Under pytest-xdist every worker collects all tests and hands their number on; the reports of
    all tests reach the process that started the workers, which counts and prints.
    """

    def __init__(self) -> None:
        self.collected = 0
        self.ran = 0

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_modifyitems(
        self, config: pytest.Config, items: list[pytest.Item]
    ) -> None:
        marked = [item for item in items if item.get_closest_marker("gpu")]
        self.collected = len(marked)
        left_out = not torch.cuda.is_available() and not config.option.collectonly
        if marked and left_out:
            items[:] = [item for item in items if not item.get_closest_marker("gpu")]
            config.hook.pytest_deselected(items=marked)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" and not report.skipped and "gpu" in report.keywords:
            self.ran += 1

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if (output := worker_output(session.config)) is not None:
            output["gpu_tests"] = self.collected

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        self.collected = getattr(node, "workeroutput", {}).get("gpu_tests", self.collected)

    def pytest_unconfigure(self, config: pytest.Config) -> None:
        if worker_output(config) is not None:
            return
        why = "" if torch.cuda.is_available() else " (no CUDA device)"
        print(f"GPU tests not run: {self.collected - self.ran} of {self.collected}{why}")


def worker_output(config: pytest.Config) -> dict[str, Any] | None:
    """What a worker of pytest-xdist hands to the process that started it; None elsewhere."""
    return getattr(config, "workeroutput", None)


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(GpuTally(), "gpu_tally")
    torch.set_num_threads(1)
    torch.backends.cudnn.allow_tf32 = False  # as runs have it, unless they ask for TF32


@pytest.fixture(autouse=True)
def _surroundings() -> Iterator[None]:
    """Seeds torch and fills fresh memory with NaN, so that a forgotten element shows.

    UNFILLED_MEMORY leaves it as it is, for a tool that looks for reads of what nobody wrote.
    """
    torch.manual_seed(0)
    # Only the filling is wanted, and it comes with deterministic algorithms alone; "warn", as
    # some operation may have none on a GPU. (use_deterministic_algorithms imports the compiler.)
    torch.set_deterministic_debug_mode("warn")
    torch.utils.deterministic.fill_uninitialized_memory = not os.environ.get("UNFILLED_MEMORY")
    yield
    torch.set_deterministic_debug_mode("default")
