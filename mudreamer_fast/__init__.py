"""MuDreamer: a world-model agent that learns without reconstructing what it sees."""

__version__ = "0.1.0"
