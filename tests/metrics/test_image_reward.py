"""ImageReward against recorded runs of image-reward 1.5: two blocks a side, seeded (tests/parity/image_reward)."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from metrics.base import Batch, Prompt, UserError
from metrics.encoders import blip
from metrics.encoders.blip import BertTokens, BlipFile, BlipReward, native_key
from metrics.image_reward import PICTURES, example_of_the_readme
from metrics.images import to_tensor
from metrics.loaded import LoadedMetric, Scorer
from metrics.preprocessing import Preprocessing, Resized
from metrics.weights import manifest
from metrics.weights.places import FOLDER, SYNTHETIC
from tests.parity import common
from tests.parity.image_reward import native, sizes

STAGES, ABOUT = common.load(native.GOLDEN)
LAYOUT = native.official_layout(native.SHRUNKEN_VISION, native.SHRUNKEN_TEXT)
ROUNDING = {name: common.rounding(STAGES, name) for name in ("score", "refl", "rtdmd")}
IDS = {"image_reward": "score", "image_reward.refl": "refl", "image_reward.rtdmd": "rtdmd"}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shrunken model's files, under their true names and keys; no test changes them."""
    folder = tmp_path_factory.mktemp("image_reward")
    assert native.write_weights(folder, LAYOUT, sizes.VOCABULARY) == ABOUT["weights"]
    return folder


