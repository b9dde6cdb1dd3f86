"""Models: anything that turns (prompt, seed) into a picture, opened by one function.

    open_model("ckpt/")                    diffusers folder
    open_model("lora/", base="ckpt/")      LoRA folder (diffusers or peft safetensors) over its base
    open_model("hyper-sd-sd3")             card of a published model (benchmarks/model_cards.py)
    open_model("org/name@revision")        hub id
    open_model("my_module:draw")           function of yours (benchmarks/functions.py)
    open_model("pictures/")                folder of pictures made elsewhere (benchmarks/pictures.py)

Opening checks files; they are digested when a run begins, and the pipeline is loaded at the first picture: a run with
nothing left to draw loads nothing. Every image's noise comes from a generator of its own, on the CPU, so that it
depends neither on the batch nor on the device. NFE is counted at the denoiser, not declared.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from benchmarks import checkpoints, native
from benchmarks.checkpoints import PipelineFiles
from benchmarks.config import UserError
from benchmarks.cost import StageWatch
from benchmarks.functions import FunctionModel, open_function
from benchmarks.hub import hub_file, hub_folder
from benchmarks.model_cards import ModelCard, base_card, card_protocol, find_card
from benchmarks.native import UNCHANGED, Changes
from benchmarks.pictures import PictureFolder, is_picture_folder, open_pictures
from benchmarks.protocol import Protocol, read_protocol
from leaderboards.schema import Training, first_fault

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

TRAINING = "training.json"


@dataclass(frozen=True)
class Drawn:
    """Pictures of one batch, and how often the denoiser ran for each of them."""

    images: "list[Image]"
    nfe: int | None  # None: nobody counted
    stages: Mapping[str, float] = field(default_factory=dict)  # seconds; see benchmarks/cost.py
    peak_memory_mib: int | None = None  # of the device; None on a CPU


@dataclass(frozen=True, kw_only=True)
class Pipeline:
    """A diffusers pipeline in a folder, with a LoRA over it or without."""

    name: str
    read_digest: Callable[[], str] = field(repr=False)
    files: PipelineFiles
    lora: Path | None
    protocol: Protocol  # its own; a task overrides single fields
    base: str
    training: Training | None
    device: str
    changes: Changes = UNCHANGED
    _loaded: dict[str, Any] = field(default_factory=dict, repr=False)

    @property
    def folder(self) -> Path:
        """Where the model's own files lie: a LoRA's folder, not that of its base."""
        return self.lora.parent if self.lora else self.files.folder

    @cached_property
    def digest(self) -> str:
        """sha256 of all files that decide a picture: read when somebody asks, since weights are large."""
        return self.read_digest()

    @cached_property
    def parameters(self) -> int:
        """The number of the denoiser's weights (a LoRA is merged into them)."""
        return checkpoints.count_parameters(self.files.denoiser)

    @cached_property
    def components(self) -> dict[str, int]:
        """The number of weights of every component that has some, by its name in the folder."""
        with_weights = (
            name for name in self.files.components if any((self.files.folder / name).glob("*.safetensors"))
        )
        return {name: checkpoints.count_parameters(self.files.folder / name) for name in sorted(with_weights)}

    @cached_property
    def pixels_per_latent(self) -> int:
        """Side of the square of pixels that one latent stands for."""
        return native.pixels_per_latent(self.files)

    @cached_property
    def pixels_per_token(self) -> int:
        """Side of the square of pixels that one token of the denoiser stands for."""
        return self.pixels_per_latent * native.patch_size(self.files)

    def check(self, protocol: Protocol) -> None:
        """Raise UserError where the model cannot be sampled under a protocol."""
        if protocol.sampler == "native" or self.files.is_flow():
            return
        from benchmarks.samplers import sigma_grid
        from benchmarks.vp import VpPath

        folder, sampler = self.files.folder, protocol.sampler
        if VpPath.of(self.files.scheduler_config()) is None:
            raise UserError(
                f"{folder}: sampler {sampler!r} is for flow models and for those with a table of betas, and the "
                f"scheduler of this one is {self.files.scheduler_class()}; use the sampler 'native'"
            )
        if sigma_grid(protocol)[0] < 1:
            raise UserError(
                f"{folder}: an eps model is sampled from pure noise, which is level 1, and sigmas starts at "
                f"{protocol.sigmas[0]}; let the first of them be 1"
            )

    def generate(self, prompts: Sequence[str], generators: "Sequence[torch.Generator]", protocol: Protocol) -> Drawn:
        """Draw one picture for each prompt with the noise of its own generator.

        Raises UserError where the pipeline cannot be loaded or does not know an argument of the protocol."""
        import torch

        pipe = self.loaded(protocol)
        if protocol.sampler != "native":
            pipe.scheduler.generators = generators
        passes = 0

        def count(module: object, arguments: object, output: Any) -> None:
            nonlocal passes
            passes += len(output[0])  # rows of the batch; guidance doubles them

        name = self.files.denoiser.name
        hook = getattr(pipe, name).register_forward_hook(count)
        try:
            arguments = native.call_arguments(pipe, protocol, prompts)
            with torch.inference_mode(), reproducible(), StageWatch(pipe, name, self.device) as watch:
                images = pipe(generator=list(generators), output_type="pt", **arguments).images
        except torch.OutOfMemoryError as error:
            raise UserError(
                f"no memory left on {self.device} for a batch of {len(prompts)}: pass a smaller --batch-size (and "
                "another --out, since pictures of one run are drawn in blocks of one size)"
            ) from error
        finally:
            hook.remove()
        nfe = -(-passes // len(prompts))
        return Drawn(_as_pictures(images, prompts), nfe, watch.seconds, watch.peak_memory_mib)

    def loaded(self, protocol: Protocol) -> Any:
        """Return the loaded pipeline in the protocol's dtype, with the protocol's scheduler."""
        from benchmarks.samplers import FewStepScheduler

        if self._loaded.get("dtype") != protocol.dtype:
            self._loaded.clear()  # before the next one is loaded: two may not fit
            pipe = native.load_pipeline(self.files, self.lora, protocol.dtype, self.device, self.changes)
            self._loaded.update(dtype=protocol.dtype, pipe=pipe, scheduler=pipe.scheduler)
        pipe, own = self._loaded["pipe"], self._loaded["scheduler"]
        pipe.scheduler = own if protocol.sampler == "native" else FewStepScheduler.of(protocol, own)
        return pipe


Model = Pipeline | PictureFolder | FunctionModel


def open_model(
    spec: str | Path, *, base: str | None = None, device: str = "cpu", name: str | None = None, offline: bool = False
) -> Model:
    """Check a model and return it, unloaded. `name` is how results call it; default: the folder's.

    Raises UserError, in one line, for whatever cannot be opened: missing, half-written, pickled, with code in it."""
    folder = Path(spec)
    if not folder.is_dir():
        if card := find_card(str(spec)):
            return _open_card(card, base, name or Path(spec).stem, device, offline)
        if function := open_function(str(spec), name):
            return function
        if folder.exists():
            raise UserError(f"{spec}: a file, not a model folder")
        folder = hub_folder(str(spec), offline)
        name = name or str(spec).replace("/", "--")
    name = name or folder.resolve().name
    if (folder / checkpoints.INDEX).is_file():
        return _open_pipeline(folder, name, device)
    if lora := checkpoints.find_lora(folder):
        return _open_lora(folder, lora, base, name, device, offline)
    if is_picture_folder(folder):
        return open_pictures(folder, name)
    raise UserError(
        f"{folder}: no {checkpoints.INDEX} (diffusers), no LoRA ({' or '.join(checkpoints.LORA_FILES)}) and no "
        "pictures (<prompt_id>/<seed>.png): not a model folder, or a half-written one"
    )


def read_training(folder: Path) -> tuple[Training | None, str]:
    """Return (how the checkpoint was trained, name of its base) from `training.json`, if it has one.

    Raises UserError where the file is malformed."""
    path = folder / TRAINING
    if not path.is_file():
        return None, ""
    table = checkpoints.read_json(path)
    base = table.pop("base", "")
    try:
        return Training.model_validate(table), str(base)
    except ValidationError as error:
        raise UserError(f"{path}: {first_fault(error, 'training')}; export the checkpoint again") from error


@contextmanager
def reproducible() -> Iterator[None]:
    """Run with deterministic kernels, and float32 as float32: the same batch gives the same bits."""
    import torch

    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


def noise_generator(seed: int, prompt_id: str, index: int) -> "torch.Generator":
    """Return the source of all noise of one image, seeded by sha256 of (suite seed, prompt id, image index)."""
    import torch

    digest = hashlib.sha256(f"{seed}\n{prompt_id}\n{index}".encode()).digest()
    return torch.Generator("cpu").manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def _open_pipeline(folder: Path, name: str, device: str) -> Pipeline:
    files = checkpoints.check_pipeline(folder)
    training, base = read_training(folder)
    return Pipeline(
        name=name,
        read_digest=lambda: checkpoints.digest_files(files.files(), folder),
        files=files,
        lora=None,
        protocol=read_protocol(folder) or native.default_protocol(files),
        base=base,
        training=training,
        device=device,
    )


def _open_lora(folder: Path, lora: Path, base: str | None, name: str, device: str, offline: bool) -> Pipeline:
    checkpoints.check_safetensors(lora)
    training, trained_base = read_training(folder)
    config = folder / "adapter_config.json"
    adapter: Mapping[str, Any] = checkpoints.read_json(config) if config.is_file() else {}
    if lora.name == "adapter_model.safetensors" and not adapter:
        raise UserError(f"{config}: missing; copy or export the LoRA again")
    source = base or str(adapter.get("base_model_name_or_path") or "") or trained_base
    if not source:
        raise UserError(f"{folder}: a LoRA without the name of its base; pass --base FOLDER_OR_HUB_ID")
    # A relative base is meant from the LoRA's folder, where such a folder is.
    beside = folder / source
    under = open_model(beside if not base and beside.is_dir() else source, device=device, offline=offline)
    if not isinstance(under, Pipeline) or under.lora:
        raise UserError(f"{source}: the base of {folder} is not a diffusers folder")
    own = [path for path in (lora, config) if path.is_file()]

    def read_digest() -> str:
        return hashlib.sha256(f"{under.digest}\n{checkpoints.digest_files(own, folder)}\n".encode()).hexdigest()

    return Pipeline(
        name=name,
        read_digest=read_digest,
        files=under.files,
        lora=lora,
        protocol=read_protocol(folder) or under.protocol,
        base=trained_base or under.name,
        training=training,
        device=device,
    )


def _open_card(card: ModelCard, base: str | None, name: str, device: str, offline: bool) -> Pipeline:
    """Return the model of a card; `base` is a local copy of what it lies over, instead of the hub's."""
    protocol = card_protocol(card, name)
    whole = base_card(card, name) if card.base else card
    under = open_model(base or whole.hub_id, device=device, offline=offline)
    if not isinstance(under, Pipeline) or under.lora:
        raise UserError(f"model card {name}: {base or whole.hub_id} is no diffusers folder")
    own = [hub_file(card.hub_id, file, offline) for file in card.files]
    for path in own[:1]:
        checkpoints.check_safetensors(path)
    scheduler = {**whole.scheduler, **card.scheduler}
    lora, denoiser = (own[0] if card.kind == kind else None for kind in ("lora", "denoiser"))

    def read_digest() -> str:
        if not own and not scheduler:
            return under.digest
        stated = json.dumps([scheduler, card.kind, card.lora_scale], sort_keys=True)
        parts = [under.digest, stated, *(checkpoints.digest_files([path], path.parent) for path in own)]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    return replace(
        under,
        name=name,
        read_digest=read_digest,
        lora=lora,
        protocol=protocol,
        base=card.base,
        changes=Changes(lora_scale=card.lora_scale, denoiser=denoiser, scheduler=scheduler),
        _loaded={},
    )


def _as_pictures(images_BCHW: "torch.Tensor", prompts: Sequence[str]) -> "list[Image]":
    """Return RGB images of floats in [0, 1]. Raises UserError naming the first prompt whose picture is not finite."""
    from metrics.images import to_pil

    for image, prompt in zip(images_BCHW, prompts, strict=True):
        if not image.isfinite().all():
            raise UserError(f"the picture of {prompt!r} holds NaN or infinite pixels; try --dtype float32")
    return to_pil(images_BCHW)
