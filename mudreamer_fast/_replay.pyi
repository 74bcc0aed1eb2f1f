"""The C++ replay; `mudreamer_fast.replay.ReplayBuffer` is its face."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

class Replay:
    def __init__(
        self,
        fields: list[tuple[str, np.dtype[Any], tuple[int, ...]]],
        streams: int,
        capacity_steps: int,
        seed: int,
        threads: int,
    ) -> None: ...
    def append(self, step: dict[str, NDArray[Any]]) -> None: ...
    def sample(self, batch: int, length: int, outputs: dict[str, NDArray[Any]]) -> None: ...
    def snapshot(self, steps: int, outputs: dict[str, NDArray[Any]]) -> tuple[int, int] | None: ...
    def restore(
        self, steps: int, contents: dict[str, NDArray[Any]], steps_added: int, generator: int
    ) -> None: ...
    @property
    def steps(self) -> int: ...
    @property
    def steps_added(self) -> int: ...
    @property
    def step_bytes(self) -> int: ...
