import json
import shutil
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks import checkpoints
from benchmarks.models import Drawn, Pipeline, noise_generator, open_model
from benchmarks.protocol import Protocol
from metrics.base import UserError
from metrics.images import to_tensor
from tests.benchmarks.conftest import tiny_protocol

TEXTS = ["a red circle", "a blue circle", "a square and a circle"]


def opened(folder: Path, **arguments: str) -> Pipeline:
    model = open_model(folder, **arguments)
    assert isinstance(model, Pipeline)
    return model


def drawn(model: Pipeline, protocol: Protocol | None = None, texts: list[str] = TEXTS) -> Drawn:
    generators = [noise_generator(0, f"p-{TEXTS.index(text)}", 0) for text in texts]
    return model.generate(texts, generators, protocol or model.protocol)


def test_noise_is_a_function_of_seed_prompt_and_index() -> None:
    def draw(*key: object) -> float:
        return torch.randn((), generator=noise_generator(*key)).item()  # type: ignore[arg-type]

    keys = [(0, "a", 0), (1, "a", 0), (0, "b", 0), (0, "a", 1)]
    assert len({draw(*key) for key in keys}) == 4
    assert draw(0, "a", 0) == draw(0, "a", 0)


def test_a_picture_does_not_depend_on_its_batch(pristine_pipeline: Path) -> None:
    model = opened(pristine_pipeline)
    together = to_tensor(drawn(model).images)
    alone = torch.cat([to_tensor(drawn(model, texts=[text]).images) for text in TEXTS])
    assert (together - alone).abs().max() <= 1.001 / 255  # rounding at the edge of a grey level


