"""Contract 2: what a trainer is, the roles it trains, and the registry that finds trainers by name.

Config                            frozen, every field with its paper symbol
Trainer(config, backbone, rewards, world)
step(prompts, iteration) -> logs  the paper's algorithm box
protocol() -> Protocol            how the student is meant to be sampled
state_dict / load_state_dict      resume is bit-exact
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, Protocol, TypeVar

from torch import Tensor

from benchmarks.config import config
from benchmarks.protocol import Protocol as SamplingProtocol
from metrics.base import Prompt, Registry, UserError
from trainers.backbones.base import Backbone
from trainers.draws import Draws
from trainers.flow import Velocity
from trainers.learner import EmaConfig, Learner, OptimiserConfig
from trainers.rewards import RewardBank

Logs = dict[str, float]


@config
class SamplerConfig:
    """The student's sampler, in training rollouts, canary and benchmark alike; it runs unguided."""

    sampler: Literal["cps", "euler", "renoise"] = "cps"
    eta: float = 0.9  # η of CPS: 0 = Euler ODE, 1 = consistency re-noising
    num_inference_steps: int = 4  # K
    sigmas: tuple[float, ...] = ()  # t_0 > ... > t_{K-1}; () = K even steps from 1, shifted once
    shift: float = 1.0

    @property
    def cps_eta(self) -> float:
        """The sampler as a member of the CPS family: Euler is η = 0, re-noising η = 1."""
        return {"euler": 0.0, "renoise": 1.0}.get(self.sampler, self.eta)

    def protocol(self, base: SamplingProtocol) -> SamplingProtocol:
        """Return the base model's protocol with this sampler. Raises UserError where the fields contradict."""
        try:
            return replace(
                base,
                sampler=self.sampler,
                eta=self.eta,
                num_inference_steps=self.num_inference_steps,
                sigmas=self.sigmas,
                shift=self.shift,
                guidance_scale=1.0,
            )
        except ValueError as error:
            raise UserError(f"trainer.sampler: {_reason(error)}") from error


@dataclass(frozen=True)
class World:
    """What a trainer knows of the run around it: the seed and the processes that train together."""

    seed: int | str = 0
    rank: int = 0
    processes: int = 1
    reduce: Callable[[Tensor], Tensor] | None = None  # mean over processes; None = there is only one
    gather: Callable[[Tensor], Tensor] = lambda rows: rows  # the rows of all processes, in their order


@dataclass(frozen=True)
class Networks:
    """The three roles as velocity networks with the prompts of a batch bound; the teacher is guided."""

    student: Velocity
    fake_score: Velocity
    teacher: Velocity


class Roles:
    """Student and fake score with their optimisers and the run's randomness: all that a checkpoint holds."""

    def __init__(
        self,
        backbone: Backbone,
        student: OptimiserConfig,
        fake_score: OptimiserConfig,
        ema: EmaConfig,
        world: World,
    ) -> None:
        self.backbone = backbone
        self.student = Learner(backbone.parameters("student"), student, ema, world.reduce)
        self.fake_score = Learner(backbone.parameters("fake_score"), fake_score, None, world.reduce)
        self.draws = Draws(world.seed, world.rank, world.processes)

    def networks(self, prompts: Sequence[Prompt], guidance_scale: float) -> Networks:
        """Bind the prompts of a batch to the three networks."""
        encoded = self.backbone.encode([prompt.text for prompt in prompts])
        bound = {
            role: partial(self.backbone.velocity, role, prompts=encoded)
            for role in ("student", "fake_score", "teacher")
        }
        return Networks(
            bound["student"], bound["fake_score"], partial(bound["teacher"], guidance_scale=guidance_scale)
        )

    def noise(self, count: int) -> Tensor:
        """Return unit Gaussian latents [count, ...]."""
        return self.draws.normal((count, *self.backbone.latent_shape), self.backbone.device)

    def state_dict(self) -> dict[str, Any]:
        """Return weights, optimisers, EMA and generator states."""
        return {
            "student": self.student.state_dict(),
            "fake_score": self.fake_score.state_dict(),
            "draws": self.draws.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` gave."""
        self.student.load_state_dict(state["student"])
        self.fake_score.load_state_dict(state["fake_score"])
        self.draws.load_state_dict(state["draws"])


class RolesTrainer:
    """What trainers whose whole state lies in their roles have in common."""

    roles: Roles
    _protocol: SamplingProtocol

    def protocol(self) -> SamplingProtocol:
        """Return how the student is meant to be sampled."""
        return self._protocol

    def state_dict(self) -> dict[str, Any]:
        """Return all that a bit-exact resume needs."""
        return self.roles.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` gave."""
        self.roles.load_state_dict(state)


class Trainer(Protocol):
    """The interface of a trainer; see the module's docstring."""

    Config: type[Any]
    roles: Roles
    prompts_per_step: int

    def __init__(self, config: Any, backbone: Backbone, rewards: RewardBank, world: World) -> None: ...

    def step(self, prompts: Sequence[Prompt], iteration: int) -> Logs:
        """Train on `prompts_per_step` different prompts; return what the log shall hold."""
        ...

    def protocol(self) -> SamplingProtocol:
        """Return how the student is meant to be sampled."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return all that a bit-exact resume needs."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` gave."""
        ...


T = TypeVar("T", bound=type)
_TRAINERS: Registry[type[Trainer]] = Registry("trainer", "trainers", "fewstep_bench.trainers")


def register(name: str) -> Callable[[T], T]:
    """Class decorator: make a trainer known by name. Raises UserError where the name is taken."""
    return _TRAINERS.register(name)


def available() -> dict[str, type[Trainer]]:
    """Return every registered trainer: built-in, entry points (fewstep_bench.trainers) and plugins."""
    return _TRAINERS.available()


def find(name: str) -> type[Trainer]:
    """Return a trainer class by name. Raises UserError naming the nearest known one."""
    return _TRAINERS.find(name)


def _reason(error: ValueError) -> str:
    """Return the first line of a pydantic error that says what is wrong."""
    lines = [line.strip() for line in str(error).splitlines()]
    return next((line.removeprefix("Value error, ") for line in lines if line.startswith("Value error")), lines[0])
