"""One frozen base in equal parts on all processes (FSDP2): a block is whole only while it runs, forward or backward.

Student and fake score are adapters, attached afterwards: they are whole everywhere and train as if nothing were
sharded. Every process must make the same calls of the network in the same order, for each call gathers.

Not one part may be left to the network as a whole: what is gathered for the whole network's call is let go at its
end, and a backward that begins inside it, at a block's hidden states, would not gather it again. So blocks, and what
stands beside them, are gathered each for itself; single numbers of the network's own stay whole.
"""

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

HOLDERS = (nn.ModuleList, nn.ModuleDict)  # they are never called themselves


def shard(network: nn.Module, device: torch.device, apart: Iterable[nn.Module] = ()) -> None:
    """Leave this process its part of a frozen diffusers network, on `device`; with one process, all of it.

    apart: modules within blocks that the network calls from outside them too."""
    if dist.is_initialized() and dist.get_world_size() > 1:
        mesh = init_device_mesh(device.type, (dist.get_world_size(),))
        for unit in units(network, apart):
            fully_shard(unit, mesh=mesh, reshard_after_forward=True)
        fully_shard(network, mesh=mesh, ignored_params=set(network.parameters(recurse=False)))
    network.to(device)


def blocks(network: nn.Module) -> list[nn.Module]:
    """Return the repeated parts of a diffusers network: of the classes it names as such, or what it lists."""
    named = getattr(network, "_repeated_blocks", None) or getattr(network, "_no_split_modules", None)
    if named:
        return [module for module in network.modules() if type(module).__name__ in named]
    return [block for part in network.children() if isinstance(part, nn.ModuleList) for block in part]


def units(network: nn.Module, apart: Iterable[nn.Module] = ()) -> list[nn.Module]:
    """Return the modules that are gathered one at a time, the innermost first.

    They are the blocks that diffusers never splits over devices, and the network's own parts."""
    blocks = set(getattr(network, "_no_split_modules", None) or ())
    chosen = {module for module in network.modules() if type(module).__name__ in blocks} | set(apart)
    for part in network.children():
        chosen |= set(part.children()) if isinstance(part, HOLDERS) else {part}
    return [module for module in reversed(list(network.modules())) if module in chosen and _has_parameters(module)]


def whole(tensor: Tensor) -> Tensor:
    """Return a tensor gathered from all processes, each of which must ask for it; an unsharded one as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _has_parameters(module: nn.Module) -> bool:
    return next(module.parameters(), None) is not None
