"""What every model family on a stock diffusers pipeline has in common; a family's file adds what is its own.

    class MyFamily(Family):
        pipeline_class = MyPipeline              what `load_base` asks of the folder
        def latents(self): ...                   shape of one image's latents
        def embed(self, prompts): ...            the frozen text encoders, as the pipeline uses them
        def predict(self, network, x_t, t, prompts): ...     v = eps - x0 of one call

The base weights are one frozen network; roles are LoRA adapters on it or full copies. Prompts are encoded once and
kept: they are functions of the frozen encoders.
Axes: B images, latents [B, *latent_shape], images [B, 3, H, W] in [0, 1].
"""

import contextlib
import hashlib
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from benchmarks.config import UserError
from benchmarks.native import load_denoiser
from benchmarks.protocol import Protocol
from benchmarks.samplers import Level
from trainers.backbones.base import BackboneConfig, Role
from trainers.backbones.checkpoint import DTYPES, load_base, save_lora, save_merged
from trainers.backbones.compilation import compile_blocks
from trainers.backbones.copies import CopyRoles
from trainers.backbones.full_student import FullStudentRoles
from trainers.backbones.lora import ROLES, AdapterRoles
from trainers.backbones.own_start import OwnStartRoles
from trainers.backbones.prompt_store import encoders_digest
from trainers.backbones.recompute import attention, checkpointed, run_again
from trainers.backbones.sharding import shard, whole
from trainers.flow import guided

ENCODED_AT_ONCE = 16  # prompts per call of the text encoders
Row = tuple[Tensor, ...]  # what a family knows of one prompt
Embeddings = tuple[Any, ...]  # of B prompts: tensors [B, ...], or lists of B where lengths differ


