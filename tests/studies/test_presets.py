"""What `python -m tests.studies.presets` makes of a preset: a smaller run of the same kind."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks.config import build
from metrics.base import Prompt
from tests.studies.presets import shrunken_run
from trainers.backbones.base import load
from trainers.discriminator import Discriminator, GanConfig
from trainers.draws import Draws
from trainers.presets import read_presets

WITH_GAN = [one for one in read_presets().values() if one.settings.method in ("dmd2", "dmd_gan") and one.paper]


@pytest.mark.parametrize("preset", WITH_GAN, ids=lambda preset: preset.name)
def test_a_discriminator_keeps_its_head_and_sees_through_it(preset: Any, tmp_path: Path) -> None:
    run = shrunken_run(preset, tmp_path, tmp_path)
    backbone, prompts = load(run.backbone, torch.device("cpu")), [Prompt(text="a red circle"), Prompt(text="a cross")]
    (stage,) = run.stages.values()
    settings = build(GanConfig, stage.settings["gan"], "gan")
    assert settings.head == ("conv" if run.backbone.kind == "sdxl" else "tokens")
    discriminator = Discriminator(backbone, settings, seed=0)
    convolutions = [layer for layer in discriminator.head if isinstance(layer, nn.Conv2d)]  # type: ignore[attr-defined]
    assert len(convolutions) == (3 if settings.head == "conv" else 0)  # 8 x 8 is halved, taken together, judged
    x0 = torch.randn(2, *backbone.latent_shape, requires_grad=True)
    discriminator(x0, prompts, Draws(0)).sum().backward()
    assert x0.grad is not None and x0.grad.abs().flatten(1).amax(dim=1).min() > 1e-6
