"""Random damage to files, the same for the same seed."""

from __future__ import annotations

import os
import random

ROUNDS = int(os.environ.get("MUDREAMER_FUZZ_ROUNDS", "2000"))
"""Damaged files that a test of readers tries; MUDREAMER_FUZZ_ROUNDS=100000 takes minutes."""


def mutate(content: bytes, rng: random.Random) -> bytes:
    """A few bytes changed, removed, repeated or put in."""
    data = bytearray(content)
    for _ in range(rng.randint(1, 8)):
        at, many = rng.randrange(len(data) + 1), rng.randint(1, 16)
        kind = rng.randrange(4)
        if kind == 0:
            data[at : at + many] = rng.randbytes(len(data[at : at + many]))
        elif kind == 1:
            del data[at : at + many]
        elif kind == 2:
            data[at:at] = data[at : at + many]
        else:
            data[at:at] = rng.randbytes(many)
        if not data:
            break
    return bytes(data)
