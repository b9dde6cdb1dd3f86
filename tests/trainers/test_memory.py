"""What roles cost in memory, counted on the storages that are alive: LoRA roles share one base, in every family.

A student that starts from another model than the base lies on that one: two bases then, and no more."""

import gc
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from metrics.base import Prompt
from tests.shrunken.families import make
from trainers.backbones.base import Backbone, BackboneConfig, LoraConfig, load
from trainers.backbones.family import roles_of
from trainers.base import SamplerConfig, World
from trainers.dmd import Dmd, DmdConfig
from trainers.presets import read_presets
from trainers.rewards import RewardBank

CPU = torch.device("cpu")
FAMILIES = {"sd3-t5": "sd3", "sdxl": "sdxl", "flux2": "flux2", "z_image": "z_image", "sit": "sit"}


def storages(tensors: list[Tensor]) -> dict[int, int]:
    """Return the bytes of each distinct storage behind tensors, by its address."""
    found = [tensor.untyped_storage() for tensor in tensors]
    # What torch.compile traced with in another test may be alive still; it has a size, and holds nothing.
    return {storage.data_ptr(): storage.nbytes() for storage in found if storage.device.type != "meta"}


def alive() -> int:
    """Return the bytes of all storages that a tensor of this process still holds."""
    gc.collect()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of objects that dislike being asked for their class
        return sum(storages([one for one in gc.get_objects() if isinstance(one, Tensor)]).values())


def weights(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]


def backbone_of(folder: Path, kind: str, training: str, start: str = "") -> Backbone:
    settings: dict[str, Any] = {"kind": kind, "path": str(folder), "training": training, "student_path": start}
    return load(BackboneConfig(lora=LoraConfig(rank=1, alpha=1), **settings), CPU)


@pytest.mark.parametrize(("family", "bases"), [*((family, 1) for family in FAMILIES), ("sdxl", 2), ("flux2", 2)])
def test_the_four_roles_hold_one_base_or_two(family: str, bases: int, tmp_path: Path) -> None:
    """Two where the student starts from a model of its own: the reference lies on that one, the rest on the base."""
    folder = make(family, tmp_path / family)
    start = str(make(family, tmp_path / "start", seed=1)) if bases == 2 else ""
    before = alive()
    backbone = backbone_of(folder, FAMILIES[family], "lora", start)
    pipeline = backbone.pipeline  # type: ignore[attr-defined]
    base = dict(backbone._roles.base_state())  # type: ignore[attr-defined]
    where = {name: tensor.data_ptr() for name, tensor in base.items()}
    config = DmdConfig(batch_size=1, fake_score_updates=1, sampler=SamplerConfig(num_inference_steps=1))
    trainer = Dmd(config, backbone, RewardBank([], {}), World())
    backbone.keep_reference()
    trainer.step([Prompt(text="207" if family == "sit" else "a red circle")], 0)
    assert {name: tensor.data_ptr() for name, tensor in backbone._roles.base_state().items()} == where  # type: ignore[attr-defined]
    roles = ("teacher", "fake_score", "student", "reference")
    networks = [backbone._roles.network(role) for role in roles]  # type: ignore[attr-defined]
    assert networks[0] is networks[1] and networks[2] is networks[3] and len({*networks}) == bases
    modules = [part for part in pipeline.components.values() if isinstance(part, nn.Module)]
    others = sum(storages([t for module in modules if module is not networks[0] for t in weights(module)]).values())
    frozen = sum(storages(list(base.values())).values())
    matrices = {
        role: sum(p.untyped_storage().nbytes() for p in backbone.parameters(role))  # type: ignore[arg-type]
        for role in ("student", "fake_score", "reference")
    }
    beyond = alive() - before - others - bases * frozen - sum(matrices.values())
    # Adam's two moments of both that train, and the student's EMA; embeddings of a prompt beside them
    assert 0 <= beyond - 3 * matrices["student"] - 2 * matrices["fake_score"] < 0.1 * frozen


def test_full_roles_are_seen_as_copies(tmp_path: Path) -> None:
    """The counting would notice a second base: full training has one per role."""
    folder, before = make("sd3", tmp_path / "sd3"), alive()
    backbone = backbone_of(folder, "sd3", "full")
    frozen = sum(storages(weights(backbone._roles.network("teacher"))).values())  # type: ignore[attr-defined]
    pipeline = backbone.pipeline  # type: ignore[attr-defined]
    modules = [part for part in pipeline.components.values() if isinstance(part, nn.Module)]
    held = sum(storages([tensor for module in modules for tensor in weights(module)]).values())
    assert alive() - before - held == pytest.approx(2 * frozen, rel=0.05)


