"""The SD3 family (SD3-M, SD3.5-M/L, and the micro world): any StableDiffusion3Pipeline folder.

The transformer predicts the flow velocity v = eps - x0 at timestep 1000 t. Latents are (z - shift) * scale of the
autoencoder's z. Text embeddings are computed once per prompt and kept: they are functions of the frozen encoders.
Axes: B images, C x h x w latents, L tokens of D channels.
"""

import contextlib
import copy
import hashlib
import inspect
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline
from torch import Tensor, nn

from benchmarks.config import UserError
from benchmarks.protocol import Protocol
from benchmarks.samplers import Level
from trainers.backbones.base import BackboneConfig, Role, register
from trainers.backbones.checkpoint import load_base, save_lora, save_merged
from trainers.backbones.lora import AdapterRoles
from trainers.backbones.recompute import attention, checkpointed
from trainers.flow import guided

ENCODED_AT_ONCE = 16  # prompts per call of the text encoders
Embeddings = tuple[Tensor, Tensor]  # [B, L, D], pooled [B, D]


@register("sd3")
class Sd3:
    """See `trainers.backbones.base.Backbone`."""

    def __init__(self, settings: BackboneConfig, device: torch.device) -> None:
        """Load the folder settings.path. Raises UserError where it is no StableDiffusion3Pipeline."""
        self.settings, self.device, self.passes = settings, device, 0
        self._pipeline, self._protocol = load_base(
            Path(settings.path), "StableDiffusion3Pipeline", device, settings.resolution
        )
        for name in ("transformer", "vae", "text_encoder", "text_encoder_2", "text_encoder_3"):
            component = getattr(self._pipeline, name)
            if component is not None:
                component.requires_grad_(False).eval()
        teacher: Any = self._pipeline.transformer
        self._adapters = AdapterRoles(teacher, settings.lora) if settings.training == "lora" else None
        if settings.gradient_checkpointing:
            teacher.enable_gradient_checkpointing(
                self._adapters.checkpointed() if self._adapters else checkpointed(device)
            )
        self._copies: dict[Role, Any] = {"teacher": teacher}
        if self._adapters is None:
            self._copies |= {role: copy.deepcopy(teacher).requires_grad_(True) for role in ("student", "fake_score")}
        self._cache: OrderedDict[str, Embeddings] = OrderedDict()
        size = (self._protocol.height, self._protocol.width)
        self.latent_shape = (teacher.config.in_channels, *(n // self._pipeline.vae_scale_factor for n in size))

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> Embeddings:
        """Return (embeddings [B, L, D], pooled [B, D]) of B prompts."""
        missing = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._cache]
        for start in range(0, len(missing), ENCODED_AT_ONCE):
            self._encode(missing[start : start + ENCODED_AT_ONCE])
        for prompt in prompts:
            self._cache.move_to_end(prompt)
        rows = [self._cache[prompt] for prompt in prompts]
        while len(self._cache) > self.settings.prompt_cache:
            self._cache.popitem(last=False)
        return torch.stack([row[0] for row in rows]), torch.stack([row[1] for row in rows])

    def velocity(
        self,
        role: Role,
        x_t: Tensor,
        t: Level,
        prompts: Embeddings,
        guidance_scale: float = 1.0,
        fake_scale: float | None = None,
    ) -> Tensor:
        """Return v [B, C, h, w] float32; guidance costs one call on 2 B images.

        Raises UserError where fake_scale is given and the roles are full copies."""
        tokens, pooled = prompts
        if guidance_scale > 1:
            empty = self.encode([self._protocol.negative_prompt])
            tokens = torch.cat([empty[0].expand_as(tokens), tokens])
            pooled = torch.cat([empty[1].expand_as(pooled), pooled])
            both = self._call(role, x_t.repeat(2, 1, 1, 1), _twice(t), tokens, pooled, fake_scale)
            unconditional, conditional = both.chunk(2)
            return guided(unconditional, conditional, guidance_scale)
        return self._call(role, x_t, t, tokens, pooled, fake_scale)

    def features(self, role: Role, x_t: Tensor, t: Level, prompts: Embeddings) -> Tensor:
        """Return the image tokens [B, L, D] float32 after the last transformer block."""
        network, seen = self._network(role), []
        with network.norm_out.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0])):
            self._call(role, x_t, t, *prompts)
        return seen[0].float()

    def decode(self, latents: Tensor) -> Tensor:
        """Return images [B, 3, H, W] in [0, 1]. Saturated pixels carry no gradient: on the screen nothing changes."""
        vae = self._pipeline.vae
        with self._autocast():
            images = vae.decode(latents / vae.config.scaling_factor + (vae.config.shift_factor or 0)).sample
        return (images.float() / 2 + 0.5).clamp(0, 1)

    @torch.no_grad()
    def encode_pictures(self, images: Tensor) -> Tensor:
        """Return latents [B, C, h, w] of images in [0, 1]: the mode of the autoencoder's posterior."""
        vae = self._pipeline.vae
        with self._autocast():
            z = vae.encode(2 * images - 1).latent_dist.mode()
        return (z.float() - (vae.config.shift_factor or 0)) * vae.config.scaling_factor

    def parameters(self, role: Role) -> list[nn.Parameter]:
        """Return what a role trains."""
        if role == "teacher":
            return []
        if self._adapters:
            return self._adapters.parameters(role)
        return list(self._copies[role].parameters()) if role in self._copies else []

    def keep_reference(self) -> None:
        """Make the role "reference" from the student's present weights: one more adapter, or one more copy."""
        if self._adapters:
            self._adapters.keep_reference()
        else:
            self._copies["reference"] = copy.deepcopy(self._copies["student"]).requires_grad_(False)

    def reset(self) -> None:
        """Make student and fake score copies of the teacher again."""
        if self._adapters:
            self._adapters.reset()
        for role in self._copies.keys() - {"teacher", "reference"}:
            self._copies[role].load_state_dict(self._copies["teacher"].state_dict())

    def protocol(self) -> Protocol:
        """Return the folder's own protocol."""
        return self._protocol

    def teacher_digest(self) -> str:
        """Return the sha256 of the base weights, LoRA adapters left out."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self._base_state().items()):
            digest.update(name.encode() + tensor.detach().float().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def export(self, folder: Path, weights: str, dtype: str) -> None:
        """Write the student: "merged" a whole pipeline folder in `dtype`, "lora" the adapter with its base named."""
        base, teacher = Path(self.settings.path), self._copies["teacher"]
        if weights == "lora":
            if not self._adapters:
                raise UserError('export.weights = "lora" needs backbone.training = "lora"; use "merged"')
            save_lora(base, folder, self._adapters, StableDiffusion3Pipeline)
            return
        student = self._adapters.merged("student") if self._adapters else self._copies["student"].state_dict()
        save_merged(base, folder, SD3Transformer2DModel, teacher.config, self._base_state() | student, dtype)

    def _network(self, role: Role, fake_scale: float | None = None) -> Any:
        if self._adapters:
            return self._adapters.network(role, fake_scale)
        if fake_scale is not None:
            raise UserError('backbone.training = "full" has no adapter to scale: use "lora", or drop dynadg')
        return self._copies[role]

    def _call(
        self, role: Role, x_t: Tensor, t: Level, tokens: Tensor, pooled: Tensor, fake_scale: float | None = None
    ) -> Tensor:
        network = self._network(role, fake_scale)
        timestep = 1000 * torch.as_tensor(t, dtype=torch.float32, device=x_t.device).flatten().expand(len(x_t))
        self.passes += len(x_t) * (2 if torch.is_grad_enabled() else 1)
        with self._autocast(), attention(self.device):
            v = network(x_t, timestep=timestep, encoder_hidden_states=tokens, pooled_projections=pooled).sample
        return v.float()

    def _encode(self, prompts: list[str]) -> None:
        # Always the same number of rows: a batch's shape decides the last bits of its rows, and a resumed run meets
        # other prompts together than the first one did.
        padded = prompts + [""] * (ENCODED_AT_ONCE - len(prompts))
        known = inspect.signature(self._pipeline.encode_prompt).parameters
        extra: dict[str, Any] = {k: v for k, v in self._protocol.call_arguments.items() if k in known}
        tokens, _, pooled, _ = self._pipeline.encode_prompt(
            padded, None, None, device=self.device, do_classifier_free_guidance=False, **extra
        )
        for row, prompt in enumerate(prompts):
            self._cache[prompt] = (tokens[row].clone(), pooled[row].clone())  # a view would keep the whole batch

    def _base_state(self) -> dict[str, Tensor]:
        teacher = self._copies["teacher"]
        return self._adapters.base_state() if self._adapters else dict(teacher.state_dict())

    def _autocast(self) -> contextlib.AbstractContextManager:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.settings.precision == "bfloat16")


def _twice(t: Level) -> Level:
    return torch.cat([t, t]) if isinstance(t, Tensor) and t.ndim and len(t) > 1 else t
