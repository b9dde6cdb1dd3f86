"""What holds for every scorer of the CLIP family, from the same seeded, shrunken files through the real loaders."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from metrics.base import Batch, Prompt, UserError, make
from metrics.features import FeatureRunner
from metrics.images import to_tensor
from metrics.loaded import LoadedMetric, Scorer
from tests.parity import clip_native, common

IDS = ("clip_score", "clip_score.rtdmd", "clip_score.unirl", "clip_score.imagereward", "clip_score.dmd2")
IDS = (*IDS, "clip_score.hessel", "aesthetic", "pick_score", "pick_score.rtdmd", "hps_v2", "hps_v21", "dfn_clip")
IDS = (*IDS, "dfn_clip.224")
DIFFERENTIABLE = [identity for identity in IDS if identity != "clip_score.dmd2"]
SCALE = {"clip_score.unirl": 4.0, "aesthetic": 10.0, "pick_score": 20.0, "clip_score.hessel": 2.5}  # of tolerances
FILES = {  # of each metric's own weights
    "clip_score": "clip-vit-large-patch14/model.safetensors",
    "clip_score.hessel": "clip-vit-b-32/pytorch_model.bin",
    "clip_score.dmd2": "clip-vit-g-14-laion2b/open_clip_pytorch_model.bin",
    "aesthetic": "laion-aesthetic-v2/sac+logos+ava1-l14-linearMSE.pth",
    "pick_score": "pick-score-v1/model.safetensors",
    "hps_v2": "hps-v2/HPS_v2_compressed.pt",
    "hps_v21": "hps-v2.1/HPS_v2.1_compressed.pt",
    "dfn_clip.224": "dfn5b-clip-vit-h-14/open_clip_pytorch_model.bin",
    "dfn_clip": "dfn5b-clip-vit-h-14-378/open_clip_pytorch_model.bin",
}


def score_all(order: list[int], block: int) -> dict[str, np.ndarray]:
    """Return the scores of all metrics, computed together in blocks, by pair whatever the order."""
    pairs, scorer = list(common.pairs()), Scorer(IDS)
    found = {identity: np.zeros(len(pairs), np.float32) for identity in IDS}
    for start in range(0, len(pairs), block):
        chosen = order[start : start + block]
        batch = Batch(prompts=[Prompt(text=pairs[i][1]) for i in chosen], seeds=chosen)
        for identity, rows in scorer.score([pairs[i][0] for i in chosen], batch).items():
            found[identity][chosen] = rows["score"]
    return found


def test_scores_depend_neither_on_the_batch_nor_on_the_order(clip_family: Path) -> None:
    order = list(range(common.PAIRS))
    whole = score_all(order, common.PAIRS)
    again = score_all(order, common.PAIRS)
    for other, exact in ((again, True), (score_all(order, 1), False), (score_all(order[::-1], 7), False)):
        for identity in IDS:
            difference = np.abs(whole[identity] - other[identity]).max()
            assert difference <= (0 if exact else 1e-6 * SCALE.get(identity, 1.0)), identity


@pytest.mark.parametrize("identity", IDS)
def test_every_kind_of_picture_is_scored_as_its_rgb(identity: str, clip_family: Path) -> None:
    metric = LoadedMetric(identity)
    grey = Image.fromarray(np.arange(40 * 30, dtype=np.uint32).reshape(40, 30).astype(np.uint8))
    kinds = [grey, grey.convert("P"), grey.convert("RGBA"), grey.convert("LA"), grey.convert("1")]
    prompts = ["a", "", "🦊", "“b”", "word " * 300]
    assert torch.equal(metric(kinds, prompts), metric([kind.convert("RGB") for kind in kinds], prompts))


@pytest.mark.parametrize("identity", [identity for identity in IDS if identity != "aesthetic"])
def test_long_prompts_are_counted(identity: str, clip_family: Path) -> None:
    prefix = 3 if identity in ("clip_score.hessel", "clip_score.dmd2") else 0
    fits, cut = " ".join(["word"] * (75 - prefix)), " ".join(["word"] * (76 - prefix))
    batch = Batch(prompts=[Prompt(text=fits), Prompt(text=cut)], seeds=range(2))
    rows = Scorer([identity]).score([Image.new("RGB", (24, 24))] * 2, batch)[identity]
    assert rows["prompt_truncated"].tolist() == [False, True]


@pytest.mark.parametrize("identity", DIFFERENTIABLE)
def test_gradient_matches_finite_differences_in_float64(identity: str, clip_family: Path) -> None:
    metric = make(identity)
    runner = FeatureRunner(metric.features)
    for encoder in runner._encoders.values():
        owner = getattr(encoder.forward, "__self__", None)
        model = getattr(owner, "_model", None) or getattr(owner, "head", None)
        if model is not None:
            model.double()
    generator = torch.Generator().manual_seed(0)
    pixels, direction = torch.rand(2, 1, 3, 40, 31, dtype=torch.float64, generator=generator)

    def score(images: torch.Tensor, text: str) -> torch.Tensor:
        batch = Batch(prompts=[Prompt(text=text)], seeds=[0])
        found = metric.measure(runner.run_tensors(images, batch.prompts), batch)["score"]
        assert isinstance(found, torch.Tensor)
        return found.sum()

    candidates = torch.rand(20, 1, 3, 40, 31, dtype=torch.float64, generator=generator)
    pixels, text = next(  # not in the clamp of clip_score.hessel
        (picture, text)
        for picture in (pixels, *(candidates.cumprod(0) ** 0.2))
        for text in common.PROMPTS[:6]
        if score(picture, text) != 0
    )
    pixels.requires_grad_()
    (gradient,) = torch.autograd.grad(score(pixels, text), pixels)
    along, step = (gradient * direction).sum(), 1e-5
    with torch.no_grad():
        ahead, behind = score(pixels + step * direction, text), score(pixels - step * direction, text)
        measured = (ahead - behind) / (2 * step)
    assert along != 0
    assert torch.allclose(along, measured, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("identity", DIFFERENTIABLE)
def test_reward_is_the_score_where_nothing_is_resized(identity: str, clip_family: Path) -> None:
    pictures = [picture for picture, _ in common.pairs(60) if picture.size == (24, 24)]
    metric, prompts = LoadedMetric(identity), ["a red circle"] * len(pictures)
    gap = (metric.reward(to_tensor(pictures), prompts) - metric(pictures, prompts)).abs().max()
    assert gap <= 1e-6 * SCALE.get(identity, 1.0)


def test_the_dmd2_recipe_has_no_gradient(clip_family: Path) -> None:
    with pytest.raises(UserError, match="not differentiable"):
        LoadedMetric("clip_score.dmd2").reward(torch.rand(1, 3, 24, 24), ["a"])


def test_clip_score_and_aesthetic_share_one_pass_bit_for_bit(clip_family: Path) -> None:
    pairs = list(common.pairs(8))
    batch = Batch(prompts=[Prompt(text=text) for _, text in pairs], seeds=range(8))
    pictures = [picture for picture, _ in pairs]
    together = Scorer(["clip_score", "aesthetic"])
    found = together.score(pictures, batch)
    for identity in ("clip_score", "aesthetic"):
        assert torch.equal(found[identity]["score"], Scorer([identity]).score(pictures, batch)[identity]["score"])
    image, hidden = (
        together._runner._encoders["openai/clip-vit-large-patch14:image"],
        FeatureRunner(["openai/clip-vit-large-patch14:hidden"])._encoders["openai/clip-vit-large-patch14:hidden"],
    )
    assert image.preprocessing is not None and hidden.preprocessing is not None
    assert image.preprocessing() == hidden.preprocessing()


@pytest.mark.parametrize("identity", FILES)
@pytest.mark.parametrize("damage", ["prefix", "missing", "shape", "another"])
def test_a_file_of_another_layout_is_refused(
    identity: str, damage: str, clip_family: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors.torch import load_file, save_file

    file = clip_family / FILES[identity]
    safe = file.suffix == ".safetensors"
    content = load_file(file) if safe else torch.load(file, weights_only=True)
    state = content.get("state_dict", content)
    first = next(name for name in sorted(state) if "position_ids" not in name and state[name].ndim > 1)
    if damage == "prefix":
        state = {f"model.{name}": tensor for name, tensor in state.items()}
    elif damage == "missing":
        del state[first]
    elif damage == "shape":
        state[first] = state[first][:-1].clone()
    else:
        state = {"conv1.weight": torch.zeros(3, 3)}
    broken = tmp_path / FILES[identity]
    for link in clip_family.iterdir():
        if link != file.parent:
            (tmp_path / link.name).symlink_to(link)
    broken.parent.mkdir()
    if safe:
        save_file(state, broken)
    else:
        torch.save({"state_dict": state} if "state_dict" in content else state, broken)
    monkeypatch.setenv("FEWSTEP_BENCH_WEIGHTS", str(tmp_path))
    with pytest.raises(UserError, match=rf"{broken.name.replace('+', '.')}.*\n?.*fetch {broken.parent.name}"):
        LoadedMetric(identity)([Image.new("RGB", (24, 24))], ["a"])


def test_half_precision_files_are_read_as_float32(
    clip_family: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    score = LoadedMetric("hps_v2")([Image.new("RGB", (30, 24), "red")], ["a"])
    halves = torch.load(clip_family / FILES["hps_v2"], weights_only=True)["state_dict"]
    assert {tensor.dtype for tensor in halves.values()} == {torch.float16}  # as published
    file = tmp_path / FILES["hps_v2"]
    file.parent.mkdir()
    torch.save({"state_dict": {name: tensor.float() for name, tensor in halves.items()}}, file)
    monkeypatch.setenv("FEWSTEP_BENCH_WEIGHTS", str(tmp_path))
    assert score.dtype == torch.float32
    assert torch.equal(score, LoadedMetric("hps_v2")([Image.new("RGB", (30, 24), "red")], ["a"]))


@pytest.mark.parametrize(
    ("shapes", "keys", "parameters"),
    [
        # HPS: 686 keys and 986.1 M parameters, as counted in the package hpsv2.
        (lambda: clip_native.open_clip_layout(real("ViT-H-14")), 686, 986.1),
        (lambda: clip_native.open_clip_layout(real("ViT-H-14-quickgelu")), 686, 986.1),
        (lambda: clip_native.open_clip_layout(real("ViT-H-14-378-quickgelu")), 686, 986.7),
        (lambda: clip_native.transformers_layout(published_config("CLIP_L14")), 590, 427.6),
        (lambda: clip_native.transformers_layout(published_config("CLIP_B32")), 398, 151.3),
        (lambda: clip_native.transformers_layout(published_config("PICK")), 910, 986.1),
    ],
    ids=["hps", "dfn-224", "dfn", "clip-l14", "clip-b32", "pick"],
)
def test_true_architectures_have_the_published_layouts(shapes, keys: int, parameters: float) -> None:
    found = shapes()
    assert len(found) == keys
    count = sum(int(np.prod(shape)) for shape in found.values())
    assert count / 1e6 == pytest.approx(parameters, abs=0.06)


@pytest.mark.parametrize(
    ("name", "activation", "image_heads", "text_heads"),
    [("CLIP_L14", "quick_gelu", 16, 12), ("CLIP_B32", "quick_gelu", 12, 8), ("PICK", "gelu", 16, 16)],
)
def test_true_architectures_have_the_published_settings_that_no_shape_shows(
    name: str, activation: str, image_heads: int, text_heads: int
) -> None:
    from transformers import CLIPConfig

    config = CLIPConfig(**published_config(name))
    for tower, heads in ((config.vision_config, image_heads), (config.text_config, text_heads)):
        assert tower.num_attention_heads == heads
        assert tower.hidden_size // heads in (64, 80)  # of a head: 80 in ViT-H
        assert tower.hidden_act == activation
        assert tower.layer_norm_eps == 1e-5
    assert config.text_config.eos_token_id == 49407
    assert config.vision_config.image_size == 224


def real(architecture: str) -> dict[str, object]:
    from metrics.encoders import published

    return dict(published.named(architecture)())


def published_config(name: str) -> dict[str, object]:
    from metrics.encoders import published

    return getattr(published, name)


@pytest.mark.parametrize(
    ("architecture", "quick"),
    [("ViT-H-14", False), ("ViT-g-14", False), ("ViT-H-14-quickgelu", True), ("ViT-H-14-378-quickgelu", True)],
)
def test_open_clip_architectures_have_their_activation(architecture: str, quick: bool) -> None:
    from accelerate import init_empty_weights
    from open_clip.model import CLIP

    with init_empty_weights():
        model = CLIP(**real(architecture))
    kinds = {
        type(block.mlp.gelu).__name__
        for tower in (model.visual.transformer, model.transformer)
        for block in tower.resblocks
    }
    assert kinds == {"QuickGELU" if quick else "GELU"}


def test_no_weights_are_read_twice(clip_family: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from metrics.weights import ManifestWeights

    read: list[str] = []
    tensors = ManifestWeights.tensors
    monkeypatch.setattr(ManifestWeights, "tensors", lambda self, name: read.append(name) or tensors(self, name))
    metric = LoadedMetric("hps_v2")
    for _ in range(3):
        metric([Image.new("RGB", (24, 24))], ["a"])
    assert read == ["HPS_v2_compressed.pt"]
