"""Launches, products and bytes of an update: counted, held to a committed table, and predicted."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.launches import COUNTED, PARTS, Counter, by_part, count_update, whole, with_products_of
from bench.roofline import CARDS, LAUNCH_MICROSECONDS, Work, predicted_milliseconds
from mudreamer_fast.config import Config
from mudreamer_fast.kernels.device import INTERPRETED

COMMITTED = json.loads(Path("bench/results/update-launches.json").read_text())
OF_PYTORCH = 0.01
"""By how much of them another version of PyTorch may change launches and bytes."""
FLOAT = 4


def counted(work: Any) -> dict[str, list[Work]]:
    counter = Counter()
    with counter:
        work()
    found: dict[str, list[Work]] = {}
    for launch in counter.launches:
        found.setdefault(launch.name.removeprefix("aten."), []).append(launch.work)
    return found


def test_a_product_is_one_launch_with_its_multiplications_and_what_it_reads_and_writes() -> None:
    x, w, out = torch.ones(6, 5), torch.ones(3, 5), torch.empty(6, 3)
    work = Work(2 * 6 * 5 * 3, FLOAT * (30 + 15 + 18))
    assert counted(lambda: x @ w.t()) == {"mm": [work]}
    assert counted(lambda: torch.mm(x, w.t(), out=out)) == {"mm": [work]}


def test_views_and_room_are_no_launches() -> None:
    x = torch.ones(4, 6)
    views = counted(lambda: (x.t()[1:].unsqueeze(0).view(5, 4), torch.empty_like(x), x.detach()))
    assert views == {}


def test_what_is_written_and_not_read_counts_once() -> None:
    x, y = torch.ones(8), torch.ones(8)
    assert counted(lambda: x.copy_(y)) == {"copy_": [Work(0, FLOAT * 16)]}
    assert counted(lambda: x.zero_()) == {"zero_": [Work(0, FLOAT * 8)]}
    assert counted(lambda: x.add_(y)) == {"add_": [Work(0, FLOAT * 24)]}


def test_parts_are_those_of_the_forward_and_the_backward_pass() -> None:
    x = torch.ones(2, 3, requires_grad=True)
    counter = Counter()
    double = counter.within(PARTS[0], lambda: counter.from_here_on(x * 2, PARTS[1]))
    with counter:
        loss = counter.within(PARTS[2], lambda: double().exp().sum())()
        counter.within(PARTS[3], lambda: torch.autograd.grad(loss, x))()
        x.detach().neg()
    parts = [launch.part for launch in counter.launches]
    assert parts == [PARTS[0], PARTS[2], PARTS[2], PARTS[3], PARTS[3], PARTS[1], PARTS[-1]]


@pytest.mark.skipif(not INTERPRETED, reason="counts instead of interpreting")
def test_an_update_asks_for_what_the_committed_table_says() -> None:
    config = Config()
    fused, persistent = (
        count_update(replace(config, train=replace(config.train, backend=backend)))
        for backend in ("fused", "persistent")
    )
    same = torch.__version__.split("+")[0] == COMMITTED["torch"].split("+")[0]
    for name, launches in (
        ("fused", fused), ("persistent", with_products_of(persistent, fused))
    ):  # fmt: skip
        found, known = by_part(launches), COMMITTED["update"][name]
        if same:
            assert found == known
            continue
        for part in known:
            assert found[part]["gflop"] == known[part]["gflop"]
        for kind in ("launches", "megabytes"):
            assert whole(found)[kind] == pytest.approx(whole(known)[kind], rel=OF_PYTORCH)


def test_every_backend_multiplies_as_much() -> None:
    for name in COUNTED:
        for part, row in COMMITTED["update"][name].items():
            # but for what pads rows to where tensor cores can read them
            reference = COMMITTED["update"]["reference"][part]
            assert row["gflop"] == pytest.approx(reference["gflop"], rel=2e-3), part


def test_a_prediction_adds_up_what_each_launch_lacks_most() -> None:
    card = CARDS["H100"]
    many = predicted_milliseconds([Work(0, 0)] * 1000, card, "tf32")
    assert many == pytest.approx(LAUNCH_MICROSECONDS)
    product = Work(7 * 10**12, 1)
    exact, fast = (predicted_milliseconds([product], card, name) for name in ("float32", "tf32"))
    assert exact / fast == pytest.approx(card.tf32 / card.float32)
    assert exact == pytest.approx(1e3 * 10 / 66.9)
    assert predicted_milliseconds([Work(0, 3352 * 10**6)], card, "tf32") == pytest.approx(1 / 0.85)
