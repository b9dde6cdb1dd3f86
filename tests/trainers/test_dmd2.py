from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from benchmarks.config import UserError, build
from benchmarks.protocol import Protocol
from metrics.base import Prompt
from tests.trainers.closed_form import PointBackbone
from trainers.backbones.base import BackboneConfig, LoraConfig, load
from trainers.base import SamplerConfig, World, find
from trainers.discriminator import GanConfig, generator_loss
from trainers.dmd import descend
from trainers.dmd2 import Dmd2, Dmd2Config
from trainers.latents import TeacherSamplesConfig
from trainers.learner import EmaConfig, OptimiserConfig
from trainers.rehearsal import Rehearsal, rehearsed
from trainers.rewards import RewardBank

FAST = OptimiserConfig(lr=5e-3, betas=(0.5, 0.99), max_grad_norm=0.0)


def settings(folder: Path, **changes: object) -> Dmd2Config:
    samples = TeacherSamplesConfig(count=24, steps=8, folder=str(folder))
    known = {"batch_size": 8, "guidance_scale": 1.0, "fake_score_updates": 2, "student": FAST, "fake_score": FAST}
    return Dmd2Config(**known | {"teacher_samples": samples} | changes)  # type: ignore[arg-type]


def trainer_of(config: Dmd2Config, seed: int = 0) -> Dmd2:
    torch.manual_seed(seed)
    return Dmd2(config, PointBackbone((1.0, -0.5), 0.5), RewardBank([], {}), World(seed=0))  # type: ignore[arg-type]


def prompts(count: int) -> list[Prompt]:
    return [Prompt(text=str(n)) for n in range(count)]


def values(trainer: Dmd2, role: str) -> list[Tensor]:
    return [p.detach().clone() for p in getattr(trainer.roles, role).parameters]


def test_fake_score_and_head_train_together_and_the_student_stands_still(tmp_path: Path) -> None:
    trainer = trainer_of(settings(tmp_path))
    head = [p.detach().clone() for p in trainer.discriminator.head.parameters()]
    student, fake_score = values(trainer, "student"), values(trainer, "fake_score")
    logs = trainer.step(prompts(8), 0)  # R = 2: the student is not due
    assert set(logs) == {"fake_score_loss", "discriminator_loss", "fake_score_norm"}
    assert all(torch.equal(a, b) for a, b in zip(student, values(trainer, "student"), strict=True))
    assert all(p.grad is None for p in trainer.roles.student.parameters)
    moved = zip(head, trainer.discriminator.head.parameters(), strict=True)
    assert all(not torch.equal(old, new) for old, new in moved)
    assert len(fake_score) == len(trainer.roles.backbone.parameters("fake_score")) + len(head)


def test_fake_score_and_head_are_frozen_while_the_student_learns_from_both_terms(tmp_path: Path) -> None:
    trainer, batch = trainer_of(settings(tmp_path)), prompts(8)
    trainer.step(batch, 0)
    student, fake_score = values(trainer, "student"), values(trainer, "fake_score")
    networks = trainer.roles.networks(batch, 1.0)
    x0 = trainer.generate(networks, trainer.roles.noise(8), grad=True)
    logs = descend("student", trainer.roles.student, trainer.student_losses(networks, x0, batch))
    assert set(logs) == {"dmd_loss", "generator_loss", "student_norm"}
    assert all(torch.equal(a, b) for a, b in zip(fake_score, values(trainer, "fake_score"), strict=True))
    assert all(p.grad is None for p in trainer.roles.fake_score.parameters)
    assert any(not torch.equal(a, b) for a, b in zip(student, values(trainer, "student"), strict=True))


@pytest.mark.parametrize("weight", [0.0, 2.0])
def test_the_generators_term_raises_the_logit_of_the_students_samples(tmp_path: Path, weight: float) -> None:
    trainer = trainer_of(settings(tmp_path, gan=GanConfig(generator_weight=weight)))
    batch = prompts(8)
    trainer.step(batch, 0)
    networks = trainer.roles.networks(batch, 1.0)
    x0 = torch.randn(8, 2, requires_grad=True)
    noise = trainer.roles.draws.state_dict()
    term = trainer.student_losses(networks, x0, batch)["generator_loss"]
    trainer.roles.draws.load_state_dict(noise)
    trainer.roles.renoise(trainer.config.renoise, x0)  # distribution matching draws first
    expected = generator_loss(trainer.discriminator(x0, batch, trainer.roles.draws))
    (found,) = torch.autograd.grad(term, x0)
    (gradient,) = torch.autograd.grad(expected, x0)
    assert torch.allclose(found, weight * gradient) and gradient.any()


def test_the_head_learns_to_tell_real_from_generated(tmp_path: Path) -> None:
    """The student stands at N(0, I), the teacher at N((1, -.5), .25 I)."""
    still = OptimiserConfig(lr=1e-12)
    gan = GanConfig(discriminator_weight=1.0)
    trainer = trainer_of(settings(tmp_path, batch_size=64, student=still, gan=gan, fake_score_updates=1000))
    losses = [trainer.step(prompts(64), n)["discriminator_loss"] for n in range(120)]
    assert losses[0] > 1.3 > 1.15 > sum(losses[-20:]) / 20  # 2 ln 2 = 1.386 where it cannot tell
    points = torch.randn(512, 2)
    with torch.no_grad():
        real, generated = (
            trainer.discriminator(x0, prompts(512), trainer.roles.draws).mean()
            for x0 in (torch.tensor([1.0, -0.5]) + 0.5 * points, points)
        )
    assert real > generated + 0.3  # real is the high logit


