"""What this machine offers a run: device, memory, seeds, signals, the allocator, peers."""
