"""A launcher's own precision and sharding: what contradicts the run's settings is refused, not ignored."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from accelerate import Accelerator
from accelerate.utils import DistributedType

from benchmarks.config import UserError
from tests.trainers.tiny_run import settings
from trainers.backbones.base import BackboneConfig
from trainers.launch import check_launch
from trainers.loop import Loop


def launched(mixed: str = "no", kind: DistributedType = DistributedType.NO, precision: str = "float32") -> None:
    accelerator: Any = SimpleNamespace(mixed_precision=mixed, distributed_type=kind)
    check_launch(accelerator, BackboneConfig(kind="sd3", path="x", precision=precision))  # type: ignore[arg-type]


@pytest.mark.parametrize(("mixed", "precision"), [("no", "float32"), ("no", "bfloat16"), ("bf16", "bfloat16")])
@pytest.mark.parametrize("kind", [DistributedType.NO, DistributedType.MULTI_GPU, DistributedType.MULTI_CPU])
def test_what_contradicts_nothing_is_taken(mixed: str, precision: str, kind: DistributedType) -> None:
    launched(mixed, kind, precision)


def test_another_precision_is_refused_with_what_to_set() -> None:
    with pytest.raises(UserError, match=r"'bf16', .* is 'float32'.*_precision no, or set backbone.precision = \"bfl"):
        launched("bf16")
    with pytest.raises(UserError, match=r"'fp16', and backbone.precision is 'bfloat16'.*--mixed_precision no$"):
        launched("fp16", precision="bfloat16")


@pytest.mark.parametrize("kind", [DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM])
def test_another_sharding_is_refused(kind: DistributedType) -> None:
    with pytest.raises(UserError, match=rf"asks for {kind.value}, which nothing here uses.*backbone.sharded = true"):
        launched(kind=kind)


def test_a_run_asks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Accelerator, "mixed_precision", "fp16")
    with pytest.raises(UserError, match="the launcher asks for mixed precision 'fp16'"):
        Loop("rtdmd", settings(tmp_path, tmp_path), tmp_path / "run")
    assert not (tmp_path / "run").exists()
