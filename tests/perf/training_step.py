"""Cost of a training step, against the sum of its necessary network passes measured bare on the same shapes.

    python -m tests.perf.training_step [--methods dmd dmd2] [--model FOLDER] [--batch-size 32] [--iterations 8]
                                        [--record]

Which trainers are measured, with which settings and how many passes each cannot do without stands in passes.toml: a
table per case. Bare passes call the networks with random latents and no loss but the mean of the output. Step and
passes take turns within one process, so a busy machine slows both alike. Bar: at most 1.10.

Beside it stands what needs no quiet machine: operations of the step over those of its passes, 1 where it computes
nothing else. `--rounds 0` counts alone.

Chance plays no part in the counts: the random step k of a rollout takes every value equally often. What is kept of a
prompt (embeddings of the backbone, text features of rewards) is kept before the clock starts: a run makes it once.
"""

import time
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from statistics import median
from typing import Any, Literal

import torch
import tyro
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.config import UserError, build, nearest
from leaderboards.studies import Speed
from metrics.base import Prompt
from tests.perf.record import machine, record
from trainers.backbones.base import Backbone, BackboneConfig, load
from trainers.base import Trainer, World, find
from trainers.draws import Draws
from trainers.perceptual import PerceptualDistance, load_perceptual
from trainers.prompts import PromptStream, read_training_prompts
from trainers.rewards import RewardBank, RewardConfig, load_rewards

BAR = 1.10
PROMPTS = 256  # distinct ones that steps are trained on
PASSES = Path(__file__).with_name("passes.toml")


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Measure the cost of a training step."""

    methods: tuple[str, ...] = ()  # tables of passes.toml; () = all
    model: str = "benchmarks/micro/pipeline"
    training: Literal["lora", "full"] = "lora"
    precision: Literal["float32", "bfloat16"] = "bfloat16"
    reward: str = "micro_clip"
    batch_size: int = 32
    iterations: int = 8  # of a round; a multiple of K = 4, so that each step k has its turn
    rounds: int = 5  # 0: operations are counted, and nothing is timed
    device: str = "cpu"
    record: bool = False  # keep the ratios for the page


def main(arguments: Arguments) -> None:
    """Print, per case, seconds of a step, of its bare passes, and their ratio."""
    device, size = torch.device(arguments.device), arguments.batch_size
    settings = BackboneConfig(path=arguments.model, training=arguments.training, precision=arguments.precision)
    backbone = load(settings, device)
    rewards = load_rewards([RewardConfig(id=arguments.reward)], device)
    texts = read_training_prompts("micro")[: max(PROMPTS, size)]
    keep_prompts(backbone, rewards, texts)
    for name, case in cases(arguments.methods).items():
        trainer, stream = trainer_of(case, backbone, rewards, size), PromptStream(texts, "none", 0)
        calls = bare_calls(case, size, backbone, rewards, texts)
        ratios, seconds, one = [], [0.0, 0.0], partial(one_step, trainer, stream)
        for round_ in range(arguments.rounds + 1):
            step = timed(one, arguments.iterations)
            passes = sum(call.count * timed(call.call, arguments.iterations) for call in calls)
            if round_:  # the first one warms up
                ratios.append(step / passes)
                seconds = [step, passes]
        ratio = f"ratio {median(ratios):.3f} (bar {BAR:.2f})" if ratios else "no ratio"
        counted = operations_ratio(one, calls, arguments.iterations)
        times = f"step {seconds[0]:.3f} s, passes {seconds[1]:.3f} s" if ratios else "not timed"
        print(f"{name:14} {times}, {ratio}, operations {counted:.3f}", flush=True)
        if arguments.record and ratios:
            record([speed(arguments, name, median(ratios))])


def speed(arguments: Arguments, name: str, ratio: float) -> Speed:
    """Return the row of the page: above 1 were faster than the bare passes."""
    return Speed(
        id=f"step-{name}".replace("_", "-"),
        what=f"a training step of {name}",
        ours="the whole step: losses, optimisers, averages, logs",
        other="its necessary network passes alone, on the same shapes",
        ratio=round(1 / ratio, 3),
        repetitions=arguments.rounds,
        wanted=round(1 / BAR, 3),
        setting=f"micro world, batch {arguments.batch_size}, {arguments.training}; {machine(arguments.device)}",
    )


def cases(names: Sequence[str] = ()) -> dict[str, dict[str, Any]]:
    """Return the chosen tables of passes.toml. Raises UserError for an unknown one."""
    tables = tomllib.loads(PASSES.read_text(encoding="utf-8"))
    if unknown := set(names) - set(tables):
        raise UserError(f"passes.toml has no {sorted(unknown)}; {nearest(min(unknown), list(tables))}")
    return {name: table for name, table in tables.items() if not names or name in names}


def trainer_of(case: dict[str, Any], backbone: Backbone, rewards: RewardBank, batch_size: int) -> Trainer:
    """Return the trainer of a case, fresh."""
    backbone.reset()
    trainer = find(case["trainer"])
    settings = build(trainer.Config, sized(case["settings"], batch_size), str(PASSES))
    made = trainer(settings, backbone, rewards if case.get("rewards") else RewardBank([], {}), World())
    made.roles.draws = EveryStep(0)
    return made


class EveryStep(Draws):
    """The run's randomness, but whole numbers below a bound come in turn: no round has more passes than another."""

    turn = 0

    def index(self, count: int) -> int:
        """Return the next of 0, 1, ..., count - 1, 0, ..."""
        self.turn += 1
        return (self.turn - 1) % count


