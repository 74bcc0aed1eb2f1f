"""A second implementation of a whole update, from the paper, to hold the agent's to.

It is written for the reader: float64, a loop over the steps, one formula after another. Nothing of
the package is used; only the names of its weights and settings are known here, as data.
"""

from tests.twin.update import Twin

__all__ = ["Twin"]
