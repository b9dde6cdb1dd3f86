"""HPSv3's model on transformers' Qwen2-VL: a picture and its prompt are read as one text; a head rates it.

    patches   the picture in patches of 14 x 14 pixels, its sides rounded to 28 and its area near 200,704 pixels
    output    two numbers of the head, from the last state at the token <|Reward|>: mu and log sigma

What decides the numbers, and would change them without an error:
- Every token counts as one position, those of the picture too. The published model was trained so: its code passes
  no positions, and the transformers it pins then counts 0 to L - 1 on all three rotary axes. transformers 5 would
  compute Qwen2-VL's two-dimensional positions of the picture.
- The head is in float32, whatever the rest is in.

Keys of the published file: visual.* as they are, model.* to language_model.*, rm_head.{0,3,5} to the head; lm_head,
which predicts words, is left out.
Source: package hpsv3 1.0.0 and transformers 4.45. Axes: B images with their prompts, P patches of all images, L
tokens, D state size.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from metrics.base import Prompt, UserError
from metrics.encoders.towers import load_strictly
from metrics.images import to_tensor
from metrics.preprocessing import CLIP_MEAN, CLIP_STD
from metrics.weights import Weights

if TYPE_CHECKING:
    from tokenizers import Tokenizer

PATCH, MERGE, FRAMES = 14, 2, 2  # pixels; patches a token stands for, each way; a picture is a film of two frames
FACTOR = PATCH * MERGE
AREA = 256 * FACTOR * FACTOR
LONGEST = 200  # times the shorter side
REWARD, SLOT = "<|Reward|>", "<|image_pad|>"
TURNS = (  # Qwen2-VL's chat template with its default system turn
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n<|vision_start|>"
    f"{SLOT}<|vision_end|>",
    "<|im_end|>\n<|im_start|>assistant\n",
)
TEXT = {
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-6,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
}
VISION = {"depth": 32, "embed_dim": 1280, "hidden_size": 3584, "num_heads": 16, "mlp_ratio": 4}


def smart_size(height: int, width: int) -> tuple[int, int]:
    """Return height and width after resizing: multiples of 28, the aspect ratio about kept, the area about 200,704.

    Raises: UserError where one side is more than 200 times the other."""
    if max(height, width) > LONGEST * min(height, width):
        raise UserError(f"hps_v3: a picture of {width}x{height} pixels; one side is over {LONGEST} times the other")
    rounded = tuple(max(FACTOR, round(side / FACTOR) * FACTOR) for side in (height, width))
    scale = math.sqrt(height * width / AREA)
    if math.prod(rounded) > AREA:
        return math.floor(height / scale / FACTOR) * FACTOR, math.floor(width / scale / FACTOR) * FACTOR
    if math.prod(rounded) < AREA:
        scale = math.sqrt(AREA / (height * width))
        return math.ceil(height * scale / FACTOR) * FACTOR, math.ceil(width * scale / FACTOR) * FACTOR
    return rounded[0], rounded[1]


@dataclass(frozen=True)
class Patches:
    """The patches of B pictures of any sizes, one picture after the other, and each one's grid."""

    values_PD: Tensor
    grid_B3: Tensor  # frames / 2, patches down, patches across

    def to(self, device: torch.device) -> "Patches":
        """Return the same on a device."""
        return Patches(self.values_PD.to(device), self.grid_B3.to(device))


@dataclass(frozen=True, kw_only=True)
class SmartPatches:
    """HPSv3's preprocessing."""

    def from_pil(self, images: Sequence[Image.Image]) -> Patches:
        """Return the patches of B RGB pictures, each resized by PIL's bicubic."""
        resized = []
        for image in images:
            height, width = smart_size(image.height, image.width)
            resized.append(to_tensor([image.resize((width, height), Image.Resampling.BICUBIC)])[0])
        return _patches(resized)

    def from_tensor(self, images_BCHW: Tensor) -> Patches:
        """Return the patches of floats in [0, 1], resized by antialiased bicubic; differentiable."""
        size = smart_size(images_BCHW.shape[-2], images_BCHW.shape[-1])
        if images_BCHW.shape[-2:] != size:
            images_BCHW = F.interpolate(images_BCHW, size, mode="bicubic", antialias=True)
        return _patches(list(images_BCHW))


