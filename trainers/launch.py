"""What `accelerate launch` may ask for that a run's own settings decide."""

from accelerate import Accelerator
from accelerate.utils import DistributedType

from benchmarks.config import UserError
from trainers.backbones.base import BackboneConfig

MIXED = {"bfloat16": "bf16"}  # what a launcher calls a precision
SHARDED = {DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM}


def check_launch(accelerator: Accelerator, settings: BackboneConfig) -> None:
    """Raise UserError where the launcher's own settings, which nothing else here reads, contradict the run's."""
    asked, precision = accelerator.mixed_precision, settings.precision
    if asked not in ("no", MIXED.get(precision)):
        own = next((name for name, mixed in MIXED.items() if mixed == asked), None)
        raise UserError(
            f"the launcher asks for mixed precision {asked!r}, and backbone.precision is {precision!r}: "
            "a run's precision is that of its config; launch with --mixed_precision no"
            + (f', or set backbone.precision = "{own}"' if own else "")
        )
    if accelerator.distributed_type in SHARDED:
        raise UserError(
            f"the launcher asks for {accelerator.distributed_type.value}, which nothing here uses: launch with "
            "--multi_gpu; backbone.sharded = true spreads a base over the GPUs"
        )
