"""CLIPScore: agreement of an image with its own prompt, seen by an image-text model.

    s(x, c) = cos(f(x), g(c))

Source: Hessel et al. 2021, arXiv:2104.08718, Sec. 3. Departure: the raw cosine, neither clamped at 0 nor scaled by
the paper's 2.5; a table that imitates a paper scales by the card. Everybody's "CLIP score" is another one: encoder,
resizing, prefix and scale differ, so each has an id of its own.

    clip_score                 CLIP ViT-L/14, PIL bicubic, transformers' tokens
    clip_score.rtdmd           the same model; floats resized bilinearly; logits / 100
    clip_score.unirl           as RTDMD's, logits / 30
    clip_score.imagereward     the same model, cropped and tokenized as OpenAI's package does
    clip_score.dmd2            open_clip ViT-g/14, middle square by Lanczos, "A photo depicts" spliced in
    clip_score.hessel          CLIP ViT-B/32, prefix "A photo depicts", 2.5 max(cos, 0): the paper itself

Not here: torchmetrics' CLIPScore. It takes the picture processor of whichever transformers is installed, so it has no
fixed definition; it fails on transformers 5; and it gives all prompts beyond 77 tokens one and the same embedding.
Axes: B images and their prompts, D embedding size.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from metrics.base import Batch, Card, Features, PerImage, Prompt, Rows, register
from metrics.features import FeatureRunner
from metrics.images import read_image
from metrics.selfcheck import Golden, near, selfcheck
from metrics.weights import manifest

L14, B32, G14 = "openai/clip-vit-large-patch14", "openai/clip-vit-base-patch32", "laion/CLIP-ViT-g-14-laion2B"
PIL_GAP = (
    "The reward resizes floats (antialiased bicubic, neither rounded nor clamped), the metric 8-bit pictures by PIL: "
    "pixels differ by 0.001 of the [0, 1] scale on average and 0.15 at most, not at all where nothing is resized "
    "(python -m metrics.gap; with weights, `python -m metrics.gap ID` adds the difference of the scores)."
)
NO_GAP = "None: the metric resizes floats, too."
BLIND = (
    "Single words count more than how they are bound: swapped colours, counts and places move it little. Written "
    "words raise it. A generator trained on it soon scores above real photographs. Believe a metric that was not "
    "trained on."
)


def clip_score(image_BD: Tensor, text_BD: Tensor) -> Tensor:
    """Return scores_B in [-1, 1], row by row: float32, or float64 where the embeddings are."""
    # In bfloat16 the values next to 0.3 lie 0.002 apart: wider than the gap between close models.
    dtype = torch.promote_types(image_BD.dtype, torch.float32)
    return F.cosine_similarity(image_BD.to(dtype), text_BD.to(dtype), dim=-1)


class ClipScore(PerImage):
    """Base of all CLIP scores: a variant is a card and the keys of an image and a text encoder."""

    card: ClassVar[Card]
    features: ClassVar[tuple[str, str]]

    def measure(self, features: Features, batch: Batch) -> Rows:
        """Return {"score": scores_B} in [-1, 1]: every image against its own prompt."""
        image, text = self.features
        return {"score": clip_score(features[image], features[text])}


class ClipLogit(PerImage):
    """Base of scores that scale the cosine by the model's own exp(logit_scale): a card, keys and a divisor.

    The first key is the logit; the prompt's own encoder comes second, because it knows which prompts it cuts.
    """

    card: ClassVar[Card]
    features: ClassVar[tuple[str, str]]
    divisor: ClassVar[float] = 1.0

    def measure(self, features: Features, batch: Batch) -> Rows:
        """Return {"score": logits_B / divisor}: every image against its own prompt."""
        return {"score": features[self.features[0]] / self.divisor}


CARD = Card(
    id="clip_score",
    version=1,
    title="CLIP score (ViT-L/14)",
    unit="cosine",
    higher_is_better=True,
    range=(-1.0, 1.0),
    source="Hessel et al. 2021, arXiv:2104.08718, Sec. 3, without its factor 2.5 and its clamp; CLIP ViT-L/14",
    description="How well a picture agrees with its prompt: the cosine between the two in OpenAI's CLIP ViT-L/14. "
    "Good text-to-image models reach 0.26 to 0.32; values below 0.15 and above 0.40 are rare.",
    variant="corrected",
    differentiable=True,
    preprocessing="PIL bicubic, shorter side to 224, centre crop; as a reward, antialiased bicubic on floats",
    comparable="With other clip_score values of the same prompts only. Never with a variant (another encoder, "
    "resizing or prefix), nor with a paper's column whose encoder is not stated: DMDR prints 34.9 and RTDMD 0.2936 "
    "for SD3-M on like prompts, and no factor turns one into the other. There is no clip_score.torchmetrics: its "
    "definition changes with the installed transformers, and all prompts beyond 77 tokens get one embedding there.",
    fooled_by=BLIND,
    long_prompts="Cut to 77 tokens, the end token kept; the cut prompts are counted.",
    tensor_gap=PIL_GAP,
    reported_scale="RTDMD: as here, by another resizing (clip_score.rtdmd); torchmetrics: x100",
    citation="Hessel, Holtzman, Forbes, Le Bras, Choi: CLIPScore: A Reference-free Evaluation Metric for Image "
    "Captioning, 2021, arXiv:2104.08718. Encoder: Radford et al.: Learning Transferable Visual Models From Natural "
    "Language Supervision, 2021, arXiv:2103.00020",
)


@register
class ClipScoreL14(ClipScore):
    card = CARD
    features = (f"{L14}:image", f"{L14}:text")


@register
class ClipScoreRtdmd(ClipLogit):
    card = replace(
        CARD,
        id="clip_score.rtdmd",
        title="CLIP score as in RTDMD",
        variant="rtdmd",
        source="RTDMD's evaluation and reward code: logits / 100 of CLIP ViT-L/14",
        description="clip_score with RTDMD's resizing, which is bilinear and on floats. Its tables print 0.26 to "
        "0.33.",
        preprocessing="antialiased bilinear on floats, shorter side to 224, centre crop; the same as a reward",
        comparable="With RTDMD's CLIP column on the same prompts. Not with clip_score: bilinear pixels differ.",
        tensor_gap=NO_GAP,
        reported_scale="RTDMD: as here",
    )
    features = (f"{L14}:logit-bilinear", f"{L14}:text")
    divisor = 100.0


@register
class ClipScoreUnirl(ClipLogit):
    card = replace(
        CARD,
        id="clip_score.unirl",
        title="CLIP score as in UniRL",
        variant="unirl",
        unit="cosine x 3.33",
        range=(-10 / 3, 10 / 3),
        source="UniRL's local CLIP reward: logits / 30 of CLIP ViT-L/14",
        description="clip_score.rtdmd times 100 / 30: the scale on which UniRL mixes it with other rewards.",
        preprocessing="antialiased bilinear on floats, shorter side to 224, centre crop; the same as a reward",
        comparable="With UniRL's local reward. Its remote service resizes by transformers' processor instead.",
        tensor_gap=NO_GAP,
        reported_scale="UniRL: as here",
    )
    features = (f"{L14}:logit-bilinear", f"{L14}:text")
    divisor = 30.0


@register
class ClipScoreImageReward(ClipScore):
    card = replace(
        CARD,
        id="clip_score.imagereward",
        title="CLIP score as in ImageReward",
        variant="imagereward",
        source="ImageReward's CLIP baseline (models/CLIPScore.py), in float32: cosine of OpenAI's ViT-L/14",
        description="clip_score with the tokens and the crop of OpenAI's own package. It differs from clip_score for "
        "curly quotes, ligatures and HTML entities in prompts, and by a pixel of the crop for some oblong pictures.",
        comparable="With ImageReward's CLIP baseline on a CPU; on a GPU that runs in half precision.",
        reported_scale="ImageReward: as here",
    )
    features = (f"{L14}:image-openai", f"{L14}:text-openai")


@register
class ClipScoreDmd2(ClipScore):
    card = replace(
        CARD,
        id="clip_score.dmd2",
        title="CLIP score as in DMD2",
        variant="dmd2",
        source="DMD2, main/coco_eval/coco_evaluator.py, compute_clip_score: open_clip ViT-g-14, laion2b_s12b_b42k",
        description="The cosine in LAION's ViT-g/14 with DMD2's recipe for COCO captions.",
        differentiable=False,
        preprocessing="middle square, PIL Lanczos to 256, then PIL bicubic to 224",
        comparable="With DMD2's CLIP scores on the same captions. Never with ViT-L/14: a larger LAION model gives "
        "higher cosines.",
        long_prompts="Cut to 77 tokens, then again by the three tokens spliced in before them; the cut ones are "
        "counted.",
        tensor_gap="",
        reported_scale="DMD2: as here",
        citation="Yin et al.: Improved Distribution Matching Distillation for Fast Image Synthesis, 2024, "
        "arXiv:2405.14867",
    )
    features = (f"{G14}:image", f"{G14}:text")


@register
class ClipScoreHessel(ClipScore):
    card = replace(
        CARD,
        id="clip_score.hessel",
        title="CLIPScore as published",
        variant="hessel",
        unit="2.5 x cosine, at least 0",
        range=(0.0, 2.5),
        source="Hessel et al. 2021, arXiv:2104.08718, Sec. 3 and its code: CLIP ViT-B/32, w = 2.5",
        description='The metric of the paper: the prompt after "A photo depicts", 2.5 max(cos, 0), ViT-B/32.',
        comparable="With CLIPScore of captioning papers, which mostly ran it in half precision on a GPU.",
        long_prompts="Prefix and prompt together are cut to 77 tokens, the end token kept; the cut ones are counted.",
        reported_scale="as here, sometimes x100",
        reward_divisor=2.5,
    )
    features = (f"{B32}:image-openai", f"{B32}:text-depicts")

    def measure(self, features: Features, batch: Batch) -> Rows:
        """Return {"score": 2.5 max(cos, 0)} of every image against its own prompt; no gradient where it is 0."""
        cosine_B = super().measure(features, batch)["score"]
        assert isinstance(cosine_B, Tensor)
        return {"score": 2.5 * cosine_B.clamp(min=0)}


@selfcheck("clip_score.hessel", "clip-vit-b-32", "clip-example")
def example_of_the_readme() -> Iterator[Golden]:
    """The picture and the three probabilities of the README of OpenAI's package, which are ViT-B/32's."""
    image, text = f"{B32}:image-openai", f"{B32}:text-openai"
    prompts = [Prompt(text=words) for words in ("a diagram", "a dog", "a cat")]
    picture = read_image(manifest("clip-example").path("CLIP.png"))
    features = FeatureRunner([image, text]).run([picture] * len(prompts), prompts)
    probabilities = (100 * clip_score(features[image], features[text])).softmax(dim=0)
    published = (0.9927937, 0.00421068, 0.00299572)
    for prompt, found, expected in zip(prompts, probabilities.tolist(), published, strict=True):
        yield near(f"CLIP.png, {prompt.text!r}", found, expected, tolerance=1e-3)
