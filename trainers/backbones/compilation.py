"""torch.compile, block by block: one graph for all blocks of a kind, and hooks between blocks stay where they are.

A block is compiled anew for every adapter at work, with and without gradients, for one batch and for guidance's two;
which of them fits is asked at each call, so roles switch as they do without. The first calls of each take minutes.
"""

import os
import shutil

from torch import nn

from benchmarks.config import UserError
from trainers.backbones.sharding import blocks

VARIANTS = 64  # kinds of block x adapters x with and without gradients x sizes of batches; torch gives up beyond 8


def compile_blocks(network: nn.Module, backend: str = "inductor") -> None:
    """Have a diffusers network's blocks compiled when they are first called.

    Raises UserError where there is no C++ compiler to do it."""
    import torch._dynamo

    compilers = [os.environ["CXX"]] if os.environ.get("CXX") else ["g++", "clang++"]
    if not any(map(shutil.which, compilers)):
        raise UserError(
            f"backbone.compile = true needs a C++ compiler, and none of {', '.join(compilers)} is on this machine: "
            "install one or name it in CXX, or leave compile out"
        )
    torch._dynamo.config.recompile_limit = max(VARIANTS, torch._dynamo.config.recompile_limit)
    for block in blocks(network):
        block.compile(backend=backend)
