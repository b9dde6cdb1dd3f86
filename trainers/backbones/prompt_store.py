"""Embeddings of prompts on disk, and text encoders off the device while nobody asks them.

A row is what a family's `embed` gives for one prompt. Its file is named after all that decides it: the text encoders'
and tokenizers' files, the arguments of the pipeline's call, the kind of device, and the prompt. Runs that share a
folder share the rows; a run all of whose prompts are there never runs a text encoder. SD3 with T5 takes about 5 MB a
prompt, SDXL 0.6 MB.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from benchmarks.checkpoints import check_pipeline, digest_files
from benchmarks.config import UserError
from leaderboards.store import write_atomically

if TYPE_CHECKING:
    from trainers.backbones.base import BackboneConfig

Row = tuple[Tensor, ...]
Embed = Callable[[list[str]], Sequence[Row]]
TEXT = ("text_encoder", "tokenizer")  # beginnings of the components' names


def keep_prompts(backbone: Any, settings: "BackboneConfig") -> None:
    """Give a loaded backbone what `prompt_cache_folder` and `offload_text_encoders` ask for.

    Raises UserError where its family has no `embed` that could be kept from running."""
    if not (settings.prompt_cache_folder or settings.offload_text_encoders):
        return
    if not hasattr(backbone, "embed"):
        raise UserError(
            f"backbone.kind = {settings.kind!r} cannot keep prompts on disk or its text encoders off the device; "
            "leave prompt_cache_folder and offload_text_encoders out"
        )
    components = backbone.pipeline.components.items()
    encoders = [part for name, part in components if name.startswith(TEXT) and isinstance(part, nn.Module)]
    if settings.offload_text_encoders:
        backbone.embed = offloaded(backbone.embed, encoders, backbone.device)
    if settings.prompt_cache_folder and encoders:
        folder = made_folder(Path(settings.prompt_cache_folder) / backbone.text_digest[:32], "prompt_cache_folder")
        store = PromptStore(folder, backbone.device)
        backbone.embed = store.remembering(backbone.embed)


def made_folder(folder: Path, key: str) -> Path:
    """Return a folder, made where it is not there. Raises UserError naming the setting where that is impossible."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{key}: {folder}: no folder to write to ({error.strerror})") from error
    return folder


def encoders_digest(folder: Path, arguments: dict[str, Any], device: torch.device) -> str:
    """Return the sha256 (hex) of all that decides a row besides the prompt."""
    files = [path for path in check_pipeline(folder).files() if path.relative_to(folder).parts[0].startswith(TEXT)]
    stated = json.dumps([digest_files(files, folder), arguments, device.type], sort_keys=True)
    return hashlib.sha256(stated.encode()).hexdigest()


def offloaded(embed: Embed, encoders: Sequence[nn.Module], device: torch.device) -> Embed:
    """Return `embed` with the encoders on the device only while it runs."""
    for encoder in encoders:
        encoder.to("cpu")

    def on_device(prompts: list[str]) -> Sequence[Row]:
        for encoder in encoders:
            encoder.to(device)
        rows = embed(prompts)
        for encoder in encoders:
            encoder.to("cpu")
        return rows

    return on_device


class PromptStore:
    """One file for each prompt in a folder."""

    def __init__(self, folder: Path, device: torch.device) -> None:
        self._folder, self._device = folder, device

    def remembering(self, embed: Embed) -> Embed:
        """Return `embed` that asks the disk first.

        It runs on all prompts where one is missing: a batch's shape decides the last bits of its rows, and must not
        depend on what is on disk. Raises UserError where a file is damaged."""

        def remembered(prompts: list[str]) -> Sequence[Row]:
            kept = {prompt: self.read(prompt) for prompt in dict.fromkeys(prompts)}
            if all(row is not None for row in kept.values()):
                return [row for prompt in prompts if (row := kept[prompt]) is not None]
            rows = embed(prompts)
            for prompt, row in zip(prompts, rows, strict=True):
                if kept[prompt] is None:
                    self.write(prompt, row)
                    kept[prompt] = row
            return rows

        return remembered

    def path(self, prompt: str) -> Path:
        """Return where a prompt's row stands or would stand."""
        name = hashlib.sha256(prompt.encode()).hexdigest()
        return self._folder / name[:2] / f"{name}.safetensors"

    def read(self, prompt: str) -> Row | None:
        """Return a prompt's row on the device, None where it is not kept. Raises UserError for a damaged file."""
        path = self.path(prompt)
        if not path.is_file():
            return None
        try:
            tensors = load_file(path)
            return tuple(tensors[str(n)].to(self._device) for n in range(len(tensors)))
        except (SafetensorError, KeyError) as error:
            raise UserError(f"{path}: damaged ({error}); delete it, it will be made again") from error

    def write(self, prompt: str, row: Row) -> None:
        """Keep a prompt's row, whole or not at all."""
        path = self.path(prompt)
        path.parent.mkdir(parents=True, exist_ok=True)
        tensors = {str(n): tensor.detach().cpu().contiguous() for n, tensor in enumerate(row)}
        write_atomically(path, save(tensors), durable=False)  # another process may be at the same prompt
