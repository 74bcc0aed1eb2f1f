"""Replay: steps of every environment stream in, batches of sequences out."""

from mudreamer_fast.replay.batch import Batch, FieldLike
from mudreamer_fast.replay.buffer import ReplayBuffer

__all__ = ["Batch", "FieldLike", "ReplayBuffer"]
