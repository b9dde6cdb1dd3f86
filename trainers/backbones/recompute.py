"""Gradient checkpointing: blocks, or whole calls, are run again in backward(), and must be run as they were.

By then another role may be at work in the same network, and the attention kernel that the call had chosen is no
longer in force; a block run otherwise than before gives wrong gradients, or an error.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint


def attention(device: torch.device) -> AbstractContextManager:
    """Return the context that attention runs in."""
    # On a CPU the fused kernel's backward takes about twice the time of the plain softmax(Q K^T) V.
    if device.type == "cpu" and torch.is_grad_enabled():
        return sdpa_kernel(SDPBackend.MATH)
    return nullcontext()


def checkpointed(
    device: torch.device, as_now: Callable[[], AbstractContextManager] = nullcontext
) -> Callable[..., Any]:
    """Return what diffusers' `enable_gradient_checkpointing` shall call, with a block or any other function.

    as_now() is asked at every call for the context that restores, later, what is set at that moment."""

    def call(block: Callable[..., Any], *args: Any) -> Any:
        again = _both(device, as_now())
        return checkpoint(block, *args, use_reentrant=False, context_fn=lambda: (nullcontext(), again))

    return call


def run_again(call: Callable[..., Any], *args: Any) -> Any:
    """Return call(*args), made once more in backward(), of what neither roles nor the kernel of attention change."""
    return checkpoint(call, *args, use_reentrant=False)


@contextmanager
def _both(device: torch.device, state: AbstractContextManager) -> Iterator[None]:
    with attention(device), state:
        yield
