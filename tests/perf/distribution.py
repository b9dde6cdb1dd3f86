"""Speed and memory of the metrics that look at sets: tox -e perf-distribution

    frechet      our Fréchet distance and scipy's square root, d = 2048: at least 5 times as fast, equal to 1e-6
    manifolds    precision and recall of 50,000 features of 2048 numbers: at most 2 GiB beyond the features
    lpips        diversity of 16 pictures and the loop over their pairs: at least 6 times as fast
    extraction   Inception's encoder with preprocessing ahead, and its bare forward: at least 0.92 of its speed

    --only NAME  some of them         --small  toy sizes, to see that it runs (bars are not judged)
    --record     keep the ratios for the page
Exit code 1 where a bar is missed.
"""

import argparse
import resource
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from leaderboards.studies import Speed
from metrics.encoders.inception import FidInception, Tf1Resize
from metrics.encoders.lpips import LpipsNetwork
from metrics.frechet import Moments, frechet_distance
from metrics.lpips import lpips_distance, mean_pairwise_lpips
from metrics.manifolds import precision, recall
from tests.parity.distribution import sizes
from tests.perf.record import machine, record
from tests.perf.turns import best_in_turns

REPEATS = 3


def seconds(function: Callable[[], object], repeats: int = REPEATS) -> float:
    """Return the median duration of a call, after a warm one."""
    function()
    taken = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def row(name: str, what: str, ours: str, other: str, ratio: float, wanted: float, setting: str) -> Speed:
    """Return a measured ratio as a row of the page."""
    return Speed(
        id=name,
        what=what,
        ours=ours,
        other=other,
        ratio=round(ratio, 3),
        repetitions=REPEATS,
        wanted=wanted,
        setting=f"{setting}; {machine()}",
    )


def frechet(small: bool) -> tuple[bool, Speed | None]:
    from scipy.linalg import sqrtm

    d = 128 if small else 2048
    generator = np.random.default_rng(0)
    scales, turn = 10 ** generator.uniform(-2, 0, d), np.linalg.qr(generator.standard_normal((d, d)))[0]
    a, b = (Moments.of(generator.standard_normal((2 * d, d)) * scales @ turn) for _ in range(2))

    def by_square_root() -> float:
        delta = a.mean_D - b.mean_D
        root = sqrtm(a.covariance_DD @ b.covariance_DD)
        return float(delta @ delta + np.trace(a.covariance_DD + b.covariance_DD - 2 * root.real))

    def ours() -> float:
        return frechet_distance(a.mean_D, a.covariance_DD, b.mean_D, b.covariance_DD)

    equal = abs(ours() / by_square_root() - 1)
    found = best_in_turns({"sqrtm": by_square_root, "ours": ours}, REPEATS)
    ratio = found["sqrtm"] / found["ours"]
    print(f"frechet     d = {d}: {ratio:.1f} times as fast as sqrtm (bar 5), values differ by {equal:.1e} (bar 1e-6)")
    told = row(
        "frechet",
        "Fréchet distance",
        "eigenvalues",
        "scipy's sqrtm",
        ratio,
        5,
        f"d = {d}, float64, deviations 0.01 to 1",
    )
    return ratio >= 5 and equal <= 1e-6, told


def manifolds(small: bool) -> tuple[bool, Speed | None]:
    n, m, d = (3000, 2000, 64) if small else (50_000, 10_000, 2048)
    generator = np.random.default_rng(0)
    generated, reference = (generator.standard_normal((count, d), dtype=np.float32) for count in (n, m))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    found = precision(generated, reference), recall(generated, reference)
    extra = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**20
    print(f"manifolds   {n} x {d}: {extra:.2f} GiB extra (bar 2), {time.perf_counter() - start:.0f} s, {found}")
    return extra <= 2, None


@torch.no_grad()
def lpips(small: bool) -> tuple[bool, Speed | None]:
    side, seeds = (64, 16) if small else (512, 16)
    network = LpipsNetwork("alex").eval()
    heads = [torch.rand(len(head)) for head in network.heads]
    pictures = torch.rand(seeds, 1, 3, side, side)

    def by_pairs() -> float:
        pairs = [(a, b) for i, a in enumerate(pictures) for b in pictures[:i]]
        return float(np.mean([lpips_distance(network(a), network(b), heads).item() for a, b in pairs]))

    ratio = seconds(by_pairs, 1) / seconds(lambda: mean_pairwise_lpips(map(network, pictures), heads))
    print(f"lpips       {seeds} pictures of {side} px: {ratio:.1f} times as fast as the loop over pairs (bar 6)")
    setting = f"{seeds} pictures of {side} px, AlexNet"
    return ratio >= 6, row("lpips", "LPIPS diversity", "each picture once", "the loop over pairs", ratio, 6, setting)


@torch.no_grad()
def extraction(small: bool) -> tuple[bool, Speed | None]:
    batches = [[sizes.picture(index) for index in range(n, n + 4)] for n in range(0, 8 if small else 64, 4)]
    network, resize = FidInception().eval(), Tf1Resize()
    prepared = resize.from_pil(batches[0])

    def ahead() -> None:
        with ThreadPoolExecutor(1) as reader:
            for pixels in reader.map(resize.from_pil, batches):
                network(pixels)

    ahead()  # a warm one
    found = best_in_turns({"bare": lambda: [network(prepared) for _ in batches], "ahead": ahead}, REPEATS)
    share = found["bare"] / found["ahead"]
    print(f"extraction  {share:.3f} of the bare forward's speed (bar 0.92)")
    told = row(
        "inception", "features of Inception", "pictures to features", "bare forward", share, 0.92, "batches of 4"
    )
    return share >= 0.92, told


CASES = {case.__name__: case for case in (frechet, manifolds, lpips, extraction)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--record", action="store_true")
    arguments = parser.parse_args()
    if arguments.small and arguments.record:
        parser.error("--record keeps figures of true sizes: leave out --small")
    found = [CASES[name](arguments.small) for name in arguments.only]
    if arguments.record:
        record(speed for _, speed in found if speed)
    return 0 if arguments.small or all(met for met, _ in found) else 1


if __name__ == "__main__":
    sys.exit(main())