def _patches(images: Sequence[Tensor]) -> Patches:
    grid_B3 = torch.tensor([[1, image.shape[-2] // PATCH, image.shape[-1] // PATCH] for image in images])
    return Patches(torch.cat([_cut(image) for image in images]), grid_B3)


def _cut(image_CHW: Tensor) -> Tensor:
    """Return the patches of one picture: the four that make one token stand together."""
    mean_C11, std_C11 = (image_CHW.new_tensor(values)[:, None, None] for values in (CLIP_MEAN, CLIP_STD))
    normal = (image_CHW - mean_C11) / std_C11
    rows, columns = normal.shape[-2] // FACTOR, normal.shape[-1] // FACTOR
    cut = normal.reshape(3, rows, MERGE, PATCH, columns, MERGE, PATCH).permute(1, 4, 2, 5, 0, 3, 6)
    frames = cut[:, :, :, :, :, None].expand(-1, -1, -1, -1, -1, FRAMES, -1, -1)
    return frames.reshape(rows * columns * MERGE**2, 3 * FRAMES * PATCH**2)


class QwenReward(nn.Module):
    """Qwen2-VL without its word predictor; `text` and `vision` are what transformers' two configs take."""

    def __init__(self, text: Mapping[str, Any], vision: Mapping[str, Any]) -> None:
        from transformers import Qwen2VLConfig, Qwen2VLModel

        super().__init__()
        model = Qwen2VLModel(Qwen2VLConfig(text_config=dict(text), vision_config=dict(vision)))
        self.visual, self.language_model = model.visual, model.language_model

    def forward(self, patches: Patches, ids_BL: Tensor, slots_BL: Tensor, mask_BL: Tensor) -> Tensor:
        """Return the last states [B, L, D] of texts in which the slots stand for the pictures' tokens."""
        embedded_BLD = self.language_model.embed_tokens(ids_BL)
        values_PD = patches.values_PD.to(embedded_BLD.dtype)
        seen_TD = self.visual(values_PD, grid_thw=patches.grid_B3).pooler_output
        embedded_BLD = embedded_BLD.masked_scatter(slots_BL[..., None], seen_TD)
        positions_3BL = torch.arange(ids_BL.shape[1], device=ids_BL.device).expand(3, *ids_BL.shape)
        return self.language_model(
            inputs_embeds=embedded_BLD, attention_mask=mask_BL, position_ids=positions_3BL, use_cache=False
        ).last_hidden_state


class RewardHead(nn.Sequential):
    """mu and log sigma from one state; keys as published."""

    def __init__(self, width: int) -> None:
        layers = nn.Linear(width, 1024), nn.ReLU(), nn.Dropout(0.05), nn.Linear(1024, 16), nn.ReLU(), nn.Linear(16, 2)
        super().__init__(*layers)


@dataclass(frozen=True)
class Row:
    """One prompt as token ids; where the picture's tokens begin and how many there are; where the reward is read."""

    ids: Sequence[int]
    picture: int
    tokens: int
    reward: int


class QwenTokens:
    """Qwen2-VL's tokenizer with the reward's token after its last one."""

    def __init__(self, weights: Weights, instruction: Path) -> None:
        self.weights, self.instruction = weights, instruction

    def row(self, prompt: str, tokens: int) -> Row:
        """Return the whole text of one pair, whose picture has that many tokens."""
        instruction = self.instruction.read_text(encoding="utf-8").replace("{text_prompt}", prompt)
        ids = self._tokenizer.encode(instruction.join(TURNS), add_special_tokens=False).ids
        slot, reward = self._id(SLOT), self._id(REWARD)
        picture = ids.index(slot)
        ids[picture : picture + 1] = [slot] * tokens
        # A prompt may hold the token, too; the one that was trained is the last.
        return Row(ids, picture, tokens, len(ids) - 1 - ids[::-1].index(reward))

    def _id(self, token: str) -> int:
        """Return the id of a special token. Raises UserError where the tokenizer is another model's."""
        found = self._tokenizer.token_to_id(token)
        if found is None:
            where = self.weights.folder() / "tokenizer.json"
            raise UserError(f"{where}: no token {token}: not Qwen2-VL's; {self.weights.mend}")
        return found

    def counts(self, texts: list[str]) -> Tensor:
        """Return how many tokens each prompt has by itself, [B, 1]."""
        return torch.tensor([[len(self._tokenizer.encode(text, add_special_tokens=False).ids)] for text in texts])

    @cached_property
    def _tokenizer(self) -> "Tokenizer":
        from tokenizers import Tokenizer

        self.weights.check()
        tokenizer = Tokenizer.from_file(str(self.weights.folder() / "tokenizer.json"))
        tokenizer.add_special_tokens([REWARD])
        return tokenizer


class QwenFile:
    """The model from the published state dict, loaded at first use; the head in float32."""

    def __init__(
        self, weights: Weights, file: str, tokens: QwenTokens, device: torch.device, dtype: torch.dtype
    ) -> None:
        self.weights, self.file, self.tokens, self.device, self.dtype = weights, file, tokens, device, dtype

    def pair(self, patches: Patches, prompts: Sequence[Prompt]) -> Tensor:
        """Return mu and log sigma [B, 2] of pictures, each with its own prompt."""
        counts = (patches.grid_B3.prod(dim=1) // MERGE**2).tolist()
        rows = [self.tokens.row(prompt.text, count) for prompt, count in zip(prompts, counts, strict=True)]
        return self.output(patches, rows)

    def output(self, patches: Patches, rows: Sequence[Row]) -> Tensor:
        """Return mu and log sigma [B, 2]; rows of different lengths are padded at their end."""
        shape = len(rows), max(len(row.ids) for row in rows)
        ids_BL, slots_BL, mask_BL = np.zeros(shape, np.int64), np.zeros(shape, bool), np.zeros(shape, np.int64)
        for index, row in enumerate(rows):
            ids_BL[index, : len(row.ids)] = row.ids
            mask_BL[index, : len(row.ids)] = 1
            slots_BL[index, row.picture : row.picture + row.tokens] = True
        inputs = (torch.from_numpy(values).to(self.device) for values in (ids_BL, slots_BL, mask_BL))
        backbone, head = self.model
        hidden_BLD = backbone(patches, *inputs)
        hidden_BD = hidden_BLD[torch.arange(len(rows)), [row.reward for row in rows]]
        return head(hidden_BD.to(head[0].weight.dtype))

    @cached_property
    def model(self) -> tuple[QwenReward, RewardHead]:
        """The loaded model and its head."""
        tensors = self.weights.tensors(self.file)
        where = f"{self.weights.folder() / self.file}: not the weights of this model ({{}}); {self.weights.mend}"
        head = {key.removeprefix("rm_head."): tensors.pop(key) for key in list(tensors) if key.startswith("rm_head.")}
        tensors.pop("lm_head.weight", None)
        kept = {("language_" if key.startswith("model.") else "") + key: value for key, value in tensors.items()}
        # The table of embeddings was cut to the tokenizer's length plus one.
        table = kept.get("language_model.embed_tokens.weight")
        text = TEXT | {"vocab_size": 151658 if table is None else len(table)}
        backbone = load_strictly(lambda: QwenReward(text, VISION), kept, where, self.device, self.dtype)
        width = int(VISION["hidden_size"])
        return backbone, load_strictly(lambda: RewardHead(width), head, where, self.device)
