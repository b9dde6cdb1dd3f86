"""Benchmarks: a model on a suite, from prompts to a leaderboard's result.

result = benchmarks.evaluate("ckpt/", "micro")
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from benchmarks.workflow import evaluate

__all__ = ["evaluate"]


def __getattr__(name: str) -> Any:
    """Import torch and diffusers only when something is evaluated."""
    if name == "evaluate":
        from benchmarks.workflow import evaluate

        return evaluate
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
