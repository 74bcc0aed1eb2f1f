"""Holds `rssm_observe`, step by step and at once, to float64 at sizes that agents have.

`python -m tests.kernels.at_size [SIZE[:ROWS[:STEPS[:NORM]]] ...]`, such as S:16:2:layer. In the
interpreter the larger sizes take minutes. Prints the largest relative error of the outputs and of
the gradients (Frobenius norm), and how many draws are others.
"""

from __future__ import annotations

import os
import sys
import time

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

from mudreamer_fast import reference
from mudreamer_fast.config import SIZES
from tests.interpreter import patch_once_a_launch
from tests.kernels import test_rssm_observe as sequences
from tests.kernels.agreement import DEVICE, evaluate, relative_error, rounded

EMBED, ACTIONS, GROUPS, CLASSES = 64, 6, 32, 32
USUAL = ("XS:1:2", "XS:64:1", "S:16:2", "S:16:2:layer", "M:16:1", "L:4:1")


def compare(size: str, rows: int, steps: int, norm: str) -> None:
    """Prints a line for each way."""
    dims = SIZES[size]  # type: ignore[index]
    sequences.DETER, sequences.HIDDEN = dims.deter, dims.hidden
    sequences.EMBED, sequences.ACTION = EMBED, ACTIONS
    sequences.GROUPS, sequences.CLASSES = GROUPS, CLASSES
    torch.manual_seed(0)
    given = rounded(sequences.scaled(sequences.inputs(rows, steps)), torch.float32)
    truth = evaluate(
        lambda given: sequences.call(reference.rssm_observe, given, norm),
        given, torch.float64, torch.device("cpu"),
    )  # fmt: skip
    for way, op in sequences.OPS.items():
        start = time.perf_counter()
        found = evaluate(
            lambda given, op=op: sequences.call(op, given, norm), given, torch.float32, DEVICE
        )
        errors = {name: relative_error(found[name], truth[name]) for name in truth}
        gradients = {name: error for name, error in errors.items() if name.startswith("grad ")}
        worst = max(gradients, key=lambda name: gradients[name])
        outputs = max(error for name, error in errors.items() if name not in gradients)
        other = (found["stoch"].cpu().double() != truth["stoch"]).any(-1).sum().item()
        print(
            f"{size}, {rows} rows, {steps} steps, {norm}, {way}: outputs {outputs:.1e}, gradients "
            f"{gradients[worst]:.1e} ({worst.removeprefix('grad ')}), {other} of "
            f"{rows * steps * GROUPS} draws others, {time.perf_counter() - start:.0f} s",
            flush=True,
        )


def main() -> int:
    """Compares what the command line names, or the usual sizes."""
    if DEVICE.type == "cpu":
        patch_once_a_launch()
    for case in sys.argv[1:] or USUAL:
        parts = case.split(":")
        size, rows, steps, norm = parts + ["16", "2", "batch"][len(parts) - 1 :]
        compare(size, int(rows), int(steps), norm)
    return 0


if __name__ == "__main__":
    sys.exit(main())
