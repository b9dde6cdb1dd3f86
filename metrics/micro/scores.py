"""The metrics of the micro world: small models, scored by the code that scores the real ones.

`micro_clip` is the default reward, `micro_clip_heldout` its counterpart that no default training sees: another
architecture, seed and split of the prompts, so that hacking the one shows in the other. `micro_diversity` looks
through the held-out image tower, for the same reason. Their numbers mean something on coloured shapes only.
"""

import math
from collections.abc import Mapping
from pathlib import Path

import torch

from metrics.base import Batch, Card, Features, PerImage, Rows, register
from metrics.clip import ClipScore
from metrics.diversity import PairwiseDiversity
from metrics.encoders import open_clip, transformers_clip
from metrics.features import Encoder, register_encoders
from metrics.micro import aesthetic
from metrics.weights import WeightFolder

HERE = Path(__file__).parent
HESSEL = (
    "Hessel, Holtzman, Forbes, Le Bras, Choi: CLIPScore: A Reference-free Evaluation Metric for Image Captioning, "
    "2021, arXiv:2104.08718"
)
SAME_WORLD = (
    "Between pictures of the micro world, scored with the same weights: they are trained anew when the micro world "
    "changes, so compare the weights' digests. Never with a metric of real pictures."
)
GAP = (
    "None for the 64x64 pictures that the micro models draw. Where pictures of 100 to 1344 px are resized, rewards "
    "differ from scores by {} on average and {} at most (`python -m metrics.gap {}`)."
)
LONG_PROMPTS = (
    "Cut to 12 tokens, the end token kept; no prompt of the micro world is longer. Cut prompts are counted."
)
MEND = "restore it with git, or make it: python -m benchmarks.micro.make"


@register_encoders("micro/clip")
def micro_clip_encoders(device: torch.device) -> Mapping[str, Encoder]:
    """Return {"image", "text"} of the reward's towers."""
    folder = WeightFolder(path=HERE / "clip", mend=f"{MEND} encoders", needs=transformers_clip.FILES)
    return transformers_clip.encoders(folder, device)


@register_encoders("micro/clip_heldout")
def micro_clip_heldout_encoders(device: torch.device) -> Mapping[str, Encoder]:
    """Return {"image", "text"} of the held-out towers."""
    folder = WeightFolder(path=HERE / "clip_heldout", mend=f"{MEND} encoders", needs=open_clip.FILES)
    return open_clip.encoders(folder, device)


@register_encoders("micro/aesthetic")
def micro_aesthetic_encoders(device: torch.device) -> Mapping[str, Encoder]:
    """Return {"score"} of the aesthetic head."""
    folder = WeightFolder(path=HERE / "aesthetic", mend=f"{MEND} aesthetic", needs=(aesthetic.FILE,))
    return aesthetic.encoders(folder, device)


@register
class MicroClip(ClipScore):
    card = Card(
        id="micro_clip",
        version=1,
        title="micro CLIP",
        unit="cosine",
        higher_is_better=True,
        range=(-1.0, 1.0),
        source="clip_score on a small transformers CLIPModel trained on coloured shapes; Hessel et al. 2021, Sec. 3",
        description="Agreement of a picture of shapes with its prompt, seen by a small image-text model. The default "
        "reward of the micro world: after training on it, believe shapes_geneval and micro_clip_heldout instead.",
        differentiable=True,
        preprocessing="as clip_score: PIL bicubic; as a reward, antialiased bicubic on floats. Equal at 64x64.",
        micro=True,
        comparable=SAME_WORLD,
        fooled_by="Training on it: a rise is real only where micro_clip_heldout and shapes_geneval rise, too. It "
        "tells right from wrong pictures of some categories less well than of others: benchmarks/micro/README.md.",
        long_prompts=LONG_PROMPTS,
        tensor_gap=GAP.format("0.001", "0.0061", "micro_clip"),
        citation=HESSEL,
    )
    features = ("micro/clip:image", "micro/clip:text")


@register
class MicroClipHeldout(ClipScore):
    card = Card(
        id="micro_clip_heldout",
        version=1,
        title="micro CLIP (held out)",
        unit="cosine",
        higher_is_better=True,
        range=(-1.0, 1.0),
        source="clip_score on a small open_clip model trained on coloured shapes; Hessel et al. 2021, Sec. 3",
        description="The same question as micro_clip, asked of a model with another architecture, seed and split. No "
        "default training uses it, so a micro_clip that rises alone is hacked. It saw the same kind of data, "
        "and may share some blind spots.",
        differentiable=True,
        preprocessing="as clip_score: PIL bicubic; as a reward, antialiased bicubic on floats. Equal at 64x64.",
        micro=True,
        comparable=SAME_WORLD + " Not with micro_clip either: its scale is another one.",
        fooled_by="The same as micro_clip, as soon as something is trained on it. Blind spots that come from the "
        "data are shared: both saw renders of the same few shapes.",
        long_prompts=LONG_PROMPTS,
        tensor_gap=GAP.format("0.00002", "0.00005", "micro_clip_heldout"),
        citation=HESSEL,
    )
    features = ("micro/clip_heldout:image", "micro/clip_heldout:text")


@register
class MicroAesthetic(PerImage):
    card = Card(
        id="micro_aesthetic",
        version=1,
        title="micro aesthetic",
        unit="logit",
        higher_is_better=True,
        range=(-math.inf, math.inf),
        source="metrics/micro/aesthetic.py: log-linear in contrast, saturation, edges and sharpness",
        description="How much a picture looks like a clean render rather than a blurred, faded or noisy one. It "
        "knows neither the prompt nor what a shape is, and exaggerated contrast and edges raise it without bound: a "
        "reward to show hacking with, never a judge.",
        differentiable=True,
        preprocessing="PIL bicubic to 64x64; as a reward, antialiased bicubic on floats. Equal at 64x64.",
        micro=True,
        comparable=SAME_WORLD + " The zero is where a picture looks half like a render and half like a degraded one.",
        fooled_by="Anything that raises contrast, saturation and steep edges: checkerboards of yellow and blue score "
        "9 to 11, 200 clean renders -2.0 to 3.7. It reads no prompt.",
        tensor_gap=GAP.format("0.007", "0.034", "micro_aesthetic"),
        citation="This project: metrics/micro/aesthetic.py",
    )
    features = ("micro/aesthetic:score",)

    def measure(self, features: Features, batch: Batch) -> Rows:
        """Return {"score": logits_B}."""
        return {"score": features[self.features[0]]}


@register
class MicroDiversity(PairwiseDiversity):
    card = Card(
        id="micro_diversity",
        version=1,
        title="micro diversity",
        unit="1 - cosine",
        higher_is_better=True,
        range=(0.0, 2.0),
        source="mean pairwise 1 - cos over a prompt's seeds (DP-DMD's diversity) in the held-out micro image tower",
        description="How different the pictures of one prompt are. Noise and broken shapes are diverse, too: read it "
        "beside a quality metric, at the same number of images per prompt.",
        preprocessing="PIL bicubic; none at 64x64",
        min_images_per_prompt=2,
        micro=True,
        comparable=SAME_WORLD + " And only with as many images per prompt.",
        fooled_by="Noise, artefacts and wrong pictures: all of them are different. A model that ignores its prompt "
        "is as diverse as can be.",
        citation="DP-DMD: mean pairwise 1 - cos over the images of a prompt, there in DINO and CLIP features",
    )
    features = ("micro/clip_heldout:image",)
