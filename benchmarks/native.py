"""Diffusers folders as diffusers means them: the protocol they default to, and loading them without running code."""

import copy
import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import checkpoints
from benchmarks.checkpoints import PipelineFiles, check_pipeline, read_json
from benchmarks.config import UserError
from benchmarks.protocol import Dtype, Protocol

_LOADING_FAULTS = (OSError, ValueError, KeyError, TypeError, RuntimeError, AttributeError, ImportError)
# Of pipelines that compute c + s (c - u) where ours is u + s (c - u): their scale is ours less 1, and 0 is off.
_GUIDANCE_BEYOND = {"ZImagePipeline": 1.0}


@dataclass(frozen=True)
class Changes:
    """What a published model says of itself besides its files; see benchmarks/model_cards.py."""

    lora_scale: float = 1.0
    denoiser: Path | None = None  # safetensors with all weights of the denoiser
    scheduler: Mapping[str, Any] = field(default_factory=dict)  # settings; _class_name = another class


UNCHANGED = Changes()
_DTYPES: dict[str, Dtype] = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def default_protocol(files: PipelineFiles) -> Protocol:
    """Return how a folder without `protocol.json` is sampled: its own scheduler, its class's default arguments.

    Raises UserError where the class is not one of diffusers'."""
    known = inspect.signature(_pipeline_class(files).__call__).parameters
    side = _native_side(files)
    return Protocol(
        num_inference_steps=known["num_inference_steps"].default,
        guidance_scale=_default_guidance(files.class_name, known),
        height=side,
        width=side,
        dtype=_stored_dtype(files),
    )


def takes(files: PipelineFiles, argument: str) -> bool:
    """Return whether a folder's pipeline knows an argument in its call.

    Raises UserError where the class is not one of diffusers'."""
    return argument in inspect.signature(_pipeline_class(files).__call__).parameters


def call_arguments(pipe: Any, protocol: Protocol, prompts: Sequence[str]) -> dict[str, Any]:
    """Return the arguments of the pipeline's call for B prompts.

    Raises UserError where it does not know one that is needed."""
    known, name = inspect.signature(pipe.__call__).parameters, type(pipe).__name__
    wanted: dict[str, Any] = {
        "num_inference_steps": protocol.num_inference_steps,
        "guidance_scale": max(0.0, protocol.guidance_scale - _GUIDANCE_BEYOND.get(name, 0.0)),
        **protocol.call_arguments,
    }
    if "class_labels" in known:  # class-conditional: a prompt is a class, and the picture's size is the network's
        wanted["class_labels"] = class_labels(prompts, pipe.labels, pipe.transformer.config.num_embeds_ada_norm)
    else:
        wanted |= {"prompt": list(prompts), "height": protocol.height, "width": protocol.width}
    if protocol.negative_prompt:
        wanted["negative_prompt"] = [protocol.negative_prompt] * len(prompts)
    if protocol.sampler == "native" and protocol.sigmas:
        wanted["sigmas"] = list(protocol.sigmas)
    unknown = sorted(set(wanted) - set(known))
    if unknown:
        raise UserError(f"{name} takes no {', '.join(unknown)}: take it out of the protocol")
    return wanted


def class_labels(prompts: Sequence[str], labels: Mapping[str, int], classes: int) -> list[int]:
    """Return the classes that prompts name: a number such as "207", or a label of the folder's id2label.

    Raises UserError for anything else."""
    found = []
    for prompt in prompts:
        number = int(prompt) if prompt.isascii() and prompt.isdigit() else labels.get(prompt.strip(), -1)
        if not 0 <= number < classes:
            raise UserError(
                f"prompt {prompt!r} names no class: this model is class-conditional; write a number from 0 to "
                f"{classes - 1}" + (" or a label of its model_index.json" if labels else "")
            )
        found.append(number)
    return found