def test_the_same_batch_gives_the_same_bits(pristine_pipeline: Path) -> None:
    first, second = (to_tensor(drawn(opened(pristine_pipeline)).images) for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize(("guidance", "passes"), [(1.0, 3), (3.0, 6)])
def test_passes_are_counted(pristine_pipeline: Path, guidance: float, passes: int) -> None:
    model = opened(pristine_pipeline)
    assert drawn(model, replace(model.protocol, guidance_scale=guidance)).nfe == passes


def test_a_folder_without_protocol_is_sampled_as_its_class_means(pipeline: Path) -> None:
    (pipeline / "protocol.json").unlink()
    model = opened(pipeline)
    assert model.protocol == Protocol(
        sampler="native", num_inference_steps=28, guidance_scale=7.0, height=16, width=16, dtype="float32"
    )
    protocol = replace(tiny_protocol(), sampler="native", num_inference_steps=2, eta=0.0)
    assert drawn(model, protocol).nfe == 2


def test_euler_of_the_native_scheduler_is_euler_of_ours(pristine_pipeline: Path) -> None:
    model = opened(pristine_pipeline)
    ours = replace(tiny_protocol(), sampler="euler", sigmas=(1.0, 0.6, 0.3))
    native = replace(ours, sampler="native")
    assert (to_tensor(drawn(model, ours).images) - to_tensor(drawn(model, native).images)).abs().max() <= 1.001 / 255


def test_the_digest_sees_weights_and_configs_but_no_stray_files(pipeline: Path) -> None:
    before = opened(pipeline).digest
    (pipeline / "pipeline.py").write_text("raise SystemExit('executed')")
    (pipeline / "transformer" / "notes.md").write_text("stray")
    assert opened(pipeline).digest == before
    assert len(drawn(opened(pipeline)).images) == 3  # nor was the stray code run
    config = pipeline / "vae" / "config.json"
    config.write_text(config.read_text() + "\n")
    assert opened(pipeline).digest != before


def test_opening_reads_no_weights_and_the_digest_reads_them_once(
    pristine_pipeline: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A plan of a large model's training opens its base: nobody waits for 30 GB to be hashed."""
    read: list[Path] = []
    digest_files = checkpoints.digest_files

    def watched(files: Iterable[Path], root: Path) -> str:
        read.append(root)
        return digest_files(files, root)

    monkeypatch.setattr(checkpoints, "digest_files", watched)
    model = opened(pristine_pipeline)
    assert not read
    assert model.digest == model.digest and len(model.digest) == 64
    assert read == [pristine_pipeline]


def test_parameters_are_the_denoisers(pristine_pipeline: Path) -> None:
    from diffusers import SD3Transformer2DModel

    network = SD3Transformer2DModel.from_pretrained(pristine_pipeline / "transformer")
    stored = [*network.parameters(), *(b for n, b in network.named_buffers() if n in network.state_dict())]
    assert opened(pristine_pipeline).parameters == sum(tensor.numel() for tensor in stored)


def edit_index(folder: Path, **changes: object) -> None:
    path = folder / "model_index.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def edit_config(folder: Path, **changes: object) -> None:
    path = folder / "transformer" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def custom_component(folder: Path) -> None:
    (folder / "transformer" / "my_net.py").write_text("raise SystemExit('executed')")
    edit_index(folder, transformer=["my_net", "MyNet"])


def pickled(folder: Path) -> None:
    weights = next((folder / "transformer").glob("*.safetensors"))
    weights.rename(weights.with_suffix(".bin"))


FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no index": (lambda f: (f / "model_index.json").unlink(), "half-written"),
    "index cut off": (lambda f: truncate(f / "model_index.json"), "not valid JSON"),
    "component missing": (lambda f: shutil.rmtree(f / "vae"), "vae: component missing"),
    "config missing": (lambda f: (f / "transformer" / "config.json").unlink(), "config.json: missing"),
    "weights missing": (lambda f: (f / "vae" / "diffusion_pytorch_model.safetensors").unlink(), "no weights"),
    "weights cut off": (
        lambda f: truncate(f / "transformer" / "diffusion_pytorch_model.safetensors"),
        "truncated or damaged",
    ),
    "weights empty": (
        lambda f: (f / "transformer" / "diffusion_pytorch_model.safetensors").write_bytes(b""),
        "truncated or damaged",
    ),
    "pickled": (pickled, "a pickle can run code"),
    "code of its own": (custom_component, "Python code of the folder"),
    "custom pipeline": (lambda f: edit_index(f, _class_name=["my_pipeline", "Mine"]), "code of the folder"),
    "auto_map": (lambda f: edit_config(f, auto_map={"AutoModel": "net.Net"}), "'auto_map' asks to run code"),
    "unknown class": (
        lambda f: (edit_index(f, _class_name="OsPipeline"), (f / "protocol.json").unlink()),
        "is no pipeline",
    ),
    "component elsewhere": (lambda f: edit_index(f, **{"../up": ["diffusers", "X"]}), "not given as"),
    "bad protocol": (lambda f: (f / "protocol.json").write_text('{"stepz": 4}'), "unknown key 'stepz'"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_checkpoint_is_one_clear_line(pipeline: Path, fault: str) -> None:
    spoil, message = FAULTS[fault]
    spoil(pipeline)
    with pytest.raises(UserError, match=message) as caught:
        open_model(pipeline)
    assert "\n" not in str(caught.value)


def test_weights_of_other_shapes_than_their_config_are_one_clear_line(pipeline: Path) -> None:
    edit_config(pipeline, num_layers=3)
    with pytest.raises(UserError, match="cannot be loaded") as caught:
        drawn(opened(pipeline))
    assert "\n" not in str(caught.value)


def test_a_picture_that_is_not_finite_is_an_error(pipeline: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = pipeline / "vae" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    tensors["decoder.conv_out.bias"][0] = float("nan")
    save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(UserError, match="the picture of 'a red circle' holds NaN"):
        drawn(opened(pipeline))


def test_arguments_a_pipeline_does_not_know_are_named(pristine_pipeline: Path) -> None:
    model = opened(pristine_pipeline)
    with pytest.raises(UserError, match="takes no colour"):
        drawn(model, replace(model.protocol, call_arguments={"colour": "red"}))


def test_few_step_samplers_are_refused_for_models_that_are_no_flows(pipeline: Path) -> None:
    edit_index(pipeline, scheduler=["diffusers", "DDIMScheduler"])
    with pytest.raises(UserError, match="'cps' is for flow models"):
        opened(pipeline).check(tiny_protocol())


def test_unknown_models_name_the_command_that_brings_them(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="hf download some-org/no-such-model"):
        open_model("some-org/no-such-model", offline=True)
    with pytest.raises(UserError, match="no such folder"):
        open_model("./no/such/folder")
    with pytest.raises(UserError, match="a file, not a model folder"):
        (tmp_path / "weights.safetensors").write_bytes(b"")
        open_model(tmp_path / "weights.safetensors")


def lora_folder(folder: Path, pipeline: Path, kind: str) -> Path:
    """Write a LoRA of random weights over the tiny pipeline, in diffusers' format or in peft's."""
    from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline
    from peft import LoraConfig, get_peft_model, get_peft_model_state_dict

    torch.manual_seed(1)
    network = SD3Transformer2DModel.from_pretrained(pipeline / "transformer")
    adapted = get_peft_model(
        network, LoraConfig(r=4, lora_alpha=4, target_modules=["to_q", "to_v"], init_lora_weights=False)
    )
    folder.mkdir()
    if kind == "peft":
        adapted.save_pretrained(folder)
    else:
        layers = get_peft_model_state_dict(adapted)
        layers = {key.removeprefix("base_model.model."): value for key, value in layers.items()}
        StableDiffusion3Pipeline.save_lora_weights(folder, transformer_lora_layers=layers)
    return folder


@pytest.mark.parametrize("kind", ["diffusers", "peft"])
def test_a_lora_is_merged_into_its_base(pristine_pipeline: Path, tmp_path: Path, kind: str) -> None:
    folder = lora_folder(tmp_path / "lora", pristine_pipeline, kind)
    model, base = opened(folder, base=str(pristine_pipeline)), opened(pristine_pipeline)
    assert (model.name, model.base, model.protocol) == ("lora", "tiny", base.protocol)
    assert model.digest != base.digest
    assert model.parameters == base.parameters
    ours, theirs = drawn(model), drawn(base)
    assert ours.nfe == theirs.nfe
    assert not torch.equal(to_tensor(ours.images), to_tensor(theirs.images))


def test_both_formats_of_a_lora_draw_the_same(pristine_pipeline: Path, tmp_path: Path) -> None:
    both = [lora_folder(tmp_path / kind, pristine_pipeline, kind) for kind in ("diffusers", "peft")]
    a, b = (to_tensor(drawn(opened(folder, base=str(pristine_pipeline))).images) for folder in both)
    assert (a - b).abs().max() <= 1.001 / 255


def test_a_lora_says_what_is_wrong_with_it(pristine_pipeline: Path, tmp_path: Path) -> None:
    folder = lora_folder(tmp_path / "lora", pristine_pipeline, "diffusers")
    with pytest.raises(UserError, match="pass --base"):
        open_model(folder)
    with pytest.raises(UserError, match="lora: a LoRA without the name of its base"):
        open_model(lora_folder(tmp_path / "other", pristine_pipeline, "diffusers"), base=str(folder))
    truncate(folder / "pytorch_lora_weights.safetensors")
    with pytest.raises(UserError, match="truncated or damaged"):
        open_model(folder, base=str(pristine_pipeline))
    weights = folder / "pytorch_lora_weights.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(UserError, match="a pickle can run code"):
        open_model(folder, base=str(pristine_pipeline))


def test_a_lora_of_another_model_is_refused(pristine_pipeline: Path, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    folder = tmp_path / "foreign"
    folder.mkdir()
    keys = {f"transformer.other.{part}.weight": torch.zeros(4, 4) for part in ("lora_A", "lora_B")}
    save_file(keys, folder / "pytorch_lora_weights.safetensors")
    with pytest.raises(UserError, match="does not fit its base"):
        drawn(opened(folder, base=str(pristine_pipeline)))
