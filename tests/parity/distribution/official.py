"""Record what torch-fidelity, clean-fid and lpips make of seeded weights: tox -e parity-distribution

--images N   pictures that go through Inception and from there through every distance (default 256)
--only NAME  some of inception, distances, lpips, whole

`whole` is what `python -m tests.parity.distribution.native` compares with; the tests need the others.
"""

import argparse
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from tests.parity import common
from tests.parity.distribution import sizes

GOLDEN = Path(__file__).resolve().parents[2] / "golden" / "distribution"


def as_state(weights: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(np.asarray(value)) for name, value in weights.items()}


def inception(images: int = 2 * sizes.SHOWN) -> dict[str, np.ndarray]:
    """Return pool, logits, spatial of pictures on TensorFlow's road, and resized pixels of both roads."""
    return shown(run(images))


def run(images: int) -> dict[str, np.ndarray]:
    """Return whole features of pictures, and some of the resized pixels."""
    from cleanfid.resize import make_resizer
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x

    torch.hub.load_state_dict_from_url = lambda *_, **__: {}
    network = FeatureExtractorInceptionV3.__new__(FeatureExtractorInceptionV3)
    shapes_of = _build(network)
    weights = sizes.seeded_weights({name: tuple(value.shape) for name, value in shapes_of.items()})
    network.load_state_dict(as_state(weights), strict=False)
    network.eval()
    seen: list[torch.Tensor] = []
    network.Mixed_6d.branch1x1.register_forward_hook(lambda *call: seen.append(call[2]))
    clean = make_resizer("PIL", False, "bicubic", (299, 299))
    found: dict[str, list[np.ndarray]] = {"pool": [], "logits": [], "spatial": [], "clean": [], "tf1": []}
    for index in range(images):
        pixels = torch.from_numpy(np.asarray(sizes.picture(index))).permute(2, 0, 1)[None]
        with torch.no_grad():
            pool, logits = network(pixels)
        found["pool"].append(pool[0].numpy())
        found["logits"].append(logits[0].numpy())
        found["spatial"].append(seen[-1][0, :7].permute(1, 2, 0).flatten().numpy())
        if index < len(sizes.SIZES):
            resized = interpolate_bilinear_2d_like_tensorflow1x(pixels.float(), size=(299, 299), align_corners=False)
            found["tf1"].append(resized[0, :, ::23, ::23].numpy())
            found["clean"].append(np.asarray(clean(np.asarray(sizes.picture(index))))[::23, ::23].transpose(2, 0, 1))
    return {name: np.stack(values) for name, values in found.items()} | {
        "checksum": np.asarray(common.checksum(weights))
    }


