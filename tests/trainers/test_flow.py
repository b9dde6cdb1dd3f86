import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import permutations
from typing import Literal

import pytest
import torch
from scipy.stats import beta
from torch import Tensor

from benchmarks import vp
from benchmarks.config import UserError, build
from benchmarks.samplers import shifted
from tests.benchmarks.test_vp import path_of
from tests.trainers.closed_form import PointBackbone, gaussian_velocity
from trainers import flow
from trainers.draws import Draws
from trainers.flow import RenoiseLaw, subinterval

Convert = Callable[[Tensor], Tensor]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_flow_conversions_round_trip(dtype: torch.dtype, tolerance: float) -> None:
    generator = torch.Generator().manual_seed(0)
    x0, eps = torch.randn(2, 64, 8, generator=generator, dtype=dtype)
    t = torch.linspace(0.01, 0.99, 64, dtype=dtype)[:, None]
    x_t, v = flow.interpolate(x0, eps, t), eps - x0
    assert (flow.x0_from_v(x_t, v, t) - x0).abs().max() < tolerance
    assert (flow.eps_from_v(x_t, v, t) - eps).abs().max() < tolerance
    # dividing by t or 1 - t >= .01 multiplies rounding by up to 100
    assert ((flow.v_from_x0(x_t, x0, t) - v) * t).abs().max() < tolerance
    assert ((flow.v_from_eps(x_t, eps, t) - v) * (1 - t)).abs().max() < tolerance
    score = flow.score_from_v(x_t, v, t)
    assert ((score + eps / t) * t).abs().max() < tolerance
    assert ((flow.v_from_score(x_t, score, t) - v) * (1 - t)).abs().max() < tolerance


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_vp_conversions_round_trip_and_bridge_to_flow(dtype: torch.dtype, tolerance: float) -> None:
    """Over SDXL's table, x0 and eps from each of eps, x0, v_prediction and score."""
    x0, eps = torch.randn(2, 64, 8, dtype=dtype, generator=torch.Generator().manual_seed(1))
    alpha_bar = torch.linspace(0.9991, 0.0047, 64, dtype=torch.float64)[:, None]
    a, b = alpha_bar.sqrt().to(dtype), (1 - alpha_bar).sqrt().to(dtype)
    x_t = a * x0 + b * eps
    v = vp.v_prediction(x0, eps, a, b)
    for back in (vp.x0_from_eps(x_t, eps, a, b), vp.x0_from_v_prediction(x_t, v, a, b)):
        assert (back - x0).abs().max() < tolerance
    for back in (
        vp.eps_from_x0(x_t, x0, a, b),
        vp.eps_from_v_prediction(x_t, v, a, b),
        vp.eps_from_score(-eps / b, b),
    ):
        assert (back - eps).abs().max() < tolerance
    x, t = vp.to_flow(x_t, a, b)
    assert (x - flow.interpolate(x0, eps, t)).abs().max() < tolerance
    score = (a + b) * vp.score_from_eps(eps, b)  # of flow
    assert ((flow.score_from_v(x, eps - x0, t) - score) * t).abs().max() < tolerance
    back = flow.v_from_score(x, score, t)
    assert ((flow.x0_from_v(x, back, t) - x0) * (1 - t)).abs().max() < tolerance
    assert ((flow.eps_from_v(x, back, t) - eps) * (1 - t)).abs().max() < tolerance


def worst_round_trip(
    start: Mapping[str, Tensor], to_hub: Mapping[str, Convert], from_hub: Mapping[str, Convert], one: str, other: str
) -> Tensor:
    """Return by how much `one` changes [B, 1] on its way to `other` and back."""
    there = from_hub[other](to_hub[one](start[one]))
    back = from_hub[one](to_hub[other](there))
    return (back - start[one]).abs().amax(dim=1, keepdim=True)


PAIRS = list(permutations(("x0", "eps", "v", "score"), 2))