class Family:
    """See `trainers.backbones.base.Backbone`."""

    pipeline_class: ClassVar[Any]
    denoiser: ClassVar[str] = "transformer"  # the component that is trained

    def __init__(self, settings: BackboneConfig, device: torch.device) -> None:
        """Load the folder settings.path. Raises UserError where it is no folder of this family."""
        self.settings, self.device, self.passes = settings, device, 0
        name, at_first = self.pipeline_class.__name__, torch.device("cpu") if settings.sharded else device
        self.pipeline, self._protocol = load_base(settings, name, at_first)
        self._dtype = torch.float64 if settings.precision == "float64" else torch.float32
        for component in self.pipeline.components.values():
            if isinstance(component, nn.Module):
                component.requires_grad_(False).eval()
        network = getattr(self.pipeline, self.denoiser)
        start = load_denoiser(Path(settings.student_path), network) if settings.student_path else None
        for one in (network, start) if start else (network,):
            if settings.precision == "float64":
                one.double()
            if settings.storage == "bfloat16":
                one.bfloat16()
        if settings.precision == "float64":
            self.pipeline.vae.double()
        self._network_class = type(network)
        if settings.sharded:
            for component in self.pipeline.components.values():
                if isinstance(component, nn.Module) and component is not network:
                    component.to(device)
            shard(network, device, self.apart(network))
        if settings.offload_autoencoder:
            self.pipeline.vae.to("cpu")
        self._roles = roles_of(network, settings, device, start)
        if settings.compile:
            for role_network in self._roles.networks():
                compile_blocks(role_network)
        self._cache: OrderedDict[str, Row] = OrderedDict()
        self.latent_shape = self.latents()

    # What a family says of itself

    def latents(self) -> tuple[int, ...]:
        """Return the shape of one image's latents at the protocol's size: channels and the autoencoder's grid."""
        side = self.pipeline.vae_scale_factor
        return self.config.in_channels, self._protocol.height // side, self._protocol.width // side

    def embed(self, prompts: list[str]) -> Sequence[Row]:
        """Return one row of tensors for each prompt, from the frozen text encoders."""
        raise NotImplementedError

    def predict(self, network: Any, x_t: Tensor, t: Tensor, prompts: Embeddings) -> Tensor:
        """Return v [B, ...] of one call of a role's network, t float32 [B]."""
        raise NotImplementedError

    def negative(self) -> Row:
        """Return the row, on the device, of an image without its prompt, for guidance."""
        return self._rows([self._protocol.negative_prompt])[0]

    def joined(self, rows: Sequence[Row]) -> Embeddings:
        """Return the rows of B prompts as the network wants them."""
        return tuple(torch.stack(column) for column in zip(*rows, strict=True))

    def hidden(self, network: Any) -> tuple[nn.Module, bool]:
        """Return the module whose hidden states `features` shows, and whether its input is meant, else its output."""
        return network.norm_out, True

    def apart(self, network: Any) -> Sequence[nn.Module]:
        """Return the modules within blocks that the network calls from outside their blocks as well."""
        return ()

    def tokens(self, hidden: Tensor) -> Tensor:
        """Return the image tokens [B, L, D] of these hidden states."""
        return hidden

    def raw_latents(self, latents: Tensor) -> Tensor:
        """Return the autoencoder's own z of latents; the inverse of `trained_latents`."""
        vae = self.pipeline.vae.config
        return latents / vae.scaling_factor + (vae.get("shift_factor") or 0)

    def trained_latents(self, z: Tensor) -> Tensor:
        """Return the latents that the network was trained on of the autoencoder's z."""
        vae = self.pipeline.vae.config
        return (z - (vae.get("shift_factor") or 0)) * vae.scaling_factor

    # The same for all

    @property
    def config(self) -> Any:
        """The network's own settings."""
        return getattr(self.pipeline, self.denoiser).config

    def encode(self, prompts: Sequence[str]) -> Embeddings:
        """Return the embeddings of B prompts; none is encoded twice while in the cache."""
        return self.joined(self._rows(prompts))

    @torch.no_grad()
    def _rows(self, prompts: Sequence[str]) -> list[Row]:
        missing = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._cache]
        for start in range(0, len(missing), ENCODED_AT_ONCE):
            some = missing[start : start + ENCODED_AT_ONCE]
            # Always the same number of rows: a batch's shape decides the last bits of its rows, and a resumed run
            # meets other prompts together than the first one did.
            rows = self.embed(some + [""] * (ENCODED_AT_ONCE - len(some)))
            # In the host's memory: thousands of rows of a large text encoder are tens of GB
            self._cache |= {p: tuple(x.to("cpu", copy=True) for x in row) for p, row in zip(some, rows, strict=False)}
        for prompt in prompts:
            self._cache.move_to_end(prompt)
        rows_of = {prompt: tuple(self._used(x) for x in self._cache[prompt]) for prompt in dict.fromkeys(prompts)}
        while len(self._cache) > self.settings.prompt_cache:
            self._cache.popitem(last=False)
        return [rows_of[prompt] for prompt in prompts]

    @cached_property
    def _negative(self) -> Row:
        return self.negative()  # kept on the device: every guided call asks for it

    def velocity(
        self,
        role: Role,
        x_t: Tensor,
        t: Level,
        prompts: Embeddings,
        guidance_scale: float = 1.0,
        fake_scale: float | None = None,
    ) -> Tensor:
        """Return v [B, ...] float32; guidance costs one call on 2 B images.

        Raises UserError where fake_scale is given and the fake score is a full copy."""
        t = self._levels(t, len(x_t))
        if guidance_scale <= 1:
            return self._call(role, x_t, t, prompts, fake_scale)
        negative = self.joined([self._negative] * len(x_t))
        both = tuple(_stacked(empty, own) for empty, own in zip(negative, prompts, strict=True))
        v = self._call(role, torch.cat([x_t, x_t]), torch.cat([t, t]), both, fake_scale)
        unconditional, conditional = v.chunk(2)
        return guided(unconditional, conditional, guidance_scale)

    def noise_scale(self, t: float) -> float:
        """Return the factor of unit noise that a sampler begins with at its first level t."""
        return 1.0

    def level_at(self, share: Tensor) -> Tensor:
        """Return the levels of shares of the timesteps: a flow model is trained on 1000 times its levels."""
        return share

    def features(self, role: Role, x_t: Tensor, t: Level, prompts: Embeddings) -> Tensor:
        """Return hidden tokens [B, L, D] float32 of a role's network, with graph; a pass like `velocity`."""
        module, before = self.hidden(self._roles.network(role))
        seen: list[Tensor] = []
        hook = (
            module.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
            if before
            else module.register_forward_hook(lambda _, inputs, output: seen.append(output))
        )
        with hook:
            self._call(role, x_t, self._levels(t, len(x_t)), prompts, None)
        return self.tokens(torch.cat(seen)).to(self._dtype)

    def decode(self, latents: Tensor) -> Tensor:
        """Return images [B, 3, H, W] in [0, 1], float32, as metrics read them.

        Saturated pixels carry no gradient: on the screen nothing changes."""

        def decoded(z: Tensor) -> Tensor:
            with self._autoencoder() as vae:
                return vae.decode(self.raw_latents(z)).sample

        with self._autocast():
            images = self._in_parts(decoded, run_again, latents)
        return (images.float() / 2 + 0.5).clamp(0, 1)

    @torch.no_grad()
    def encode_pictures(self, images: Tensor) -> Tensor:
        """Return latents [B, ...] of images in [0, 1]: the mode of the autoencoder's posterior."""
        with self._autocast(), self._autoencoder() as vae:
            return self.trained_latents(vae.encode(2 * images.to(self._dtype) - 1).latent_dist.mode().to(self._dtype))

    def parameters(self, role: Role) -> list[nn.Parameter]:
        """Return what a role trains."""
        return [] if role == "teacher" else self._roles.parameters(role)

    def keep_reference(self) -> None:
        """Make the role "reference" from the student's present weights."""
        self._roles.keep_reference()

    def reset(self) -> None:
        """Make student and fake score copies of the teacher again."""
        self._roles.reset()

    def protocol(self) -> Protocol:
        """Return the folder's own protocol."""
        return self._protocol

    @cached_property
    def text_digest(self) -> str:
        """The sha256 of what decides prompts' embeddings: gigabytes of files are read once."""
        return encoders_digest(Path(self.settings.path), self._protocol.call_arguments, self.device)

    def teacher_digest(self) -> str:
        """Return the sha256 of the base weights, LoRA adapters left out, and of what decides prompts' embeddings."""
        digest = hashlib.sha256(self.text_digest.encode())
        for name, tensor in sorted(self._roles.base_state().items()):
            digest.update(name.encode() + whole(tensor).detach().float().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def export(self, folder: Path | None, weights: str, dtype: str) -> None:
        """Write the student: "merged" a whole pipeline folder in `dtype`, "lora" the adapter with its base named.

        folder: None in the processes that only lend their part of a sharded base. Raises UserError where an adapter
        is asked for and there is none."""
        base, roles = Path(self.settings.path), self._roles
        if weights == "lora":
            if isinstance(roles, CopyRoles | FullStudentRoles):
                raise UserError('export.weights = "lora" needs backbone.training = "lora"; use "merged"')
            if isinstance(roles, OwnStartRoles):
                base, roles = Path(self.settings.student_path), roles.student
            if folder:
                save_lora(base, folder, roles, self.pipeline_class, self.denoiser)
            return
        state: dict[str, Tensor] = {}
        for name, tensor in self._roles.merged("student"):
            if folder:
                state[name] = tensor.to("cpu", DTYPES[dtype])
        if folder:
            save_merged(base, folder, self._network_class, self.config, state, self.denoiser)

    def _call(self, role: Role, x_t: Tensor, t: Tensor, prompts: Embeddings, fake_scale: float | None) -> Tensor:
        network = self._roles.network(role, fake_scale)
        self.passes += len(x_t) * (2 if torch.is_grad_enabled() else 1)

        def predicted(x_t: Tensor, t: Tensor, *prompts: Any) -> Tensor:
            return self.predict(network, x_t, t, prompts)

        with self._autocast(), attention(self.device):
            return self._in_parts(predicted, self._roles.checkpointed(role), x_t.to(self._dtype), t, *prompts).to(
                self._dtype
            )

    def _in_parts(self, call: Callable[..., Tensor], again: Callable[..., Tensor], *rows: Any) -> Tensor:
        """Return call(*rows) of B images, by `microbatch` of them; each of `rows` is a tensor [B, ...] or a list.

        again(call, *part): the same, and once more in backward()."""
        count, size = len(rows[0]), self.settings.microbatch
        if not 0 < size < count:
            return call(*rows)
        parts = [[x[start : start + size] for x in rows] for start in range(0, count, size)]
        return torch.cat([again(call, *part) if torch.is_grad_enabled() else call(*part) for part in parts])

    def _used(self, x: Tensor) -> Tensor:
        return x.to(self.device, self._dtype if x.is_floating_point() else None)

    def _levels(self, t: Level, count: int) -> Tensor:
        return torch.as_tensor(t, dtype=self._dtype, device=self.device).flatten().expand(count)

    @contextlib.contextmanager
    def _autoencoder(self) -> Iterator[Any]:
        """Give the autoencoder on the device; where it is kept off it, it stays there only for a graph."""
        vae = self.pipeline.vae
        if self.settings.offload_autoencoder:
            vae.to(self.device)
        yield vae
        if self.settings.offload_autoencoder and not torch.is_grad_enabled():
            vae.to("cpu")

    def _autocast(self) -> contextlib.AbstractContextManager:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.settings.precision == "bfloat16")


