"""Replay buffer: stores the steps of all environment streams and samples batches of sequences."""

from mudreamer_fast._replay import NonFiniteError, StorageError
from mudreamer_fast.replay.batch import Batch, FieldLike
from mudreamer_fast.replay.batch_queue import BatchQueue
from mudreamer_fast.replay.buffer import ReplayBuffer

__all__ = ["Batch", "BatchQueue", "FieldLike", "NonFiniteError", "ReplayBuffer", "StorageError"]
