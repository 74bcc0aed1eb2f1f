"""MuDreamer: a world-model agent that learns without reconstructing what it sees.

`mudreamer_fast.make_env` is `mudreamer_fast.envs.make_env`, imported when it is first asked for.
"""

__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    # nothing is imported above: workers import this module before they know where others are
    if name == "make_env":
        from mudreamer_fast.envs import make_env

        return make_env
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
