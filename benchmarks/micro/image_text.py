"""Two small image-text models, trained to say which prompts are true of a picture.

    loss = BCE(s cos(f(picture), g(prompt)) + b, verdict)          sigmoid contrastive loss (SigLIP, Zhai et al. 2023)

over labelled captions (`captions.py`) of renders and of the teacher's own imperfect pictures. After training the
score is the plain cosine, as CLIPScore's. `clip` is a transformers CLIPModel with a vision transformer, `heldout` an
open_clip model with a convolutional network; they differ in seed, pictures and in the phrasings they read.

Axes: B pictures, K captions of each, L tokens, D embedding size.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.micro.captions import LabelledPictures
from benchmarks.micro.text import LENGTH, new_tokenizer
from benchmarks.micro.training import (
    Log,
    load_checkpoint,
    numpy_rng,
    save_checkpoint,
    set_rate,
    to_floats,
    warm_stable_decay,
)
from metrics.micro.prompts import Combination, seen_combinations, training_prompts

Name = Literal["clip", "clip_heldout"]
EMBEDDING = 160
COUNTING_TWICE = ("clip_heldout",)  # its ResNet, which pools by averages, finds counts the hardest


@dataclass(frozen=True, kw_only=True)
class ImageTextConfig:
    """How one image-text model is trained."""

    name: Name
    steps: int = 8000
    batch_size: int = 64
    captions: int = 6  # of each picture and step: its own, the rest half true where there are as many
    lr: float = 2e-3
    muon_lr: float = 3e-3  # of the vision transformer's matrices, which AdamW teaches several times more slowly
    weight_decay: float = 0.05
    checkpoint_every: int = 500

    @property
    def seed(self) -> int:
        """Differs between the two models, and with it pictures and phrasings."""
        return {"clip": 11, "clip_heldout": 12}[self.name]


class Towers(Protocol):
    """Both models' common face; embeddings are not normalised."""

    def images(self, pixels_BCHW: Tensor) -> Tensor: ...
    def texts(self, ids_BL: Tensor) -> Tensor: ...
    def save(self, folder: Path) -> None: ...


class TransformersTowers(nn.Module):
    """A transformers CLIPModel: two transformers, patches of 8 x 8 pixels."""

    def __init__(self) -> None:
        super().__init__()
        from transformers import CLIPConfig, CLIPModel

        tokenizer = new_tokenizer()
        text = {
            "vocab_size": len(tokenizer),
            "hidden_size": 64,
            "intermediate_size": 256,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_position_embeddings": LENGTH,
            "projection_dim": EMBEDDING,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        }
        vision = {
            "hidden_size": 80,
            "intermediate_size": 320,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "image_size": 64,
            "patch_size": 8,
            "projection_dim": EMBEDDING,
        }
        self.model: CLIPModel = CLIPModel(
            CLIPConfig(text_config=text, vision_config=vision, projection_dim=EMBEDDING)
        )
        nn.init.normal_(self.model.text_model.embeddings.token_embedding.weight, std=0.3)

    def images(self, pixels_BCHW: Tensor) -> Tensor:
        return self.model.visual_projection(self.model.vision_model(pixel_values=pixels_BCHW).pooler_output)

    def texts(self, ids_BL: Tensor) -> Tensor:
        return self.model.text_projection(self.model.text_model(input_ids=ids_BL).pooler_output)

    def save(self, folder: Path) -> None:
        """Write model, tokenizer and preprocessing as transformers does, weights in float16."""
        import copy

        from transformers import CLIPImageProcessor

        copy.deepcopy(self.model).half().save_pretrained(folder)
        new_tokenizer().save_pretrained(folder)
        CLIPImageProcessor(
            size={"shortest_edge": 64},
            crop_size={"height": 64, "width": 64},
            image_mean=[0.5] * 3,
            image_std=[0.5] * 3,
        ).save_pretrained(folder)


