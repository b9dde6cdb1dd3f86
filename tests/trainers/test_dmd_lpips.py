from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.config import UserError, as_table, build
from metrics.base import Prompt, available
from tests.trainers.closed_form import PointBackbone
from trainers import dmd_lpips
from trainers.backbones.base import BackboneConfig, LoraConfig, load
from trainers.base import SamplerConfig, World, find
from trainers.dmd import Dmd, DmdConfig
from trainers.dmd_lpips import DmdLpips, DmdLpipsConfig, LpipsConfig
from trainers.dp_dmd import DpDmdConfig, DpDmdRecipe
from trainers.latents import TeacherSamplesConfig
from trainers.learner import OptimiserConfig
from trainers.rewards import RewardBank

PROMPTS = [Prompt(text=str(n)) for n in range(8)]


def squared_distance(a: Tensor, b: Tensor) -> Tensor:
    return ((a - b) ** 2).sum(dim=1)


def trainer_of(monkeypatch: pytest.MonkeyPatch, folder: Path, weight: float, student: OptimiserConfig) -> DmdLpips:
    """A trainer on points, whose pictures they are, under the squared distance."""
    monkeypatch.setattr(dmd_lpips, "load_perceptual", lambda kind, device: squared_distance)
    monkeypatch.setattr(dmd_lpips, "reduced", lambda images, size: images)
    torch.manual_seed(0)
    config = DmdLpipsConfig(
        sampler=SamplerConfig(sampler="euler", num_inference_steps=2), batch_size=8, guidance_scale=1.0,
        fake_score_updates=1, student=student, fake_score=student, lpips=LpipsConfig(weight=weight, batch_size=6),
        teacher_samples=TeacherSamplesConfig(count=8, steps=40, folder=str(folder)),
    )  # fmt: skip
    return DmdLpips(config, PointBackbone((1.0, -0.5), 0.5), RewardBank([], {}), World())  # type: ignore[arg-type]


