"""Replay: steps of every environment stream in, batches of sequences out."""

from mudreamer_fast.replay.batch import Batch, FieldLike
from mudreamer_fast.replay.batches import Batches
from mudreamer_fast.replay.buffer import ReplayBuffer
from mudreamer_fast.replay.storage import StorageError

__all__ = ["Batch", "Batches", "FieldLike", "ReplayBuffer", "StorageError"]
