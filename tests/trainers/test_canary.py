from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusion3Pipeline
from torch import Tensor

from benchmarks.config import UserError
from benchmarks.samplers import FewStepScheduler
from metrics import base as metrics_base
from metrics.base import Batch, Card, Prompt, Rows, Summary
from tests.trainers.closed_form import reward_bank
from trainers.backbones.base import Backbone, BackboneConfig, LoraConfig, load
from trainers.base import World
from trainers.canary import Canary, has_fallen
from trainers.config import CanaryConfig, StopConfig
from trainers.draws import seeded
from trainers.rtdmd import ColdStartConfig, Rtdmd, RtdmdConfig

CPU = torch.device("cpu")


class PromptLength:
    """A metric that needs no features."""

    card = Card(
        id="prompt_length", version=1, title="length", unit="", higher_is_better=True, range=(0, 100), source="",
        description="",
    )  # fmt: skip
    features: tuple[str, ...] = ()

    def measure(self, features: object, batch: Batch) -> Rows:
        return {"score": torch.tensor([float(len(prompt.text)) for prompt in batch.prompts])}

    def summarise(self, rows: Rows, prompts: list[Prompt]) -> Summary:
        score = rows["score"]
        assert isinstance(score, Tensor)
        return Summary(per_image_N=score.numpy())


@pytest.fixture
def length_metric(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(metrics_base._METRICS, "prompt_length", PromptLength)


def tiny(folder: Path) -> tuple[Backbone, Rtdmd]:
    torch.manual_seed(0)
    backbone = load(BackboneConfig(path=str(folder), lora=LoraConfig(rank=2, alpha=4)), CPU)
    config = RtdmdConfig(cold_start=ColdStartConfig(batch_size=4, fake_score_updates=1))
    return backbone, Rtdmd(config, backbone, reward_bank(), World())


@pytest.mark.usefixtures("length_metric")
def test_canary_scores_its_prompts_and_leaves_the_training_alone(
    pipeline_folder: Path, prompt_file: Path, prompts: list[Prompt]
) -> None:
    settings = CanaryConfig(prompts=str(prompt_file), metrics=("prompt_length",), batch_size=4, limit=5)
    canary = Canary(settings, [], CPU)
    logs = []
    for watched in (False, True):
        _, trainer = tiny(pipeline_folder)
        if watched:
            values, spreads = canary.measure(trainer)
            assert spreads["prompt_length"] > 0
            expected = sum(len(prompt.text) for prompt in canary.prompts) / 5
            assert values == pytest.approx({"prompt_length": expected}) and len(canary.prompts) == 5
        logs.append([trainer.step(prompts[:4], iteration) for iteration in range(2)])
    assert logs[0] == logs[1]


def test_without_a_prompt_file_there_is_no_canary(pipeline_folder: Path) -> None:
    assert Canary(CanaryConfig(), ["redness"], CPU).measure(tiny(pipeline_folder)[1]) == ({}, {})


def test_unknown_canary_metrics_are_answered_with_the_nearest(prompt_file: Path) -> None:
    with pytest.raises(UserError, match="did you mean 'micro_clip'"):
        Canary(CanaryConfig(prompts=str(prompt_file), metrics=("micro_clap",)), [], CPU)


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        ("micro_fid", "micro_fid: a statistic of a whole set"),
        ("micro_diversity", "needs canary.images_per_prompt = 2"),
    ],
)
def test_metrics_that_a_canary_has_no_values_of_are_refused(prompt_file: Path, metric: str, message: str) -> None:
    settings = CanaryConfig(prompts=str(prompt_file), metrics=(metric,))
    with pytest.raises(UserError, match=message):
        Canary(settings, [], CPU)


@pytest.mark.parametrize(
    ("values", "drop", "patience", "stops"),
    [
        ([0.5, 0.6, 0.55], 0.1, 1, False),  # below its best, but not by more than `drop`
        ([0.5, 0.6, 0.49], 0.1, 1, True),
        ([0.5, 0.6, 0.49], 0.1, 2, False),
        ([0.5, 0.6, 0.49, 0.48], 0.1, 2, True),
        ([0.5, 0.6, 0.49, 0.55, 0.49], 0.1, 2, False),  # a recovery starts the count anew
        ([0.6, 0.49, 0.48, 0.7], 0.1, 2, False),
        ([], 0.0, 1, False),
    ],
)
def test_a_metric_has_fallen_when_it_stays_below_its_best(
    values: list[float], drop: float, patience: int, stops: bool
) -> None:
    assert has_fallen(values, drop, patience) is stops


@pytest.mark.usefixtures("length_metric")
def test_a_fall_is_a_rise_where_lower_is_better(prompt_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stop = StopConfig(metric="prompt_length", drop=0.1)
    settings = CanaryConfig(prompts=str(prompt_file), metrics=("prompt_length",), stop=stop)
    falling = [{"iteration": 0, "prompt_length": 0.6}, {"iteration": 1, "prompt_length": 0.4}]
    assert Canary(settings, [], CPU).stopped_by(falling) == "prompt_length"
    assert Canary(settings, [], CPU).stopped_by(falling[::-1]) == ""
    monkeypatch.setattr(PromptLength, "card", replace(PromptLength.card, higher_is_better=False))
    assert Canary(settings, [], CPU).stopped_by(falling) == ""
    assert Canary(settings, [], CPU).stopped_by(falling[::-1]) == "prompt_length"


@pytest.mark.usefixtures("length_metric")
def test_the_exported_student_draws_the_canarys_pictures_in_a_stock_pipeline(
    pipeline_folder: Path, prompt_file: Path, prompts: list[Prompt], tmp_path: Path
) -> None:
    """What is trained is what is benchmarked: same levels, same noise, same pixels."""
    backbone, trainer = tiny(pipeline_folder)
    with torch.no_grad():
        for parameter in backbone.parameters("student"):
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    canary = Canary(CanaryConfig(prompts=str(prompt_file), metrics=("prompt_length",), limit=3), [], CPU)
    with torch.no_grad():
        ours = canary._sample(trainer, range(3))
        assert torch.allclose(canary._sample(trainer, range(1, 3)), ours[1:], atol=1e-5)  # whatever the batch
    backbone.export(tmp_path / "student", "merged", "float32")
    pipe = StableDiffusion3Pipeline.from_pretrained(tmp_path / "student", text_encoder_3=None, tokenizer_3=None)
    scheduler = FewStepScheduler.of(trainer.protocol())
    generators = [seeded("canary", row) for row in range(3)]
    latents = torch.stack([torch.randn(backbone.latent_shape, generator=g) for g in generators])
    scheduler.generators, pipe.scheduler = generators, scheduler
    theirs = pipe(
        [prompt.text for prompt in canary.prompts], latents=latents, num_inference_steps=4, guidance_scale=1.0,
        height=16, width=16, max_sequence_length=0, output_type="pt",
    ).images  # fmt: skip
    assert torch.allclose(theirs, ours, atol=1e-4)
