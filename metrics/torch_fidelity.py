"""What torch-fidelity keeps of a set of pictures, read without running code.

    NAME-inception-v3-compat-features-2048.pt            features [N, D]
    NAME-inception-v3-compat-stat-fid-2048.pt            {"mu": [D], "sigma": [D, D]}

Its pictures are resized as TensorFlow 1 does: the files belong to "inception/tf1". They are pickles, of which
torch's restricted unpickler rebuilds tensors and NumPy's arrays, and refuses everything else.
Source: torch-fidelity 0.4.0, utils.py (caches), metric_fid.py. Axes: N pictures, D features.
"""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from metrics.base import UserError

ENCODER = "inception/tf1"


def read_cache(path: Path) -> dict[str, np.ndarray]:
    """Return {"features"} or {"mu", "sigma"} of a cached file.

    Raises: UserError where it is missing, damaged, asks to run code, or holds anything else."""
    try:
        with torch.serialization.safe_globals(_array_parts()):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing; pass a file of torch-fidelity's cache") from error
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, OSError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"{path}: damaged, or asks to run code, which is refused ({reason})") from error
    match content:
        case Tensor(ndim=2):
            return {"features": content.numpy()}
        case {"mu": np.ndarray(ndim=1) as mean, "sigma": np.ndarray(ndim=2) as covariance}:
            return {"mu": mean, "sigma": covariance}
    raise UserError(f"{path}: neither features [N, D] nor mu and sigma, as torch-fidelity keeps them")


def _array_parts() -> list[Any]:
    """Return what a pickled array of floats is rebuilt by, under the names of NumPy 1 and 2."""
    rebuild = np.zeros(0).__reduce__()[0]
    names = (f"numpy.{core}.multiarray._reconstruct" for core in ("core", "_core"))
    floats = (type(np.dtype(kind)) for kind in (np.float32, np.float64))
    return [*((rebuild, name) for name in names), np.ndarray, np.dtype, *floats]
