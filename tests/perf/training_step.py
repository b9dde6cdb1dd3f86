"""Cost of a training step, against the sum of its necessary network passes measured bare on the same shapes.

    python -m tests.perf.training_step [--methods dmd dmd2] [--model FOLDER] [--batch-size 32] [--iterations 8]
                                        [--record]

Which trainers are measured, with which settings and how many passes each cannot do without stands in passes.toml: a
table per case. Bare passes call the networks with random latents and no loss but the mean of the output. Step and
passes take turns within one process, so a busy machine slows both alike. Bar: at most 1.10.

That says something of the step only where the bare passes themselves are work of the networks, and not of what calls
them: `network` is their share of the bare passes' time, of which a batch must be large enough to make it 95 %. A
network is a module that a bare call enters from outside of any module (a denoiser, a decoder, a reward's tower). Its
time is that of its forward, and the whole of backward(), whose way between two networks (a picture resized) is not
told apart. It is taken in bare calls of their own, so the ratio knows nothing of these clocks. Where a bar is missed,
of those that clocks decide, the exit code is 1.

Beside it stands what needs no quiet machine: operations of the step over those of its passes, 1 where it computes
nothing else. `--rounds 0` counts alone.

Chance plays no part in the counts: the random step k of a rollout takes every value equally often. What is kept of a
prompt (embeddings of the backbone, text features of rewards) is kept before the clock starts: a run makes it once.
"""

import sys
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from statistics import median
from typing import Any, Literal
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from benchmarks.cli import parse
from benchmarks.config import UserError, build, nearest
from benchmarks.screen import guarded
from leaderboards.studies import Speed
from metrics.base import Prompt
from tests.perf.record import machine, record
from trainers.backbones.base import Backbone, BackboneConfig, load
from trainers.base import Trainer, World, find
from trainers.draws import Draws
from trainers.perceptual import PerceptualDistance, load_perceptual
from trainers.prompts import PromptStream, read_training_prompts
from trainers.refl import SrpoConfig
from trainers.rewards import RewardBank, RewardConfig, load_rewards

BAR = 1.10
NETWORK = 0.95  # least share of the bare passes' time
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
    iterations: int = 8  # that are timed in turn; a multiple of every case's round, so that each step k has its turn
    rounds: int = 5  # turns; 0: operations are counted, and nothing is timed
    device: str = "cpu"
    record: bool = False  # keep the ratios for the page


@dataclass(frozen=True)
class Times:
    """What the clocks said of a case."""

    step: float  # seconds, in the last round
    passes: float  # the same of the bare passes
    ratio: float  # of the two, the median of all rounds
    network: float  # the networks' share of the bare passes' time


@dataclass(frozen=True)
class Found:
    """What was measured of a case."""

    name: str
    operations: float  # of a step over those of its passes
    times: Times | None = None  # None: counted only

    def __str__(self) -> str:
        told = "not timed"
        if self.times:
            t = self.times
            told = f"step {t.step:.3f} s, passes {t.passes:.3f} s, ratio {t.ratio:.3f}, network {t.network:.1%}"
        return f"{self.name:21} {told}, operations {self.operations:.3f}"

    def missed(self) -> Iterator[str]:
        """Give a line for each bar that the case misses."""
        if self.times and self.times.ratio > BAR:
            yield f"{self.name}: a step takes {self.times.ratio:.3f} times its passes, at most {BAR:.2f} wanted"
        if self.times and self.times.network < NETWORK:
            yield (
                f"{self.name}: networks take {self.times.network:.1%} of the bare passes' time, at least "
                f"{NETWORK:.0%} wanted: measure a larger --batch-size, or a larger --model"
            )


def main(arguments: Arguments) -> int:
    """Print a line per case, and what misses a bar; return the exit code."""
    faults = list[str]()
    for found in measured(arguments):
        print(found, flush=True)
        faults += found.missed()
        if arguments.record and found.times:
            record([speed(arguments, found.name, found.times.ratio)])
    if arguments.rounds:
        print("\n".join(faults) or f"every ratio is at most {BAR:.2f}, of passes that are networks by {NETWORK:.0%}")
    return 1 if faults else 0


