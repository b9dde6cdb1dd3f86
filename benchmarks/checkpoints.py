"""Checkpoint folders as files: are they whole, safe to read, and what is their digest? Nothing is loaded here.

A checkpoint is untrusted. Only safetensors are read; a pickle can run code when it is opened, and so can a pipeline
class or an `auto_map` that names Python files of the folder. Such folders are refused; stray files are ignored.
"""

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metrics.base import UserError

INDEX = "model_index.json"
DENOISERS = ("transformer", "unet")
PICKLES = frozenset({".bin", ".pt", ".pth", ".ckpt", ".pkl"})
DIGESTED = frozenset({".safetensors", ".json", ".txt", ".model", ".jinja"})  # all that decides what is loaded
LORA_FILES = ("pytorch_lora_weights.safetensors", "adapter_model.safetensors")
_AGAIN = "copy or export the checkpoint again"


@dataclass(frozen=True)
class PipelineFiles:
    """A checked diffusers folder."""

    folder: Path
    class_name: str  # of the pipeline
    components: tuple[str, ...]
    null_components: tuple[str, ...]  # given as null: from_pretrained wants to hear None

    @property
    def denoiser(self) -> Path:
        """The folder of the network that is counted and timed."""
        return next(self.folder / name for name in DENOISERS if name in self.components)

    def files(self) -> list[Path]:
        """Return every file that decides what is loaded."""
        inside = (path for name in self.components for path in (self.folder / name).rglob("*"))
        return [self.folder / INDEX, *(path for path in inside if path.suffix in DIGESTED and path.is_file())]

    def scheduler_class(self) -> str:
        """Return the class name of the folder's own scheduler."""
        return str(read_json(self.folder / INDEX)["scheduler"][1])

    def is_flow(self) -> bool:
        """Return whether the folder's own scheduler is one of flow matching."""
        flow = self.scheduler_config().get("prediction_type") == "flow_prediction"  # of solvers that know both
        return flow or "FlowMatch" in self.scheduler_class()

    def scheduler_config(self) -> dict[str, Any]:
        """Return the settings of the folder's own scheduler."""
        return read_json(self.folder / "scheduler" / "scheduler_config.json")


def check_pipeline(folder: Path) -> PipelineFiles:
    """Return a diffusers folder's contents.

    Raises UserError where it is incomplete, damaged, or wants to run code."""
    index = read_json(folder / INDEX)
    class_name = index.get("_class_name")
    if not isinstance(class_name, str):
        raise UserError(f"{folder / INDEX}: pipeline class {class_name!r} is code of the folder, which is never run")
    present, null = [], []
    for name, entry in index.items():
        if name.startswith("_") or not isinstance(entry, list):
            continue  # settings of the pipeline, such as force_zeros_for_empty_prompt
        if len(entry) != 2 or Path(name).name != name:
            raise UserError(f"{folder / INDEX}: component {name!r} is not given as [library, class]")
        if entry == [None, None]:
            null.append(name)
            continue
        _check_component(folder, name, *entry)
        present.append(name)
    if "scheduler" not in present or not set(DENOISERS) & set(present):
        raise UserError(
            f"{folder / INDEX}: lacks a scheduler or {' or '.join(DENOISERS)}: not a text-to-image diffusion pipeline"
        )
    return PipelineFiles(folder, class_name, tuple(present), tuple(null))


def check_safetensors(path: Path) -> None:
    """Read a safetensors file's header. Raises UserError where the file is missing, cut off or damaged."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy"):
            pass
    except FileNotFoundError as error:
        raise UserError(f"{path}: missing; {_AGAIN}") from error
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: truncated or damaged ({error}); {_AGAIN}") from error


def count_parameters(folder: Path) -> int:
    """Return the number of weights in a component's safetensors, read from their headers."""
    from safetensors import safe_open

    total = 0
    for path in weight_files(folder):
        with safe_open(path, framework="numpy") as file:
            total += sum(math.prod(file.get_slice(key).get_shape()) for key in file.keys())  # noqa: SIM118
    return total


def weight_files(folder: Path) -> list[Path]:
    """Return a component's safetensors: the shards its index names, else the plain file.

    Raises UserError where there are none, a shard is missing, or the weights are pickled."""
    for index in sorted(folder.glob("*.safetensors.index.json")):
        shards = read_json(index).get("weight_map", {})
        return [folder / name for name in sorted({Path(str(shard)).name for shard in shards.values()})]
    plain = sorted(path for path in folder.glob("*.safetensors") if path.stem in ("diffusion_pytorch_model", "model"))
    if plain:
        return plain
    pickles = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLES)
    if pickles:
        raise UserError(
            f"{folder / pickles[0]}: a pickle can run code and is refused; save the weights as safetensors"
        )
    raise UserError(f"{folder}: no weights (.safetensors); {_AGAIN}")


def digest_files(files: Iterable[Path], root: Path) -> str:
    """Return the sha256 (hex) over the sorted (relative path, sha256 of the content) of files."""
    total = hashlib.sha256()
    for path in sorted(files):
        with path.open("rb") as content:
            digest = hashlib.file_digest(content, "sha256").hexdigest()
        total.update(f"{path.relative_to(root).as_posix()} {digest}\n".encode())
    return total.hexdigest()


def read_json(path: Path) -> dict[str, Any]:
    """Return a JSON object. Raises UserError where the file is missing, malformed or no object."""
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path}: missing; {_AGAIN}") from error
    except OSError as error:  # the folder is a file, say
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not valid JSON ({error}); {_AGAIN}") from error
    if not isinstance(table, dict):
        raise UserError(f"{path}: expected an object, found a {type(table).__name__}")
    return table


def find_lora(folder: Path) -> Path | None:
    """Return the LoRA weights of a folder, None where it holds none. Raises UserError for pickled ones."""
    for name in LORA_FILES:
        if (folder / name).is_file():
            return folder / name
        pickle = (folder / name).with_suffix(".bin")
        if pickle.is_file():
            raise UserError(f"{pickle}: a pickle can run code and is refused; save the LoRA as safetensors")
    return None


def _check_component(folder: Path, name: str, library: Any, class_name: Any) -> None:
    part = folder / name
    if not isinstance(library, str) or not isinstance(class_name, str):
        raise UserError(f"{folder / INDEX}: component {name!r} is not given as [library, class]")
    if any((place / f"{library}.py").exists() for place in (folder, part)):
        raise UserError(f"{folder / INDEX}: component {name!r} is Python code of the folder, which is never run")
    if not part.is_dir():
        raise UserError(f"{part}: component missing; {_AGAIN}")
    config = part / _config_name(class_name)
    if not (config.is_file() or "Tokenizer" in class_name):  # tokenizers can do with tokenizer.json alone
        raise UserError(f"{config}: missing; {_AGAIN}")
    for path in sorted(part.glob("*.json")):
        if "config" in path.name and "auto_map" in read_json(path):
            raise UserError(f"{path}: 'auto_map' asks to run code from the folder, which is never done")
    if config.name == "config.json":
        for path in weight_files(part):
            check_safetensors(path)


def _config_name(class_name: str) -> str:
    """Return the config that a component of this class cannot do without; only models have a plain config.json."""
    kinds: Mapping[str, str] = {
        "Scheduler": "scheduler_config.json",
        "Tokenizer": "tokenizer_config.json",
        "Processor": "preprocessor_config.json",
        "FeatureExtractor": "preprocessor_config.json",
    }
    return next((file for kind, file in kinds.items() if kind in class_name), "config.json")