def roles_of(
    network: Any, settings: BackboneConfig, device: torch.device, start: Any = None
) -> AdapterRoles | OwnStartRoles | FullStudentRoles | CopyRoles:
    """Return the roles of a frozen network as the settings ask for them.

    start: the network that the student starts from instead of this one."""
    if settings.training == "lora":
        adapters = OwnStartRoles(network, start, settings.lora) if start else AdapterRoles(network, settings.lora)
        if settings.gradient_checkpointing:
            network.enable_gradient_checkpointing(adapters.checkpointed("fake_score"))
            if start:
                start.enable_gradient_checkpointing(adapters.checkpointed("student"))
        return adapters
    if settings.fake_score_is_adapter:
        roles = FullStudentRoles(network, settings.lora, start)
        if settings.gradient_checkpointing:
            networks: list[Any] = roles.networks()
            for one, role in zip(networks, ROLES, strict=True):
                one.enable_gradient_checkpointing(roles.checkpointed(role))
        return roles
    if settings.gradient_checkpointing:
        for one in (network, start) if start else (network,):
            one.enable_gradient_checkpointing(checkpointed(device))  # before it is copied
    return CopyRoles(network, start)


def per_image(t: Tensor, x: Tensor) -> Tensor:
    """Return levels [B] as [B, 1, ...], to be multiplied with x [B, ...]."""
    return t.view(-1, *[1] * (x.ndim - 1))


def _stacked(first: Any, second: Any) -> Any:
    return [*first, *second] if isinstance(first, list) else torch.cat([first, second])
