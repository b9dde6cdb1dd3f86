"""The native side of the CLIP family's parity: seeded weights in the real files' form, read by the real loaders.

python -m tests.parity.clip_native runs/parity/hps_v2-full.npz     compare with one official run of HPS v2.0
"""

import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn

from metrics.aesthetic import AestheticHead
from metrics.base import Batch, Features, Prompt, make
from metrics.encoders import published
from metrics.encoders.clip_tokens import END, Tokens
from metrics.features import FeatureRunner
from metrics.loaded import Scorer
from metrics.preprocessing import Preprocessing
from metrics.texts import TextFeatures
from metrics.weights import manifest
from metrics.weights.places import FOLDER, SYNTHETIC
from tests.parity import common
from tests.parity.clip import sizes
from tests.parity.clip.stages import STRIDE
from tests.parity.common import Stage

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "clip_family"
QUICK_HPS = {**sizes.HPS, "quick_gelu": True}
OFFICIAL = {  # the packages behind the golden of each metric; all goldens lie in GOLDEN, by the metric's id
    "clip_score": ("transformers",),
    "clip_score.rtdmd": ("transformers", "torchvision"),
    "clip_score.imagereward": ("openai-clip",),
    "clip_score.hessel": ("openai-clip",),
    "clip_score.dmd2": ("open_clip_torch", "openai-clip"),
    "dfn_clip": ("open_clip_torch",),
    "dfn_clip.224": ("open_clip_torch",),
    "aesthetic": ("transformers",),
    "pick_score": ("transformers",),
    "pick_score.rtdmd": ("transformers", "torchvision"),
    "hps_v2": ("hpsv2",),
    "hps_v21": ("hpsv2",),
}
TOLERANCES = {  # of scores: 1e-6 on a cosine, 1e-4 on PickScore's logits, and what these become on other scales
    # 2e-6 of the largest score: five matrices, in float32, of which two processors made 1.4e-6. The head: 1e-6
    "aesthetic": 2.4e-6,
    "clip_score.unirl": 1e-6 * 100 / 30,
    "clip_score.hessel": 2.5e-6,
    "pick_score": 1e-4,
    "pick_score.rtdmd": 1e-4 / 26,
}