def measured(arguments: Arguments) -> Iterator[Found]:
    """Give what is found of the chosen cases, one by one. Raises UserError for an unknown one or part of a round."""
    chosen = cases(arguments.methods)
    for name, case in chosen.items():
        if arguments.rounds and arguments.iterations % case.get("round", 1):
            raise UserError(f"--iterations {arguments.iterations}: {name} needs a multiple of {case['round']}")
    device, size = torch.device(arguments.device), arguments.batch_size
    settings = BackboneConfig(path=arguments.model, training=arguments.training, precision=arguments.precision)
    backbone = load(settings, device)
    rewards = load_rewards([RewardConfig(id=arguments.reward)], device)
    texts = read_training_prompts("micro")[: max(PROMPTS, size)]
    keep_prompts(backbone, rewards, texts)
    known = dict[tuple[str, int], float]()
    with tempfile.TemporaryDirectory() as samples:
        for name, case in chosen.items():
            step = ready(case, size, backbone, rewards, texts, Path(samples))
            calls = bare_calls(case, size, backbone, rewards, texts)
            times = timed_in_turns(step, calls, arguments) if arguments.rounds else None
            yield Found(name, operations_ratio(step, calls, case.get("round", 1), known), times)


def timed_in_turns(step: Callable[[int], Any], calls: Sequence["Call"], arguments: Arguments) -> Times:
    """Return the times of steps and of their bare passes, which take turns."""
    seconds = []
    for _ in range(1 + arguments.rounds):  # the first one warms up
        taken = timed(step, arguments.iterations)
        seconds.append((taken, sum(call.count * timed(call.call, arguments.iterations) for call in calls)))
    ratio = median(taken / passes for taken, passes in seconds[1:])
    return Times(*seconds[-1], ratio, network_share(calls, arguments.iterations))


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


def ready(
    case: dict[str, Any],
    batch_size: int,
    backbone: Backbone,
    rewards: RewardBank,
    prompts: Sequence[Prompt],
    samples: Path,
) -> Callable[[int], Any]:
    """Return the step of a case's trainer, fresh but for its first iteration; it takes the numbers 0, 1, ...

    samples: folder for those of the teacher."""
    backbone.reset()
    trainer, settings = find(case["trainer"]), sized(case["settings"], batch_size)
    if "teacher_samples" in settings:
        settings["teacher_samples"]["folder"] = str(samples)
    bank = rewards if case.get("rewards") else RewardBank([], {})
    made = trainer(build(trainer.Config, settings, str(PASSES)), backbone, bank, World())
    made.roles.draws = EveryStep(0)
    step = partial(one_step, made, PromptStream(prompts, "none", 0))
    step(0)
    return lambda number: step(1 + number)


class EveryStep(Draws):
    """The run's randomness, but whole numbers below a bound come in turn: no round has more passes than another."""

    turn = 0

    def index(self, count: int) -> int:
        """Return the next of 0, 1, ..., count - 1, 0, ..."""
        self.turn += 1
        return (self.turn - 1) % count


def keep_prompts(backbone: Backbone, rewards: RewardBank, prompts: Sequence[Prompt]) -> None:
    """Let the backbone and the rewards' text towers read each prompt, and behind SRPO's prefixes: once in a run."""
    backbone.encode([backbone.protocol().negative_prompt, *(prompt.text for prompt in prompts)])
    pictures, srpo = torch.zeros(1, 3, 64, 64, device=backbone.device), SrpoConfig()
    prefixes = [[prefix] for prefix in ("", *srpo.positive, *srpo.negative)]
    with torch.no_grad():
        for prompt in prompts:
            rewards.score_behind(pictures, [prompt], rewards.differentiable, prefixes)


@dataclass(frozen=True)
class Call:
    """A bare call, and how often an iteration makes it."""

    kind: str
    rows: int  # of its batch
    count: float
    call: Callable[[int], Any]


def bare_calls(
    case: dict[str, Any], batch_size: int, backbone: Backbone, rewards: RewardBank, prompts: Sequence[Prompt]
) -> list[Call]:
    """Return the bare calls of a case's `passes`: of each kind a number, { calls, batch }, or a list."""
    calls = []
    for kind, stated in case["passes"].items():
        for one in stated if isinstance(stated, list) else [stated]:
            count, rows = (one["calls"], one["batch"]) if isinstance(one, dict) else (one, "B")
            batch = prompts[: sized(rows, batch_size)]
            calls.append(Call(kind, len(batch), count, Bare(backbone, rewards, batch).of(kind)))
    return calls


def operations_ratio(
    step: Callable[[int], Any], calls: Sequence[Call], iterations: int, known: dict[tuple[str, int], float]
) -> float:
    """Return the operations of a step over those of its necessary passes: 1 where it computes nothing else.

    known: those of bare calls by kind and rows, which the calls not yet among them are added to."""
    for call in calls:
        if (call.kind, call.rows) not in known:
            known[call.kind, call.rows] = operations(call.call, 1)
    return operations(step, iterations) / sum(call.count * known[call.kind, call.rows] for call in calls)


