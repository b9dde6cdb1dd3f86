"""What trainers ask of a model family, and the registry of backbones.

A backbone is the only code that knows its family: it encodes prompts, predicts velocities in three roles, decodes
latents and writes a checkpoint. Roles: teacher = the model as loaded, frozen; student and fake_score start as copies
of it (LoRA adapters on the one frozen base, full copies, or one of each); reference = a frozen copy of the student,
where a method asks for one.
Axes: B images; latents [B, *latent_shape]; images [B, 3, H, W] in [0, 1].
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

import torch
from torch import Tensor, nn

from benchmarks.config import config
from benchmarks.protocol import Protocol as SamplingProtocol
from benchmarks.samplers import Level
from metrics.base import Registry, UserError
from trainers.backbones.prompt_store import keep_prompts

Role = Literal["teacher", "student", "fake_score", "reference"]


@config
class LoraConfig:
    """Low-rank adapters of student and fake score, W + (alpha / rank) B A."""

    rank: int = 32
    alpha: int = 64
    # Ends of the names of linear layers and convolutions, such as "to_q"; () = every linear layer
    targets: tuple[str, ...] = ()
    fake_score_rank: int = 0  # where the fake score's differs from the student's (DMDR); 0 = it does not
    fake_score_alpha: int = 0
    # A at the start, B being 0: uniform within 1 / sqrt(inputs), peft's own default, or of deviation 1 / rank, as
    # diffusers' training scripts have it, and DMDR's and RTDMD's authors
    init: Literal["kaiming", "gaussian"] = "kaiming"

    def __post_init__(self) -> None:
        if self.rank < 1 or self.alpha < 1:
            raise ValueError("rank and alpha must be at least 1")
        if self.fake_score_rank < 0 or self.fake_score_alpha < 0:
            raise ValueError("fake_score_rank and fake_score_alpha must be at least 0")


@config
class BackboneConfig:
    """Which model, and how its roles are trained."""

    kind: str = "sd3"
    path: str  # folder of the base model in diffusers layout
    # What the student starts from instead of the base: a folder of the same kind, or safetensors with all weights of
    # its network. Adapters then lie on that network, which is held beside the base: LoRA roles take at most 1.2 times
    # two base models, not one. "" = the base
    student_path: str = ""
    name: str = ""  # of the base, as boards list it: what a student is held against; "" = its folder's
    resolution: int = 0  # pixels of a side; 0 = the folder's own
    # Tokens of a prompt that the family's long text encoder reads, as pipelines' max_sequence_length: SD3's T5,
    # FLUX.2's and Z-Image's language models. The student's protocol keeps it. 0 = the folder's own
    max_text_length: int = 0
    # What the teacher's guidance is against: as the base's own pipeline has it, zeros in the place of a text, or the
    # encoded empty text. Of families that know both (SDXL), with unguided students
    unconditional: Literal["model", "zeros", "empty_prompt"] = "model"
    training: Literal["lora", "full"] = "lora"
    # Of the fake score, where it is another: an adapter on the frozen base beside a full student (DMDR's one-step
    # SDXL). "" = as `training`
    fake_score_training: Literal["", "full", "lora"] = ""
    lora: LoraConfig = LoraConfig()
    # Of the networks; sampling and losses are float32. float64: all of it, for comparisons of small models.
    precision: Literal["float32", "bfloat16", "float64"] = "float32"
    prompt_cache: int = 8192  # embeddings of so many prompts stay in memory
    prompt_cache_folder: str = ""  # there they stay on disk as well, for other runs too; "" = nowhere
    offload_text_encoders: bool = False  # on the CPU while no prompt is new
    offload_autoencoder: bool = False  # on the CPU while nothing is decoded and no graph needs it
    storage: Literal["float32", "bfloat16"] = "float32"  # of the frozen base; half the memory, of LoRA roles alone
    gradient_checkpointing: bool = False
    # Images per call of network and decoder: a larger batch is gone through in parts, of which backward() runs each
    # again, so that one part's graph alone is in memory. 0 = all at once.
    microbatch: int = 0
    compile: bool = False  # torch.compile of the network's blocks; needs a C++ compiler
    sharded: bool = False  # the frozen base in equal parts on all processes (FSDP2), of LoRA roles alone

    def __post_init__(self) -> None:
        if self.storage == "bfloat16" and (self.training, self.precision) != ("lora", "bfloat16"):
            raise ValueError('storage = "bfloat16" needs training = "lora" and precision = "bfloat16"')
        if self.fake_score_training == "full" and self.training == "lora":
            raise ValueError(
                'fake_score_training = "full" has no full student beside it: set training = "full" as well, or leave '
                "fake_score_training out"
            )
        if self.sharded and self.student_path:
            raise ValueError("sharded and student_path exclude each other: there is one base to cut up")
        if self.sharded and self.training != "lora":
            raise ValueError('sharded = true cuts up the frozen base of adapters: it needs training = "lora"')
        if self.microbatch < 0:
            raise ValueError("microbatch must be at least 0")
        if not 0 <= self.max_text_length <= 512:
            raise ValueError("max_text_length must lie in [0, 512]: pipelines read no longer texts")
        if self.resolution < 0 or self.prompt_cache < 1:
            raise ValueError("resolution must be at least 0, prompt_cache 1")
        if self.sharded and self.microbatch:
            raise ValueError(
                "sharded and microbatch exclude each other, for processes may have different numbers of parts: take "
                "smaller batches, or the microbatch of [trainer] where the method has one"
            )
        if self.compile and self.microbatch:  # a part of another size makes a graph that others' recomputing finds
            raise ValueError("compile and microbatch exclude each other: a part may be run again by another graph")
        if self.sharded and self.compile:
            raise ValueError("compile and sharded exclude each other: what gathers a block is not compiled")

    @property
    def fake_score_is_adapter(self) -> bool:
        """Whether the fake score is an adapter, which a scale can be given to."""
        return (self.fake_score_training or self.training) == "lora"


class Backbone(Protocol):
    """The interface; see the module's docstring."""

    settings: BackboneConfig
    latent_shape: tuple[int, ...]
    device: torch.device
    passes: int  # network passes so far: images × forward passes, plus one for each backward

    def encode(self, prompts: Sequence[str]) -> Any:
        """Return the embeddings of B prompts for `velocity`; no prompt is encoded twice while in the cache."""
        ...

    def velocity(
        self,
        role: Role,
        x_t: Tensor,
        t: Level,
        prompts: Any,
        guidance_scale: float = 1.0,
        fake_scale: float | None = None,
    ) -> Tensor:
        """Return v [B, ...] float32 of a role at level t for encoded prompts; guided above a scale of 1.

        fake_scale: scale of the fake score's adapter, of the fake score itself (None = 1) or of a teacher that leans
        on it (None = 0). Raises UserError where it is given and the roles are no adapters."""
        ...

    def noise_scale(self, t: float) -> float:
        """Return the factor of unit noise that a sampler begins with at its first level t; 1 but for VP models."""
        ...

    def level_at(self, share: Tensor) -> Tensor:
        """Return the levels t of shares in [0, 1] of the model's timesteps; the shares themselves but for VP models.

        What a law over timesteps draws: see `trainers.flow.RenoiseLaw`."""
        ...

    def features(self, role: Role, x_t: Tensor, t: Level, prompts: Any) -> Tensor:
        """Return hidden tokens [B, L, D] float32 of a role's network at level t, with graph; a pass like `velocity`.

        What a discriminator's head sees: the image tokens after a transformer's last block, a UNet's middle block
        row by row."""
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """Return images in [0, 1], differentiable in the latents."""
        ...

    def encode_pictures(self, images: Tensor) -> Tensor:
        """Return the latents of images [B, 3, H, W] in [0, 1], without graph; the inverse of `decode`."""
        ...

    def parameters(self, role: Role) -> list[nn.Parameter]:
        """Return what a role trains; the teacher trains nothing. Of the reference: its frozen weights, if kept."""
        ...

    def keep_reference(self) -> None:
        """Make the role "reference" from the student's present weights; called again, it follows the student."""
        ...

    def reset(self) -> None:
        """Make student and fake score copies of the teacher again."""
        ...

    def protocol(self) -> SamplingProtocol:
        """Return how the base model is meant to be sampled."""
        ...

    def teacher_digest(self) -> str:
        """Return the sha256 of the frozen base weights as they are now in memory, and of what decides embeddings."""
        ...

    def export(self, folder: Path | None, weights: str, dtype: str) -> None:
        """Write the student as a folder for stock diffusers; see `trainers.config.ExportConfig`.

        Where the base is sharded, all processes must call it, and those without a folder lend their parts. The same
        holds of every other method that asks the networks or the base for something."""
        ...


