"""The package hpsv3 on seeded weights, stage by stage; runs in its own environment (`tox -e parity-hpsv3`).

    python -m tests.parity.hpsv3.official     shrunken Qwen2-VL, writes tests/golden/hps_v3/shrunken.npz

The model, the picture's resizing and the prompt are the package's own, the patches transformers 4.45's. Empty modules
stand for what the package's files import and inference never calls (trl, peft, datasets, plots). Tokenizer and chat
template are on the hub: token ids are made up, and the text before the template is recorded by its sha256.
"""

import importlib
import importlib.machinery
import importlib.metadata
import importlib.util
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.parity import common
from tests.parity.hpsv3 import sizes

ROOT = Path(__file__).resolve().parents[3]
PIXELS = 256 * 28 * 28
ROWS, COLUMNS = 64, 49  # every which of the patches' gradient is recorded
STAND_INS = {
    "matplotlib": (),
    "matplotlib.pyplot": (),
    "matplotlib.patches": (),
    "torch.utils.tensorboard": ("SummaryWriter",),
    "pandas": (),
    "datasets": (),
    "peft": ("PeftModel",),
    "trl": ("RewardTrainer",),
    "hpsv3.utils": (),
    "hpsv3.utils.training_utils": ("get_peft_state_non_lora_maybe_zero_3",),
}


def import_package() -> tuple[Any, Any, Any]:
    """Return the modules of the model, of the pictures and of the prompt, without the package's own __init__ file."""
    found = importlib.util.find_spec("hpsv3")
    assert found is not None and found.origin is not None, "run it by `tox -e parity-hpsv3`"
    home = types.ModuleType("hpsv3")
    home.__path__ = [str(Path(found.origin).parent)]
    sys.modules["hpsv3"] = home
    importlib.import_module("transformers.trainer")  # before the stand-ins: it looks which packages are there
    for name, contents in STAND_INS.items():
        module = sys.modules[name] = types.ModuleType(name)
        module.__spec__ = importlib.machinery.ModuleSpec(name, None)  # torch asks for it
        for content in contents:
            setattr(module, content, object)
    parts = ("model.qwen2vl_trainer", "dataset.utils", "dataset.data_collator_qwen")
    model, pictures, prompt = (importlib.import_module(f"hpsv3.{part}") for part in parts)
    return model, pictures, prompt


def make_model(package: Any) -> tuple[Any, dict[str, np.ndarray]]:
    """Return the reward model with seeded weights, and these weights."""
    from transformers import Qwen2VLConfig

    config = Qwen2VLConfig(
        **sizes.HPS_V3,
        vision_config=sizes.HPS_V3_VISION,
        rope_scaling={"type": "mrope", "mrope_section": sizes.MROPE},
        image_token_id=sizes.IMAGE,
        vision_start_token_id=sizes.START,
        vision_end_token_id=sizes.END,
        pad_token_id=sizes.PAD,
        tie_word_embeddings=False,
    )
    model = package.Qwen2VLRewardModelBT(
        config, output_dim=2, reward_token="special", special_token_ids=[sizes.REWARD], rm_head_type="ranknet"
    )
    weights = common.seeded_weights({name: tuple(tensor.shape) for name, tensor in model.state_dict().items()})
    model.load_state_dict({name: torch.from_numpy(values) for name, values in weights.items()})
    return model.eval(), weights


def resized(pictures: Any, picture: Any) -> Any:
    """Return a picture as the package resizes it."""
    return pictures.fetch_image({"image": picture, "min_pixels": PIXELS, "max_pixels": PIXELS})


def record(model: Any, pictures: Any, prompt: Any) -> tuple[dict[str, np.ndarray], dict[str, object]]:
    """Return all stages but the weights' checksum, and what made them."""
    from transformers import Qwen2VLImageProcessor

    processor = Qwen2VLImageProcessor()
    stages: dict[str, list[Any]] = {}
    digests, texts, rows = [], [], []

    def add(**values: Any) -> None:
        for name, value in values.items():
            stages.setdefault(name, []).append(value.detach().numpy() if isinstance(value, torch.Tensor) else value)

    for size in sizes.SIZES:
        add(sizes=pictures.smart_resize(*size, min_pixels=PIXELS, max_pixels=PIXELS))
    for index, (picture, text) in enumerate(common.pairs()):
        texts.append(prompt.INSTRUCTION.format(text_prompt=text) + prompt.prompt_with_special_token)
        patches = processor(resized(pictures, picture), return_tensors="pt")
        pixels, grid = patches["pixel_values"], patches["image_grid_thw"]
        ids = torch.from_numpy(sizes.hps_v3_ids(index, int(grid.prod()) // 4))[None]
        levels = common.grey_levels(sizes.by_channel(pixels.numpy()), exact=True)
        digests.append(common.digest(levels))
        rows.append((ids, pixels, grid))
        shown = index < common.SHOWN
        pixels = pixels.requires_grad_(shown)
        with torch.set_grad_enabled(shown):
            output = model(input_ids=ids, pixel_values=pixels, image_grid_thw=grid, return_dict=True)["logits"]
        add(grid=grid[0], output=output[0])
        if shown:
            (gradient,) = torch.autograd.grad(output[0, 0], pixels)
            image = model.visual(pixels, grid_thw=grid)
            add(image=image[:8], gradient=gradient[::ROWS, ::COLUMNS][:12], grad_max=gradient.abs().max())
    length = max(ids.shape[1] for ids, _, _ in rows[:5])
    padded = [torch.nn.functional.pad(ids, (0, length - ids.shape[1]), value=sizes.PAD) for ids, _, _ in rows[:5]]
    with torch.no_grad():
        together = model(
            input_ids=torch.cat(padded),
            attention_mask=(torch.cat(padded) != sizes.PAD).long(),
            pixel_values=torch.cat([pixels for _, pixels, _ in rows[:5]]).detach(),
            image_grid_thw=torch.cat([grid for _, _, grid in rows[:5]]),
            return_dict=True,
        )["logits"]
    about: dict[str, object] = {
        "official": "hpsv3",
        "pixels": digests,
        "raised": common.raised(lambda picture: processor(resized(pictures, picture)), 64),
        "texts": [common.digest(np.frombuffer(text.encode(), np.uint8)) for text in texts],
    }
    return {name: np.stack(values) for name, values in stages.items()} | {"together": together.numpy()}, about


def main() -> None:
    """Record one run."""
    package, pictures, prompt = import_package()
    model, weights = make_model(package)
    stages, about = record(model, pictures, prompt)
    about |= {"weights": common.checksum(weights), "keys": len(weights)}
    packages = ("hpsv3", "torch", "torchvision", "transformers", "numpy", "pillow")
    about["versions"] = {name: importlib.metadata.version(name) for name in packages}
    path = ROOT / "tests/golden/hps_v3/shrunken.npz"
    common.save(path, stages, about)
    print(f"{path.relative_to(ROOT)}: {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
