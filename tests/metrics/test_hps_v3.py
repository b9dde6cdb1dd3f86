"""HPSv3 against recorded runs of the package hpsv3: shrunken Qwen2-VL, seeded (tests/parity/hpsv3/official.py)."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from metrics.base import Batch, Prompt, UserError, make
from metrics.encoders import qwen2_vl
from metrics.encoders.qwen2_vl import FACTOR, Patches, QwenTokens, Row, SmartPatches, smart_size
from metrics.hps_v3 import INSTRUCTION
from metrics.images import to_tensor
from metrics.loaded import LoadedMetric, Scorer
from metrics.weights import manifest
from metrics.weights.places import FOLDER, SYNTHETIC
from tests.parity import common
from tests.parity.hpsv3 import native, sizes

STAGES, ABOUT = common.load(native.GOLDEN)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shrunken model's files, under their true names and keys; no test changes them."""
    folder = tmp_path_factory.mktemp("hps_v3")
    assert native.write_weights(folder) == ABOUT["weights"]
    return folder


@pytest.fixture(autouse=True)
def shrunken(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let HPSv3 be the shrunken one for one test."""
    monkeypatch.setenv(FOLDER, str(written))
    monkeypatch.setenv(SYNTHETIC, "1")
    monkeypatch.setattr(qwen2_vl, "TEXT", native.SHRUNKEN_TEXT)
    monkeypatch.setattr(qwen2_vl, "VISION", sizes.HPS_V3_VISION)


def test_every_stage_equals_the_official_one() -> None:
    assert len(STAGES["output"]) >= 64
    assert len(set(STAGES["output"][:, 0].tolist())) == 64
    for stage in native.compare(STAGES, ABOUT):
        assert stage.difference <= stage.tolerance, stage


def test_the_score_is_the_packages_first_output_and_the_second_is_kept_beside_it() -> None:
    metric, official = make("hps_v3"), torch.from_numpy(STAGES["output"][:5])
    output, tokens = metric.features
    batch = Batch(prompts=[Prompt(text="a")] * 5, seeds=range(5))
    rows = metric.measure({output: official, tokens: torch.arange(5)[:, None]}, batch)
    assert torch.equal(rows["score"], official[:, 0])
    assert torch.equal(rows["log_sigma"], official[:, 1])
    assert rows["prompt_tokens"].tolist() == list(range(5))


def test_the_instruction_is_the_packages_byte_by_byte() -> None:
    content = INSTRUCTION.read_bytes()
    assert hashlib.sha256(content).hexdigest() == "f6ee57479d4e9eee76b49c00dc962e1e696a5a2b3cc32cebd9b1fa76fe27502c"
    assert content.count(b"{text_prompt}") == content.count(b"{") == 1
    assert "MIT License" in INSTRUCTION.with_suffix(".LICENSE").read_text(encoding="utf-8")


@torch.no_grad()
def test_a_batch_of_unequal_rows_equals_single_rows() -> None:
    model, inputs = native.model(), [native.inputs(index) for index in range(5)]
    patches = Patches(*(torch.cat([getattr(p, name) for p, _ in inputs]) for name in ("values_PD", "grid_B3")))
    together = model.output(patches, [row for _, row in inputs])
    alone = torch.cat([model.output(one, [row]) for one, row in inputs])
    assert len({len(row.ids) for _, row in inputs}) > 1
    assert (together - alone).abs().max() <= 1e-6 * max(1, alone.abs().max().item())


@pytest.mark.parametrize("mistake", ["true positions", "next token", "no picture", "eps", "heads", "dropout"])
@torch.no_grad()
def test_a_mistake_breaks_the_golden(mistake: str, monkeypatch: pytest.MonkeyPatch) -> None:
    patches, row = native.inputs(0)
    official = STAGES["output"][0]
    if mistake == "eps":
        monkeypatch.setattr(qwen2_vl, "TEXT", native.SHRUNKEN_TEXT | {"rms_norm_eps": 1e-2})
    if mistake == "heads":
        monkeypatch.setattr(qwen2_vl, "VISION", sizes.HPS_V3_VISION | {"num_heads": 4})
    model = native.model()
    backbone, head = model.model
    if mistake == "true positions":
        found = head(native.true_positions(backbone, patches, row))
    elif mistake == "next token":
        found = model.output(patches, [Row(row.ids, row.picture, row.tokens, row.reward + 1)])
    elif mistake == "no picture":
        found = model.output(Patches(torch.zeros_like(patches.values_PD), patches.grid_B3), [row])
    else:
        if mistake == "dropout":
            torch.manual_seed(0)
            head.train()
        found = model.output(patches, [row])
    assert np.abs(found[0].numpy() - official).max() > 1e-4


@pytest.mark.parametrize(
    ("size", "resized"),
    [
        ((512, 512), (448, 448)),
        ((1024, 1024), (448, 448)),
        ((256, 256), (448, 448)),
        ((768, 1344), (336, 588)),
        ((640, 320), (644, 336)),
    ],
)
def test_sizes_known_from_the_package(size: tuple[int, int], resized: tuple[int, int]) -> None:
    assert smart_size(*size) == resized


def test_a_ribbon_is_refused() -> None:
    with pytest.raises(UserError, match="2010x10 pixels"):
        SmartPatches().from_pil([Image.new("RGB", (2010, 10))])


@torch.no_grad()
def test_patches_equal_those_of_transformers_5() -> None:
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    for picture, _ in common.pairs(4):
        patches = SmartPatches().from_pil([picture])
        _, down, across = patches.grid_B3[0].tolist()
        resized = picture.resize((across * 14, down * 14), Image.Resampling.BICUBIC)
        official = Qwen2VLImageProcessorPil()([resized], return_tensors="pt")
        assert official["image_grid_thw"].tolist() == patches.grid_B3.tolist()
        assert (official["pixel_values"] - patches.values_PD).abs().max() <= 1e-6


def use_double(monkeypatch: pytest.MonkeyPatch) -> None:
    """Undo the two casts to float32 inside transformers' modules, in which finite differences would drown."""
    from transformers.models.qwen2_vl import modeling_qwen2_vl as modules

    def norm(self: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
        return self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)

    def rotate(q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(t * cos.unsqueeze(-2) + modules.rotate_half(t) * sin.unsqueeze(-2) for t in (q, k))

    monkeypatch.setattr(modules.Qwen2VLRMSNorm, "forward", norm)
    monkeypatch.setattr(modules, "apply_rotary_pos_emb_vision", rotate)


def test_gradient_matches_finite_differences_in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    use_double(monkeypatch)
    metric = LoadedMetric("hps_v3")
    model = metric._runner._encoders[metric.metric.features[0]].forward.__self__
    for part in model.model:
        part.double()
    generator = torch.Generator().manual_seed(0)
    pixels, direction = torch.rand(2, 1, 3, 40, 31, dtype=torch.float64, generator=generator)
    pixels.requires_grad_()
    (gradient,) = torch.autograd.grad(metric.reward(pixels, ["a"]).sum(), pixels)
    step = 1e-5
    with torch.no_grad():
        ahead, behind = (metric.reward(pixels + sign * step * direction, ["a"]) for sign in (1, -1))
    along, measured = (gradient * direction).sum(), (ahead - behind).sum() / (2 * step)
    assert along != 0
    assert torch.allclose(along, measured, rtol=1e-4, atol=1e-9)


def test_reward_is_the_score_where_nothing_is_resized() -> None:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (448, 448, 3), dtype=np.uint8))
    metric = LoadedMetric("hps_v3")
    assert (metric.reward(to_tensor([picture]), ["a"]) - metric([picture], ["a"])).abs().max() <= 1e-5