def keep_prompts(backbone: Backbone, rewards: RewardBank, prompts: Sequence[Prompt]) -> None:
    """Let the backbone and the rewards' text towers read each prompt, which they do once in a run."""
    backbone.encode([prompt.text for prompt in prompts])
    pictures = torch.zeros(1, 3, 64, 64, device=backbone.device)
    with torch.no_grad():
        for prompt in prompts:
            rewards.score(pictures, [prompt])


@dataclass(frozen=True)
class Call:
    """A bare call, and how often an iteration makes it."""

    count: float
    call: Callable[[int], Any]


def bare_calls(
    case: dict[str, Any], batch_size: int, backbone: Backbone, rewards: RewardBank, prompts: Sequence[Prompt]
) -> list[Call]:
    """Return the bare calls of a case's `passes`: each a number of them on the whole batch, or { calls, batch }."""
    calls = []
    for kind, stated in case["passes"].items():
        count, rows = (stated["calls"], stated["batch"]) if isinstance(stated, dict) else (stated, "B")
        calls.append(Call(count, Bare(backbone, rewards, prompts[: sized(rows, batch_size)]).of(kind)))
    return calls


def operations_ratio(step: Callable[[int], Any], calls: Sequence[Call], iterations: int) -> float:
    """Return the operations of a step over those of its necessary passes: 1 where it computes nothing else."""
    return flops(step, iterations) / sum(call.count * flops(call.call, 1) for call in calls)


def flops(call: Callable[[int], Any], count: int) -> float:
    """Return the floating-point operations of one call in matrix products and convolutions, the mean of `count`."""
    with FlopCounterMode(display=False) as counter:
        for number in range(count):
            call(number)
    return counter.get_total_flops() / count


def sized(value: Any, batch_size: int) -> Any:
    """Return settings with "B" replaced by the batch size, "B/n" by its n-th part."""
    if isinstance(value, dict):
        return {name: sized(inner, batch_size) for name, inner in value.items()}
    if isinstance(value, str) and value.partition("/")[0] == "B":
        return batch_size // int(value.partition("/")[2] or 1)
    return value


def one_step(trainer: Trainer, stream: PromptStream, iteration: int) -> None:
    """Take prompts and train on them."""
    trainer.step(stream.take(trainer.prompts_per_step), iteration)


class Bare:
    """Network calls with nothing around them."""

    def __init__(self, backbone: Backbone, rewards: RewardBank, prompts: Sequence[Prompt]) -> None:
        self.backbone, self.rewards, self.prompts = backbone, rewards, list(prompts)
        self.encoded = backbone.encode([prompt.text for prompt in prompts])
        self.x = torch.randn(len(prompts), *backbone.latent_shape, device=backbone.device)

    @cached_property
    def perceptual(self) -> PerceptualDistance:
        """The distance of dmd_lpips."""
        return load_perceptual("micro_perceptual", self.backbone.device)

    def of(self, kind: str) -> Callable[[int], Any]:
        """Return the call that a key of passes.toml names: a role and what it does, or one of the calls below."""
        if kind == "decode_and_score":
            return self.decode_and_score
        if kind == "decode_and_rate":
            return self.decode_and_rate
        if kind == "decode_and_compare":
            return self.decode_and_compare
        role, _, what = kind.rpartition("_")
        calls = {"forward": self.forward, "guided": self.guided, "train": self.train, "judge": self.judge}
        return partial(calls[what], role)

    @torch.no_grad()
    def forward(self, role: Any, _: int) -> None:
        """Call a role without a graph."""
        self.backbone.velocity(role, self.x, 0.5, self.encoded)

    @torch.no_grad()
    def guided(self, role: Any, _: int) -> None:
        """Call a role on twice the batch, without a graph."""
        self.backbone.velocity(role, self.x, 0.5, self.encoded, 5.0)

    def train(self, role: Any, _: int) -> None:
        """Call a role and go back through it to its parameters."""
        self.backbone.velocity(role, self.x, 0.5, self.encoded).mean().backward()
        for parameter in self.backbone.parameters(role):
            parameter.grad = None

    def judge(self, role: Any, _: int) -> None:
        """Call a role for its features and go back through it to the latents."""
        latents = self.x.clone().requires_grad_()
        self.backbone.features(role, latents, 0.5, self.encoded).mean().backward(inputs=[latents])

    def decode_and_score(self, _: int) -> None:
        """Decode and score latents, with the backward to them."""
        latents = self.x.clone().requires_grad_()
        self.rewards.total(self.rewards.score(self.backbone.decode(latents), self.prompts)).mean().backward()

    @torch.no_grad()
    def decode_and_rate(self, _: int) -> None:
        """Decode and score latents, without a graph."""
        self.rewards.score(self.backbone.decode(self.x), self.prompts)

    def decode_and_compare(self, _: int) -> None:
        """Decode latents twice and compare the pictures, with the backward to the first ones."""
        latents = self.x.clone().requires_grad_()
        with torch.no_grad():
            other = self.backbone.decode(self.x)
        self.perceptual(self.backbone.decode(latents), other).mean().backward()


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
