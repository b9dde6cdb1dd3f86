"""Published models by card: a LoRA with a scale and a scheduler, a whole denoiser, over a base in the hub's form."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.checkpoints import check_pipeline
from benchmarks.config import UserError, build
from benchmarks.model_cards import ModelCard, available_cards, base_card, card_protocol, find_card
from benchmarks.models import Pipeline, noise_generator, open_model
from benchmarks.native import load_pipeline
from metrics.images import to_tensor
from tests.shrunken.families import make

TEXTS = ["a photo of a red circle", "a blue square"]
COMMON = 'title = "t"\nlicence = "l"\ncitation = "c"\nsource = "s"\n'
PROTOCOL = "[protocol]\nnum_inference_steps = 2\nguidance_scale = 0.0\nheight = 32\nwidth = 32\n"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of models: a shrunken SDXL, a card of it, and cards of a LoRA and of a UNet over it."""
    base = make("sdxl", tmp_path / "models" / "org" / "base")
    other = make("sdxl", tmp_path / "other", seed=1)
    (base / "protocol.json").unlink()
    added = tmp_path / "models" / "org" / "added"
    added.mkdir()
    shutil.copy(other / "unet" / "diffusion_pytorch_model.safetensors", added / "unet.safetensors")
    save_lora(base, added)
    (tmp_path / "base.toml").write_text(f'repo = "org/base"\n{COMMON}{PROTOCOL}')
    over = f'repo = "org/added"\nbase = "{tmp_path / "base.toml"}"\n{COMMON}'
    settings = 'lora_scale = 0.5\nscheduler = { _class_name = "LCMScheduler", original_inference_steps = 100 }\n'
    (tmp_path / "lora.toml").write_text(f'kind = "lora"\nfiles = ["lora.safetensors"]\n{settings}{over}')
    (tmp_path / "unet.toml").write_text(
        f'kind = "denoiser"\nfiles = ["unet.safetensors"]\nscheduler = {{ timestep_spacing = "trailing" }}\n{over}'
    )
    monkeypatch.setenv("FEWSTEP_BENCH_MODELS", str(tmp_path / "models"))
    return tmp_path


def save_lora(base: Path, folder: Path) -> None:
    from diffusers import StableDiffusionXLPipeline
    from peft import LoraConfig, get_peft_model_state_dict

    unet = stock(base).unet
    torch.manual_seed(0)
    unet.add_adapter(LoraConfig(r=4, lora_alpha=4, target_modules=["to_q", "to_v"], init_lora_weights=False))
    layers = get_peft_model_state_dict(unet)
    StableDiffusionXLPipeline.save_lora_weights(folder, unet_lora_layers=layers, weight_name="lora.safetensors")


def stock(folder: Path) -> Any:
    return load_pipeline(check_pipeline(folder), None, "float32", "cpu")


def pictures_of(pipe: Any) -> Tensor:
    generators = [noise_generator(0, text, 0) for text in TEXTS]
    call = {"num_inference_steps": 2, "guidance_scale": 0.0, "height": 32, "width": 32, "output_type": "pt"}
    return pipe(TEXTS, generator=generators, **call).images


def drawn(model: Pipeline) -> Tensor:
    return to_tensor(
        model.generate(TEXTS, [noise_generator(0, text, 0) for text in TEXTS], model.protocol).images
    ).float()


def opened(spec: Path, **arguments: Any) -> Pipeline:
    model = open_model(spec, **arguments)
    assert isinstance(model, Pipeline)
    return model


@pytest.mark.parametrize("name", available_cards())
def test_shipped_cards_name_schedulers_and_protocols_that_exist(name: str) -> None:
    import diffusers

    card = find_card(name)
    assert card is not None and card.repo.count("/") == 1
    protocol = card_protocol(card, name)
    assert min(protocol.height, protocol.width) >= 512
    if card.scheduler:
        scheduler = getattr(diffusers, card.scheduler.get("_class_name", "EulerDiscreteScheduler"))()
        assert card.scheduler.keys() - {"_class_name"} <= scheduler.config.keys()
    if card.base:
        assert base_card(card, name).repo != card.repo


def test_dmd2_runs_at_the_timesteps_it_was_trained_for() -> None:
    from diffusers import LCMScheduler

    card = find_card("dmd2-sdxl")
    assert card is not None
    scheduler = LCMScheduler(**{k: v for k, v in card.scheduler.items() if k != "_class_name"})
    scheduler.set_timesteps(4)
    assert scheduler.timesteps.tolist() == [999, 749, 499, 249]


def test_flash_runs_on_the_levels_of_the_scheduler_of_sd3() -> None:
    from diffusers import FlowMatchEulerDiscreteScheduler

    card = find_card("flash-sd3")
    assert card is not None
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(4)
    assert card.protocol["sigmas"] == pytest.approx(scheduler.sigmas[:-1].tolist(), abs=1e-5)


