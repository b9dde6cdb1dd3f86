"""A small eps-UNet teacher, trained here, that DMD distils into one step: the VP path with learned networks.

    python -m tests.studies.eps_teacher [--teacher-iterations 1500] [--iterations 1500] [--out FILE]

Data, in the latents of a shrunken SDXL: x0 = s p + 0.2 n, with a pattern p for each of four prompts, a sign s = +-1
and unit noise n. One step of the teacher from pure noise can only give the mean of both signs, about 0; a distilled
student must choose. Shown for both: the share of samples whose projection on p has a magnitude of 0.7 to 1.3, the
share of positive ones, and the noise beside p.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.checkpoints import check_pipeline
from benchmarks.native import load_pipeline
from metrics.base import Prompt
from tests.shrunken.families import make
from trainers.backbones.base import Backbone, BackboneConfig, load
from trainers.backbones.family import per_image
from trainers.base import SamplerConfig, World
from trainers.dmd import Dmd, DmdConfig
from trainers.flow import RenoiseLaw
from trainers.learner import EmaConfig, OptimiserConfig
from trainers.rewards import RewardBank
from trainers.rollout import rollout

PROMPTS = ("a red circle", "a blue circle", "a red square", "a green cross")
SPREAD = 0.2
LAW = RenoiseLaw(low=0.03, high=0.93)


def patterns(shape: tuple[int, ...]) -> Tensor:
    """Return a pattern of unit mean square for each prompt."""
    p = torch.randn(len(PROMPTS), *shape, generator=torch.Generator().manual_seed(7))
    return p / p.square().mean(dim=(1, 2, 3), keepdim=True).sqrt()


def data(backbone: Backbone, which: Tensor, generator: torch.Generator) -> Tensor:
    """Return samples x0 of the prompts `which` [B]."""
    p = patterns(backbone.latent_shape)[which]
    sign = torch.randint(2, (len(which), 1, 1, 1), generator=generator) * 2.0 - 1
    return sign * p + SPREAD * torch.randn(p.shape, generator=generator)


def train_teacher(folder: Path, iterations: int, batch: int) -> None:
    """Train the folder's UNet on eps at uniform timesteps, and write it back."""
    backbone: Any = load(BackboneConfig(kind="sdxl", path=str(folder), training="full"), torch.device("cpu"))
    pipeline = load_pipeline(check_pipeline(folder), None, "float32", "cpu")
    unet, generator = backbone._roles.network("student"), torch.Generator().manual_seed(0)
    optimiser = torch.optim.AdamW(unet.parameters(), lr=2e-3, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-3, total_steps=iterations)
    for _ in range(iterations):
        which = torch.randint(len(PROMPTS), (batch,), generator=generator)
        x0, timestep = data(backbone, which, generator), torch.randint(1000, (batch,), generator=generator)
        eps = torch.randn(x0.shape, generator=generator)
        alpha_bar = per_image(pipeline.scheduler.alphas_cumprod[timestep], x0)
        x_t = alpha_bar.sqrt() * x0 + (1 - alpha_bar).sqrt() * eps
        tokens, pooled = backbone.encode([PROMPTS[n] for n in which])
        conditions = {"text_embeds": pooled, "time_ids": backbone._sizes.expand(batch, 6)}
        output = unet(x_t, timestep, encoder_hidden_states=tokens, added_cond_kwargs=conditions).sample
        loss = (output - eps).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    print(f"teacher: loss {loss.item():.4f} after {iterations} iterations")
    unet.save_pretrained(folder / "unet")


def distil(backbone: Backbone, iterations: int, batch: int) -> Dmd:
    """Distil the teacher into one step."""
    config = DmdConfig(
        sampler=SamplerConfig(num_inference_steps=1), batch_size=batch, guidance_scale=1.0, fake_score_updates=2,
        share_rollout=True, ema=EmaConfig(decay=0.99), renoise=LAW, fake_score_renoise=LAW,
        student=OptimiserConfig(lr=2e-4, betas=(0.5, 0.99)), fake_score=OptimiserConfig(lr=5e-4, betas=(0.5, 0.99)),
    )  # fmt: skip
    trainer = Dmd(config, backbone, RewardBank([], {}), World(seed=0))
    for iteration in range(iterations):
        trainer.step([Prompt(text=PROMPTS[n % len(PROMPTS)]) for n in range(batch)], iteration)
    return trainer


def measured(backbone: Backbone, role: str, steps: int, count: int = 64) -> dict[str, float]:
    """Return what the module's docstring lists for `count` samples of every prompt."""
    which = torch.arange(len(PROMPTS)).repeat_interleave(count)
    prompts = backbone.encode([PROMPTS[n] for n in which])
    x = torch.randn(len(which), *backbone.latent_shape, generator=torch.Generator().manual_seed(1))
    protocol = SamplerConfig(sampler="euler", num_inference_steps=steps).protocol(backbone.protocol())

    def velocity(x_t: Tensor, t: Any) -> Tensor:
        return backbone.velocity(role, x_t, t, prompts)  # type: ignore[arg-type]

    with torch.no_grad():
        samples = rollout(velocity, x, protocol, lambda k: x)[-1].x_next
    p = patterns(backbone.latent_shape)[which]
    projection = (samples * p).mean(dim=(1, 2, 3))
    beside = samples - projection.view(-1, 1, 1, 1) * p
    return {
        "on_a_mode": ((projection.abs() > 0.7) & (projection.abs() < 1.3)).float().mean().item(),
        "positive": (projection > 0).float().mean().item(),
        "magnitude": projection.abs().mean().item(),
        "noise": beside.square().mean().sqrt().item(),
    }


def main() -> None:
    """Train, distil, measure; write a JSON file."""
    parser = argparse.ArgumentParser(prog="python -m tests.studies.eps_teacher", description=__doc__)
    parser.add_argument("--teacher-iterations", type=int, default=1500)
    parser.add_argument("--iterations", type=int, default=1500)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--out", type=Path, default=Path("build") / "eps_teacher.json")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as scratch:
        folder = make("sdxl", Path(scratch) / "teacher")
        train_teacher(folder, arguments.teacher_iterations, arguments.batch)
        backbone = load(BackboneConfig(kind="sdxl", path=str(folder), training="full"), torch.device("cpu"))
        found = {
            "teacher, 50 steps": measured(backbone, "teacher", 50),
            "teacher, 1 step": measured(backbone, "teacher", 1),
        }
        trainer = distil(backbone, arguments.iterations, arguments.batch)
        with trainer.roles.student.averaged():
            found["student, 1 step"] = measured(backbone, "student", 1)
    settings = {key: value for key, value in vars(arguments).items() if key != "out"}
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps({"settings": settings, "data": {"noise": SPREAD}} | found, indent=2) + "\n")
    for name, row in found.items():
        print(name.ljust(18), "  ".join(f"{key} {value:.3f}" for key, value in row.items()))


if __name__ == "__main__":
    main()
