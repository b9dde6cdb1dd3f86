"""ImageReward: how much people would like a picture for its prompt, by a BLIP trained on their rankings.

    r(x, c) = (h(b(x, c)) - 0.167) / 1.033        b: [CLS] state of a BERT that attends to the picture, h: linear head

Source: Xu et al. 2023, arXiv:2304.05977, Sec. 3 and package image-reward 1.5, in float32. The variants are rewards of
papers, which resize floats: `refl` (Algorithm 1 of the same paper) crops, `rtdmd` squashes without antialias.
Axes: B images, C x H x W pixels.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

import torch

from metrics.base import Batch, Card, Features, PerImage, Rows, register
from metrics.clip import NO_GAP, PIL_GAP
from metrics.encoders.blip import BertTokens, BlipFile
from metrics.features import Encoder, register_encoders
from metrics.preprocessing import Preprocessing, Resized
from metrics.selfcheck import Golden, near, selfcheck
from metrics.weights import manifest

NAME = "zai-org/ImageReward"
SIZE = (224, 224)
PICTURES: dict[str, Preprocessing] = {
    "": Resized(size=SIZE),
    "-refl": Resized(size=SIZE, official="tensor"),
    "-rtdmd": Resized(size=SIZE, resize="squash", antialias=False, official="tensor"),
}


@register_encoders(NAME)
def encoders(device: torch.device) -> Mapping[str, Encoder]:
    """Return {"text"} and, for each preprocessing, {"image…", "score…"}; one model serves all."""
    weights, vocabulary = manifest("image-reward-v1"), manifest("bert-base-uncased-vocab")
    model, tokens = BlipFile(weights, "ImageReward.pt", device), BertTokens(vocabulary)
    made = {"text": Encoder(reads="text", forward=tokens.tokens, weights=vocabulary, truncates=tokens.truncates)}
    for ending, preprocessing in PICTURES.items():
        made[f"image{ending}"] = Encoder(
            reads="image", forward=model.image, preprocessing=_always(preprocessing), weights=weights
        )
        inputs = (f"{NAME}:image{ending}", f"{NAME}:text")
        made[f"score{ending}"] = Encoder(reads="features", forward=model.score, inputs=inputs, weights=weights)
    return made


def _always(preprocessing: Preprocessing) -> Callable[[], Preprocessing]:
    """Return what returns a preprocessing that needs no file."""
    return lambda: preprocessing


CARD = Card(
    id="image_reward",
    version=1,
    title="ImageReward",
    unit="reward",
    higher_is_better=True,
    range=(-float("inf"), float("inf")),
    source="Xu et al. 2023, arXiv:2304.05977, Sec. 3; package image-reward 1.5, ImageReward-v1.0, in float32",
    description="How much people are expected to like a picture for its prompt, in standard deviations around the "
    "average of the authors' own pictures: about -2.5 to 2; good models lie between 0.8 and 1.4.",
    differentiable=True,
    preprocessing="PIL bicubic, shorter side to 224, centre crop; as a reward, antialiased bicubic on floats",
    comparable="With all papers that use ImageReward-v1.0, on the same prompts: RTDMD prints -0.38 to 1.37, DP-DMD "
    "0.66 to 1.19. Not with rewards logged by UniRL, which are (r + 2) / 4.",
    fooled_by="Only the middle square is seen, at 224 pixels, so fine detail and what stands at the long ends do not "
    "count; long prompts are judged by their beginning. It is a common training reward: a model trained on it wins "
    "here and loses elsewhere.",
    long_prompts="Cut to 35 tokens, that is 33 word pieces: the rest of a dense prompt is not read. The cut prompts "
    "are counted.",
    tensor_gap=PIL_GAP,
    reported_scale="RTDMD, DP-DMD: as here; UniRL: (r + 2) / 4",
    citation="Xu, Liu, Wu, Tong, Li, Ding, Tang, Dong: ImageReward: Learning and Evaluating Human Preferences for "
    "Text-to-Image Generation, 2023, arXiv:2304.05977",
)


class Reward(PerImage):
    """Base: the model's own output is the score."""

    features: tuple[str, ...]

    def measure(self, features: Features, batch: Batch) -> Rows:
        """Return {"score": rewards_B}."""
        return {"score": features[self.features[0]]}


@register
class ImageReward(Reward):
    card = CARD
    features = (f"{NAME}:score", f"{NAME}:text")


@register
class ImageRewardRefl(Reward):
    card = replace(
        CARD,
        id="image_reward.refl",
        title="ImageReward as ReFL's reward",
        variant="refl",
        source="Xu et al. 2023, arXiv:2304.05977, Algorithm 1; ReFL in package image-reward 1.5, antialiased",
        description="ImageReward as ReFL trains on it: floats are resized, neither rounded nor clamped.",
        preprocessing="antialiased bicubic on floats, shorter side to 224, centre crop; the same as a reward",
        comparable="With rewards logged by ReFL under torchvision 0.17 and later; before, it resized without "
        "antialias. Not with image_reward: PIL rounds and clips.",
        tensor_gap=NO_GAP,
        reported_scale="ReFL's loss: mean(relu(2 - r)) / 1000",
    )
    features = (f"{NAME}:score-refl", f"{NAME}:text")


@register
class ImageRewardRtdmd(Reward):
    card = replace(
        CARD,
        id="image_reward.rtdmd",
        title="ImageReward as RTDMD's reward",
        variant="rtdmd",
        source="RTDMD's ImageReward reward: floats squashed to 224 x 224 without antialias",
        description="ImageReward as RTDMD trains on it. Its tables report image_reward instead.",
        preprocessing="bicubic on floats without antialias, both sides to 224; the same as a reward",
        comparable="With rewards logged by RTDMD. Not with image_reward: shrinking without antialias keeps other "
        "pixels.",
        tensor_gap=NO_GAP,
        reported_scale="RTDMD's loss: mean(relu(margin - r))",
    )
    features = (f"{NAME}:score-rtdmd", f"{NAME}:text")


@selfcheck("image_reward", "image-reward-v1", "bert-base-uncased-vocab", "image-reward-example")
def example_of_the_readme() -> Iterator[Golden]:
    """The four pictures and rewards of the package's README."""
    from metrics.loaded import LoadedMetric

    prompt = "a painting of an ocean with clouds and birds, day time, low depth field effect"
    pictures, score = manifest("image-reward-example"), LoadedMetric("image_reward")
    for name, expected in (("1", 0.58116), ("2", 0.27453), ("3", -1.41318), ("4", -2.02957)):
        (found,) = score([pictures.path(f"{name}.webp")], [prompt]).tolist()
        yield near(f"{name}.webp", found, expected, tolerance=1e-3)
