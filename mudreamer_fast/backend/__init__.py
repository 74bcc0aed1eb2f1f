"""Which implementation of the operations runs, whether it is right, and how it is recorded."""
