"""Contract 2: what a trainer is, the roles it trains, and the registry that finds trainers by name.

Config                            frozen, every field with its paper symbol
Trainer(config, backbone, rewards, world)
step(prompts, iteration) -> logs  the paper's algorithm box
protocol() -> Protocol            how the student is meant to be sampled
state_dict / load_state_dict      resume is bit-exact
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Any, ClassVar, Literal, Protocol, TypeVar

import torch
from annotated_types import Ge
from pydantic import ValidationError
from torch import Tensor, nn

from benchmarks.config import config
from benchmarks.protocol import Protocol as SamplingProtocol
from benchmarks.samplers import sigma_grid
from metrics.base import Prompt, Registry, UserError
from trainers.backbones.base import Backbone
from trainers.draws import Draws
from trainers.flow import RenoiseLaw, Velocity
from trainers.learner import EmaConfig, Learner, OptimiserConfig
from trainers.rewards import RewardBank

Logs = dict[str, float]


# The teacher's guidance scale; 1 = off. Below it samplers do not guide, so a smaller one would be a silent 1.
Guidance = Annotated[float, Ge(1)]
Count = Annotated[int, Ge(1)]


@config
class SdeSamplerConfig:
    """A sampler of rollouts, SDEs included; see `SamplerConfig`."""

    sampler: Literal["cps", "euler", "renoise", "flow_sde"] = "cps"
    eta: float = 0.9  # η of CPS: 0 = Euler ODE, 1 = consistency re-noising; of Flow-SDE: its noise level
    num_inference_steps: int = 4  # K
    sigmas: tuple[float, ...] = ()  # t_0 > ... > t_{K-1}; () = K even steps from 1, shifted once
    shift: float = 1.0  # of the even steps
    REPLACES: ClassVar = {"sigmas": ("shift",), "shift": ("sigmas",), "num_inference_steps": ("sigmas",)}

    def __post_init__(self) -> None:
        if self.shift <= 0:
            raise ValueError("shift must be above 0")
        if self.sigmas and self.shift != 1:
            raise ValueError("shift is of even steps, explicit sigmas are taken as they are: leave one of them out")

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
        except ValidationError as error:
            reasons = (detail["msg"].removeprefix("Value error, ") for detail in error.errors())
            raise UserError(f"trainer.sampler: {'; '.join(reasons)}") from error


@config
class SamplerConfig(SdeSamplerConfig):
    """The student's sampler, in training rollouts, canary and benchmark alike; it runs unguided."""

    sampler: Literal["cps", "euler", "renoise"] = "cps"

    @property
    def cps_eta(self) -> float:
        """The sampler as a member of the CPS family: Euler is η = 0, re-noising η = 1."""
        return {"euler": 0.0, "renoise": 1.0}.get(self.sampler, self.eta)


@dataclass(frozen=True)
class World:
    """What a trainer knows of the run around it: the seed and the processes that train together.

    Batches are of `planned` processes, whatever number of them is at work: it decides nothing but who does what."""

    seed: int | str = 0
    rank: int = 0
    processes: int = 1
    planned: int = 1  # RunConfig.processes
    reduce: Callable[[Tensor], Tensor] | None = None  # mean over processes; None = there is only one
    gather: Callable[[Tensor], Tensor] = lambda rows: rows  # the rows of all processes, in their order
    gather_list: Callable[[list[Any]], list[Any]] = lambda parts: parts  # the same of lists, of any length

    def share(self, count: int, what: str) -> int:
        """Return this process's part of `count` for each planned process.

        Raises UserError naming `what` is counted where it cannot be cut into equal parts."""
        own, rest = divmod(count * self.planned, self.processes)
        if rest:
            raise UserError(
                f"{count * self.planned} {what} cannot be shared evenly by {self.processes} processes: "
                "start a number of them that divides it"
            )
        return own


@dataclass(frozen=True)
class Networks:
    """The three roles as velocity networks with the prompts of a batch bound; the teacher is guided, or not."""

    student: Velocity
    fake_score: Velocity
    teacher: Velocity
    unguided_teacher: Velocity


