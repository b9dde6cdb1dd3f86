"""The block size of a new run: as many pictures as fit a share of the device's memory, at most 16.

It is chosen once and written into run.json, because a picture's last bits may depend on the size of its batch. It
follows from the machine's whole memory, not from what is free at the moment.
"""

import os
from collections.abc import Sequence

from benchmarks.ahead import AHEAD
from benchmarks.models import Model, Pipeline
from benchmarks.store import DEFAULT_BLOCK_SIZE, ImageSet

SHARE = 0.5  # of the memory that is left beside the weights of the model
# A block is decoded in one batch: four buffers of 128 float32 channels at full resolution, as the last layers of the
# autoencoders of SDXL, SD3 and FLUX hold them.
BYTES_PER_DRAWN_PIXEL = 4 * 128 * 4
# Pictures made elsewhere are only read: RGB, as decoded and as converted, in all blocks that are read ahead.
BYTES_PER_READ_PIXEL = 2 * 3 * (AHEAD + 1)
BYTES_PER_PARAMETER = 4


def fitting_block_size(image_sets: Sequence[ImageSet], model: Model, device: str) -> int:
    """Return the number of pictures of a block, in [1, 16]."""
    if isinstance(model, Pipeline):
        pixels = max(s.protocol.height * s.protocol.width for s in image_sets if s.protocol)
        room = total_memory(device) - BYTES_PER_PARAMETER * model.parameters
        per_picture = BYTES_PER_DRAWN_PIXEL * pixels
    else:
        width, height = model.picture_size
        room, per_picture = total_memory("cpu"), BYTES_PER_READ_PIXEL * width * height
    return max(1, min(DEFAULT_BLOCK_SIZE, int(SHARE * room) // per_picture))


def total_memory(device: str) -> int:
    """Return a device's whole memory in bytes."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
