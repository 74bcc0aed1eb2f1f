"""A training run: its loop's parts, its folder, and what it writes and shows."""
