"""A model that is a function of yours: --model my_module:draw

    def draw(prompts: list[str], generators: list[torch.Generator]) -> Tensor | list[PIL.Image.Image]: ...

It returns one picture for each prompt, [B, 3, H, W] floats in [0, 1] or PIL images, and takes its noise from the
generators, one per picture and on the CPU: only then does a picture not depend on its batch. What decides the
pictures is the function's own affair, so the result has no protocol and no count of passes. Its digest covers the
source of its module and the files that the function names in an attribute `weights` (paths), if it has one.
"""

import hashlib
import importlib
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import checkpoints
from benchmarks.config import UserError

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

SPEC = re.compile(r"(?P<module>[A-Za-z_][\w.]*):(?P<function>[A-Za-z_]\w*)")


@dataclass(frozen=True)
class FunctionModel:
    """See the module's docstring."""

    name: str
    function: Callable[[list[str], "list[torch.Generator]"], Any]
    digest: str
    folder: Path  # of its module; fingerprints of training prompts may lie there

    protocol = None
    parameters = None
    base = ""
    training = None
    device = "unknown"

    @property
    def components(self) -> dict[str, int]:
        """Nothing is known of what it is made of."""
        return {}

    @cached_property
    def picture_size(self) -> tuple[int, int]:
        """Width and height of a picture, by drawing one."""
        import torch

        return self.draw([""], [torch.Generator().manual_seed(0)])[0].size

    def draw(self, prompts: Sequence[str], generators: "Sequence[torch.Generator]") -> "list[Image]":
        """Return one picture for each prompt. Raises UserError where the function returns something else."""
        import torch
        from PIL.Image import Image

        from metrics.images import to_pil

        images = self.function(list(prompts), list(generators))
        count = len(prompts)
        if isinstance(images, torch.Tensor):
            if images.ndim != 4 or images.shape[:2] != (count, 3):
                raise UserError(
                    f"{self.name}: returned {list(images.shape)} for {count} prompts, not [{count}, 3, H, W]"
                )
            inside = images.isfinite() & (images >= 0) & (images <= 1)
            if not images.is_floating_point() or not bool(inside.all()):
                raise UserError(f"{self.name}: returned pixels that are no floats in [0, 1]")
            return to_pil(images.detach().float().cpu())
        if not isinstance(images, Sequence) or len(images) != count:
            raise UserError(f"{self.name}: must return a tensor or a list of {count} images for {count} prompts")
        if not all(isinstance(image, Image) for image in images):
            raise UserError(f"{self.name}: returned a list of {type(images[0]).__name__}, not of PIL images")
        return [image.convert("RGB") for image in images]


def open_function(spec: str, name: str | None) -> FunctionModel | None:
    """Return the function that "module:function" names, None where `spec` has not that form.

    The module is imported, with the present folder in reach. Raises UserError where there is no such function."""
    match = SPEC.fullmatch(spec)
    if not match:
        return None
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))
    try:
        module = importlib.import_module(match["module"])
    except ImportError as error:
        raise UserError(f"--model {spec}: cannot import {match['module']} ({error})") from error
    function = getattr(module, match["function"], None)
    if not callable(function):
        raise UserError(f"--model {spec}: {match['module']} has no function {match['function']!r}")
    folder = Path(getattr(module, "__file__", None) or ".").parent
    return FunctionModel(name or spec.replace(":", "--"), function, _digest(spec, module, function), folder)


def _digest(spec: str, module: Any, function: Any) -> str:
    source = getattr(module, "__file__", None)
    paths = [Path(path) for path in getattr(function, "weights", ())]
    for path in paths:
        if not path.is_file():
            raise UserError(f"--model {spec}: names weights {path}, which is no file")
    files = [Path(source), *paths] if source else paths
    contents = [checkpoints.digest_files([path], path.parent) for path in files]
    return hashlib.sha256("\n".join([spec, *contents]).encode()).hexdigest()
