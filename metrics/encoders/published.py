"""The published image-text models behind the metrics: architecture, preprocessing and tokens of each, by name.

Weights come from the manifest and hold nothing but numbers; what decides how they are used stands here. A name of the
table below is the encoder's; ":" and an output make a feature's key, such as "openai/clip-vit-large-patch14:image".

    encoder                             architecture                  activation   pictures            tokens
    openai/clip-vit-large-patch14       CLIP ViT-L/14, 224 px         quick GELU   shorter side, crop  transformers
    openai/clip-vit-base-patch32        CLIP ViT-B/32, 224 px         quick GELU   shorter side, crop  OpenAI
    laion/CLIP-ViT-g-14-laion2B         open_clip ViT-g-14, 224 px    GELU         DMD2's              DMD2's
    yuvalkirstain/PickScore_v1          CLIP ViT-H/14, 224 px         GELU         shorter side, crop  transformers
    xswu/HPSv2, xswu/HPSv2.1            open_clip ViT-H-14, 224 px    GELU         longer side, pad    OpenAI
    apple/DFN5B-CLIP-ViT-H-14           open_clip ViT-H-14, 224 px    quick GELU   squash              OpenAI
    apple/DFN5B-CLIP-ViT-H-14-378       open_clip ViT-H-14-378        quick GELU   squash              OpenAI

quick GELU, x sigmoid(1.702 x), and GELU give different scores from the same file without any error; the architectures
below say which one the weights were trained with.
"""

from collections.abc import Callable, Mapping
from operator import itemgetter
from typing import Any

import torch

from metrics.encoders.clip_tokens import END, OpenAiTokens, SplicedTokens, Tokens, TransformersTokens
from metrics.encoders.open_clip import OpenClipFile
from metrics.encoders.transformers_clip import ClipFile
from metrics.features import Encoder, register_encoders
from metrics.preprocessing import Preprocessing, Resized, SquareFirst
from metrics.weights import Weights, manifest

Config = Mapping[str, Any]


def clip_config(vision: dict[str, Any], text: dict[str, Any], projection: int, activation: str) -> Config:
    """Return what CLIPConfig takes; both towers share the activation, and a text ends at the first end token."""
    return {
        "projection_dim": projection,
        "vision_config": {"hidden_act": activation, **vision},
        "text_config": {"hidden_act": activation, "eos_token_id": END, **text},
    }


def tower(width: int, layers: int, heads: int) -> dict[str, int]:
    """Return the part of a transformers config that both kinds of towers have; the MLP is four times as wide."""
    return {
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
    }


CLIP_L14 = clip_config({**tower(1024, 24, 16), "patch_size": 14}, tower(768, 12, 12), 768, "quick_gelu")
CLIP_B32 = clip_config({**tower(768, 12, 12), "patch_size": 32}, tower(512, 12, 8), 512, "quick_gelu")
PICK = clip_config({**tower(1280, 32, 16), "patch_size": 14}, tower(1024, 24, 16), 1024, "gelu")


@register_encoders("openai/clip-vit-large-patch14")
def clip_l14(device: torch.device) -> Mapping[str, Encoder]:
    """Return the encoders of OpenAI's CLIP ViT-L/14."""
    return transformers_outputs("openai/clip-vit-large-patch14", manifest("clip-vit-large-patch14"), device, CLIP_L14)


@register_encoders("openai/clip-vit-base-patch32")
def clip_b32(device: torch.device) -> Mapping[str, Encoder]:
    """Return the encoders of OpenAI's CLIP ViT-B/32."""
    weights = manifest("clip-vit-b-32")
    return transformers_outputs("openai/clip-vit-base-patch32", weights, device, CLIP_B32, file="pytorch_model.bin")


@register_encoders("yuvalkirstain/PickScore_v1")
def pick_score(device: torch.device) -> Mapping[str, Encoder]:
    """Return the encoders of PickScore v1."""
    return transformers_outputs("yuvalkirstain/PickScore_v1", manifest("pick-score-v1"), device, PICK)


@register_encoders("laion/CLIP-ViT-g-14-laion2B")
def clip_g14(device: torch.device) -> Mapping[str, Encoder]:
    """Return the encoders of LAION's CLIP ViT-g/14 with DMD2's pictures and captions."""
    weights = manifest("clip-vit-g-14-laion2b")
    return open_clip_outputs(
        weights, "open_clip_pytorch_model.bin", device, named("ViT-g-14"), dmd2_pictures, SplicedTokens()
    )


@register_encoders("xswu/HPSv2")
def hps_v2(device: torch.device) -> Mapping[str, Encoder]:
    """Return the encoders of HPS v2.0."""
    file = "HPS_v2_compressed.pt"
    return open_clip_outputs(manifest("hps-v2"), file, device, named("ViT-H-14"), padded, OpenAiTokens())


@register_encoders("xswu/HPSv2.1")
def hps_v21(device: torch.device) -> Mapping[str, Encoder]:
    """Return the encoders of HPS v2.1."""
    file = "HPS_v2.1_compressed.pt"
    return open_clip_outputs(manifest("hps-v2.1"), file, device, named("ViT-H-14"), padded, OpenAiTokens())


