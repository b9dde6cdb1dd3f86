"""The native side of HPSv3's parity: seeded weights written as the real file is, read by the real loader."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from metrics.encoders import qwen2_vl
from metrics.encoders.qwen2_vl import Patches, QwenFile, QwenReward, QwenTokens, RewardHead, Row, SmartPatches
from metrics.hps_v3 import INSTRUCTION
from metrics.weights import manifest
from tests.parity import common
from tests.parity.common import Stage
from tests.parity.hpsv3 import sizes

GOLDEN = Path(__file__).resolve().parents[2] / "golden" / "hps_v3" / "shrunken.npz"
FILE = "HPSv3.safetensors"
TRUE_TEXT, TRUE_VISION = qwen2_vl.TEXT, qwen2_vl.VISION
NAMES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
ROPE = {"rope_type": "default", "rope_theta": sizes.HPS_V3["rope_theta"], "mrope_section": sizes.MROPE}
SHRUNKEN_TEXT = {**TRUE_TEXT, **{name: sizes.HPS_V3[name] for name in NAMES}, "rope_parameters": ROPE}
SPECIAL = ("<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>")


def official_layout() -> dict[str, tuple[int, ...]]:
    """Return the shapes of the shrunken file by its own keys: those of transformers 4.45."""
    backbone = QwenReward(SHRUNKEN_TEXT | {"vocab_size": sizes.HPS_V3["vocab_size"]}, sizes.HPS_V3_VISION)
    shapes = {name.removeprefix("language_"): tuple(value.shape) for name, value in backbone.state_dict().items()}
    head = RewardHead(sizes.HPS_V3["hidden_size"]).state_dict()
    shapes |= {f"rm_head.{name}": tuple(value.shape) for name, value in head.items()}
    return shapes | {"lm_head.weight": shapes["model.embed_tokens.weight"]}


def write_weights(folder: Path) -> str:
    """Write both files as FEWSTEP_BENCH_WEIGHTS expects them; return the seeded weights' checksum."""
    from safetensors.torch import save_file
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    weights = common.seeded_weights(official_layout())
    tokenizer = "qwen2-vl-7b-instruct-tokenizer"
    for identity in ("hps-v3", tokenizer):
        (folder / identity).mkdir(parents=True)
    state = {name: torch.from_numpy(values) for name, values in weights.items()}
    save_file(state, folder / "hps-v3" / FILE)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE(vocab={letter: index for index, letter in enumerate(letters)}, merges=[]))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    made.add_special_tokens(list(SPECIAL))
    made.save(str(folder / tokenizer / "tokenizer.json"))
    return common.checksum(weights)


def model() -> QwenFile:
    """Return the model whose weights are written, loaded in float32."""
    tokens = QwenTokens(manifest("qwen2-vl-7b-instruct-tokenizer"), INSTRUCTION)
    return QwenFile(manifest("hps-v3"), FILE, tokens, torch.device("cpu"), torch.float32)


def inputs(index: int) -> tuple[Patches, Row]:
    """Return a pair's picture and its made-up row of tokens."""
    picture = next(picture for place, (picture, _) in enumerate(common.pairs(index + 1)) if place == index)
    return with_row(index, SmartPatches().from_pil([picture]))


def with_row(index: int, patches: Patches) -> tuple[Patches, Row]:
    """Return a picture's patches with the pair's made-up row of tokens."""
    count = int(patches.grid_B3.prod()) // 4
    ids = sizes.hps_v3_ids(index, count).tolist()
    return patches, Row(ids, ids.index(sizes.IMAGE), count, ids.index(sizes.REWARD))


@torch.no_grad()
def compare(stages: Mapping[str, np.ndarray], about: Mapping[str, Any]) -> Iterator[Stage]:
    """Yield every stage of an official run against the model whose weights are written."""
    resized = np.array([qwen2_vl.smart_size(*size) for size in sizes.SIZES])
    yield Stage("sizes", float(np.abs(resized - stages["sizes"]).max()), 0)
    instruction = INSTRUCTION.read_text(encoding="utf-8")
    texts = [instruction.replace("{text_prompt}", prompt).encode() for _, prompt in common.pairs()]
    digests = [common.digest(np.frombuffer(text, np.uint8)) for text in texts]
    yield Stage("texts (prompts that differ)", _count(digests, about["texts"]), 0)
    pairs = [with_row(index, SmartPatches().from_pil([picture])) for index, (picture, _) in enumerate(common.pairs())]
    pixels = [common.digest(common.grey_levels(sizes.by_channel(patches.values_PD.numpy()))) for patches, _ in pairs]
    yield Stage("pixels (pictures that differ)", _count(pixels, about["pixels"]), 0)
    native = model()
    backbone, _ = native.model
    shown = pairs[: len(stages["image"])]
    images = [backbone.visual(p.values_PD, grid_thw=p.grid_B3).pooler_output[:8] for p, _ in shown]
    yield Stage("image tokens", _gap(torch.stack(images), stages["image"]), 1e-5)
    output = torch.cat([native.output(patches, [row]) for patches, row in pairs])
    yield Stage("mu", _gap(output[:, 0], stages["output"][:, 0]), 1e-5)
    yield Stage("log sigma", _gap(output[:, 1], stages["output"][:, 1]), 1e-5)
    several = pairs[: len(stages["together"])]
    joined = (torch.cat([getattr(p, name) for p, _ in several]) for name in ("values_PD", "grid_B3"))
    together = native.output(Patches(*joined), [row for _, row in several])
    yield Stage("both, padded batch", _gap(together, stages["together"]), 1e-5)
    gaps = []
    for (patches, row), official, largest in zip(shown, stages["gradient"], stages["grad_max"], strict=True):
        with torch.enable_grad():
            values_PD = patches.values_PD.requires_grad_()
            (found,) = torch.autograd.grad(native.output(Patches(values_PD, patches.grid_B3), [row])[0, 0], values_PD)
        gaps.append(_gap(found[::64, ::49][:12], official) / float(largest))
    yield Stage("gradient (relative)", max(gaps), 1e-5)


def true_positions(backbone: QwenReward, patches: Patches, row: Row) -> Tensor:
    """Return the state at the reward's token under Qwen2-VL's own two-dimensional positions: the mistake to avoid."""
    ids_1L = torch.tensor([row.ids])
    embedded = backbone.language_model.embed_tokens(ids_1L)
    seen = backbone.visual(patches.values_PD, grid_thw=patches.grid_B3).pooler_output
    embedded[0, row.picture : row.picture + row.tokens] = seen
    _, down, across = (patches.grid_B3[0] // torch.tensor([1, 2, 2])).tolist()
    grid = torch.stack(torch.meshgrid(torch.arange(1), torch.arange(down), torch.arange(across), indexing="ij"))
    after = row.picture + max(down, across)
    rest = torch.arange(len(row.ids) - row.picture - row.tokens).expand(3, -1) + after
    parts = torch.arange(row.picture).expand(3, -1), grid.reshape(3, -1) + row.picture, rest
    hidden = backbone.language_model(inputs_embeds=embedded, position_ids=torch.cat(parts, dim=1)[:, None])
    return hidden.last_hidden_state[:, row.reward]


def _count(found: list[str], official: list[str]) -> float:
    return float(sum(one != other for one, other in zip(found, official, strict=True)))


def _gap(found: Tensor, official: np.ndarray) -> float:
    return float(np.abs(found.numpy() - official).max())