def test_student_learns_a_gaussian_teacher_with_the_gan_term(tmp_path: Path) -> None:
    config = settings(
        tmp_path, sampler=SamplerConfig(sampler="renoise", num_inference_steps=1), batch_size=128, normaliser="none",
        fake_score_updates=1, share_rollout=True, ema=EmaConfig(decay=0.98),
        student=OptimiserConfig(lr=2e-3, betas=(0.5, 0.99), max_grad_norm=0.0),
        teacher_samples=TeacherSamplesConfig(count=512, steps=30, folder=str(tmp_path)),
    )  # fmt: skip
    trainer = trainer_of(config)
    for iteration in range(900):
        trainer.step(prompts(128), iteration)
    with torch.no_grad(), trainer.roles.student.averaged():
        networks = trainer.roles.networks(prompts(8000), 1.0)
        points = trainer.generate(networks, trainer.roles.noise(8000), grad=False)
    assert points.mean(dim=0).tolist() == pytest.approx([1.0, -0.5], rel=0.1)
    covariance = points.T.cov()
    assert covariance.diagonal().tolist() == pytest.approx([0.25, 0.25], rel=0.1)
    assert abs(covariance[0, 1]) < 0.025


def test_resume_is_bit_exact_while_teacher_samples_are_still_drawn(tmp_path: Path) -> None:
    whole, batch = trainer_of(settings(tmp_path / "a")), prompts(8)
    expected = [whole.step(batch, n) for n in range(6)]
    cut = trainer_of(settings(tmp_path / "b"))
    found = [cut.step(batch, n) for n in range(2)]
    state = torch.load(_saved(cut.state_dict(), tmp_path / "state.pt"), weights_only=True)
    resumed = trainer_of(settings(tmp_path / "b"), seed=1)
    resumed.load_state_dict(state)
    resumed.roles.backbone.passes = cut.roles.backbone.passes
    found += [resumed.step(batch, n) for n in range(2, 6)]
    assert found == expected and resumed.roles.backbone.passes == whole.roles.backbone.passes
    for role in ("student", "fake_score"):
        assert all(torch.equal(a, b) for a, b in zip(values(whole, role), values(resumed, role), strict=True))


def test_pictures_make_a_training_that_is_not_image_free(tmp_path: Path) -> None:
    Image.new("RGB", (64, 64), (255, 0, 0)).save(tmp_path / "red.png")
    assert trainer_of(settings(tmp_path)).image_free
    trainer = trainer_of(settings(tmp_path, pictures=str(tmp_path), teacher_samples=TeacherSamplesConfig()))
    assert not trainer.image_free
    trainer.step(prompts(8), 0)
    assert trainer.roles.backbone.passes > 0 and not list(tmp_path.glob("*.safetensors"))


@pytest.mark.parametrize("method", ["dmd2", "dmd_gan"])
def test_pictures_and_samples_of_the_teacher_are_one_or_the_other(tmp_path: Path, method: str) -> None:
    kind = find(method)
    both = {"pictures": str(tmp_path), "teacher_samples": {"count": 24}}
    with pytest.raises(UserError, match=r"leave teacher_samples out .* or pictures"):
        build(kind.Config, both, "x.toml")
    Image.new("RGB", (64, 64), (255, 0, 0)).save(tmp_path / "red.png")
    for samples in ({}, {"count": 1024}):  # as --set trainer.teacher_samples={} leaves them, or said once more
        config = build(kind.Config, both | {"teacher_samples": samples}, "x.toml")
        backbone = Rehearsal(BackboneConfig(path=""), Protocol())
        with rehearsed(kind, config, backbone, RewardBank([], {}), World()) as trainer:
            assert not trainer.image_free


@pytest.mark.parametrize("method", ["dmd2", "dmd_gan"])
@pytest.mark.parametrize("training", ["lora", "full"])
def test_both_roles_move_on_a_real_pipeline(
    pipeline_folder: Path, tmp_path: Path, method: str, training: str
) -> None:
    torch.manual_seed(0)
    backbone = load(
        BackboneConfig(path=str(pipeline_folder), training=training, lora=LoraConfig(rank=2, alpha=4)),  # type: ignore[arg-type]
        torch.device("cpu"),
    )
    trainer_class = find(method)
    table = {
        "batch_size": 2, "guidance_scale": 2.0, "fake_score_updates": 1,
        "gan": {"generator_weight": 1.0, "head": "conv"},
        "teacher_samples": {"count": 2, "steps": 3, "folder": str(tmp_path)},
    }  # fmt: skip
    trainer = trainer_class(build(trainer_class.Config, table, "x.toml"), backbone, RewardBank([], {}), World())
    digest, texts = backbone.teacher_digest(), [Prompt(text="a red circle"), Prompt(text="a blue square")]
    before = {role: [p.detach().clone() for p in backbone.parameters(role)] for role in ("student", "fake_score")}  # type: ignore[arg-type]
    for iteration in range(2):
        logs = trainer.step(texts, iteration)
    assert all(torch.isfinite(torch.tensor(value)) for value in logs.values()) and len(logs) == 6
    for role, old in before.items():
        assert any(not torch.equal(a, b) for a, b in zip(old, backbone.parameters(role), strict=True))  # type: ignore[arg-type]
    assert backbone.teacher_digest() == digest


def test_settings_of_the_baseline_and_of_the_gan_are_one_table() -> None:
    config = build(Dmd2Config, {"fake_score_updates": 3, "gan": {"generator_weight": 0.1}}, "x.toml")
    assert config.fake_score_updates == 3 and config.gan.generator_weight == 0.1
    with pytest.raises(UserError, match="discriminator_weight"):
        build(Dmd2Config, {"gan": {"discriminator_weigth": 0.1}}, "x.toml")


def _saved(state: dict[str, object], path: Path) -> Path:
    torch.save(state, path)
    return path
