"""ImageReward's model on transformers' BLIP modules: ViT-L/16, a BERT that looks at the picture, a linear head.

    image   all 197 states of the picture, after the last norm
    score   BERT reads the prompt and attends to these states; the head maps the state of [CLS] to the reward

Modules: transformers' BlipVisionModel and BlipTextModel, in eager attention. Three settings differ from their
defaults and change every score without an error: the ViT's norms have eps 1e-6, the text has 12 heads, and the text
is read in both directions (`is_decoder` makes the cross-attention in the config, and causal masks in the call).

Keys of the published file, and where they go:

    blip.visual_encoder.{cls_token, pos_embed}         visual.embeddings.{class_embedding, position_embedding}
    blip.visual_encoder.patch_embed.proj               visual.embeddings.patch_embedding
    blip.visual_encoder.blocks.N.{norm1, norm2, mlp}   visual.encoder.layers.N.{layer_norm1, layer_norm2, mlp}
    blip.visual_encoder.blocks.N.attn.{qkv, proj}      visual.encoder.layers.N.self_attn.{qkv, projection}
    blip.visual_encoder.norm                           visual.post_layernorm
    blip.text_encoder.*                                text.*              (`position_ids` counts, and is left out)
    blip.{vision_proj, text_proj}                      {vision_proj, text_proj}, which no score reads
    mlp.layers.{0,2,4,6,7}                             mlp.{0,2,4,6,7}

Axes: B images with their prompts, C x H x W pixels, N image tokens, L = 35 text tokens, D state size.
"""

import re
from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from metrics.encoders.towers import load_strictly
from metrics.weights import Weights

if TYPE_CHECKING:
    from transformers import BertTokenizer

CONTEXT = 35
MEAN, STD = 0.16717362830052426, 1.0333394966054072  # of the reward on the authors' own pictures
VISION = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 224,
    "patch_size": 16,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-6,
}
TEXT = {
    "vocab_size": 30524,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": 512,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "is_decoder": True,
}
RENAMES = (
    (r"^blip\.visual_encoder\.", "visual."),
    (r"^blip\.text_encoder\.", "text."),
    (r"^blip\.(vision_proj|text_proj)\.", r"\1."),
    (r"^mlp\.layers\.", "mlp."),
    (r"^visual\.cls_token$", "visual.embeddings.class_embedding"),
    (r"^visual\.pos_embed$", "visual.embeddings.position_embedding"),
    (r"^visual\.patch_embed\.proj\.", "visual.embeddings.patch_embedding."),
    (r"^visual\.norm\.", "visual.post_layernorm."),
    (r"^visual\.blocks\.(\d+)\.norm", r"visual.encoder.layers.\1.layer_norm"),
    (r"^visual\.blocks\.(\d+)\.attn\.proj\.", r"visual.encoder.layers.\1.self_attn.projection."),
    (r"^visual\.blocks\.(\d+)\.attn\.", r"visual.encoder.layers.\1.self_attn."),
    (r"^visual\.blocks\.", "visual.encoder.layers."),
)


def native_key(key: str) -> str:
    """Return where a tensor of the published file goes in `BlipReward`."""
    for pattern, replacement in RENAMES:
        key = re.sub(pattern, replacement, key)
    return key