class OpenClipTowers(nn.Module):
    """An open_clip model: CLIP's modified ResNet with attention pooling, and its text transformer."""

    def __init__(self) -> None:
        super().__init__()
        from open_clip import CLIP

        self.config = {
            "embed_dim": EMBEDDING,
            "vision_cfg": {
                "image_size": 64,
                "layers": [3, 4, 4, 1],
                "width": 8,
                "head_width": 64,
                "patch_size": None,
            },
            "text_cfg": {
                "context_length": LENGTH,
                "vocab_size": len(new_tokenizer()),
                "hf_tokenizer_name": "micro",  # any name: the files lie in the same folder
                "width": 64,
                "heads": 4,
                "layers": 2,
            },
        }
        self.model = CLIP(**self.config).to(memory_format=torch.channels_last)  # faster convolutions
        nn.init.normal_(self.model.token_embedding.weight, std=0.3)

    def images(self, pixels_BCHW: Tensor) -> Tensor:
        return self.model.encode_image(pixels_BCHW.contiguous(memory_format=torch.channels_last))

    def texts(self, ids_BL: Tensor) -> Tensor:
        return self.model.encode_text(ids_BL)

    def save(self, folder: Path) -> None:
        """Write config, weights (float16) and tokenizer in the layout of open_clip's "local-dir:"."""
        from safetensors.torch import save_file

        folder.mkdir(parents=True, exist_ok=True)
        state = {name: t.half() if t.is_floating_point() else t for name, t in self.model.state_dict().items()}
        save_file({name: t.contiguous() for name, t in state.items()}, folder / "open_clip_model.safetensors")
        config = {"model_cfg": self.config, "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3}}
        (folder / "open_clip_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        new_tokenizer().save_pretrained(folder)


def new_towers(name: Name) -> TransformersTowers | OpenClipTowers:
    """Return an untrained model by name."""
    return TransformersTowers() if name == "clip" else OpenClipTowers()


def phrasings(combinations: Sequence[Combination], seed: int) -> list[list[str]]:
    """Return, per combination, the half of its training prompts that belongs to one model (at least one)."""
    known = {record["prompt"] for record in training_prompts()}
    halves = []
    for index, combination in enumerate(combinations):
        texts = [text for text in combination.phrasings if text in known]
        rng = np.random.default_rng((0, index))  # the same order for both models, which take its two ends
        order = [texts[place] for place in rng.permutation(len(texts))]
        half = -(-len(order) // 2)
        halves.append(order[:half] if seed % 2 else order[-half:])
    return halves


class Batches:
    """Draws training batches: pictures, captions half true, and their labels."""

    def __init__(self, config: ImageTextConfig, data: LabelledPictures) -> None:
        self.config, self.data = config, data
        texts = phrasings(seen_combinations(), config.seed)
        flat = [text for group in texts for text in group]
        padded = new_tokenizer()(flat, padding="max_length", max_length=LENGTH, truncation=True, return_tensors="pt")
        self.ids, self.sizes = padded.input_ids, np.array([len(group) for group in texts])
        self.pool = np.arange(len(data.pictures))
        if config.name in COUNTING_TWICE:
            tags = np.array([combination.tag for combination in seen_combinations()])
            counted = tags[data.captions[:, 0].numpy()] == "counting"
            self.pool = np.concatenate([self.pool, np.flatnonzero(counted)])
        self.starts = np.concatenate([[0], np.cumsum(self.sizes)[:-1]])

    def __call__(self, step: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return pixels [B, 3, 64, 64] in [-1, 1], token ids [B * K, L] and labels [B, K]."""
        rng, config = numpy_rng(self.config.seed, step), self.config
        chosen = rng.choice(self.pool, size=config.batch_size)
        labels = self.data.labels[chosen].numpy()
        # Sorted by label, in random order within each: false ones at the one end, true ones at the other.
        order = np.argsort(labels + 0.5 * rng.random(labels.shape), axis=1)
        half = config.captions // 2
        own = np.zeros((config.batch_size, 1), int)  # what a benchmark asks of this picture
        columns = np.concatenate([own, order[:, : half - 1], order[:, -half:]], axis=1)
        captions = np.take_along_axis(self.data.captions[chosen].numpy(), columns, axis=1)
        prompts = self.starts[captions] + (rng.random(captions.shape) * self.sizes[captions]).astype(int)
        picked = torch.from_numpy(np.take_along_axis(labels, columns, axis=1))
        return to_floats(self.data.pictures[chosen]), self.ids[prompts.reshape(-1)], picked.float()


def make_optimizers(
    config: ImageTextConfig, towers: nn.Module, others: nn.Module
) -> dict[str, torch.optim.Optimizer]:
    """Return Muon for the matrices of a vision transformer's layers, where there are any, and AdamW for the rest."""
    named = list(towers.named_parameters())
    matrices = [p for name, p in named if "vision_model.encoder.layers" in name and p.ndim == 2]
    chosen = {id(p) for p in matrices}
    rest = [p for _, p in named if id(p) not in chosen] + list(others.parameters())
    optimizers: dict[str, torch.optim.Optimizer] = {
        "adamw": torch.optim.AdamW(rest, config.lr, betas=(0.9, 0.98), weight_decay=config.weight_decay)
    }
    if matrices:
        optimizers["muon"] = torch.optim.Muon(matrices, config.muon_lr, 0.01, adjust_lr_fn="match_rms_adamw")
    return optimizers


def train_image_text(
    config: ImageTextConfig, data: LabelledPictures, work: Path
) -> TransformersTowers | OpenClipTowers:
    """Return the trained model; continues from `work` where a run was cut."""
    torch.manual_seed(config.seed)
    towers = new_towers(config.name)
    scale_and_bias = nn.ParameterList([torch.tensor(2.3), torch.tensor(0.0)])
    optimizers = make_optimizers(config, towers, scale_and_bias)
    parts = {"towers": towers, "scale_and_bias": scale_and_bias, **optimizers}
    path, log = work / f"{config.name}.pt", Log(work / f"{config.name}.log")
    batches = Batches(config, data)
    losses: list[float] = []
    for step in range(load_checkpoint(path, parts), config.steps):
        pixels_BCHW, ids_NL, labels_BK = batches(step)
        with torch.autocast("cpu", dtype=torch.bfloat16), sdpa_kernel(SDPBackend.MATH):  # the fused one is slow here
            image_BD, text_ND = towers.images(pixels_BCHW), towers.texts(ids_NL)
        image_BD, text_ND = F.normalize(image_BD.float(), dim=-1), F.normalize(text_ND.float(), dim=-1)
        cos_BK = torch.einsum("bd,bkd->bk", image_BD, text_ND.reshape(*labels_BK.shape, -1))
        logits_BK = scale_and_bias[0].exp() * cos_BK + scale_and_bias[1]
        loss = F.binary_cross_entropy_with_logits(logits_BK, labels_BK)
        loss.backward()
        nn.utils.clip_grad_norm_(towers.parameters(), 1.0)
        set_rate(optimizers, warm_stable_decay(step, config.steps, decay=0.6))
        for optimizer in optimizers.values():
            optimizer.step()
            optimizer.zero_grad()
        losses.append(loss.item())
        if (step + 1) % config.checkpoint_every == 0 or step + 1 == config.steps:
            log(f"{config.name} step {step + 1} loss {np.mean(losses[-config.checkpoint_every :]):.4f}")
            save_checkpoint(path, step + 1, parts)
    return towers.eval()
