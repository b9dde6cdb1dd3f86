"""Make reference statistics: python -m metrics.reference build IMAGES --encoder inception/clean -o stats.npz

    build IMAGES      a folder of pictures (all below it), or an npz with pictures in `arr_0`, as ADM publishes them
    build STATS.npz   an npz with `mu` and `sigma` (clean-fid's, ADM's, EDM's): converted, not computed
    build CACHE.pt    features or moments that torch-fidelity keeps, with --encoder inception/tf1: converted
    show STATS.npz    what a file says about itself

Progress is shown; memory depends on the encoder, not on the number of pictures. A build that was stopped continues
where it was a minute before. Exit codes: 0 fine, 2 something for you to mend (one line).
Axes: N pictures, M <= 10,000 of them whose features are kept, D features.
"""

import hashlib
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from PIL import Image
from tyro.extras import SubcommandApp

from metrics import torch_fidelity
from metrics.base import Prompt, UserError, nearest
from metrics.commands import deferred, guarded, parsed
from metrics.features import FeatureRunner
from metrics.frechet import Moments
from metrics.images import FORMATS, read_image
from metrics.reference_state import State
from metrics.references import MOMENTS, open_arrays, write_reference

OUTPUTS = {  # of each encoder that a reference can be made with: the first one's features are kept
    "inception/clean": ("pool", "spatial"),
    "inception/tf1": ("pool", "spatial"),
    "dinov2l/squash": ("image",),
    "clip-l-14-336/square": ("image",),
}
KEPT = 10_000
app = SubcommandApp()


@app.command
@deferred
def build(
    images: Annotated[Path, tyro.conf.Positional],
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])],
    encoder: str = "inception/clean",
    device: str = "cpu",
    batch_size: int = 32,
) -> None:
    """Compute (or convert) reference statistics.

    Args:
        images: folder of pictures; npz of pictures; npz of statistics; or a file of torch-fidelity's cache
        output: the file to write
        encoder: whose features: network and resizing
        device: torch device
        batch_size: pictures at a time
    """
    if encoder not in OUTPUTS:
        raise UserError(f"--encoder {encoder!r}: unknown; {nearest(encoder, OUTPUTS)}")
    if batch_size < 1:
        raise UserError(f"--batch-size {batch_size}: must be at least 1")
    if images.suffix == ".pt" and encoder != torch_fidelity.ENCODER:
        raise UserError(
            f"--encoder {encoder}: torch-fidelity resizes otherwise; its files are {torch_fidelity.ENCODER}"
        )
    source = Source.open(images)
    arrays, about = source.statistics()
    state: State | None = None
    if source.count:
        computed, found, state = compute(source, encoder, device, batch_size, output)
        arrays, about = computed | arrays, found | about
    if not arrays:
        raise UserError(f"{images}: holds neither pictures nor statistics (mu, sigma)")
    about = {"encoder": encoder, "source": images.name, **about}
    digest = write_reference(output, arrays, about)
    if state:
        state.drop()
    print(f"{output}: {json.dumps(about, sort_keys=True)}\nsha256 {digest}")


@app.command
@deferred
def show(file: Annotated[Path, tyro.conf.Positional]) -> None:
    """Print what a reference file says about itself."""
    with open_arrays(file, "pass a file made by `python -m metrics.reference build`") as arrays:
        shapes = {name: list(arrays[name].shape) for name in arrays if name != "about"}
        print(str(arrays["about"]) if "about" in arrays else "no metadata: not one of ours", shapes, sep="\n")