def load_pipeline(
    files: PipelineFiles, lora: Path | None, dtype: Dtype, device: str, changes: Changes = UNCHANGED
) -> Any:
    """Return the pipeline on a device, its LoRA merged. Only safetensors are read and no code of the folder is run.

    Raises UserError where weights, configs and classes do not fit together."""
    import torch

    absent = dict.fromkeys(files.null_components)
    try:
        with quiet_loading():
            pipe = _pipeline_class(files).from_pretrained(
                str(files.folder),
                dtype=getattr(torch, dtype),
                use_safetensors=True,
                local_files_only=True,
                **absent,
            )
    except _LOADING_FAULTS as error:
        raise UserError(
            f"{files.folder}: cannot be loaded ({_first_line(error)}); export the checkpoint again"
        ) from error
    pipe.set_progress_bar_config(disable=True)
    if changes.denoiser:
        _replace_denoiser(getattr(pipe, files.denoiser.name), changes.denoiser)
    if changes.scheduler:
        pipe.scheduler = _changed_scheduler(pipe.scheduler, changes.scheduler)
    if lora:
        try:
            _merge_lora(pipe, files.denoiser.name, lora, changes.lora_scale)
        except _LOADING_FAULTS as error:
            raise UserError(f"{lora}: does not fit its base {files.folder} ({_first_line(error)})") from error
    return pipe.to(device)


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Keep the libraries' own bars and notices off the screen; errors still show."""
    import diffusers.utils.logging
    import transformers.utils.logging

    libraries = (diffusers.utils.logging, transformers.utils.logging)
    before = [library.get_verbosity() for library in libraries]
    bars = [library.is_progress_bar_enabled() for library in libraries]
    for library in libraries:
        library.set_verbosity_error()
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library, verbosity, bar in zip(libraries, before, bars, strict=True):
            library.set_verbosity(verbosity)
            if bar:
                library.enable_progress_bar()


def load_denoiser(path: Path, like: Any) -> Any:
    """Return a network of the shape of `like`, frozen, float32, on its device, with the weights at `path`.

    path: a diffusers folder with such a network, or safetensors with all of its weights; see `load_pipeline`.
    Raises UserError where they do not fit."""
    kind = type(like).__name__
    if path.suffix == ".safetensors":
        network = copy.deepcopy(like)
        _replace_denoiser(network, path)
        return network
    folder = check_pipeline(path).denoiser
    found = read_json(folder / "config.json").get("_class_name")
    if found != kind:
        raise UserError(f"{folder}: a {found}; its base has a {kind}")
    try:
        with quiet_loading():
            network, told = type(like).from_pretrained(
                str(folder), use_safetensors=True, local_files_only=True, output_loading_info=True
            )
    except _LOADING_FAULTS as error:
        raise UserError(f"{folder}: cannot be loaded ({_first_line(error)}); export the checkpoint again") from error
    own, wanted = ({name: x.shape for name, x in one.state_dict().items()} for one in (network, like))
    differing = [*told["missing_keys"], *(name for name in wanted | own if own.get(name) != wanted.get(name))]
    if differing:
        raise UserError(
            f"{folder}: does not fit the {kind} of its base: {differing[0]} is absent or of another shape"
        )
    return network.requires_grad_(False).eval().float().to(like.device)


def _replace_denoiser(network: Any, path: Path) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        network.load_state_dict(load_file(path))
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: cannot be read ({_first_line(error)})") from error
    except RuntimeError as error:
        raise UserError(f"{path}: does not fit the {type(network).__name__} of its base") from error


def _changed_scheduler(own: Any, settings: Mapping[str, Any]) -> Any:
    """Return a scheduler with some settings changed, of another class if `_class_name` names one."""
    import diffusers

    name = settings.get("_class_name", type(own).__name__)
    found: Any = getattr(diffusers, name, None)
    known = inspect.isclass(found) and issubclass(found, diffusers.SchedulerMixin)
    if not known:
        raise UserError(f"scheduler {name!r}: no such scheduler in diffusers {diffusers.__version__}")
    scheduler_class: Any = found
    changed = {key: value for key, value in settings.items() if key != "_class_name"}
    return scheduler_class.from_config(own.config, **changed)