B = TypeVar("B", bound=Callable[..., Backbone])
Loader = Callable[[BackboneConfig, torch.device], Backbone]
_BACKBONES: Registry[Loader] = Registry("backbone", "trainers.backbones", "fewstep_bench.backbones")


def register(kind: str) -> Callable[[B], B]:
    """Class decorator: make a backbone known by the kind a config names. Raises UserError where it is taken."""
    return _BACKBONES.register(kind)


def available() -> dict[str, Loader]:
    """Return every registered backbone by kind: built-in, entry points (fewstep_bench.backbones) and plugins."""
    return _BACKBONES.available()


def load(settings: BackboneConfig, device: torch.device) -> Backbone:
    """Load a model. What it keeps of prompts: `trainers.backbones.prompt_store`.

    Raises UserError for an unknown kind, a folder that is not such a model, and an unconditional that none of the
    kind knows."""
    loader = find_loader(settings)
    backbone = loader(settings, device)
    keep_prompts(backbone, settings)
    return backbone


def find_loader(settings: BackboneConfig) -> Loader:
    """Return what loads a model. Raises UserError for an unknown kind, and an unconditional that none of it knows."""
    loader = _BACKBONES.find(settings.kind)
    if settings.unconditional != "model" and not getattr(loader, "guided_against_zeros", False):
        raise UserError(
            f"backbone.unconditional = {settings.unconditional!r}: models of kind {settings.kind!r} are guided "
            "against one thing alone, their own: leave it out"
        )
    return loader