def test_tokens_of_one_pair() -> None:
    tokens = QwenTokens(manifest("qwen2-vl-7b-instruct-tokenizer"), INSTRUCTION)
    row = tokens.row("a {fox} <|Reward|>", 12)
    text = tokens._tokenizer.decode(list(row.ids), skip_special_tokens=False)
    before = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n<|vision_start|>"
    assert text.startswith(before + "<|image_pad|>" * 12 + "<|vision_end|>\nYou are tasked with evaluating")
    assert text.endswith("image: <|Reward|>\n\nEND\n<|im_end|>\n<|im_start|>assistant\n")
    assert "Textual prompt - a {fox} <|Reward|>\n\n\n\nPlease provide" in text
    reward = tokens._tokenizer.token_to_id("<|Reward|>")
    assert row.reward == max(place for place, token in enumerate(row.ids) if token == reward)
    assert set(row.ids[row.picture : row.picture + 12]) == {tokens._tokenizer.token_to_id("<|image_pad|>")}
    assert reward == tokens._tokenizer.get_vocab_size() - 1


def test_scores_end_to_end_and_their_precision() -> None:
    pictures, prompts = zip(*common.pairs(3), strict=True)
    assert torch.isfinite(LoadedMetric("hps_v3")(pictures, list(prompts))).all()
    assert Scorer(["hps_v3"]).precision("hps_v3") == "float32"


def test_the_true_layout_has_the_published_keys() -> None:
    from accelerate import init_empty_weights

    with init_empty_weights():
        text = native.TRUE_TEXT | {"vocab_size": 151658}
        backbone, head = qwen2_vl.QwenReward(text, native.TRUE_VISION), qwen2_vl.RewardHead(3584)
    found = {name.removeprefix("language_") for name in backbone.state_dict()}
    count = sum(tensor.numel() for part in (backbone, head) for tensor in part.state_dict().values())
    assert len(found) + len(head.state_dict()) + 1 == 736  # with lm_head
    assert (count + 151658 * 3584) / 1e9 == pytest.approx(8.29, abs=0.01)
    assert {"visual.merger.ln_q.weight", "model.layers.27.mlp.gate_proj.weight", "model.norm.weight"} <= found
    assert list(head.state_dict()) == [f"{layer}.{kind}" for layer in (0, 3, 5) for kind in ("weight", "bias")]


@pytest.mark.parametrize("damage", ["prefix", "missing", "shape", "head"])
def test_a_file_of_another_layout_is_refused(
    damage: str, written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors.torch import load_file, save_file

    state = load_file(written / "hps-v3" / native.FILE)
    key = "model.layers.1.self_attn.k_proj.weight"
    if damage == "prefix":
        state = {f"model.{name}": tensor for name, tensor in state.items()}
    elif damage == "missing":
        del state[key]
    elif damage == "shape":
        state[key] = state[key][:-1].clone()
    else:
        del state["rm_head.5.bias"]
    (tmp_path / "hps-v3").mkdir()
    save_file(state, tmp_path / "hps-v3" / native.FILE)
    name = "qwen2-vl-7b-instruct-tokenizer"
    (tmp_path / name).symlink_to(written / name)
    monkeypatch.setenv(FOLDER, str(tmp_path))
    with pytest.raises(UserError, match=r"HPSv3\.safetensors: not the weights of this model.*fetch hps-v3"):
        LoadedMetric("hps_v3")([Image.new("RGB", (FACTOR, FACTOR))], ["a"])


def test_the_golden_names_its_makers() -> None:
    assert ABOUT["versions"]["hpsv3"] == "1.0.0"
    assert ABOUT["versions"]["transformers"] == "4.45.2"