@pytest.fixture(autouse=True)
def shrunken(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let ImageReward be the shrunken one for one test."""
    monkeypatch.setenv(FOLDER, str(written))
    monkeypatch.setenv(SYNTHETIC, "1")
    monkeypatch.setattr(blip, "VISION", native.SHRUNKEN_VISION)
    monkeypatch.setattr(blip, "TEXT", native.SHRUNKEN_TEXT)


def score_pairs(identity: str, count: int, block: int, order: list[int] | None = None) -> np.ndarray:
    """Return the scores of the first pairs, by pair whatever the order."""
    chosen, pairs, scorer = order or list(range(count)), list(common.pairs(count)), Scorer([identity])
    found = np.zeros(count, np.float32)
    for start in range(0, count, block):
        part = chosen[start : start + block]
        batch = Batch(prompts=[Prompt(text=pairs[index][1]) for index in part], seeds=part)
        found[part] = scorer.score([pairs[index][0] for index in part], batch)[identity]["score"]
    return found


def test_every_stage_equals_the_official_one() -> None:
    assert len(STAGES["score"]) >= 64
    assert len(set(STAGES["score"].tolist())) == 64
    for stage in native.compare(STAGES, ABOUT):
        assert stage.difference <= stage.tolerance, stage


@pytest.mark.parametrize("identity", IDS)
def test_scores_equal_the_official_ones_end_to_end(identity: str) -> None:
    name = IDS[identity]
    assert np.abs(score_pairs(identity, 12, block=12) - STAGES[f"{name}_64"][:12]).max() <= ROUNDING[name] < 1e-5


@pytest.mark.parametrize("name", ["score", "refl", "rtdmd"])
def test_rounding_is_what_float32_costs_the_official_scores(name: str) -> None:
    assert STAGES[name].dtype == np.float32 and STAGES[f"{name}_64"].dtype == np.float64
    assert 0 < ROUNDING[name] < 1e-5 and np.ptp(STAGES[f"{name}_64"]) > 0.5


def test_scores_depend_neither_on_the_batch_nor_on_the_order() -> None:
    whole = score_pairs("image_reward", 12, block=12)
    assert np.array_equal(whole, score_pairs("image_reward", 12, block=12))
    for block in (1, 5):
        backwards = score_pairs("image_reward", 12, block, order=list(range(12))[::-1])
        assert np.array_equal(whole, backwards)


def test_the_true_layout_has_the_published_count_of_keys_and_parameters() -> None:
    from accelerate import init_empty_weights

    vision, text = native.TRUE_VISION, native.TRUE_TEXT
    layout = native.official_layout(vision, text)
    assert len(layout) + 1 == 625  # with position_ids
    assert sum(np.prod(shape) for shape in layout.values()) / 1e6 == pytest.approx(446.67, abs=0.01)
    with init_empty_weights():
        model = BlipReward(vision, text)
    found = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    assert {native_key(name): shape for name, shape in layout.items()} == found
    assert len(LAYOUT) + 1 == ABOUT["keys"]


def test_the_true_architecture_has_the_published_settings_that_no_shape_shows() -> None:
    vision, text = native.TRUE_VISION, native.TRUE_TEXT
    assert (vision["num_attention_heads"], vision["layer_norm_eps"], vision["hidden_act"]) == (16, 1e-6, "gelu")
    assert (text["num_attention_heads"], text["layer_norm_eps"], text["hidden_act"]) == (12, 1e-12, "gelu")


@pytest.mark.parametrize(
    ("vision", "text", "pictures"),
    [
        ({"layer_norm_eps": 1e-5}, {}, PICTURES[""]),
        ({"hidden_act": "quick_gelu"}, {}, PICTURES[""]),
        ({"num_attention_heads": 8}, {}, PICTURES[""]),
        ({}, {"num_attention_heads": 8}, PICTURES[""]),
        ({}, {"layer_norm_eps": 1e-5}, PICTURES[""]),
        ({}, {}, Resized(size=(224, 224), resize="longest", official="tensor")),
        ({}, {}, Resized(size=(224, 224), official="tensor")),
        ({}, {}, Resized(size=(224, 224), crop_offset="floor")),
        ({}, {}, PICTURES["-rtdmd"]),
    ],
    ids=["eps", "quick-gelu", "image-heads", "text-heads", "text-eps", "padded", "floats", "crop", "squashed"],
)
@torch.no_grad()
def test_a_mistake_breaks_the_golden(
    vision: dict[str, object], text: dict[str, object], pictures: Preprocessing, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blip, "VISION", native.SHRUNKEN_VISION | vision)
    monkeypatch.setattr(blip, "TEXT", native.SHRUNKEN_TEXT | text)
    model, found = BlipFile(manifest("image-reward-v1"), native.FILE, torch.device("cpu")), []
    read = BertTokens(manifest("bert-base-uncased-vocab"))
    for picture, prompt in common.pairs(10):
        found.append(model.score(model.image(pictures.from_pil([picture])), read.tokens([prompt])))
    assert np.abs(torch.cat(found).numpy() - STAGES["score_64"][:10]).max() > 1e-5


@pytest.mark.parametrize(
    ("variant", "pictures"),
    [
        ("refl", PICTURES[""]),
        ("refl", replace(PICTURES["-refl"], antialias=False)),
        ("refl", replace(PICTURES["-refl"], interpolation="bilinear")),
        ("rtdmd", replace(PICTURES["-rtdmd"], antialias=True)),
        ("rtdmd", PICTURES["-refl"]),
        ("rtdmd", Resized(size=(224, 224), resize="squash")),
    ],
    ids=["PIL", "no antialias", "bilinear", "antialias", "cropped", "PIL squashed"],
)
@torch.no_grad()
def test_a_mistake_breaks_the_golden_of_a_variant(variant: str, pictures: Preprocessing) -> None:
    model, differences = BlipFile(manifest("image-reward-v1"), native.FILE, torch.device("cpu")), []
    read = BertTokens(manifest("bert-base-uncased-vocab"))
    for chosen in (PICTURES[f"-{variant}"], pictures):
        found = [
            model.score(model.image(chosen.from_pil([picture])), read.tokens([prompt]))
            for picture, prompt in common.pairs(8)
        ]
        differences.append(np.abs(torch.cat(found).numpy() - STAGES[f"{variant}_64"][:8]).max())
    assert differences[0] <= ROUNDING[variant] < 1e-5 < differences[1]


@pytest.mark.parametrize("mistake", ["causal", "dropout on", "no mask", "no mean and std", "no picture"])
@torch.no_grad()
def test_a_mistake_in_the_call_breaks_the_golden(mistake: str) -> None:
    model = BlipFile(manifest("image-reward-v1"), native.FILE, torch.device("cpu"))
    (picture, prompt), official = next(common.pairs(1)), STAGES["score_64"][0]
    tokens, image = BertTokens(manifest("bert-base-uncased-vocab")).tokens([prompt]), PICTURES[""].from_pil([picture])
    states = model.image(image)
    assert abs(model.score(states, tokens).item() - official) <= ROUNDING["score"]
    # Token ids travel as floats, which are exact below 2^24.
    assert torch.equal(model.score(states, tokens.float()), model.score(states, tokens))
    if mistake == "dropout on":
        torch.manual_seed(0)
        found = model.model.train()(states, tokens)
    elif mistake == "causal":
        ids, mask = tokens.unbind(dim=1)
        hidden = model.model.text(
            input_ids=ids, attention_mask=mask, encoder_hidden_states=states, is_decoder=True
        ).last_hidden_state[:, 0]
        found = (model.model.mlp(hidden)[:, 0] - blip.MEAN) / blip.STD
    elif mistake == "no mask":
        found = model.score(states, torch.stack([tokens[:, 0], torch.ones_like(tokens[:, 0])], dim=1))
    elif mistake == "no mean and std":
        found = model.score(states, tokens) * blip.STD + blip.MEAN
    else:
        found = model.score(torch.zeros_like(states), tokens)
    assert abs(found.item() - official) > 1e-4


def test_the_selfcheck_scores_the_four_pictures_of_the_readme(
    written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures = [picture.resize((224, 224)) for picture, _ in common.pairs(4)]
    (tmp_path / "image-reward-example").mkdir()
    for number, picture in enumerate(pictures, start=1):
        picture.save(tmp_path / "image-reward-example" / f"{number}.webp", lossless=True)
    for identity in ("image-reward-v1", "bert-base-uncased-vocab"):
        (tmp_path / identity).symlink_to(written / identity)
    monkeypatch.setenv(FOLDER, str(tmp_path))
    goldens = list(example_of_the_readme())
    prompt = "a painting of an ocean with clouds and birds, day time, low depth field effect"
    assert [golden.found for golden in goldens] == pytest.approx(
        LoadedMetric("image_reward")(pictures, [prompt] * 4).tolist(), abs=1e-6
    )
    middles = [(golden.low + golden.high) / 2 for golden in goldens]
    assert middles == pytest.approx([0.58116, 0.27453, -1.41318, -2.02957])
    assert not any(golden.right for golden in goldens)  # these are neither the weights nor the pictures


def test_long_prompts_are_counted() -> None:
    texts = [" ".join(["fox"] * count) for count in (33, 34)]
    batch = Batch(prompts=[Prompt(text=text) for text in texts], seeds=range(2))
    rows = Scorer(["image_reward"]).score([Image.new("RGB", (24, 24))] * 2, batch)["image_reward"]
    assert rows["prompt_truncated"].tolist() == [False, True]
    assert rows["score"][0] == pytest.approx(float(rows["score"][1]), abs=1e-6)  # the 34th fox is not read


@pytest.mark.parametrize("identity", IDS)
def test_gradient_matches_finite_differences_in_float64(identity: str) -> None:
    metric = LoadedMetric(identity)
    runner = metric._runner
    model = runner._encoders[metric.metric.features[0]].forward.__self__.model.double()
    generator = torch.Generator().manual_seed(0)
    pixels, direction = torch.rand(2, 1, 3, 40, 31, dtype=torch.float64, generator=generator)
    assert next(model.parameters()).dtype == torch.float64
    pixels.requires_grad_()
    (gradient,) = torch.autograd.grad(metric.reward(pixels, ["a fox"]).sum(), pixels)
    step = 1e-5
    with torch.no_grad():
        ahead, behind = (metric.reward(pixels + sign * step * direction, ["a fox"]) for sign in (1, -1))
    along, measured = (gradient * direction).sum(), (ahead - behind).sum() / (2 * step)
    assert along != 0
    assert torch.allclose(along, measured, rtol=1e-5, atol=1e-9)


def test_reward_is_the_score_where_nothing_is_resized() -> None:
    pictures = [picture.resize((224, 224)) for picture, _ in common.pairs(2)]
    metric = LoadedMetric("image_reward")
    assert (metric.reward(to_tensor(pictures), ["a", "b"]) - metric(pictures, ["a", "b"])).abs().max() <= 1e-6


@pytest.mark.parametrize("damage", ["prefix", "missing", "shape", "more"])
def test_a_file_of_another_layout_is_refused(
    damage: str, written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = torch.load(written / "image-reward-v1" / native.FILE, weights_only=True)
    key = "blip.text_encoder.encoder.layer.1.crossattention.self.key.weight"
    if damage == "prefix":
        state = {f"module.{name}": tensor for name, tensor in state.items()}
    elif damage == "missing":
        del state[key]
    elif damage == "shape":
        state[key] = state[key][:, :-1].clone()
    else:
        state["blip.text_encoder.embeddings.token_type_embeddings.weight"] = torch.zeros(2, 768)
    (tmp_path / "image-reward-v1").mkdir()
    torch.save(state, tmp_path / "image-reward-v1" / native.FILE)
    (tmp_path / "bert-base-uncased-vocab").symlink_to(written / "bert-base-uncased-vocab")
    monkeypatch.setenv(FOLDER, str(tmp_path))
    with pytest.raises(UserError, match=r"ImageReward\.pt: not the weights of this model.*fetch image-reward-v1"):
        LoadedMetric("image_reward")([Image.new("RGB", (24, 24))], ["a"])


def test_either_missing_file_is_named_before_anything_is_scored(
    written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for present, absent in (("image-reward-v1", "BERT"), ("bert-base-uncased-vocab", "ImageReward")):
        folder = tmp_path / present
        folder.mkdir()
        (folder / present).symlink_to(written / present)
        monkeypatch.setenv(FOLDER, str(folder))
        assert absent in (Scorer(["image_reward"]).missing("image_reward") or "")


def test_every_kind_of_picture_is_scored_as_its_rgb() -> None:
    grey = Image.fromarray(np.arange(40 * 30, dtype=np.uint32).reshape(40, 30).astype(np.uint8))
    kinds = [grey, grey.convert("RGBA"), grey.convert("LA"), grey.convert("RGB")]
    scores = LoadedMetric("image_reward")(kinds, ["a"] * 4)
    assert (scores - scores[-1]).abs().max() <= 1e-6
