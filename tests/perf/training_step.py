"""Cost of a training step, against the sum of its necessary network passes measured bare on the same shapes.

    python -m tests.perf.training_step [--model FOLDER] [--batch-size 32] [--iterations 8]

Bare passes call the networks with random latents and no loss but the mean of the output; which passes a method needs
stands in passes.toml. Decoding and scoring of stage II are measured bare as well, with their backward. Step and
passes take turns within one process, so a busy machine slows both alike. Bar: at most 1.15.
"""

import time
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, Literal

import torch
import tyro

from metrics.base import Prompt
from trainers.backbones.base import Backbone, BackboneConfig, load
from trainers.base import SamplerConfig, Trainer, World
from trainers.dmd import Dmd, DmdConfig
from trainers.prompts import PromptStream, read_training_prompts
from trainers.reinforce import ReinforceConfig
from trainers.rewards import RewardBank, RewardConfig, load_rewards
from trainers.rtdmd import ColdStartConfig, Rtdmd, RtdmdConfig

BAR = 1.15
PASSES = Path(__file__).with_name("passes.toml")
SAMPLER = SamplerConfig(sigmas=(1.0, 0.75, 0.5, 0.25))


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Measure the cost of a training step."""

    model: str = "benchmarks/micro/pipeline"
    training: Literal["lora", "full"] = "lora"
    precision: Literal["float32", "bfloat16"] = "bfloat16"
    reward: str = "micro_clip"
    batch_size: int = 32
    iterations: int = 8  # of a round; the random step k needs several
    rounds: int = 5
    device: str = "cpu"


def main(arguments: Arguments) -> None:
    """Print, per method, seconds of a step, of its bare passes, and their ratio."""
    device = torch.device(arguments.device)
    settings = BackboneConfig(path=arguments.model, training=arguments.training, precision=arguments.precision)
    backbone = load(settings, device)
    rewards = load_rewards([RewardConfig(id=arguments.reward)], device)
    texts = read_training_prompts("micro")
    backbone.encode([prompt.text for prompt in texts])  # cached in training as well
    bare = Bare(backbone, rewards, texts[: arguments.batch_size])
    needed = tomllib.loads(PASSES.read_text(encoding="utf-8"))
    for name, trainer in trainers(backbone, rewards, arguments.batch_size).items():
        stream, calls = PromptStream(texts, "none", 0), needed[name]
        if name == "reinforce":
            calls |= {"decode_and_score": 1}
        ratios, seconds = [], [0.0, 0.0]
        for round_ in range(arguments.rounds + 1):
            step = timed(partial(one_step, trainer, stream), arguments.iterations)
            passes = sum(count * timed(bare.of(kind), arguments.iterations) for kind, count in calls.items())
            if round_:  # the first one warms up
                ratios.append(step / passes)
                seconds = [step, passes]
        print(f"{name:10} step {seconds[0]:.3f} s, passes {seconds[1]:.3f} s, ratio {median(ratios):.3f} (bar {BAR})")


def trainers(backbone: Backbone, rewards: RewardBank, batch_size: int) -> dict[str, Trainer]:
    """Return one trainer per table of passes.toml."""
    nothing, cold = (
        RewardBank([], {}),
        ColdStartConfig(batch_size=batch_size, fake_score_updates=1, share_rollout=True),
    )
    dmd = DmdConfig(sampler=SAMPLER, batch_size=batch_size, fake_score_updates=1, share_rollout=True)
    groups = ReinforceConfig(groups=batch_size // 8, group_size=8)
    return {
        "dmd": Dmd(dmd, backbone, nothing, World()),
        "ac_dmd": Rtdmd(RtdmdConfig(sampler=SAMPLER, cold_start=cold), backbone, nothing, World()),
        "reinforce": Rtdmd(
            RtdmdConfig(phase="reinforce", sampler=SAMPLER, reinforce=groups), backbone, rewards, World()
        ),
    }


def one_step(trainer: Trainer, stream: PromptStream, iteration: int) -> None:
    """Take prompts and train on them."""
    trainer.step(stream.take(trainer.prompts_per_step), iteration)


class Bare:
    """Network calls with nothing around them."""

    def __init__(self, backbone: Backbone, rewards: RewardBank, prompts: Sequence[Prompt]) -> None:
        self.backbone, self.rewards, self.prompts = backbone, rewards, list(prompts)
        self.encoded = backbone.encode([prompt.text for prompt in prompts])
        self.x = torch.randn(len(prompts), *backbone.latent_shape, device=backbone.device)

    def of(self, kind: str) -> Callable[[int], Any]:
        """Return the call that a key of passes.toml names."""
        if kind == "decode_and_score":
            return self.decode_and_score
        if kind == "teacher_guided":
            return lambda _: self.forward("teacher", 5.0)
        role, _, what = kind.rpartition("_")
        return lambda _: self.forward(role) if what == "forward" else self.train(role)

    @torch.no_grad()
    def forward(self, role: Any, guidance_scale: float = 1.0) -> None:
        """Call a role without a graph."""
        self.backbone.velocity(role, self.x, 0.5, self.encoded, guidance_scale)

    def train(self, role: Any) -> None:
        """Call a role and go back through it."""
        self.backbone.velocity(role, self.x, 0.5, self.encoded).mean().backward()
        for parameter in self.backbone.parameters(role):
            parameter.grad = None

    def decode_and_score(self, _: int) -> None:
        """Decode and score latents, with the backward to them."""
        latents = self.x.clone().requires_grad_()
        self.rewards.total(self.rewards.score(self.backbone.decode(latents), self.prompts)).mean().backward()


def timed(call: Callable[[int], Any], count: int) -> float:
    """Return the seconds of one call, the mean of `count`."""
    start = time.perf_counter()
    for number in range(count):
        call(number)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return (time.perf_counter() - start) / count


if __name__ == "__main__":
    main(tyro.cli(Arguments))