@pytest.mark.parametrize(("one", "other"), PAIRS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_every_prediction_of_flow_survives_the_way_to_any_other_and_back(
    dtype: torch.dtype, one: str, other: str
) -> None:
    """Within 1e-10 in float64. In float32 within 1e-5, but for what no arithmetic can mend.

    That is the rounding of `other` itself, which the derivative d one / d other multiplies, by up to 100^2 at the
    ends: more than tenfold it is allowed for."""
    t = torch.linspace(0.01, 0.99, 99, dtype=dtype)[:, None]
    x0, eps = torch.randn(2, 99, 8, dtype=dtype, generator=torch.Generator().manual_seed(0))
    x_t = flow.interpolate(x0, eps, t)
    back = worst_round_trip(
        {"x0": x0, "eps": eps, "v": eps - x0, "score": -eps / t},
        {
            "x0": lambda x0: flow.v_from_x0(x_t, x0, t), "eps": lambda eps: flow.v_from_eps(x_t, eps, t),
            "v": torch.clone, "score": lambda score: flow.v_from_score(x_t, score, t),
        },
        {
            "x0": lambda v: flow.x0_from_v(x_t, v, t), "eps": lambda v: flow.eps_from_v(x_t, v, t),
            "v": torch.clone, "score": lambda v: flow.score_from_v(x_t, v, t),
        },
        one, other,
    )  # fmt: skip
    by_v = {"x0": t, "eps": 1 - t, "v": torch.ones_like(t), "score": (1 - t) / t}  # derivatives
    size = {"score": 1 / t}  # a score is so much larger than the others, and its rounding with it
    amplified = torch.maximum(size.get(other, 1) * by_v[one] / by_v[other], torch.as_tensor(size.get(one, 1.0)))
    if dtype == torch.float64:
        assert back.max() < 1e-10
    else:
        assert (back / (amplified / 10).clamp(min=1)).max() < 1e-5


@pytest.mark.parametrize(("one", "other"), PAIRS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_every_prediction_of_vp_survives_the_way_to_any_other_and_back(
    dtype: torch.dtype, tolerance: float, one: str, other: str
) -> None:
    """At timesteps 10 to 990 of SDXL's table."""
    alpha_bar = path_of().alpha_bar[10:991:10, None]
    a, b = alpha_bar.sqrt().to(dtype), (1 - alpha_bar).sqrt().to(dtype)
    x0, eps = torch.randn(2, 99, 8, dtype=dtype, generator=torch.Generator().manual_seed(0))
    x_t = a * x0 + b * eps
    back = worst_round_trip(
        {"x0": x0, "eps": eps, "v": vp.v_prediction(x0, eps, a, b), "score": -eps / b},
        {
            "x0": lambda x0: vp.eps_from_x0(x_t, x0, a, b), "eps": torch.clone,
            "v": lambda v: vp.eps_from_v_prediction(x_t, v, a, b), "score": lambda score: vp.eps_from_score(score, b),
        },
        {
            "x0": lambda eps: vp.x0_from_eps(x_t, eps, a, b), "eps": torch.clone,
            "v": lambda eps: vp.v_prediction(vp.x0_from_eps(x_t, eps, a, b), eps, a, b),
            "score": lambda eps: vp.score_from_eps(eps, b),
        },
        one, other,
    )  # fmt: skip
    assert back.max() < tolerance


def test_x0_difference_is_the_score_difference_times_t_squared_over_one_minus_t() -> None:
    x_t, t = torch.randn(50, 3, dtype=torch.float64), 0.6
    v_a, v_b = gaussian_velocity(1.0, 0.5)(x_t, t), gaussian_velocity(-0.2, 0.5)(x_t, t)
    difference = flow.x0_from_v(x_t, v_a, t) - flow.x0_from_v(x_t, v_b, t)
    scores = flow.score_from_v(x_t, v_a, t) - flow.score_from_v(x_t, v_b, t)
    assert torch.allclose(difference, t * (v_b - v_a), rtol=0, atol=1e-12)
    assert torch.allclose(difference, t**2 / (1 - t) * scores, rtol=0, atol=1e-12)


def test_guidance_of_one_is_the_conditional_call_and_is_the_same_in_v_eps_and_x0() -> None:
    x_t, u, c = torch.randn(3, 40, 4, dtype=torch.float64)
    t = 0.35
    assert torch.equal(flow.guided(torch.zeros_like(c), c, 1.0), c)
    from_v = flow.x0_from_v(x_t, flow.guided(u, c, 4.5), t)
    from_x0 = flow.guided(flow.x0_from_v(x_t, u, t), flow.x0_from_v(x_t, c, t), 4.5)
    eps = flow.guided(flow.eps_from_v(x_t, u, t), flow.eps_from_v(x_t, c, t), 4.5)
    from_eps = flow.x0_from_v(x_t, flow.v_from_eps(x_t, eps, t), t)
    assert torch.allclose(from_v, from_x0, rtol=0, atol=1e-12) and torch.allclose(
        from_v, from_eps, rtol=0, atol=1e-12
    )


@pytest.mark.parametrize(("kernel", "noise_variance"), [("exact", 0.64), ("paper", 0.40)])
def test_only_the_exact_kernel_keeps_the_noise_of_the_path(kernel: flow.Kernel, noise_variance: float) -> None:
    s, t = 0.5, 0.8
    a, sigma = subinterval(s, t, kernel)
    assert a == pytest.approx((1 - t) / (1 - s))
    assert (a * s) ** 2 + sigma**2 == pytest.approx(noise_variance, abs=1e-9)


def test_exact_kernel_keeps_mean_and_variance_of_gaussian_data() -> None:
    n, mu, tau, s, t = 400_000, 0.7, 0.5, 0.5, 0.8
    x0, eps, noise = torch.randn(3, n, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    a, sigma = subinterval(s, t)
    x_t = a * flow.interpolate(mu + tau * x0, eps, s) + sigma * noise
    variance = (1 - t) ** 2 * tau**2 + t**2
    assert abs(x_t.mean() - (1 - t) * mu) < 4 * math.sqrt(variance / n)
    assert abs(x_t.var() - variance) < 4 * variance * math.sqrt(2 / n)


def test_kernel_ends() -> None:
    a, sigma = subinterval(0.0, 0.3)
    assert (a, sigma) == pytest.approx((0.7, 0.3))
    assert subinterval(0.5, 0.5 + 1e-9)[1] < 1e-4


def test_renoise_laws_have_their_bounds_and_shift() -> None:
    generator = torch.Generator().manual_seed(3)
    uniform = RenoiseLaw(low=0.1, high=0.7).sample(20_000, generator)
    assert uniform.min() >= 0.1 and uniform.max() <= 0.7 and abs(uniform.mean() - 0.4) < 0.005
    moved = RenoiseLaw(low=0.1, high=0.7, shift=3.0).sample(20_000, generator)
    assert shifted(0.1, 3) <= moved.min() and moved.max() <= shifted(0.7, 3) + 1e-6
    assert abs(moved.median() - shifted(0.4, 3)) < 0.01
    normal = RenoiseLaw(kind="logit_normal", low=0.02, high=0.98, mean=0.5).sample(20_000, generator)
    assert abs(torch.logit(normal).median() - 0.5) < 0.04


def test_renoise_bounds_out_of_order_are_refused() -> None:
    with pytest.raises(UserError, match="low < high"):
        build(RenoiseLaw, {"low": 0.9, "high": 0.1}, "x.toml")


def test_beta_law_has_the_moments_of_beta() -> None:
    generator = torch.Generator().manual_seed(4)
    for a, b, mean in ((4.0, 1.5, 0.7273), (2.5, 1.25, 0.6667), (1.0, 1.0, 0.5)):
        t = RenoiseLaw(kind="beta", a=a, b=b, low=0.0, high=1.0).sample(100_000, generator)
        assert t.mean().item() == pytest.approx(mean, abs=0.005)
        assert t.var().item() == pytest.approx(a * b / ((a + b) ** 2 * (a + b + 1)), abs=0.002)
    clamped = RenoiseLaw(kind="beta", a=4.0, b=1.5, low=0.3, high=0.9).sample(10_000, generator)
    assert clamped.min() == pytest.approx(0.3) and clamped.max() == pytest.approx(0.9)


def test_beta_of_ones_is_the_uniform_draw() -> None:
    law = RenoiseLaw(kind="beta", low=0.0, high=1.0)
    u = torch.rand(9, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    assert torch.allclose(law.sample(9, torch.Generator().manual_seed(5)), u.float(), rtol=0, atol=1e-6)


def test_level_per_batch_is_one_for_all_samples_and_processes_and_per_sample_is_not() -> None:
    x = torch.zeros(6, 4, 2, 2)
    levels = []
    for rank in (0, 1):
        draws = Draws(0, rank, 2)
        t, eps = RenoiseLaw(per="batch").draw(x, draws, torch.clone)
        assert t.shape == (6, 1, 1, 1) and eps.shape == x.shape and len(t.unique()) == 1
        levels.append(t[0].item())
        assert RenoiseLaw(per="batch").draw(x, draws, torch.clone)[0][0].item() != levels[-1]
    assert levels[0] == levels[1]
    whole = RenoiseLaw().draw(torch.zeros(12, 1), Draws(0), torch.clone)[0]
    halves = [RenoiseLaw().draw(torch.zeros(6, 1), Draws(0, rank, 2), torch.clone)[0] for rank in (0, 1)]
    assert len(whole.unique()) == 12 and torch.equal(torch.cat(halves), whole)


def test_laws_that_were_there_before_draw_as_they_did() -> None:
    """Uniform and logit-normal draws are one call of the generator each: recorded trainings depend on it."""
    for law, draw in (
        (RenoiseLaw(), lambda g: 0.02 + (0.98 - 0.02) * torch.rand(7, generator=g)),
        (RenoiseLaw(kind="logit_normal"), lambda g: torch.randn(7, generator=g).sigmoid().clamp(0.02, 0.98)),
    ):
        t, _ = law.draw(torch.zeros(7, 1), Draws("a"), torch.clone)
        assert torch.equal(t.flatten(), draw(Draws("a").own))


DMDR_BETA = RenoiseLaw(kind="beta", a=4.0, b=1.5, low=0.001, high=1.0)
UNIFORM = RenoiseLaw(low=0.001, high=1.0)


@pytest.mark.parametrize(
    ("law", "on", "mean", "at_last"),
    [
        # means of 1000 t; P(1000 t > 998.5), which rounds to or is clipped to 999
        (DMDR_BETA, "timesteps", 727.2, float(beta.sf(0.9985, 4, 1.5))),
        (UNIFORM, "timesteps", 500.4, 0.0015 / 0.999),
        # by flow levels another law: a tenth and a sixteenth of all draws lie above the last timestep's level, 0.936
        (DMDR_BETA, "levels", 662, 0.095),
        (UNIFORM, "levels", 406, 0.064),
    ],
)
def test_a_law_on_timesteps_draws_those_of_sdxls_table(
    law: RenoiseLaw, on: Literal["levels", "timesteps"], mean: float, at_last: float
) -> None:
    path, x = path_of(), torch.zeros(400_000, 1)
    t, _ = replace(law, on=on).draw(x, Draws(0), path.level_at)
    timesteps = path.timestep(t).double()
    assert timesteps.mean().item() == pytest.approx(mean, abs=1.5)
    share, spread = (timesteps == 999).double().mean().item(), math.sqrt(at_last / len(x))
    assert share == pytest.approx(at_last, abs=max(5 * spread, 0.002 * (on == "levels")))


def test_a_law_on_timesteps_is_that_on_levels_where_timesteps_are_levels() -> None:
    x = torch.zeros(50, 2)
    backbone = PointBackbone((1.0, -0.5), 0.5)
    for law in (DMDR_BETA, UNIFORM, RenoiseLaw(shift=3.0, per="batch")):
        draws = [replace(law, on=on).draw(x, Draws(0), backbone.level_at) for on in ("levels", "timesteps")]
        assert all(torch.equal(a, b) for a, b in zip(*draws, strict=True))


def test_impossible_beta_is_refused() -> None:
    with pytest.raises(UserError, match="above 0"):
        build(RenoiseLaw, {"kind": "beta", "a": 0.0}, "x.toml")
