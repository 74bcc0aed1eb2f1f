"""Use the replay buffer alone: store steps of two environments, sample sequences.

python examples/replay_buffer.py
"""

import numpy as np

from mudreamer_fast import ReplayBuffer
from mudreamer_fast.envs import ArraySpec

fields = {
    "vector": ArraySpec((3,), np.dtype(np.float32)),
    "reward": ArraySpec((), np.dtype(np.float32)),
    "is_first": ArraySpec((), np.dtype(np.bool_)),
}
replay = ReplayBuffer(fields, capacity_steps=1000, num_streams=2, seed=0)
for number in range(50):
    replay.add(
        {
            "vector": np.full((2, 3), number, np.float32),
            "reward": np.ones(2, np.float32),
            "is_first": np.full(2, number % 10 == 0),
        }
    )

batch = replay.sample(batch_size=4, length=6)
print(len(replay), batch["vector"].shape, batch["vector"][0, :, 0])

queue = replay.batches(batch_size=4, length=6, ahead=2)  # copied by a thread meanwhile
print(queue.next()["reward"].shape)
queue.close()