@register_encoders("apple/DFN5B-CLIP-ViT-H-14-378")
def dfn(device: torch.device) -> Mapping[str, Encoder]:
    """Return the encoders of Apple's DFN-5B CLIP ViT-H/14 at 378 pixels."""
    weights, config = manifest("dfn5b-clip-vit-h-14-378"), named("ViT-H-14-378-quickgelu")
    return open_clip_outputs(weights, "open_clip_pytorch_model.bin", device, config, squashed, OpenAiTokens())


@register_encoders("apple/DFN5B-CLIP-ViT-H-14")
def dfn_224(device: torch.device) -> Mapping[str, Encoder]:
    """Return the encoders of Apple's DFN-5B CLIP ViT-H/14 at 224 pixels."""
    weights, config = manifest("dfn5b-clip-vit-h-14"), named("ViT-H-14-quickgelu")
    return open_clip_outputs(weights, "open_clip_pytorch_model.bin", device, config, squashed, OpenAiTokens())


def transformers_outputs(
    name: str, weights: Weights, device: torch.device, config: Config, file: str = "model.safetensors"
) -> Mapping[str, Encoder]:
    """Return the encoders of one published CLIPModel.

    image, text          pictures by PIL, cropped as transformers does; transformers' tokens
    image-openai, text-openai, text-depicts    cropped as OpenAI does; OpenAI's tokens, the last after a prefix
    image-bilinear       floats resized bilinearly, as torchvision's default is on tensors
    hidden, post         the class token before and after the last norm, of the pass of "image"
    logit, logit-bilinear    exp(logit_scale) cos, of "text" with "image" or "image-bilinear"
    """
    clip = ClipFile(weights, file, device, config)
    side = config["vision_config"].get("image_size", 224)
    size = (side, side)
    pictures = {
        "image": Resized(size=size, crop_offset="floor"),
        "image-openai": Resized(size=size),
        "image-bilinear": Resized(size=size, interpolation="bilinear", official="tensor"),
    }
    tokens: dict[str, Tokens] = {
        "text": TransformersTokens(),
        "text-openai": OpenAiTokens(),
        "text-depicts": OpenAiTokens("A photo depicts "),
    }
    seen = {
        output: image_encoder(clip.image, preprocessing, weights, itemgetter("embedding"))
        for output, preprocessing in pictures.items()
    }
    for output in ("hidden", "post"):
        seen[output] = image_encoder(clip.image, pictures["image"], weights, itemgetter(output))
    read = {output: text_encoder(clip.text, kind, weights) for output, kind in tokens.items()}
    logits = {
        f"logit{ending}": Encoder(
            reads="features", forward=clip.logits, inputs=(f"{name}:image{ending}", f"{name}:text"), weights=weights
        )
        for ending in ("", "-bilinear")
    }
    return seen | read | logits


def open_clip_outputs(
    weights: Weights,
    file: str,
    device: torch.device,
    config: Callable[[], Config],
    pictures: Callable[[int], Preprocessing],
    tokens: Tokens,
) -> Mapping[str, Encoder]:
    """Return {"image", "text"} of one published open_clip model; `pictures` takes the side of its input."""
    clip = OpenClipFile(weights, file, device, config)

    def preprocessing() -> Preprocessing:
        return pictures(config()["vision_cfg"]["image_size"])

    return {
        "image": Encoder(reads="image", forward=clip.image, preprocessing=preprocessing, weights=weights),
        "text": text_encoder(clip.text, tokens, weights),
    }


def named(architecture: str) -> Callable[[], Config]:
    """Return what reads open_clip's own config of an architecture, when it is first needed."""

    def read() -> Config:
        from open_clip import get_model_config

        config = get_model_config(architecture)
        assert config is not None  # the names stand in this file
        return config

    return read


def padded(side: int) -> Resized:
    """Return HPS's preprocessing: the longer side of a float picture, a black border, and only then the norm."""
    return Resized(size=(side, side), resize="longest", official="tensor")


def squashed(side: int) -> Resized:
    """Return DFN's preprocessing: both sides, whatever the aspect ratio."""
    return Resized(size=(side, side), resize="squash")


def dmd2_pictures(side: int) -> SquareFirst:
    """Return the preprocessing of DMD2's evaluator: middle square, Lanczos to 256, then open_clip's."""
    return SquareFirst(side=256, then=Resized(size=(side, side)))


def image_encoder(
    forward: Callable[..., Any], preprocessing: Preprocessing, weights: Weights, pick: Callable[[Any], Any]
) -> Encoder:
    """Return an encoder of pictures whose preprocessing needs no file."""
    return Encoder(reads="image", forward=forward, preprocessing=lambda: preprocessing, weights=weights, pick=pick)


def text_encoder(forward: Callable[..., Any], tokens: Tokens, weights: Weights) -> Encoder:
    """Return an encoder of prompts that counts the ones it cuts."""
    return Encoder(
        reads="text",
        forward=lambda texts: forward(tokens.ids(texts)),
        weights=weights,
        truncates=tokens.truncates,
    )