class Roles:
    """The trained networks with their optimisers and the run's randomness: all that a checkpoint holds."""

    def __init__(
        self,
        backbone: Backbone,
        student: OptimiserConfig,
        fake_score: OptimiserConfig | None,
        ema: EmaConfig,
        world: World,
        *,
        extra: Mapping[str, Sequence[nn.Parameter]] | None = None,
        reference: bool = False,
        student_guidance: float = 1.0,
    ) -> None:
        """fake_score: None where a method has none. extra: more parameters of "student" or "fake_score", trained by
        its optimiser, such as a discriminator's head. reference: keep the student as it is now as a frozen role.
        student_guidance: of the student, in training and canary alike; few-step students run unguided.

        Raises UserError where a guided student would be trained against what its own pipeline does not know."""
        if student_guidance > 1 and backbone.settings.unconditional != "model":
            raise UserError(
                "backbone.unconditional is what a teacher is guided against; this student is guided itself, in use "
                "by its own pipeline, against what that has: leave it out"
            )
        extra = extra or {}
        self.backbone, self._student_guidance = backbone, student_guidance
        trained = [*backbone.parameters("student"), *extra.get("student", ())]
        self.student = Learner(trained, student, ema, world.reduce)
        self._fake_score: Learner | None = None
        if fake_score:
            trained = [*backbone.parameters("fake_score"), *extra.get("fake_score", ())]
            self._fake_score = Learner(trained, fake_score, None, world.reduce, "fake_score")
        self.draws = Draws(world.seed, world.rank, world.processes)
        self.gather, self._gather_list = world.gather, world.gather_list
        self._referenced = reference
        if reference:
            backbone.keep_reference()

    @property
    def has_fake_score(self) -> bool:
        """Whether the method trains one."""
        return self._fake_score is not None

    @property
    def fake_score(self) -> Learner:
        """The fake score's optimiser; a method that trains none does not ask for it."""
        assert self._fake_score
        return self._fake_score

    def networks(
        self,
        prompts: Sequence[Prompt],
        guidance_scale: float,
        lean: float | None = None,
        fake_scale: float | None = None,
    ) -> Networks:
        """Bind the prompts of a batch to the three networks.

        lean, fake_scale: scale of the fake score's adapter in the teacher (None = 0) and in the fake score itself
        (None = 1)."""
        encoded = self.backbone.encode([prompt.text for prompt in prompts])
        velocity = self.backbone.velocity
        teacher = partial(velocity, "teacher", prompts=encoded, fake_scale=lean)
        return Networks(
            partial(velocity, "student", prompts=encoded, guidance_scale=self._student_guidance),
            partial(velocity, "fake_score", prompts=encoded, fake_scale=fake_scale),
            partial(teacher, guidance_scale=guidance_scale),
            partial(teacher, guidance_scale=1.0),
        )

    def velocity(self, role: Literal["student", "reference"], prompts: Sequence[Prompt]) -> Velocity:
        """Bind the prompts of a batch to the student, or to its frozen copy, which runs as the student does."""
        encoded = self.backbone.encode([prompt.text for prompt in prompts])
        return partial(self.backbone.velocity, role, prompts=encoded, guidance_scale=self._student_guidance)

    def noise(self, count: int) -> Tensor:
        """Return unit Gaussian latents [count, ...]."""
        return self.draws.normal((count, *self.backbone.latent_shape), self.backbone.device)

    def noise_scale(self, protocol: SamplingProtocol) -> float:
        """Return the factor of unit noise that a protocol's sampler begins with."""
        return self.backbone.noise_scale(sigma_grid(protocol)[0])

    def start(self, count: int, protocol: SamplingProtocol) -> Tensor:
        """Return what a protocol's sampler begins with, for `count` images [count, ...]."""
        return self.noise_scale(protocol) * self.noise(count)

    def renoise(self, law: RenoiseLaw, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return a law's levels [B, 1, ...] on the backbone's path and unit noise [B, ...] for the samples x."""
        return law.draw(x, self.draws, self.backbone.level_at)

    def batches(self, rows: Tensor, size: int) -> Iterator[tuple[Tensor, int]]:
        """Give some images' rows by at most `size`, each time with the number of those that count.

        A process with fewer batches than another goes along with a row that counts for nothing, not even among the
        passes: the others wait for its gradients, and where the base is sharded for its part of every call."""
        own = rows.split(size) if len(rows) else ()
        most = max(self._gather_list([len(own)]))
        yield from ((batch, len(batch)) for batch in own)
        for _ in range(most - len(own)):
            passes = self.backbone.passes
            yield torch.zeros(1, dtype=torch.long), 0
            self.backbone.passes = passes

    def anywhere(self, numbers: Collection[int]) -> set[int]:
        """Return the numbers that any process has: where the base is sharded, all must make calls of one kind."""
        return set(self._gather_list([*numbers]))

    def state_dict(self) -> dict[str, Any]:
        """Return weights, optimisers, EMA and generator states."""
        state: dict[str, Any] = {"student": self.student.state_dict(), "draws": self.draws.state_dict()}
        if self._fake_score:
            state["fake_score"] = self._fake_score.state_dict()
        if self._referenced:
            state["reference"] = [p.detach() for p in self.backbone.parameters("reference")]
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` gave."""
        self.student.load_state_dict(state["student"])
        self.draws.load_state_dict(state["draws"])
        if self._fake_score:
            self._fake_score.load_state_dict(state["fake_score"])
        if self._referenced:
            with torch.no_grad():
                for mine, stored in zip(self.backbone.parameters("reference"), state["reference"], strict=True):
                    mine.copy_(stored)


class RolesTrainer:
    """What trainers whose whole state lies in their roles have in common."""

    roles: Roles
    image_free = True  # whether no term needs pictures from outside; of the rewards, the bank knows
    reward_settings: Set[str] = frozenset()  # those of rewards.READ_BY that a term reads
    _protocol: SamplingProtocol

    @classmethod
    def trains_on_rewards(cls, config: Any) -> bool:
        """Return whether a term of the loss under these settings knows the rewards, or only the canary does.

        Boards call a metric held out by this word, so nobody says it for a method. Raises UserError where its class
        does not."""
        raise UserError(
            f"trainer {cls.__name__} does not say whether it trains on rewards: give it trains_on_rewards(config)"
        )

    @classmethod
    def trained_on(cls, config: Any) -> tuple[str, ...]:
        """Return the metrics, besides the rewards, whose model a term of this config trains on: not held out."""
        return ()

    def protocol(self) -> SamplingProtocol:
        """Return how the student is meant to be sampled."""
        return self._protocol

    def state_dict(self) -> dict[str, Any]:
        """Return all that a bit-exact resume needs."""
        return self.roles.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` gave."""
        self.roles.load_state_dict(state)


class DistillationTrainer(RolesTrainer):
    """What methods of distribution matching have in common: a student and a fake score, and no term with a reward."""

    @classmethod
    def trains_on_rewards(cls, config: Any) -> bool:
        """Return that distribution matching alone knows none."""
        return False

    def __init__(
        self,
        config: Any,
        backbone: Backbone,
        world: World,
        protocol: SamplingProtocol,
        *,
        extra: Mapping[str, Sequence[nn.Parameter]] | None = None,
    ) -> None:
        """config: has student, fake_score, ema and batch_size. protocol: the student's. extra: see `Roles`."""
        self.roles = Roles(backbone, config.student, config.fake_score, config.ema, world, extra=extra)
        self.prompts_per_step = config.batch_size
        self._protocol = protocol


class RewardTrainer(RolesTrainer):
    """What methods have in common that are nothing without rewards."""

    @classmethod
    def trains_on_rewards(cls, config: Any) -> bool:
        """Return that every loss of theirs is made of them."""
        return True


class Trainer(Protocol):
    """The interface of a trainer; see the module's docstring."""

    Config: type[Any]
    roles: Roles
    prompts_per_step: int  # of each planned process
    image_free: bool
    reward_settings: Set[str]  # those of rewards.READ_BY that a term reads

    def __init__(self, config: Any, backbone: Backbone, rewards: RewardBank, world: World) -> None: ...

    @classmethod
    def trains_on_rewards(cls, config: Any) -> bool:
        """Return whether a term of the loss under these settings knows the rewards, or only the canary does."""
        ...

    @classmethod
    def trained_on(cls, config: Any) -> tuple[str, ...]:
        """Return the metrics, besides the rewards, whose model a term of this config trains on: not held out."""
        ...

    def step(self, prompts: Sequence[Prompt], iteration: int) -> Logs:
        """Train on this process's share of the batch, different prompts; return what the log shall hold.

        That is `prompts_per_step` of them where as many processes are at work as were planned."""
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
OWN = "; a trainer of your own: --plugin MODULE (importable from here)"
_TRAINERS: Registry[type[Trainer]] = Registry("trainer", "trainers", "fewstep_bench.trainers", OWN)


def register(name: str) -> Callable[[T], T]:
    """Class decorator: make a trainer known by name. Raises UserError where the name is taken."""
    return _TRAINERS.register(name)


def available() -> dict[str, type[Trainer]]:
    """Return every registered trainer: built-in, entry points (fewstep_bench.trainers) and plugins."""
    return _TRAINERS.available()


def find(name: str, where: str = "") -> type[Trainer]:
    """Return a trainer class by name. Raises UserError, opened by `where`, naming the nearest known one."""
    return _TRAINERS.find(name, where)
