"""Reading a base model's folder and writing a student's: what stock diffusers loads, without code to run."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from benchmarks.checkpoints import PipelineFiles, check_pipeline, digest_files
from benchmarks.config import UserError
from benchmarks.models import Pipeline, open_model
from benchmarks.native import default_protocol, load_pipeline, takes, wrong_size
from benchmarks.protocol import Protocol, read_protocol
from trainers.backbones.base import BackboneConfig
from trainers.backbones.lora import AdapterRoles

TEXT_LENGTH = "max_sequence_length"  # of the pipelines' call
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def load_base(settings: BackboneConfig, class_name: str, device: torch.device) -> tuple[Any, Protocol]:
    """Return a diffusers folder's pipeline in float32 and its protocol, changed as the settings ask for.

    Raises UserError where the folder is missing, damaged, not safe to read, or holds another pipeline, and where
    that does not draw as it is asked to."""
    folder = Path(settings.path)
    files = check_pipeline(folder)
    check_class(files, class_name)
    protocol = _as_asked(files, read_protocol(folder) or default_protocol(files), settings)
    return load_pipeline(files, None, "float32", str(device)), protocol


def check_class(files: PipelineFiles, class_name: str) -> None:
    """Raise UserError where a folder holds another pipeline than its backbone trains."""
    if files.class_name != class_name:
        raise UserError(f"{files.folder}: a {files.class_name}; this backbone trains {class_name} folders")


def open_base(settings: BackboneConfig) -> Pipeline:
    """Return a run's base model, unloaded, with the protocol that the run has.

    Raises UserError where the folder is missing or damaged, or does not draw as it is asked to."""
    folder = Path(settings.path)
    if not folder.is_dir():
        raise UserError(
            f"{folder}: no such folder; backbone.path names the base model's, in diffusers layout, which is a folder "
            "of this machine, no hub id: --set backbone.path=FOLDER"
        )
    model = open_model(folder)
    if not isinstance(model, Pipeline):
        raise UserError(f"{folder}: not a diffusers folder; backbone.path names the base model's")
    return replace(model, protocol=_as_asked(model.files, model.protocol, settings))


def base_digests(settings: BackboneConfig) -> dict[str, str]:
    """Return the sha256 of what a run starts from, base and student's start, by the setting that names it.

    Of a folder it is the digest that the model's own results carry."""
    named = {"path": settings.path, "student_path": settings.student_path}
    return {key: _digest(Path(path)) for key, path in named.items() if path}


def check_base(settings: BackboneConfig, now: Mapping[str, str], before: Mapping[str, str]) -> None:
    """Raise UserError where a run's base, or its student's start, has other weights than when the run began."""
    for key, digest in now.items():
        if before.get(key, digest) != digest:
            raise UserError(
                f"backbone.{key} {getattr(settings, key)!r} has other weights than when the run began: restore them, "
                "use another --out, or start over with --no-resume"
            )


def _digest(path: Path) -> str:
    if path.suffix == ".safetensors":
        return digest_files([path], path.parent)
    return open_model(path).digest


def _as_asked(files: PipelineFiles, protocol: Protocol, settings: BackboneConfig) -> Protocol:
    """Return a base's protocol with the run's resolution and length of texts, which its student keeps.

    Raises UserError where the pipeline draws no pictures of that size, or knows no such length."""
    if settings.resolution:
        protocol = replace(protocol, height=settings.resolution, width=settings.resolution)
    if settings.max_text_length:
        if not takes(files, TEXT_LENGTH):
            raise UserError(
                f"{files.folder}: a {files.class_name} has one length of texts: leave backbone.max_text_length out"
            )
        told = {**protocol.call_arguments, TEXT_LENGTH: settings.max_text_length}
        protocol = replace(protocol, call_arguments=told)
    if why := wrong_size(files, protocol):
        raise UserError(f"{files.folder}: {why}")
    return protocol


def save_merged(
    base: Path,
    folder: Path,
    network_class: Any,
    config: Mapping[str, Any],
    state: Mapping[str, Tensor],
    denoiser: str = "transformer",
) -> None:
    """Write a whole pipeline folder: the base's files with the denoiser's weights replaced by `state`."""
    # Without the path it was loaded from, which would end up in the file, and so in the student's digest.
    config = {key: value for key, value in config.items() if key != "_name_or_path"}
    with torch.device("meta"):
        network = network_class.from_config(config)
    network.load_state_dict(dict(state), assign=True)
    shutil.copytree(base, folder, dirs_exist_ok=True, ignore=_only_pipeline_files(base, denoiser))
    network.save_pretrained(folder / denoiser)


def save_lora(
    base: Path, folder: Path, adapters: AdapterRoles, pipeline_class: Any, denoiser: str = "transformer"
) -> None:
    """Write the student's adapter as `pipeline.load_lora_weights(folder)` reads it, with its base named.

    Where the pipeline has no such method: as peft does, for `PeftModel.from_pretrained(network, folder)`."""
    table = {k: v for k, v in adapters.config.to_dict().items() if v is not None}
    layers = adapters.adapter_state("student")
    if hasattr(pipeline_class, "save_lora_weights"):
        of_this = {f"{denoiser}_lora_layers": layers, f"{denoiser}_lora_adapter_metadata": table}
        pipeline_class.save_lora_weights(folder, **of_this)
        _order_header(folder / "pytorch_lora_weights.safetensors")
    else:
        folder.mkdir(parents=True, exist_ok=True)
        named = {f"base_model.model.{name}": tensor.contiguous() for name, tensor in layers.items()}
        save_file(named, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    shown = table | {"base_model_name_or_path": str(base), "target_modules": sorted(table["target_modules"])}
    (folder / "adapter_config.json").write_text(json.dumps(shown, indent=2, sort_keys=True, default=str) + "\n")


def _order_header(path: Path) -> None:
    """Sort a safetensors file's metadata, which the library writes in a random order: digests would be random too."""
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the tensors behind it begin at a multiple of 8 bytes
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[start:])


def _only_pipeline_files(base: Path, denoiser: str) -> Any:
    """Return a copytree filter: the components' files, neither the denoiser's weights nor anything unknown."""
    parts = check_pipeline(base)
    kept = {path.resolve() for path in parts.files() if path.parent != base / denoiser}

    def ignore(directory: str, names: list[str]) -> list[str]:
        here = Path(directory)
        return [n for n in names if not (here / n).is_dir() and (here / n).resolve() not in kept]

    return ignore
