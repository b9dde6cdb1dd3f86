"""What a model costs: seconds of its three stages while it draws a batch, and what a run's journal says of them.

    encode    from the call to the first pass of the denoiser: prompts
    denoise   from there to the decoder's first pass
    decode    from there to the end: pictures

Seconds per image: median over blocks of whole batches, without the first block that a process draws of an image set,
which loads weights and warms kernels up. A batch says little of the wait for one image: that is drawn some times by
itself. The device is waited for at each of the four marks.
"""

import statistics
import time
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

STAGES = ("encode", "denoise", "decode")
SINGLE = -1  # stands for the block's number in the journal's entry of images drawn one at a time
SINGLES = 5  # how many of them are timed, after a first one that warms kernels of that size up


class StageWatch:
    """A context around one call of a loaded pipeline; afterwards `seconds` and, on a GPU, `peak_memory_mib`."""

    def __init__(self, pipe: Any, denoiser: str, device: str) -> None:
        """denoiser: the name of that component of the pipeline."""
        self.on_gpu = device.startswith("cuda")
        self.device = device
        self.seconds: dict[str, float] = {}
        self.peak_memory_mib: int | None = None
        self._networks = [getattr(pipe, denoiser), getattr(getattr(pipe, "vae", None), "decoder", None)]
        self._marks: list[float] = []

    def __enter__(self) -> "StageWatch":
        import torch

        if self.on_gpu:
            torch.cuda.reset_peak_memory_stats(self.device)
        self._hooks = [
            network.register_forward_pre_hook(lambda *_, stage=stage: self._enter(stage))
            for stage, network in enumerate(self._networks, start=1)
            if network is not None
        ]
        self._marks = [self._now()]
        return self

    def __exit__(self, *error: object) -> None:
        import torch

        for hook in self._hooks:
            hook.remove()
        marks = [*self._marks, self._now()]
        spans = (later - earlier for earlier, later in pairwise(marks))
        self.seconds = dict(zip(STAGES, spans, strict=False))  # a pipeline without a decoder has two
        if self.on_gpu:
            self.peak_memory_mib = torch.cuda.max_memory_allocated(self.device) // 2**20

    def _enter(self, stage: int) -> None:
        if len(self._marks) == stage:  # the first pass only: a mark at each would stall the device
            self._marks.append(self._now())

    def _now(self) -> float:
        import torch

        if self.on_gpu:
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


def measured(entries: Iterable[Mapping[str, Any]], batch: int) -> dict[str, Any]:
    """Return what a journal's entries say of the cost of one image, empty where no whole block was drawn warm.

    batch: images of a whole block. What stands under "single" is of images drawn one at a time."""
    found = list(entries)
    warm = [entry for entry in found if entry.get("warm") and entry.get("images") == batch]
    singles = [one for entry in found if entry.get("block") == SINGLE for one in entry["singles"]]
    cost = (
        {"device": warm[-1]["device"], "batch": batch, "warm_batches": len(warm), **_median(warm, batch)}
        if warm
        else {}
    )
    return cost | ({"single": {"images": len(singles), **_median(singles, 1)}} if singles else {})


def _median(drawn: Sequence[Mapping[str, Any]], batch: int) -> dict[str, Any]:
    """Return the median seconds per image, whole and by stage, and the largest memory, of batches of one size."""
    stages = {
        stage: round(statistics.median(one["stages"][stage] for one in drawn) / batch, 6)
        for stage in STAGES
        if all(stage in one["stages"] for one in drawn)
    }
    peaks = [one["peak_memory_mib"] for one in drawn if one.get("peak_memory_mib") is not None]
    return {
        "seconds_per_image": round(statistics.median(one["seconds"] for one in drawn) / batch, 6),
        "stage_seconds_per_image": stages,
        **({"peak_device_memory_mib": max(peaks)} if peaks else {}),
    }
