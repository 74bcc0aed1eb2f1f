"""MuDreamer: a world-model agent that learns without reconstructing what it sees.

`Agent`, `Config`, `PRESETS`, `ReplayBuffer` and `make_env` are those of the modules below, imported
when they are first asked for; `mudreamer_fast.train.train` and `mudreamer_fast.evaluate.evaluate`
stand in modules of their own.
"""

# Nothing is imported here, as workers import this module before they know where others are.
__version__ = "0.1.0"

TYPE_CHECKING = False  # type checkers take it for true
if TYPE_CHECKING:
    from mudreamer_fast.agent import Agent as Agent
    from mudreamer_fast.config import PRESETS as PRESETS
    from mudreamer_fast.config import Config as Config
    from mudreamer_fast.envs import make_env as make_env
    from mudreamer_fast.replay import ReplayBuffer as ReplayBuffer

_HOMES = {
    "Agent": "agent",
    "Config": "config",
    "PRESETS": "config",
    "ReplayBuffer": "replay",
    "make_env": "envs",
}


def __getattr__(name: str) -> object:
    if name in _HOMES:
        import importlib

        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
