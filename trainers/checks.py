"""What a start of a run would refuse, asked without its networks: for plans."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from benchmarks.config import located
from metrics.base import NotHere
from trainers.backbones.base import find_loader
from trainers.backbones.checkpoint import check_class, open_base
from trainers.canary import Canary
from trainers.config import RunConfig
from trainers.start import prepare

CPU = torch.device("cpu")


@dataclass
class Untold:
    """What could not be checked, for something is not on this machine."""

    reasons: list[str] = field(default_factory=list)

    @contextmanager
    def noted(self, where: str) -> Iterator[None]:
        """Note what is not here; every other UserError is opened by where its cause stands."""
        try:
            with located(where):
                yield
        except NotHere as error:
            self.reasons.append(str(error))


def check_start(method: str, run: RunConfig, where: str, check_benchmark: Callable[[RunConfig], None]) -> list[str]:
    """Return what cannot be checked here, and why. Raises UserError where a start of the run would be refused."""
    base, untold = open_base(run.backbone), Untold()
    if run.benchmark:
        with untold.noted(where):
            check_benchmark(run)
    start = prepare(method, run, where, CPU, untold.noted)
    with untold.noted(f"{where}: canary"):
        Canary(run.canary, start.rewards.ids, CPU)
    with located(f"{where}: backbone"):
        loader = find_loader(run.backbone)
        if hasattr(loader, "pipeline_class"):
            check_class(base.files, loader.pipeline_class.__name__)
    start.rehearse(base.protocol)
    return list(dict.fromkeys(untold.reasons))