def shown(found: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return what a test of a few seconds compares with."""
    first = {name: found[name][: sizes.SHOWN] for name in sizes.FEATURES}
    return found | first | {"pool_some": found["pool"][:, ::64].copy()}


def whole(images: int) -> dict[str, np.ndarray]:
    """Return some numbers of every feature of all pictures, torch-fidelity's distances between their halves, and its
    Fréchet distance of 4,096 x 2,048 features."""
    found = run(images)
    some = {f"{name}_some": found[name][:, :: sizes.EVERY].copy() for name in sizes.FEATURES}
    pool, logits = torch.from_numpy(found["pool"]), torch.from_numpy(found["logits"])
    numbers = fidelity(pool[::2], pool[1::2], logits, subset=images // 4)
    spatial = [torch.from_numpy(found["spatial"][start::2].copy()) for start in (0, 1)]
    numbers["sfid"] = fid(*spatial)
    numbers["fid_large"] = fid(*(torch.from_numpy(features) for features in sizes.large_sets()))
    return some | {name: np.asarray(value) for name, value in numbers.items()} | {"checksum": found["checksum"]}


def _build(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Initialise the extractor without its file, and return its state dict."""
    original = torch.nn.Module.load_state_dict
    torch.nn.Module.load_state_dict = lambda self, *_, **__: None  # type: ignore[method-assign]
    loader, torch.load = torch.load, lambda *_, **__: {}
    try:
        network.__init__("seeded", ["2048", "logits_unbiased"], feature_extractor_weights_path="none")  # type: ignore[misc]
    finally:
        torch.nn.Module.load_state_dict, torch.load = original, loader  # type: ignore[method-assign]
    return dict(network.state_dict())


def distances() -> dict[str, np.ndarray]:
    """Return the numbers of torch-fidelity and clean-fid on equal features."""
    from cleanfid.fid import frechet_distance
    from torch_fidelity.metric_fid import fid_features_to_statistics

    first, second = (torch.from_numpy(features) for features in sizes.feature_sets())
    statistics = [fid_features_to_statistics(features) for features in (first, second)]
    clean = frechet_distance(*(part for one in statistics for part in (one["mu"], one["sigma"])))
    numbers = fidelity(first, second, 4 * first, subset=100) | {"fid_clean": clean}
    return {name: np.asarray(value) for name, value in numbers.items()}


def fidelity(first: torch.Tensor, second: torch.Tensor, logits: torch.Tensor, subset: int) -> dict[str, float]:
    """Return torch-fidelity's distances of two sets of features, and its Inception Score of logits."""
    from torch_fidelity.metric_isc import isc_features_to_metric
    from torch_fidelity.metric_kid import kid_features_to_metric
    from torch_fidelity.metric_prc import prc_features_to_metric

    kid = kid_features_to_metric(first, second, kid_subsets=20, kid_subset_size=subset, verbose=False)
    prc = prc_features_to_metric(first, second, verbose=False)
    isc = isc_features_to_metric(logits, splits=10, shuffle=True, rng_seed=2020)
    return {
        "fid": fid(first, second),
        "kid_mean": kid["kernel_inception_distance_mean"],
        "kid_std": kid["kernel_inception_distance_std"],
        "precision": prc["precision"],
        "recall": prc["recall"],
        "isc_mean": isc["inception_score_mean"],
        "isc_std": isc["inception_score_std"],
    }


def fid(first: torch.Tensor, second: torch.Tensor) -> float:
    """Return torch-fidelity's Fréchet distance of two sets of features."""
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

    statistics = [fid_features_to_statistics(features) for features in (first, second)]
    return float(fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"])


def perceptual(net: str) -> dict[str, np.ndarray]:
    """Return LPIPS of all pairs of some pictures, by the package's own loop, with its own heads."""
    import lpips

    loss = lpips.LPIPS(net=net, pnet_rand=True, verbose=False).eval()
    shapes, places = {}, {}
    for name, value in loss.net.state_dict().items():
        places["features." + name.partition(".")[2]] = name
        shapes["features." + name.partition(".")[2]] = tuple(value.shape)
    weights = sizes.seeded_weights(shapes)
    loss.net.load_state_dict(as_state({places[name]: value for name, value in weights.items()}))
    pictures = [lpips.im2tensor(np.asarray(sizes.picture(6 * index))) for index in range(sizes.SEEDS)]
    with torch.no_grad():
        pairs = [loss(a, b).item() for i, a in enumerate(pictures) for b in pictures[:i]]
    heads = {f"{net}_head{i}": layer.model[1].weight.detach().numpy().ravel() for i, layer in enumerate(loss.lins)}
    return {f"{net}_pairs": np.asarray(pairs), f"{net}_checksum": np.asarray(common.checksum(weights)), **heads}


def lpips() -> dict[str, np.ndarray]:
    """Return what the package makes of both networks."""
    return perceptual("alex") | perceptual("vgg")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--out", type=Path, default=GOLDEN)
    parser.add_argument("--only", nargs="+", choices=("inception", "distances", "lpips", "whole"))
    arguments = parser.parse_args()
    packages = ("torch-fidelity", "clean-fid", "lpips", "torch", "torchvision", "scipy", "numpy", "pillow")
    about = {name: version(name) for name in packages} | {"pillow_core": Image.__version__}
    torch.set_grad_enabled(True)
    for make in (inception, distances, lpips):
        if not arguments.only or make.__name__ in arguments.only:
            common.save(arguments.out / f"{make.__name__}.npz", make(), about)
    if not arguments.only or "whole" in arguments.only:
        common.save(arguments.out / "whole.npz", whole(arguments.images), about | {"images": arguments.images})


if __name__ == "__main__":
    sys.exit(main())