def _merge_lora(pipe: Any, denoiser: str, lora: Path, scale: float) -> None:
    """Add a LoRA to the weights themselves, so that a step costs what the base's does."""
    if lora.name == "adapter_model.safetensors":
        from peft import PeftModel

        adapted = PeftModel.from_pretrained(getattr(pipe, denoiser), str(lora.parent))
        setattr(pipe, denoiser, adapted.merge_and_unload())
        return
    pipe.load_lora_weights(str(lora.parent), weight_name=lora.name, use_safetensors=True, local_files_only=True)
    if not pipe.get_active_adapters():
        raise ValueError("none of its keys names a layer of the base")
    pipe.fuse_lora(lora_scale=scale)
    pipe.unload_lora_weights()


def _pipeline_class(files: PipelineFiles) -> Any:
    import diffusers

    found = getattr(diffusers, files.class_name, None)
    if not (inspect.isclass(found) and issubclass(found, diffusers.DiffusionPipeline)):
        where = files.folder / checkpoints.INDEX
        raise UserError(f"{where}: {files.class_name!r} is no pipeline of diffusers {diffusers.__version__}")
    return found


def _default_guidance(class_name: str, known: Mapping[str, inspect.Parameter]) -> float:
    if "guidance_scale" not in known:
        return 1.0
    return float(known["guidance_scale"].default) + _GUIDANCE_BEYOND.get(class_name, 0.0)


def pixels_per_latent(files: PipelineFiles) -> int:
    """Return how many pixels a side of a latent stands for; 1 without an autoencoder."""
    if "vae" not in files.components:
        return 1
    blocks = checkpoints.read_json(files.folder / "vae" / "config.json").get("block_out_channels", [0] * 4)
    return 2 ** (len(blocks) - 1)


def patch_size(files: PipelineFiles) -> int:
    """Return how many latents a side of a token stands for; 1 where the denoiser has no patches."""
    config = checkpoints.read_json(files.denoiser / "config.json")
    size = config.get("patch_size", config.get("all_patch_size", 1))  # Z-Image lists its sizes
    size = size[0] if isinstance(size, list) and size else size
    return size if isinstance(size, int) else 1


def wrong_size(files: PipelineFiles, protocol: Protocol) -> str:
    """Return why a model does not draw pictures of a protocol's size, "" where it does: by its patches, its
    positions, or because it knows one size alone."""
    config, own = checkpoints.read_json(files.denoiser / "config.json"), _native_side(files)
    unit, asked = pixels_per_latent(files) * patch_size(files), (protocol.width, protocol.height)
    told = f"does not draw {asked[0]}x{asked[1]} pictures"
    if files.class_name == "DiTPipeline" and set(asked) != {own}:
        return f"{told}: it knows {own}x{own} alone"
    if any(side % unit for side in asked):
        return f"{told}: sides must be multiples of {unit}"
    most = config.get("pos_embed_max_size")  # SD3's positions: so many tokens a side
    if isinstance(most, int) and max(asked) > most * unit:
        return f"{told}: its positions end at {most * unit} pixels a side"
    return ""


def _native_side(files: PipelineFiles) -> int:
    """Return the pixels of a side that the denoiser was made for; 1024 where its config does not tell."""
    sample_size = checkpoints.read_json(files.denoiser / "config.json").get("sample_size")
    return sample_size * pixels_per_latent(files) if isinstance(sample_size, int) else 1024


def _stored_dtype(files: PipelineFiles) -> Dtype:
    from safetensors import safe_open

    with safe_open(checkpoints.weight_files(files.denoiser)[0], framework="numpy") as file:
        first = next(iter(file.keys()))
        return _DTYPES.get(file.get_slice(first).get_dtype(), "bfloat16")


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