def test_tdm_runs_on_shifted_levels_of_flow() -> None:
    from diffusers import DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler

    card = find_card("tdm-sd3")
    assert card is not None and card.lora_scale == 0.125
    changed = {key: value for key, value in card.scheduler.items() if key != "_class_name"}
    scheduler = DPMSolverMultistepScheduler.from_config(FlowMatchEulerDiscreteScheduler(shift=3.0).config, **changed)
    scheduler.set_timesteps(4)
    even = torch.linspace(0.999, 0, 5)
    assert scheduler.sigmas.tolist() == pytest.approx((6 * even / (1 + 5 * even)).tolist(), abs=1e-5)
    assert scheduler.timesteps.tolist() == [999, 947, 856, 666]


def test_a_lora_of_a_card_is_drawn_as_its_authors_say(hub: Path) -> None:
    from diffusers import LCMScheduler

    mine = drawn(opened(hub / "lora.toml"))
    pipe = stock(hub / "models" / "org" / "base")
    pipe.scheduler = LCMScheduler.from_config(pipe.scheduler.config, original_inference_steps=100)
    bare = pictures_of(pipe)
    pipe.load_lora_weights(str(hub / "models" / "org" / "added"), weight_name="lora.safetensors")
    pipe.fuse_lora(lora_scale=0.5)
    theirs = pictures_of(pipe)
    assert (theirs - bare).abs().max() > 0.01  # it does something
    assert (mine - theirs).abs().max() <= 0.6 / 255  # a picture has 256 levels


def test_a_whole_unet_takes_the_place_of_its_bases(hub: Path) -> None:
    from diffusers import EulerDiscreteScheduler

    mine = drawn(opened(hub / "unet.toml"))
    pipe, other = stock(hub / "models" / "org" / "base"), stock(hub / "other")
    pipe.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config, timestep_spacing="trailing")
    bare = pictures_of(pipe)
    pipe.unet = other.unet
    theirs = pictures_of(pipe)
    assert (theirs - bare).abs().max() > 0.01
    assert (mine - theirs).abs().max() <= 0.6 / 255


def test_the_digest_covers_what_the_card_says(hub: Path) -> None:
    card, base = hub / "lora.toml", opened(hub / "base.toml")
    first = opened(card)
    assert base.digest == opened(hub / "models" / "org" / "base").digest != first.digest
    assert (first.name, first.base, base.name) == ("lora", str(hub / "base.toml"), "base")
    text = card.read_text()
    card.write_text(text.replace("lora_scale = 0.5", "lora_scale = 0.25"))
    second = opened(card)
    card.write_text(text.replace("inference_steps = 100", "inference_steps = 50"))
    assert len({first.digest, second.digest, opened(card).digest}) == 3


def test_a_local_base_stands_in_for_the_hubs(hub: Path) -> None:
    elsewhere = shutil.move(hub / "models" / "org" / "base", hub / "base-copy")
    with pytest.raises(UserError, match=r"org/base@main.*hf download org/base"):
        open_model(hub / "lora.toml", offline=True)
    assert opened(hub / "lora.toml", base=str(elsewhere)).protocol.num_inference_steps == 2


def test_faults_of_cards_are_one_line(hub: Path) -> None:
    fields = {"title": "t", "repo": "o/n", "licence": "l", "citation": "c", "source": "s"}
    with pytest.raises(UserError, match="needs files and base"):
        build(ModelCard, {**fields, "kind": "lora"}, "card")
    with pytest.raises(UserError, match="leave files and base out"):
        build(ModelCard, {**fields, "base": "sdxl"}, "card")
    with pytest.raises(UserError, match="did you mean 'sdxl'"):
        base_card(build(ModelCard, {**fields, "kind": "lora", "files": ["f"], "base": "sdx"}, "card"), "x")
    (hub / "models" / "org" / "added" / "lora.safetensors").unlink()
    with pytest.raises(UserError, match=r"lora.safetensors: missing; copy it there from org/added"):
        open_model(hub / "lora.toml")
    small = make("sdxl-v", hub / "v")
    shutil.copy(small / "vae" / "diffusion_pytorch_model.safetensors", hub / "models/org/added/unet.safetensors")
    model = opened(hub / "unet.toml")
    with pytest.raises(UserError, match="does not fit the UNet2DConditionModel"):
        drawn(model)
    unknown = replace(model, changes=replace(model.changes, denoiser=None, scheduler={"_class_name": "Nonesuch"}))
    with pytest.raises(UserError, match="no such scheduler"):
        drawn(unknown)
