"""The one table of tolerances, each with its reason."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Tolerance:
    """How far two numbers may be apart: `|a - b| <= absolute + relative |b|`."""

    relative: float
    absolute: float


HAND = Tolerance(1e-12, 1e-12)
"""Float64 against numbers worked by hand or by another formula: only rounding of a few dozen
operations on numbers of order one (1e-16 each) lies between them."""

PLAIN_LOOP = Tolerance(1e-9, 1e-11)
"""Float64 operations over several recurrent steps against a loop over rows: rounding of 1e-16 is
carried on, and grows with every layer norm of nearly equal inputs (at most 1/sqrt(eps) = 32 per
step over five steps, in gradients as well)."""

FINITE_DIFFERENCE = Tolerance(1e-5, 1e-9)
"""Central differences of step 1e-5 in float64: truncation of 1e-10 times the third derivative,
rounding of 1e-16 / 1e-5 = 1e-11 of a loss of order one."""

REORDERED = Tolerance(1e-5, 1e-6)
"""Float32 results of order one whose sums of at most 100 products run in another order: 100 times
6e-8 at the very worst, far less on average."""

ZERO_HEAD = Tolerance(0.0, 1e-6)
"""A uniform distribution over float32 bins of up to 20, whose sum cancels to one or two units in
the last place of its largest partial sums (4e-7 of order five)."""

FUSED_ADAM = Tolerance(1e-6, 1e-7)
"""One Adam step in float32 with its divisions in another order: some units in the last place of
parameters of order one."""

INIT_STD = Tolerance(0.01, 0.0)
"""Standard deviation of 10^5 draws: a relative standard error of 1 / sqrt(2 * 10^5) = 0.2%, less
for a truncated normal; five times that."""

DRAWN_STD = Tolerance(0.06, 0.0)
"""Standard deviation of 4000 draws: a relative standard error of 1 / sqrt(8000) = 1.1%; five times
that."""

OVERFIT_RATIO = 0.5
"""Share of the loss that may be left after 60 updates on one batch; measured 0.28 to 0.34 over
three seeds, and 1.01 to 1.03 with a learning rate near zero."""


# What is left to learn after a small task (tests/learning): measured over three seeds with right
# gradients, and with those of the part scrambled. The bounds lie a factor of 3 from either.

SEES = {"image": 0.045, "vector": 0.16}
"""Share of the targets' variance that an encoder leaves: image 0.006 to 0.014, and 0.28 to 1.4
scrambled (once, with batch norm, 0.12); vector 0.010 to 0.053, and 0.60 to 0.91."""
DRAWS_SQUARE = 0.04
"""Share of the pixels' variance that a decoder leaves: 0.008 to 0.013; 1.1 to 13 scrambled."""
KNOWS_FUNCTION = 0.2
"""Share of a head's loss above the least possible that is left: 0.004 to 0.065; from 0.71 on
scrambled, where it may grow to any size."""
READS_LATENTS = 0.13
"""Cross entropy of what is read from h and z, in units of a guess's for one of them: 0.026 to
0.041; 1.2 to 1.7 scrambled."""
KNOWS_WORLD = 0.15
"""Share of what an ignorant guess misses that a world model's parts do: the prior 0.013 to 0.041,
and 1.4 to 2.7 scrambled; values 0.001 to 0.005, and from 10^3 on; all others at most 0.001."""
KNOWS_BEST_ACTION = 0.12
"""Share of the best action's worth that an actor misses: at most 0.027; from 0.78 on scrambled."""
KNOWS_RETURN = 0.33
"""Squared error of a critic over its targets' variance: 0.004 to 0.11; from 10^11 on scrambled."""


def assert_close(actual: Tensor, expected: Tensor, tolerance: Tolerance, name: str = "") -> None:
    """Same shape and dtype, no NaN, and every element within the tolerance."""
    torch.testing.assert_close(
        actual,
        expected,
        rtol=tolerance.relative,
        atol=tolerance.absolute,
        msg=lambda text: f"{name}: {text}" if name else text,
    )


@dataclass(frozen=True)
class Agreement:
    """How far a fused operation may be from the float64 truth."""

    output: float
    """Largest relative error of an output (Frobenius norm)."""
    gradient: float
    """Of a gradient."""
    floor: float
    """Error of an element, as a share of the largest element, that is never too large. Where the
    reference happens to round exactly, twice its error says nothing: some tens of units in the last
    place, for kernels that sum in another order and take exponentials from hardware."""


FUSED = {
    torch.float32: Agreement(5e-6, 1e-5, 5e-6),
    torch.bfloat16: Agreement(1e-2, 2e-2, 2e-2),
}
"""Teacher-forced: measured 1e-7 to 3e-7 and 8e-7 in float32 over 64 recurrent steps, 2.6e-3 and
5e-3 with bfloat16 operands; room for longer sums and for other orders of them."""

FUSED_SINGLE_ROW = Agreement(5e-6, 1e-5, 2e-5)
"""Batch norm over a single row, which has no gradient: a GPU's fused multiply-add leaves of the
difference of equal numbers the rounding of one of them, 6e-8, times 1/sqrt(eps) = 32 and inputs of
up to 3. On an H200 a whole matrix came to 1.6e-5."""

FUSED_TF32 = Agreement(1.5e-3, 3e-3, 2e-3)
"""Float32 with products in tf32, likewise: measured 3.2e-4 and 6.3e-4."""

ALIKE = Tolerance(1e-3, 1e-4)
"""Metrics of two agents that learn from the same batches, weights and noise: Adam's steps divide by
the gradient's size, so that a gradient near zero may change a step by its whole length (1e-4).
Over 50 updates of the smallest model on either backend, no metric was off by more than a hundredth
of it. A latent or an action drawn from another class would be off by far more: none was, and among
some thousand draws whose probabilities differ by 1e-6 none is expected."""

TWIN_STATE = {torch.float64: 1e-11, torch.float32: 1e-4}
"""A tensor of the agent's state after each of five updates against the twin's in float64, as a
share of the tensor's largest element. Rounding of 1e-16 (6e-8) is carried through some ten layers
there and back and through the updates, and is largest where gradients cancel: at most 4e-13 and
2e-5 were seen."""

TWIN_METRIC = {torch.float64: 2e-7, torch.float32: 2e-5}
"""Metrics likewise, as a share of their size or of one. They are rounded to float32, by 6e-8; from
kernels at most 4e-6 were seen."""

LEARNED_ALIKE = 0.1
"""Share by which two such agents may differ in what they learned: the change of a weight, an
average or a moment of Adam, each tensor as a whole. After 3 updates no tensor was off by more than
4e-3, most by less than 1e-5; without its gradient, or with another's, it is off by 1 or so."""
