"""The recurrent model learns to carry what a head asks of it."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mudreamer_fast import reference
from mudreamer_fast.networks import Rssm
from mudreamer_fast.ops.signatures import Observed
from tests import tiny
from tests.learning.training import MARGIN, train
from tests.tolerances import READS_LATENTS

SYMBOLS, EMBED, STEPS = 4, 12, 5


def sequences(rows: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Noisy embeddings (B, T, E) of symbols, is_first, the symbols, and those before (B, T).

    Before a first step there was none: symbol number 4.
    """
    symbol = torch.randint(0, SYMBOLS, (rows, STEPS))
    is_first = torch.rand(rows, STEPS) < 0.2
    is_first[:, 0] = True
    before = symbol.roll(1, 1).masked_fill(is_first, SYMBOLS)
    shown = F.one_hot(symbol, SYMBOLS).float().repeat_interleave(EMBED // SYMBOLS, -1)
    return shown + 0.2 * torch.randn(shown.shape), is_first, symbol, before


def error(batch_norm: Literal["posterior", "none"], scrambled: bool = False) -> float:
    """Cross entropy of reading the symbol in z and the one before in h, as a share of ln 4."""
    rssm = Rssm(tiny.model_config(deter=16, hidden=16, batch_norm=batch_norm), EMBED, 2, reference)
    groups, classes = rssm.config.groups, rssm.config.classes
    now, before = nn.Linear(groups * classes, SYMBOLS), nn.Linear(16, SYMBOLS + 1)

    def loss(rows: int = 16) -> Tensor:
        embed, is_first, symbol, previous = sequences(rows)
        seen: Observed = rssm.observe(
            embed, torch.zeros(rows, STEPS, 2), is_first, torch.rand(rows, STEPS, groups)
        )
        in_z = F.cross_entropy(now(seen.stoch.flatten(2)).flatten(0, 1), symbol.flatten())
        in_h = F.cross_entropy(before(seen.deter).flatten(0, 1), previous.flatten())
        return in_z + in_h

    train(loss, [rssm, now, before], 150, 1e-2, [rssm] if scrambled else [])
    rssm.eval()
    with torch.no_grad():
        return loss(256).item() / torch.tensor(SYMBOLS).log().item()


@pytest.mark.parametrize("batch_norm", ["posterior", "none"])
def test_rssm_learns_to_hold_what_is_seen_and_what_was_seen(
    batch_norm: Literal["posterior", "none"],
) -> None:
    assert error(batch_norm) < READS_LATENTS


def test_rssm_with_scrambled_gradients_holds_neither() -> None:
    assert error("posterior", scrambled=True) > MARGIN * READS_LATENTS