def test_the_term_is_the_weighted_distance_of_student_and_teacher_from_the_same_noise(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    trainer = trainer_of(monkeypatch, tmp_path, 0.25, OptimiserConfig(lr=1e-12))
    networks = trainer.roles.networks(PROMPTS, 1.0)
    x0 = trainer.generate(networks, trainer.roles.noise(8), grad=True)
    noise = trainer.roles.draws.state_dict()
    loss = trainer.student_losses(networks, x0, PROMPTS)["lpips_loss"]
    trainer.roles.draws.load_state_dict(noise)
    trainer.roles.renoise(trainer.config.renoise, x0)  # distribution matching draws first
    z = trainer.samples.pairs(PROMPTS, trainer.roles.draws, 6).z
    # the untrained student predicts v = 0 and ends where it started; the teacher's flow maps z to m + s z
    expected = ((torch.tensor([1.0, -0.5]) + 0.5 * z - z) ** 2).sum(dim=1).mean()
    assert loss.item() == pytest.approx(0.25 * expected.item(), rel=0.05)
    loss.backward()
    assert any(p.grad is not None and p.grad.any() for p in trainer.roles.student.parameters)
    assert all(p.grad is None for p in trainer.roles.fake_score.parameters)


def test_the_regression_alone_brings_the_student_to_the_teachers_flow(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    trainer = trainer_of(monkeypatch, tmp_path, 100.0, OptimiserConfig(lr=1e-2))
    losses = [trainer.step(PROMPTS, n)["lpips_loss"] for n in range(150)]
    assert losses[-1] < 0.05 * losses[0]


def test_resume_is_bit_exact(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fast = OptimiserConfig(lr=1e-2)
    whole = trainer_of(monkeypatch, tmp_path, 0.25, fast)
    expected = [whole.step(PROMPTS, n) for n in range(4)]
    cut = trainer_of(monkeypatch, tmp_path, 0.25, fast)
    found = [cut.step(PROMPTS, n) for n in range(2)]
    torch.save(cut.state_dict(), tmp_path / "state.pt")
    resumed = trainer_of(monkeypatch, tmp_path, 0.25, fast)
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert found + [resumed.step(PROMPTS, n) for n in range(2, 4)] == expected


def test_all_terms_work_on_a_real_pipeline_with_the_micro_distance(pipeline_folder: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    backbone = load(BackboneConfig(path=str(pipeline_folder), lora=LoraConfig(rank=2, alpha=4)), torch.device("cpu"))
    table = {
        "batch_size": 2, "guidance_scale": 2.0, "fake_score_updates": 1,
        "lpips": {"batch_size": 2, "distance": "micro_perceptual"},
        "teacher_samples": {"count": 2, "steps": 3, "folder": str(tmp_path)},
    }  # fmt: skip
    trainer = DmdLpips(build(DmdLpipsConfig, table, "x.toml"), backbone, RewardBank([], {}), World())
    before = [p.detach().clone() for p in backbone.parameters("student")]
    for iteration in range(2):
        logs = trainer.step([Prompt(text="a red circle"), Prompt(text="a blue square")], iteration)
    assert logs["lpips_loss"] > 0 and all(torch.isfinite(torch.tensor(value)) for value in logs.values())
    assert any(not torch.equal(a, b) for a, b in zip(before, backbone.parameters("student"), strict=True))


def test_everything_but_the_regression_is_dp_dmds() -> None:
    ours, theirs = DmdLpipsConfig(), DpDmdConfig()
    assert {name for name in as_table(DpDmdRecipe()) if getattr(ours, name) != getattr(theirs, name)} == set()
    assert ours.lpips.weight == 0.25 and find("dmd_lpips") is DmdLpips


def test_other_sources_are_refused() -> None:
    with pytest.raises(UserError, match="whole rollouts"):
        build(DmdLpipsConfig, {"x0_source": "last_step"}, "x.toml")


@pytest.mark.parametrize(
    ("distance", "weight", "metrics"),
    [
        ("micro_perceptual", 0.25, ("micro_clip",)),
        ("lpips_vgg", 0.25, ("lpips_diversity.vgg",)),
        ("micro_perceptual", 0.0, ()),
    ],
)
def test_the_distances_own_metrics_are_trained_on(distance: str, weight: float, metrics: tuple[str, ...]) -> None:
    config = build(DmdLpipsConfig, {"lpips": {"distance": distance, "weight": weight}}, "x.toml")
    assert DmdLpips.trained_on(config) == metrics and set(metrics) <= available().keys()
    assert Dmd.trained_on(DmdConfig()) == ()


def test_an_offloaded_autoencoder_stays_on_the_device_while_it_has_a_graph(
    pipeline_folder: Path, prompts: list[Prompt], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its weights are gone where it is off the device: the gradient of a decoded picture would be of them."""
    monkeypatch.setattr(
        dmd_lpips, "load_perceptual", lambda kind, device: lambda a, b: (a - b).square().mean((1, 2, 3))
    )
    settings = BackboneConfig(path=str(pipeline_folder), lora=LoraConfig(rank=2, alpha=4), offload_autoencoder=True)
    backbone: Any = load(settings, torch.device("cpu"))
    vae = backbone.pipeline.vae
    weights = {name: p.data.clone() for name, p in vae.named_parameters()}
    device, calls = torch.device("cpu", 0), []

    def to(where: torch.device | str) -> None:
        calls.append(where)
        for name, p in vae.named_parameters():
            p.data = weights[name].clone() if where == device else torch.full_like(weights[name], torch.nan)

    monkeypatch.setattr(vae, "to", to)
    backbone.device = device
    config = DmdLpipsConfig(
        sampler=SamplerConfig(sampler="euler", num_inference_steps=2), batch_size=2, fake_score_updates=1,
        lpips=LpipsConfig(weight=0.25, batch_size=2),
        teacher_samples=TeacherSamplesConfig(count=2, steps=2, folder=str(tmp_path)),
    )  # fmt: skip
    logs = DmdLpips(config, backbone, RewardBank([], {}), World()).step(prompts[:2], 0)
    assert logs["student_norm"] > 0 and device in calls and "cpu" in calls
