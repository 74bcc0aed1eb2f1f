"""How long tests wait for what is bound to come."""

from __future__ import annotations

PATIENCE_SECONDS = 600.0
"""After that it has failed to come: no machine is so slow, nor so busy."""
