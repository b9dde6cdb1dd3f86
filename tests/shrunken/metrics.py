"""The metrics' networks with seeded random weights: true file names, keys and code, narrow and shallow.

write(folder)                 what FEWSTEP_BENCH_WEIGHTS is to name
with stand_ins(folder): …     metrics read it, and know the networks' sizes
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from safetensors.torch import save_file
from torch import Tensor

from metrics import feature_distance
from metrics.encoders import blip, dino, maniqa, published, qwen2_vl
from metrics.encoders.lpips import TRUNKS, LpipsNetwork
from metrics.geneval import mask2former
from metrics.weights import manifest
from metrics.weights.places import FOLDER, SYNTHETIC
from tests.metrics import test_maniqa
from tests.metrics.encoders.test_dino import FOLDERS as DINO_FOLDERS
from tests.metrics.encoders.test_dino import GOLDEN as DINO_LAYOUTS
from tests.metrics.encoders.test_dino import seeded
from tests.metrics.geneval.mmdet_network import HEAD, SWIN
from tests.metrics.geneval.test_mask2former import Checkpoint
from tests.metrics.vqa.test_qwen import CHAT, model_and_processor
from tests.parity import clip_native, common
from tests.parity.clip import sizes as clip_sizes
from tests.parity.dino import sizes as dino_sizes
from tests.parity.distribution import sizes as distribution_sizes
from tests.parity.hpsv3 import native as hpsv3
from tests.parity.hpsv3 import sizes as hpsv3_sizes
from tests.parity.image_reward import native as image_reward
from tests.parity.image_reward import sizes as image_reward_sizes

ANSWERERS = {"qwen3-vl-8b-instruct": "qwen3", "visualquality-r1-7b": "qwen2.5"}
SIZES: tuple[tuple[Any, str, Any], ...] = (  # module, name of its constant, the shrunken value
    (published, "CLIP_L14", clip_sizes.CLIP),
    (published, "CLIP_B32", clip_sizes.CLIP),
    (published, "PICK", clip_sizes.PICK),
    (published, "named", clip_native.shrunken),
    (qwen2_vl, "TEXT", hpsv3.SHRUNKEN_TEXT),
    (qwen2_vl, "VISION", hpsv3_sizes.HPS_V3_VISION),
    (blip, "VISION", image_reward.SHRUNKEN_VISION),
    (blip, "TEXT", image_reward.SHRUNKEN_TEXT),
    (maniqa, "SIZES", test_maniqa.SHRUNKEN),
    (dino, "DINOV3_L", dino_sizes.DINOV3),
    (dino, "DINOV2_L", dino_sizes.DINOV2),
    (feature_distance, "CLIP_L14_336", dino_sizes.CLIP),
    (mask2former, "SWIN_S", SWIN),
    (mask2former, "HEAD", HEAD),
)


@contextmanager
def stand_ins(folder: Path) -> Iterator[None]:
    """Within the context every published network of a metric is the shrunken one of the folder."""
    with ExitStack() as stack:
        stack.enter_context(patch.dict("os.environ", {FOLDER: str(folder), SYNTHETIC: "1"}))
        for module, name, value in SIZES:
            stack.enter_context(patch.object(module, name, value))
        yield


def write(folder: Path) -> None:
    """Write all weights."""
    clip_native.write_weights(folder)
    hpsv3.write_weights(folder)
    layout = image_reward.official_layout(image_reward.SHRUNKEN_VISION, image_reward.SHRUNKEN_TEXT)
    image_reward.write_weights(folder, layout, image_reward_sizes.VOCABULARY)
    for identity, file in test_maniqa.FILES.items():
        _save(test_maniqa.published_layout(), folder / identity / file)
    layouts = common.load(DINO_LAYOUTS)[0]
    for name, identity in DINO_FOLDERS.items():
        _save(seeded(layouts[f"{name}_layout"]), folder / identity / manifest(identity).entry.files[0].name)
    _write_lpips(folder / "lpips-alex")
    detector = folder / "mask2former-swin-s-mmdet"
    detector.mkdir()
    (file,) = manifest(detector.name).entry.files
    torch.save({file.unwrap: Checkpoint(detector).content}, detector / file.name)
    for identity, kind in ANSWERERS.items():
        _write_answerer(folder / identity, kind)


def _save(tensors: Mapping[str, Tensor], path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    if path.suffix == ".safetensors":
        save_file(dict(tensors), path)
    else:
        torch.save(dict(tensors), path)


def _write_lpips(folder: Path) -> None:
    """Write AlexNet's trunk at its true size, and heads that weigh all channels alike."""
    with torch.device("meta"):
        network = LpipsNetwork("alex")
    shapes = {name: tuple(v.shape) for name, v in network.state_dict().items() if name.startswith("features.")}
    trunk = distribution_sizes.seeded_weights(shapes)
    _save({name: torch.from_numpy(value) for name, value in trunk.items()}, folder / TRUNKS["alex"])
    widths = (64, 192, 384, 256, 256)
    heads = {f"lin{n}.model.1.weight": torch.full((1, width, 1, 1), 1 / width) for n, width in enumerate(widths)}
    _save(heads, folder / "alex.pth")


def _write_answerer(folder: Path, kind: str) -> None:
    """Write a model of transformers, its tensors dealt out to the published number of shards."""
    folder.mkdir()
    model, processor = model_and_processor(kind)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    for part in (processor.tokenizer, processor.image_processor, processor.video_processor):
        part.save_pretrained(folder)  # under the names that are published: the processor puts all into one file
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": CHAT}), encoding="utf-8")
    whole = folder / "model.safetensors"
    whole.unlink()
    shards = [file.name for file in manifest(folder.name).entry.files if file.name.startswith("model-")]
    tensors = sorted(model.state_dict().items())
    dealt = {name: shards[n % len(shards)] for n, (name, _) in enumerate(tensors)}
    for shard in shards:
        save_file({name: t.clone() for name, t in tensors if dealt[name] == shard}, folder / shard, {"format": "pt"})
    index = {"metadata": {}, "weight_map": dealt}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