def sd3(**settings: Any) -> nn.Module:
    from diffusers import SD3Transformer2DModel

    common = {"patch_size": 2, "in_channels": 16, "out_channels": 16, "attention_head_dim": 64, "sample_size": 128}
    conditions = {"joint_attention_dim": 4096, "pooled_projection_dim": 2048}
    return SD3Transformer2DModel(**common, **conditions, **settings)


def sdxl() -> nn.Module:
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=128, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"), block_out_channels=(320, 640, 1280),
        attention_head_dim=(5, 10, 20), transformer_layers_per_block=(1, 2, 10), cross_attention_dim=2048,
        use_linear_projection=True, addition_embed_type="text_time", addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=2816,
    )  # fmt: skip


def flux2_klein() -> nn.Module:
    from diffusers import Flux2Transformer2DModel

    return Flux2Transformer2DModel(
        num_layers=5, num_single_layers=20, num_attention_heads=24, joint_attention_dim=7680, guidance_embeds=False
    )


def sit_xl() -> nn.Module:
    from diffusers import DiTTransformer2DModel

    return DiTTransformer2DModel(
        num_attention_heads=16, attention_head_dim=72, in_channels=4, out_channels=8, num_layers=28, sample_size=32,
        patch_size=2, num_embeds_ada_norm=1000,
    )  # fmt: skip


# The networks of the presets at their true sizes, by the folder that a preset names, and their billions of weights
TRUE_SIZE: dict[str, tuple[Callable[[], nn.Module], float]] = {
    "stable-diffusion-3-medium-diffusers": (
        lambda: sd3(num_layers=24, num_attention_heads=24, caption_projection_dim=1536, pos_embed_max_size=192), 2.0,
    ),
    "stable-diffusion-3.5-medium": (
        lambda: sd3(
            num_layers=24, num_attention_heads=24, caption_projection_dim=1536, pos_embed_max_size=384,
            qk_norm="rms_norm", dual_attention_layers=tuple(range(13)),
        ), 2.2,
    ),
    "stable-diffusion-3.5-large": (
        lambda: sd3(
            num_layers=38, num_attention_heads=38, caption_projection_dim=2432, pos_embed_max_size=192,
            qk_norm="rms_norm",
        ), 8.1,
    ),
    "stable-diffusion-xl-base-1.0": (sdxl, 2.57),
    "FLUX.2-klein-base-4B": (flux2_klein, 3.9),
    "sit-xl-2-repa": (sit_xl, 0.75),  # 0.675 as published: diffusers' DiT has embeddings of its own in each block
}  # fmt: skip
BACKBONES = [preset.build().backbone for preset in read_presets().values() if preset.paper]  # none is micro's
ADAPTED = {  # by model: of several ranks the highest
    Path(one.path).name: one for one in sorted(BACKBONES, key=lambda one: one.lora.rank) if one.training == "lora"
}


@pytest.mark.parametrize("settings", ADAPTED.values(), ids=ADAPTED.keys())
def test_the_roles_of_every_preset_hold_at_most_1_2_base_models_at_true_size(settings: BackboneConfig) -> None:
    """Base, student, fake score and reference; networks without contents (device "meta") have the true shapes.

    Where the student starts from a model of its own (FLUX.2) there are two of these, and 1.2 times both."""
    make_network, billions = TRUE_SIZE[Path(settings.path).name]
    with torch.device("meta"):
        networks = [make_network().requires_grad_(False) for _ in range(2 if settings.student_path else 1)]
        (base, *more) = [sum(p.numel() * p.element_size() for p in network.parameters()) for network in networks]
        roles = roles_of(networks[0], settings, torch.device("meta"), *networks[1:])
        roles.keep_reference()
    assert base / 4e9 == pytest.approx(billions, rel=0.05) and all(one == base for one in more)
    assert sum(t.numel() * t.element_size() for t in roles.base_state().values()) >= base  # not one weight is lost
    assert {id(network) for network in roles.networks()} == {id(network) for network in networks}
    held = sum(p.numel() * p.element_size() for network in networks for p in network.parameters())
    trained = [sum(p.numel() for p in roles.parameters(role)) for role in ("student", "fake_score", "reference")]
    assert held - len(networks) * base == 4 * sum(trained) > 0
    assert len(networks) <= held / base <= 1.2 * len(networks)


def test_a_preset_has_a_student_with_a_start_of_its_own() -> None:
    """So the two bases above are not a case that nobody meets."""
    assert [name for name, one in ADAPTED.items() if one.student_path] == ["FLUX.2-klein-base-4B"]