class Source:
    """Where pictures or statistics come from."""

    def __init__(self, paths: Sequence[Path] = (), pixels: np.ndarray | None = None, stated: Any = None) -> None:
        self.paths, self.pixels, self.stated = paths, pixels, stated or {}
        self.count = len(paths) if pixels is None else len(pixels)

    @classmethod
    def open(cls, path: Path) -> "Source":
        """Return the source at a path. Raises UserError where there is none."""
        if path.is_dir():
            endings = {f".{kind.lower()}" for kind in FORMATS} | {".jpg"}
            return cls(sorted(file for file in path.rglob("*") if file.suffix.lower() in endings))
        if path.suffix == ".pt":
            return cls(stated=torch_fidelity.read_cache(path))
        with open_arrays(path, "pass a folder of pictures, or an npz") as arrays:
            try:
                stated = {name: arrays[name] for pair in MOMENTS.values() for name in pair if name in arrays}
                pixels = arrays.get("arr_0")
            except ValueError as error:
                raise UserError(f"{path}: mu, sigma or arr_0 is a pickle, which can run code ({error})") from error
        if pixels is not None and (pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[-1] != 3):
            raise UserError(f"{path}: arr_0 is {pixels.dtype} {pixels.shape}; pictures are uint8 [N, H, W, 3]")
        return cls(pixels=pixels, stated=stated)

    def statistics(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Return moments that the source brings along, and what is known of them: not by which weights."""
        for name, array in self.stated.items():
            if array.ndim != (1 if name.startswith("mu") else 2) or not np.isfinite(array).all():
                raise UserError(f"{name} of shape {array.shape} is no mean or covariance of finite numbers")
        if "features" in self.stated:
            features_ND = self.stated["features"]
            total = Moments.of(features_ND)
            arrays = {"mu": total.mean_D, "sigma": total.covariance_DD, "features": features_ND[kept_of(total.n)]}
            return arrays, {"weights_digest": "", "n": total.n}
        return self.stated, {"weights_digest": "", "n": 0} if self.stated else {}

    def digest(self, count: int) -> str:
        """Return the sha256 over names, sizes and times of the first pictures' files, or over those pictures."""
        if self.pixels is not None:
            return hashlib.sha256(self.pixels[:count].tobytes()).hexdigest()
        stats = [(path, path.stat()) for path in self.paths[:count]]
        listed = "".join(f"{path}\n{stat.st_size}\n{stat.st_mtime_ns}\n" for path, stat in stats)
        return hashlib.sha256(listed.encode()).hexdigest()

    def pictures(self, batch_size: int, first: int = 0) -> Iterator[list[Image.Image]]:
        """Yield RGB pictures in batches, in a fixed order, from one of them on.

        Raises: UserError naming a damaged one."""
        for start in range(first, self.count, batch_size):
            if self.pixels is not None:
                yield [Image.fromarray(picture) for picture in self.pixels[start : start + batch_size]]
            else:
                yield [read_image(path) for path in self.paths[start : start + batch_size]]


def kept_of(count: int) -> list[int]:
    """Return the numbers of the pictures whose features are kept: at most KEPT, spread over the set."""
    return np.linspace(0, count - 1, min(KEPT, count)).round().astype(int).tolist()


def compute(
    source: Source, encoder: str, device: str, batch_size: int, output: Path
) -> tuple[dict[str, np.ndarray], dict[str, Any], State]:
    """Return moments of every output, features of at most KEPT pictures spread over the set, metadata, and the state
    that is saved beside `output` meanwhile.

    Raises: UserError where weights are missing or a picture is damaged; what was gathered until then is saved."""
    from rich.progress import Progress

    keys = [f"{encoder}:{name}" for name in OUTPUTS[encoder]]
    runner = FeatureRunner(keys, device)
    weights = runner.weights(keys[0])[0].digest()
    kept = set(kept_of(source.count))
    identity = {"encoder": encoder, "weights": weights, "n": source.count, "batch_size": batch_size, "device": device}
    state = State.beside(output, identity, source.digest)
    with Progress(disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task(encoder, total=source.count, completed=state.count)
        try:
            for batch in source.pictures(batch_size, state.count):
                found = runner.run(batch, [Prompt(text="")] * len(batch))
                arrays = {key.rpartition(":")[2]: found[key].cpu().numpy() for key in keys}
                if not all(np.isfinite(array).all() for array in arrays.values()):
                    raise UserError(f"{encoder}: features are not finite; look at the weights")
                state.add(arrays, batch, kept)
                state.save_if_due()
                progress.advance(task, len(batch))
        except (UserError, KeyboardInterrupt):
            state.save()
            raise
    statistics = {
        name: value
        for output_name, total in state.totals.items()
        for name, value in zip(MOMENTS[output_name], (total.mean_D, total.covariance_DD), strict=True)
    }
    images = hashlib.sha256(state.pictures).hexdigest()
    about = {"weights_digest": weights, "n": source.count, "images": images}
    return statistics | {"features": np.stack(state.features)}, about, state


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    return guarded(lambda: parsed(app.cli, arguments, prog="python -m metrics.reference", description=__doc__))


if __name__ == "__main__":
    sys.exit(main())
