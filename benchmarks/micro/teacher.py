"""The micro pipeline's transformer and text encoders: flow matching on the latents of renders.

    x_t = (1 - t) x_0 + t eps,   t = sigmoid(n), n ~ N(m, 1)         logit-normal times (Esser et al. 2024, Sec. 3.1)
    loss = |v(x_t, t, prompt) - (eps - x_0)|^2 + w(step) CE(head(h_2), kinds)

The second term teaches the middle block to say which object each latent cell belongs to, in the spirit of REPA (Yu et
al. 2025) with the scene itself in the place of a frozen encoder; it fades out at half time and its head is dropped.
10 % of the prompts are empty, for guidance. Muon (Jordan et al. 2024) updates the matrices of the blocks, AdamW the
rest; the exported weights are an exponential moving average.

Axes: B pictures, L tokens of text, C x H x W latents.
"""

import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, distributed, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.micro.autoencoder import encode
from benchmarks.micro.renders import KINDS, TAG_WEIGHTS, draw_combinations, render_all
from benchmarks.micro.text import LENGTH, encode_text, new_text_encoder, new_tokenizer
from benchmarks.micro.training import (
    Log,
    load_checkpoint,
    numpy_rng,
    save_checkpoint,
    set_rate,
    torch_rng,
    warm_stable_decay,
)
from metrics.micro.prompts import Combination, training_prompts

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, SD3Transformer2DModel, StableDiffusion3Pipeline


@dataclass(frozen=True, kw_only=True)
class TeacherConfig:
    """How transformer and text encoders are trained."""

    steps: int = 24_000
    batch_size: int = 64
    renders: int = 100_000
    tag_weights: Mapping[str, float] = field(default_factory=lambda: dict(TAG_WEIGHTS))  # of the renders
    muon_lr: float = 3e-3
    adamw_lr: float = 1.5e-3
    weight_decay: float = 0.01
    ema: float = 0.999
    empty_prompts: float = 0.1
    time_mean: float = 0.3  # m; above 0: more of the noisy times, where the layout is decided
    kinds_weight: float = 0.1  # of the second term, at the start
    kinds_until: float = 0.5  # share of the steps after which it is gone
    compile: bool = True  # needs a C++ compiler; about 1.6 times faster
    workers: int = 2  # processes of one thread each, a share of the batch each; steadier than threads on busy cores
    checkpoint_every: int = 500
    seed: int = 1


class Networks(nn.Module):
    """All that is trained; `head` is not exported."""

    def __init__(self, vocabulary: int, end: int) -> None:
        super().__init__()
        self.transformer = new_transformer()
        self.text_encoder = new_text_encoder(vocabulary, end)
        self.text_encoder_2 = new_text_encoder(vocabulary, end)
        self.head = nn.Linear(self.transformer.inner_dim, 4 * KINDS)  # a token is 2 x 2 latent cells

    def condition(self, ids_BL: Tensor) -> tuple[Tensor, Tensor]:
        """Return what the pipeline conditions on: hidden states [B, L, D] and pooled embeddings [B, D]."""
        return encode_text((self.text_encoder, self.text_encoder_2), ids_BL)


def new_transformer() -> "SD3Transformer2DModel":
    """Return an untrained transformer; modulations and output begin at zero: every block begins as identity."""
    from diffusers import SD3Transformer2DModel

    model = SD3Transformer2DModel(
        sample_size=16,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=4,
        num_attention_heads=4,
        attention_head_dim=32,
        joint_attention_dim=128,
        caption_projection_dim=128,
        pooled_projection_dim=128,
        pos_embed_max_size=8,
        qk_norm="rms_norm",
    )
    zero = [model.proj_out, model.norm_out.linear]
    for block in model.transformer_blocks:
        zero += [block.norm1.linear, block.norm1_context.linear]
    for linear in zero:
        nn.init.zeros_(linear.weight)
        nn.init.zeros_(linear.bias)
    return model