def operations(call: Callable[[int], Any], count: int) -> float:
    """Return the floating-point operations of one call in matrix products and convolutions, the mean of `count`."""
    with Operations() as counter:
        for number in range(count):
            call(number)
    return counter.total / count


class Operations(TorchDispatchMode):
    """Counts as torch's own FlopCounterMode, but not by module, which takes most of that one's time."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """See `torch.utils._python_dispatch.TorchDispatchMode`."""
        result = func(*args, **(kwargs or {}))
        if count := flop_registry.get(func.overloadpacket):
            self.total += count(*args, **(kwargs or {}), out_val=result)
        return result


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
        if kind == "leaning_guided":
            return partial(self.guided, "teacher", fake_scale=0.5)
        role, _, what = kind.rpartition("_")
        calls = {
            "forward": self.forward, "guided": self.guided, "train": self.train, "chained": self.chained,
            "judge": self.judge,
        }  # fmt: skip
        return partial(calls[what], role)

    @torch.no_grad()
    def forward(self, role: Any, _: int) -> None:
        """Call a role without a graph."""
        self.backbone.velocity(role, self.x, 0.5, self.encoded)

    @torch.no_grad()
    def guided(self, role: Any, _: int, fake_scale: float | None = None) -> None:
        """Call a role on twice the batch, without a graph; fake_scale: of the fake score's adapter in the teacher."""
        self.backbone.velocity(role, self.x, 0.5, self.encoded, 5.0, fake_scale)

    def train(self, role: Any, _: int) -> None:
        """Call a role and go back through it to its parameters."""
        self.backbone.velocity(role, self.x, 0.5, self.encoded).mean().backward()
        for parameter in self.backbone.parameters(role):
            parameter.grad = None

    def chained(self, role: Any, _: int) -> None:
        """Call a role and go back through it to its parameters and to the latents."""
        latents = self.x.clone().requires_grad_()
        self.backbone.velocity(role, latents, 0.5, self.encoded).mean().backward()
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


def network_share(calls: Sequence[Call], iterations: int) -> float:
    """Return the share of the bare passes' time that is spent in networks."""
    within = whole = 0.0
    for call in calls:
        clock = NetworkClock(networks_of(call.call))
        with clock.at_work():
            whole += call.count * timed(call.call, iterations)
        within += call.count * clock.seconds / iterations
    return within / whole


def networks_of(call: Callable[[int], Any]) -> list[nn.Module]:
    """Return the modules that a call enters from outside of any module."""
    depth, found = 0, dict[nn.Module, None]()

    def enter(module: nn.Module, _: Any) -> None:
        nonlocal depth
        if not depth:
            found[module] = None
        depth += 1

    def leave(*_: Any) -> None:
        nonlocal depth
        depth -= 1

    with register_module_forward_pre_hook(enter), register_module_forward_hook(leave):
        call(0)
    return list(found)


class NetworkClock:
    """Adds up the seconds that pass in networks: in their forward, and in backward()."""

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        self.seconds = 0.0
        self._networks = networks
        self._depth, self._began = 0, 0.0

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Let the clock see what happens within the context."""
        backward = Tensor.backward

        def clocked(*arguments: Any, **named: Any) -> None:
            self._start()
            backward(*arguments, **named)
            self._stop()

        with ExitStack() as hooks:
            for network in self._networks:
                hooks.enter_context(network.register_forward_pre_hook(self._start))
                hooks.enter_context(network.register_forward_hook(self._stop))
            hooks.enter_context(patch.object(Tensor, "backward", clocked))
            yield

    def _start(self, *_: Any) -> None:
        if not self._depth:
            self._began = now()
        self._depth += 1

    def _stop(self, *_: Any) -> None:
        self._depth -= 1
        if not self._depth:
            self.seconds += now() - self._began


def timed(call: Callable[[int], Any], count: int) -> float:
    """Return the seconds of one call, the mean of `count`."""
    start = now()
    for number in range(count):
        call(number)
    return (now() - start) / count


def now() -> float:
    """Return the time, in seconds, at which all work given out so far is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


if __name__ == "__main__":
    prog = "python -m tests.perf.training_step"
    sys.exit(guarded(lambda: main(parse(Arguments, prog=prog, description=__doc__))))