def layout(make: Callable[[], nn.Module]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a model's weights by key, without making them."""
    from accelerate import init_empty_weights

    with init_empty_weights():
        return {name: tuple(tensor.shape) for name, tensor in make().state_dict().items()}


def transformers_layout(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return the layout of a CLIPModel."""
    from transformers import CLIPConfig, CLIPModel

    return layout(lambda: CLIPModel(CLIPConfig(**config)))


def open_clip_layout(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return the layout of an open_clip model."""
    from open_clip.model import CLIP

    return layout(lambda: CLIP(**config))


def seeded(shapes: Mapping[str, tuple[int, ...]], model: str = "") -> dict[str, Tensor]:
    """Return the seeded state dict of a layout."""
    return {name: torch.from_numpy(values) for name, values in common.seeded_weights(shapes, model).items()}


def write_weights(folder: Path) -> None:
    """Write the shrunken family as FEWSTEP_BENCH_WEIGHTS expects it: true file names, wrappers and keys."""
    from safetensors.torch import save_file

    clip, pick = seeded(transformers_layout(sizes.CLIP)), seeded(transformers_layout(sizes.PICK))
    b32 = seeded(transformers_layout(sizes.CLIP), sizes.B32)
    # Models of one architecture have other values each: one in the place of another shows.
    hps, hps_v21, g14, dfn, dfn_224 = (
        seeded(open_clip_layout(sizes.HPS), model)
        for model in ("", sizes.HPS_V21, sizes.G14, sizes.DFN, sizes.DFN_224)
    )
    hps, hps_v21 = ({name: tensor.half() for name, tensor in state.items()} for state in (hps, hps_v21))
    counters = {f"{side}_model.embeddings.position_ids": torch.arange(9)[None] for side in ("text", "vision")}
    for identity, content in {
        "clip-vit-large-patch14": clip | counters,
        "clip-vit-b-32": b32 | counters,
        "pick-score-v1": pick,
        "hps-v2": {"epoch": 1, "state_dict": hps},
        "hps-v2.1": {"epoch": 1, "state_dict": hps_v21},
        "clip-vit-g-14-laion2b": g14,
        "dfn5b-clip-vit-h-14-378": dfn,
        "dfn5b-clip-vit-h-14": dfn_224,
        "laion-aesthetic-v2": seeded(layout(AestheticHead)),
    }.items():
        path = folder / identity / manifest(identity).entry.files[0].name
        path.parent.mkdir()
        if path.suffix == ".safetensors":
            save_file(content, path)
        else:
            torch.save(content, path)


def shrunken(architecture: str) -> Callable[[], Mapping[str, Any]]:
    """Return what stands for `published.named`: the shrunken config of any open_clip architecture."""
    return lambda: QUICK_HPS if "quickgelu" in architecture else sizes.HPS


def golden(identity: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Return the official run of a metric. UniRL's score is RTDMD's on another scale, so that one run serves both."""
    if identity != "clip_score.unirl":
        return common.load(GOLDEN / f"{identity}.npz")
    stages, about = golden("clip_score.rtdmd")
    larger = {name: stages[name] * (100 / 30) for name in ("score", "gradient", "gradient_max")}
    return stages | larger, about


def scores(identity: str, count: int = common.PAIRS, block: int = 8) -> np.ndarray:
    """Return a metric's scores of the first pairs, in blocks."""
    found = []
    scorer = Scorer([identity])
    pictures, texts = zip(*common.pairs(count), strict=True)
    for start in range(0, count, block):
        prompts = [Prompt(text=text) for text in texts[start : start + block]]
        batch = Batch(prompts=prompts, seeds=range(len(prompts)))
        found.append(scorer.score(pictures[start : start + block], batch)[identity]["score"])
    return torch.cat(found).numpy()


@contextmanager
def networks(named: Callable[[str], Callable[[], Mapping[str, Any]]] | None = shrunken) -> Iterator[None]:
    """Let the published models be the shrunken ones; named: what stands for `published.named`, None = itself."""
    with ExitStack() as stack:
        for name, value in {
            "CLIP_L14": sizes.CLIP,
            "CLIP_B32": sizes.CLIP,
            "PICK": sizes.PICK,
            "named": named or published.named,
        }.items():
            stack.enter_context(mock.patch.object(published, name, value))
        yield


class Parts:
    """The encoders behind a metric as the engine uses them; some of what they do may be replaced by a mistake."""

    def __init__(self, identity: str, pictures: Preprocessing | None = None, tokens: Tokens | None = None) -> None:
        self.metric = make(identity)
        self.runner = FeatureRunner(self.metric.features)
        encoders = self.runner._encoders
        self.image_key = next(key for key, encoder in encoders.items() if encoder.reads == "image")
        self.text_key = next((key for key, encoder in encoders.items() if encoder.reads == "text"), None)
        image = encoders[self.image_key]
        assert image.preprocessing is not None
        if pictures:
            encoders[self.image_key] = image = replace(image, preprocessing=lambda: pictures)
        self.pictures = pictures or image.preprocessing()
        self.tokens = tokens
        if self.text_key:
            text = encoders[self.text_key]
            if tokens and text.weights:
                text = published.text_encoder(image.forward.__self__.text, tokens, text.weights)  # type: ignore[attr-defined]
                encoders[self.text_key] = text
                self.runner._texts = TextFeatures([(text.forward, text.pick)], self.runner.device)
            self.tokens = text.truncates.__self__  # type: ignore[union-attr] # a method of the tokenizer

    def measure(self, pixels_BCHW: Tensor, texts: Sequence[str]) -> tuple[Tensor, Features]:
        """Return the scores [B] of normalised pixels and prompts, with their gradients, and the features behind."""
        prompts = [Prompt(text=text) for text in texts]
        features = self.runner._run({self.pictures: pixels_BCHW}, prompts, {})
        score_B = self.metric.measure(features, Batch(prompts=prompts, seeds=range(len(prompts))))["score"]
        assert isinstance(score_B, Tensor)
        return score_B, features

    @torch.no_grad()
    def scores(self, count: int) -> np.ndarray:
        """Return the scores of the first pairs."""
        pictures, texts = zip(*common.pairs(count), strict=True)
        pixels = torch.cat([self.pictures.from_pil([picture]) for picture in pictures])
        return self.measure(pixels, texts)[0].numpy()


def compare(identity: str, stages: Mapping[str, np.ndarray], about: Mapping[str, Any]) -> Iterator[Stage]:
    """Yield every stage of an official run against the metric, whose weights are written."""
    parts, count = Parts(identity), len(stages["score"])
    pictures, prompts = zip(*common.pairs(count), strict=True)
    if parts.tokens:
        yield Stage("token ids that differ", differing_ids(parts.tokens, prompts, stages["ids"]), 0)
    pixels = [parts.pictures.from_pil([picture]) for picture in pictures]
    if "pixels" in about:
        digests = [common.digest(common.grey_levels(one[0].numpy())) for one in pixels]
        wrong = sum(ours != theirs for ours, theirs in zip(digests, about["pixels"], strict=True))
        yield Stage("pictures whose pixels differ", float(wrong), 0)
    shown, texts = torch.cat(pixels[: common.SHOWN]), prompts[: common.SHOWN]
    if "pixels" in stages:
        yield Stage("pixels, resized as floats", _gap(shown[..., ::STRIDE, ::STRIDE], stages["pixels"]), 1e-6)
    rows = [parts.measure(one[None], [text])[1] for one, text in zip(shown, texts, strict=True)]
    for stage, key in (("image", parts.image_key), ("text", parts.text_key)):
        if key:
            embeddings = torch.cat([features[key].detach() for features in rows])
            yield Stage(f"{stage} embedding", _gap(nn.functional.normalize(embeddings), stages[stage]), 1e-6)
    if identity == "aesthetic":
        head = parts.runner._encoders[parts.metric.features[0]].forward
        found = head(torch.from_numpy(stages["image"]))
        yield Stage("head on the official embedding", _gap(found, stages["score"][: common.SHOWN]), 1e-6)
    yield Stage("score, end to end", _gap(scores(identity, count), stages["score"]), tolerance(identity))
    yield Stage("gradient (relative)", gradient_gap(parts, shown, texts, stages), 1e-5)


def tolerance(identity: str) -> float:
    """Return how far a score may be from the official one."""
    return TOLERANCES.get(identity, 1e-6)


def differing_ids(tokens: Tokens, prompts: Sequence[str], official: np.ndarray) -> float:
    """Return how many ids differ; a batch padded to its longest prompt lacks the rest of the padding."""
    ids = tokens.ids(prompts).numpy()
    beyond = official[:, ids.shape[1] :]
    return float((ids != official[:, : ids.shape[1]]).sum() + np.isin(beyond, (0, END), invert=True).sum())


def gradient_gap(parts: Parts, pixels_BCHW: Tensor, texts: Sequence[str], stages: Mapping[str, np.ndarray]) -> float:
    """Return the largest difference of the gradients in the pixels, relative to the largest entry of each."""
    gaps = []
    for pixels, text, official, largest in zip(
        pixels_BCHW, texts, stages["gradient"], stages["gradient_max"], strict=True
    ):
        inputs = pixels[None].clone().requires_grad_()
        (found,) = torch.autograd.grad(parts.measure(inputs, [text])[0].sum(), inputs)
        gap = _gap(found[0, :, ::STRIDE, ::STRIDE], official)
        gaps.append(gap / float(largest) if largest else gap)  # where a score is clamped, both are 0
    return max(gaps)


def _gap(found: Tensor | np.ndarray, official: np.ndarray) -> float:
    return float(np.abs(np.asarray(found.detach() if isinstance(found, Tensor) else found) - official).max())


def main(path: Path) -> int:
    """Compare HPS v2.0, of its true size or shrunken, with an official run; return the exit code."""
    stages, about = common.load(path)
    true_size = about["keys"] != len(open_clip_layout(sizes.HPS))
    layout = open_clip_layout(published.named("ViT-H-14")() if true_size else sizes.HPS)
    weights = common.halved(common.seeded_weights(layout))
    if common.checksum(weights) != about["weights"]:
        print(f"{path}: made with other seeded weights", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "hps-v2" / "HPS_v2_compressed.pt"
        file.parent.mkdir()
        torch.save({"state_dict": {name: torch.from_numpy(values) for name, values in weights.items()}}, file)
        del weights
        os.environ |= {FOLDER: folder, SYNTHETIC: "1"}
        with networks(None if true_size else shrunken):
            found = list(compare("hps_v2", stages, about))
    for stage in found:
        print(f"{stage.name:30} {stage.difference:.2g} (tolerance {stage.tolerance:g})")
    return int(not all(stage.within for stage in found))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