def velocity_and_hidden(
    model: "SD3Transformer2DModel", x_BCHW: Tensor, t_B: Tensor, text_BLD: Tensor, pooled_BD: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the transformer's output [B, C, H, W], as its own `forward`, and the middle block's tokens [B, N, D]."""
    B, C, H, W = x_BCHW.shape
    x_BND = model.pos_embed(x_BCHW)
    embedded_BD = model.time_text_embed(1000 * t_B, pooled_BD)
    text_BLD = model.context_embedder(text_BLD)
    middle_BND = x_BND
    for index, block in enumerate(model.transformer_blocks):
        text_BLD, x_BND = block(hidden_states=x_BND, encoder_hidden_states=text_BLD, temb=embedded_BD)
        if 2 * (index + 1) == len(model.transformer_blocks):
            middle_BND = x_BND
    x_BND = model.proj_out(model.norm_out(x_BND, embedded_BD))
    v_BCHW = x_BND.reshape(B, H // 2, W // 2, 2, 2, C).permute(0, 5, 1, 3, 2, 4).reshape(B, C, H, W)
    return v_BCHW, middle_BND


class Data:
    """Latents of renders, their maps of kinds, and the tokenised prompts that describe each."""

    def __init__(self, config: TeacherConfig, vae: "AutoencoderKL", work: Path) -> None:
        self.config = config
        combinations = draw_combinations(config.renders, config.seed, config.tag_weights)
        self.latents, self.kinds = self._latents(combinations, vae, work / "renders.pt")
        texts = [record["prompt"] for record in training_prompts()] + [""]
        number = {text: index for index, text in enumerate(texts)}
        self.phrasings = [[number[text] for text in c.phrasings if text in number] for c in combinations]
        tokenizer = new_tokenizer()
        padded = tokenizer(texts, padding="max_length", max_length=LENGTH, truncation=True, return_tensors="pt")
        self.ids = padded.input_ids

    def batch(self, step: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return latents [B, 4, 16, 16], kinds [B, N, 4] per token, and token ids [B, L] of one step."""
        rng, size = numpy_rng(self.config.seed, step), self.config.batch_size
        chosen = rng.integers(len(self.latents), size=size)
        described = [self.phrasings[index][rng.integers(len(self.phrasings[index]))] for index in chosen]
        prompts = np.where(rng.random(size) < self.config.empty_prompts, len(self.ids) - 1, described)
        kinds = self.kinds[chosen].long().reshape(size, 8, 2, 8, 2).transpose(2, 3).reshape(size, 64, 4)
        return self.latents[chosen].float(), kinds, self.ids[prompts]

    def _latents(self, combinations: list[Combination], vae: "AutoencoderKL", cache: Path) -> tuple[Tensor, Tensor]:
        if not cache.exists():
            cache.parent.mkdir(parents=True, exist_ok=True)
            parts = []
            for first in range(0, len(combinations), 10_000):
                pictures, kinds = render_all(combinations[first : first + 10_000], self.config.seed + 1000 + first)
                with torch.autocast("cpu", dtype=torch.bfloat16):
                    parts.append((encode(vae, pictures).half(), torch.from_numpy(kinds)))
            torch.save([torch.cat(column) for column in zip(*parts, strict=True)], cache)
        latents, kinds = torch.load(cache, weights_only=True)
        return latents, kinds


def split_parameters(networks: Networks) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Return the matrices of the transformer's blocks (for Muon) and everything else (for AdamW)."""
    matrices = [p for p in networks.transformer.transformer_blocks.parameters() if p.ndim == 2]
    others = {id(p) for p in matrices}
    return matrices, [p for p in networks.parameters() if id(p) not in others]


Watch = Callable[[int, Networks, Log], None]


class Teacher:
    """Networks, optimisers and moving average of one training run."""

    def __init__(self, config: TeacherConfig, rank: int = 0) -> None:
        torch.manual_seed(config.seed)
        tokenizer = new_tokenizer()
        self.config = config
        self.share = slice(rank, None, config.workers)  # of a batch
        self.networks = Networks(len(tokenizer), tokenizer.eos_token_id)
        self.average = Networks(len(tokenizer), tokenizer.eos_token_id).requires_grad_(False)
        self.average.load_state_dict(self.networks.state_dict())
        matrices, others = split_parameters(self.networks)
        self.optimizers: dict[str, torch.optim.Optimizer] = {
            "muon": torch.optim.Muon(
                matrices, config.muon_lr, config.weight_decay, momentum=0.95, adjust_lr_fn="match_rms_adamw"
            ),
            "adamw": torch.optim.AdamW(others, config.adamw_lr, betas=(0.9, 0.98), weight_decay=config.weight_decay),
        }
        self._forward = torch.compile(velocity_and_hidden, dynamic=False) if config.compile else velocity_and_hidden

    def start_from(self, pipeline: "StableDiffusion3Pipeline") -> None:
        """Take a pipeline's weights as the initial ones."""
        for networks in (self.networks, self.average):
            for name in ("transformer", "text_encoder", "text_encoder_2"):
                getattr(networks, name).load_state_dict(getattr(pipeline, name).state_dict())

    @property
    def parts(self) -> dict[str, nn.Module | torch.optim.Optimizer]:
        """What a checkpoint holds."""
        return {"networks": self.networks, "average": self.average, **self.optimizers}

    def step(self, step: int, x0_BCHW: Tensor, kinds_BN4: Tensor, ids_BL: Tensor) -> dict[str, Tensor]:
        """Take one optimiser step on this worker's share of a batch; return the share's two losses."""
        config, rng = self.config, torch_rng(self.config.seed, step)
        t_B = torch.sigmoid(config.time_mean + torch.randn(len(x0_BCHW), generator=rng))
        eps_BCHW = torch.randn(x0_BCHW.shape, generator=rng)
        x0_BCHW, kinds_BN4, ids_BL, t_B, eps_BCHW = (
            part[self.share] for part in (x0_BCHW, kinds_BN4, ids_BL, t_B, eps_BCHW)
        )
        t_B111 = t_B[:, None, None, None]
        x_t = (1 - t_B111) * x0_BCHW + t_B111 * eps_BCHW
        with torch.autocast("cpu", dtype=torch.bfloat16), sdpa_kernel(SDPBackend.MATH):  # the fused one is slow here
            text_BLD, pooled_BD = self.networks.condition(ids_BL)
            v_BCHW, middle_BND = self._forward(self.networks.transformer, x_t, t_B, text_BLD, pooled_BD)
            logits = self.networks.head(middle_BND)
        flow = F.mse_loss(v_BCHW.float(), eps_BCHW - x0_BCHW)
        kinds = F.cross_entropy(logits.float().reshape(-1, KINDS), kinds_BN4.reshape(-1))
        fade = max(0.0, 1 - step / (config.kinds_until * config.steps))
        (flow + config.kinds_weight * fade * kinds).backward()
        average_gradients(self.networks)
        nn.utils.clip_grad_norm_(self.networks.parameters(), 1.0)
        set_rate(self.optimizers, warm_stable_decay(step, config.steps))
        for optimizer in self.optimizers.values():
            optimizer.step()
            optimizer.zero_grad()
        self.update_average(step)
        return {"flow": flow.detach(), "kinds": kinds.detach()}

    @torch.no_grad()
    def update_average(self, step: int) -> None:
        """Move the average towards the networks; faster at first, so that it forgets the initial weights."""
        weight = 1 - min(self.config.ema, (step + 1) / (step + 10))
        torch._foreach_lerp_(list(self.average.parameters()), list(self.networks.parameters()), weight)


def average_gradients(module: nn.Module) -> None:
    """Average the gradients over the workers; nothing to do where there is one."""
    if not distributed.is_initialized():
        return
    gradients = [p.grad for p in module.parameters() if p.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    distributed.all_reduce(flat)
    flat /= distributed.get_world_size()
    for gradient, averaged in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(averaged.view_as(gradient))


def train_teacher(
    config: TeacherConfig,
    vae: "AutoencoderKL",
    work: Path,
    watch: Watch | None = None,
    start: "StableDiffusion3Pipeline | None" = None,
) -> Networks:
    """Return the averaged networks; continues from `work` where a run was cut.

    watch(step, average, log) is called whenever the state was saved: to look, never to change it. `start` gives the
    initial weights of a run that begins."""
    Data(config, vae, work)  # makes the latents, once for all workers
    with tempfile.TemporaryDirectory() as folder:
        # fork: the workers need no second import, and keep the command line that a user sees in top
        torch.multiprocessing.start_processes(
            _work, (config, vae, work, watch, start, f"{folder}/store"), nprocs=config.workers, start_method="fork"
        )
    teacher = Teacher(config)
    load_checkpoint(work / "teacher.pt", teacher.parts)
    return teacher.average.eval()


def _work(
    rank: int,
    config: TeacherConfig,
    vae: "AutoencoderKL",
    work: Path,
    watch: Watch | None,
    start: "StableDiffusion3Pipeline | None",
    store: str,
) -> None:
    """Train as one of the workers; the first one saves and looks."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", f"file://{store}", rank=rank, world_size=config.workers)
    teacher, data = Teacher(config, rank), Data(config, vae, work)
    if start:
        teacher.start_from(start)
    path, log = work / "teacher.pt", Log(work / "teacher.log")
    recent: list[dict[str, Tensor]] = []
    for step in range(load_checkpoint(path, teacher.parts), config.steps):
        recent.append(teacher.step(step, *data.batch(step)))
        if rank == 0 and ((step + 1) % config.checkpoint_every == 0 or step + 1 == config.steps):
            log(f"teacher step {step + 1} " + _means(recent))
            recent.clear()
            save_checkpoint(path, step + 1, teacher.parts)
            if watch:
                watch(step + 1, teacher.average, log)
    distributed.destroy_process_group()


def _means(rows: Iterable[dict[str, Tensor]]) -> str:
    rows = list(rows)
    return " ".join(f"{name} {torch.stack([row[name] for row in rows]).mean():.4f}" for name in rows[0])