class BlipReward(nn.Module):
    """The whole model; `vision` and `text` are what transformers' two configs take."""

    def __init__(self, vision: Mapping[str, Any], text: Mapping[str, Any]) -> None:
        from transformers import BlipTextConfig, BlipTextModel, BlipVisionConfig, BlipVisionModel

        super().__init__()
        seen, read = vision["hidden_size"], text["hidden_size"]
        self.visual = BlipVisionModel(BlipVisionConfig(**vision))
        self.text = BlipTextModel(BlipTextConfig(**text, encoder_hidden_size=seen), add_pooling_layer=False)
        self.vision_proj, self.text_proj = nn.Linear(seen, 256), nn.Linear(read, 256)
        # As published: no activation between the layers; dropout does nothing in evaluation, but it counts.
        self.mlp = nn.Sequential(
            nn.Linear(read, 1024),
            nn.Dropout(0.2),
            nn.Linear(1024, 128),
            nn.Dropout(0.2),
            nn.Linear(128, 64),
            nn.Dropout(0.1),
            nn.Linear(64, 16),
            nn.Linear(16, 1),
        )

    def image(self, pixels_BCHW: Tensor) -> Tensor:
        """Return the states [B, N, D] of normalised pictures."""
        return self.visual(pixel_values=pixels_BCHW).last_hidden_state

    def read(self, image_BND: Tensor, tokens_B2L: Tensor) -> Tensor:
        """Return the states [B, D] of [CLS] after each prompt was read beside its picture's states."""
        ids_BL, mask_BL = tokens_B2L.long().unbind(dim=1)
        return self.text(
            input_ids=ids_BL, attention_mask=mask_BL, encoder_hidden_states=image_BND, is_decoder=False
        ).last_hidden_state[:, 0]

    def forward(self, image_BND: Tensor, tokens_B2L: Tensor) -> Tensor:
        """Return rewards [B] of pictures' states and of what `BertTokens` made of their prompts."""
        return (self.mlp(self.read(image_BND, tokens_B2L))[:, 0] - MEAN) / STD


class BlipFile:
    """The model in float32 from the published state dict, loaded at first use."""

    def __init__(self, weights: Weights, file: str, device: torch.device) -> None:
        self.weights, self.file, self.device = weights, file, device

    def image(self, pixels_BCHW: Tensor) -> Tensor:
        """Return the states [B, N, D] of normalised pictures. Raises UserError where the weights cannot be used."""
        return self.model.image(pixels_BCHW)

    def score(self, image_BND: Tensor, tokens_B2L: Tensor) -> Tensor:
        """Return rewards [B] from pictures' states and what `BertTokens` made of their prompts.

        On a CPU one at a time, as the package does on every device: in a batch, rewards move in their last bits (the
        pictures' states do not), by up to 2e-6, and would depend on the size of a run's blocks."""
        if self.device.type != "cpu":
            return self.model(image_BND, tokens_B2L)
        pairs = zip(image_BND.split(1), tokens_B2L.split(1), strict=True)
        return torch.cat([self.model(*pair) for pair in pairs])

    @cached_property
    def model(self) -> BlipReward:
        """The loaded model."""
        tensors = self.weights.tensors(self.file)
        kept = {native_key(key): value for key, value in tensors.items() if not key.endswith("position_ids")}
        where = f"{self.weights.folder() / self.file}: not the weights of this model ({{}}); {self.weights.mend}"
        return load_strictly(lambda: BlipReward(VISION, TEXT), kept, where, self.device)


class BertTokens:
    """BERT's lower-case word pieces between [CLS] and [SEP], cut and padded to 35, and the mask of these tokens.

    [DEC] and [ENC] follow the vocabulary, as in BLIP. They are put nowhere, but a prompt that holds them gets them.
    """

    def __init__(self, weights: Weights) -> None:
        self.weights = weights

    def tokens(self, texts: list[str]) -> Tensor:
        """Return ids and mask, [B, 2, L]."""
        read = self._tokenizer(texts, padding="max_length", truncation=True, max_length=CONTEXT, return_tensors="pt")
        return torch.stack([read["input_ids"], read["attention_mask"]], dim=1)

    def truncates(self, text: str) -> bool:
        """Return whether prompt and the two special tokens exceed what is read."""
        return len(self._tokenizer(text)["input_ids"]) > CONTEXT

    @cached_property
    def _tokenizer(self) -> "BertTokenizer":
        from transformers import BertTokenizer

        self.weights.check()
        lines = (self.weights.folder() / "vocab.txt").read_text(encoding="utf-8").splitlines()
        # No warning for prompts above the context: they are cut, counted and reported.
        return BertTokenizer(
            vocab={token: index for index, token in enumerate(lines)},
            bos_token="[DEC]",
            extra_special_tokens=["[ENC]"],
            model_max_length=10**9,
        )
