"""The bridge between VP and flow, as samplers and backbones rely on it."""

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler
from torch import Tensor

from benchmarks import vp
from benchmarks.protocol import Protocol
from benchmarks.samplers import FewStepScheduler, euler
from benchmarks.vp import Prediction, VpPath

SDXL = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}


def path_of(prediction: Prediction = "epsilon") -> VpPath:
    path = VpPath.of({**SDXL, "prediction_type": prediction})
    assert path is not None
    return path


def pair() -> tuple[Tensor, Tensor]:
    x0, eps = torch.randn(2, 5, 3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return x0, eps


def test_the_table_is_the_schedulers_whatever_its_class() -> None:
    path = path_of()
    for kind in (EulerDiscreteScheduler, DDIMScheduler):
        assert torch.equal(VpPath.of(kind(**SDXL).config).alpha_bar, path.alpha_bar)  # type: ignore[union-attr]
    assert float(path.alpha_bar[-1]) == pytest.approx(0.0047, abs=1e-4)
    assert VpPath.of(FlowMatchEulerDiscreteScheduler().config) is None
    assert VpPath.of({**SDXL, "prediction_type": "flow_prediction"}) is None
    assert VpPath.of({**SDXL, "prediction_type": "sample"}) is None


def test_levels_and_timesteps_are_inverse_and_the_last_timestep_is_level_one() -> None:
    path = path_of()
    levels = torch.tensor([path.level(timestep) for timestep in range(1000)])
    assert torch.equal(path.timestep(levels), torch.arange(1000))
    assert (levels.diff() > 0).all() and levels[-1] == 1
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    alpha_bar = np.cumprod(1 - betas)[[749, 499, 249]]
    expected = np.sqrt(1 - alpha_bar) / (np.sqrt(alpha_bar) + np.sqrt(1 - alpha_bar))
    assert [path.level(t) for t in (749, 499, 249)] == pytest.approx(expected.tolist(), abs=1e-5)


def test_the_nearest_timestep_is_asked() -> None:
    path = path_of()
    low, high = path.level(499), path.level(500)
    between = torch.tensor([low + 0.4 * (high - low), low + 0.6 * (high - low), 0.001, 0.97])
    assert path.timestep(between).tolist() == [499, 500, 0, 999]
    assert path.timestep(0.999).item() == 999


def test_shares_of_the_timesteps_lie_at_their_own_levels_the_last_one_too() -> None:
    path = path_of()
    shares = torch.arange(1000) / 1000
    assert torch.equal(path.timestep(path.level_at(shares)), torch.arange(1000))
    assert path.level_at(shares[:999]).tolist() == pytest.approx([path.level(t) for t in range(999)])
    ends = path.level_at(torch.tensor([0.0, 0.0004, 0.0006, 0.9984, 0.9986, 1.0]))
    assert path.timestep(ends).tolist() == [0, 0, 1, 998, 999, 999]
    a, b = path.alpha_bar[-1].sqrt(), (1 - path.alpha_bar[-1]).sqrt()
    assert ends[-1].item() == pytest.approx(float(b / (a + b)))  # 0.936: x_t of a sample keeps what signal 999 has
    x0, eps = pair()
    x_t = (1 - ends[-1].double()) * x0 + ends[-1].double() * eps
    assert torch.allclose(path.model_input(x_t, ends[-1].double()), a * x0 + b * eps, atol=1e-6)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_a_perfect_network_gives_eps_minus_x0(prediction: Prediction) -> None:
    x0, eps = pair()
    path = path_of(prediction)
    t = torch.linspace(0.05, 0.93, 5, dtype=torch.float64).view(5, 1, 1)
    x_flow = (1 - t) * x0 + t * eps
    seen = path.model_input(x_flow, t)
    norm = ((1 - t) ** 2 + t**2).sqrt()
    a, b = (1 - t) / norm, t / norm
    assert torch.allclose(a**2 + b**2, torch.ones_like(a)) and torch.allclose(seen, a * x0 + b * eps)
    output = eps if prediction == "epsilon" else vp.v_prediction(x0, eps, a, b)
    assert torch.allclose(path.velocity(output, x_flow, t), eps - x0, atol=1e-10)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_pure_noise_is_read_with_the_last_timesteps_own_signal(prediction: Prediction) -> None:
    noise, output = pair()
    path = path_of(prediction)
    a, b = float(path.alpha_bar[-1].sqrt()), float((1 - path.alpha_bar[-1]).sqrt())
    x0 = (noise - b * output) / a if prediction == "epsilon" else a * noise - b * output
    assert torch.equal(path.model_input(noise, 1.0), noise)
    assert torch.allclose(path.velocity(output, noise, 1.0), noise - x0, atol=1e-10)


def test_the_velocity_has_no_jump_where_the_table_ends() -> None:
    x, output = pair()
    path = path_of()
    a, b = path.alpha_bar[-1].sqrt(), (1 - path.alpha_bar[-1]).sqrt()
    end = float(b / (a + b))
    below, above = (path.velocity(output, x, end + step) for step in (-1e-9, 1e-9))
    # x is no sample of this path: x = (1 - t) x0 + t eps holds for what is read from it all the same
    assert torch.allclose(below, above, atol=1e-5)
    assert path.velocity(output, x, 0.99).abs().max() < 60


def test_ddim_without_noise_is_euler_of_the_bridge() -> None:
    x0, eps = pair()
    path, scheduler = path_of(), DDIMScheduler(**SDXL, clip_sample=False, set_alpha_to_one=True)
    scheduler.set_timesteps(10)
    timestep, after = (int(t) for t in scheduler.timesteps[3:5])
    a, b = path.alpha_bar[timestep].sqrt(), (1 - path.alpha_bar[timestep]).sqrt()
    x_t = a * x0 + b * eps
    output = torch.randn(x_t.shape, dtype=x_t.dtype, generator=torch.Generator().manual_seed(1))
    theirs = scheduler.step(output, timestep, x_t).prev_sample
    x_flow, t = vp.to_flow(x_t, a, b)
    v = path.velocity(output, x_flow, t)
    mine = euler(x_flow, v, path.level(timestep), path.level(after)).mean
    a, b = path.alpha_bar[after].sqrt(), (1 - path.alpha_bar[after]).sqrt()
    assert torch.allclose(mine, vp.to_flow(theirs, a, b)[0], atol=1e-6)


def test_the_scheduler_shows_an_eps_model_its_own_input_and_timesteps() -> None:
    path = path_of()
    levels = tuple(path.level(t) for t in (999, 749, 499, 249))
    protocol = Protocol(sampler="cps", eta=1.0, num_inference_steps=4, sigmas=levels)
    scheduler = FewStepScheduler.of(protocol, EulerDiscreteScheduler(**SDXL))
    scheduler.set_timesteps(4)
    assert scheduler.timesteps.tolist() == [999, 749, 499, 249] and scheduler.init_noise_sigma == 1
    x = torch.randn(2, 4, 2, 2, generator=torch.Generator().manual_seed(0))
    scheduler.generators = [torch.Generator().manual_seed(n) for n in range(2)]
    noise = torch.stack([torch.randn(4, 2, 2, generator=torch.Generator().manual_seed(n)) for n in range(2)])
    assert torch.equal(scheduler.scale_model_input(x, scheduler.timesteps[0]), x)
    x_next = scheduler.step(0.5 * x, scheduler.timesteps[0], x).prev_sample
    x0 = (x - path.alpha_bar[-1].neg().add(1).sqrt() * 0.5 * x) / path.alpha_bar[-1].sqrt()
    expected = (1 - levels[1]) * x0 + levels[1] * noise
    assert torch.allclose(x_next, expected.float(), atol=1e-4)
    a, b = path.alpha_bar[749].sqrt(), (1 - path.alpha_bar[749]).sqrt()
    shown = scheduler.scale_model_input(x_next, scheduler.timesteps[1])
    assert torch.allclose(shown, (a * x0 + b * noise).float(), atol=1e-4)  # unit variance at timestep 749


def test_a_one_step_student_is_shown_unit_noise_at_the_timestep_of_its_level() -> None:
    """DMD2's one-step SDXL: pure noise at timestep 399, x0 = (z - b eps_hat) / a with that timestep's a and b."""
    path = path_of()
    t = path.level(399)
    assert t == pytest.approx(0.537161, abs=1e-6) and path.timestep(0.5372).item() == 399
    protocol = Protocol(sampler="renoise", num_inference_steps=1, sigmas=(t,))
    scheduler = FewStepScheduler.of(protocol, EulerDiscreteScheduler(**SDXL))
    scheduler.set_timesteps(1)
    assert scheduler.timesteps.tolist() == [399]
    z, output = (x.float() for x in pair())
    x = scheduler.init_noise_sigma * z  # as pipelines begin
    a, b = path.alpha_bar[399].sqrt(), (1 - path.alpha_bar[399]).sqrt()
    assert scheduler.init_noise_sigma == pytest.approx(float(1 / (a + b)), rel=1e-6)
    assert torch.allclose(scheduler.scale_model_input(x, scheduler.timesteps[0]), z, atol=1e-6)
    x0 = scheduler.step(output, scheduler.timesteps[0], x).prev_sample
    assert torch.allclose(x0, ((z - b * output) / a).float(), atol=1e-5)


def test_flow_models_begin_with_unit_noise_at_any_level() -> None:
    protocol = Protocol(sampler="renoise", num_inference_steps=1, sigmas=(0.5,))
    assert FewStepScheduler.of(protocol, FlowMatchEulerDiscreteScheduler()).init_noise_sigma == 1
    assert path_of().noise_scale(1.0) == 1


def test_a_guided_class_conditional_pipeline_gets_the_same_noise_in_both_halves() -> None:
    scheduler = FewStepScheduler.of(Protocol(sampler="renoise", num_inference_steps=2))
    scheduler.set_timesteps(2)
    scheduler.generators = [torch.Generator().manual_seed(n) for n in range(2)]
    x = torch.zeros(4, 3, 2, 2)
    x_next = scheduler.step(x, scheduler.timesteps[0], x).prev_sample
    assert torch.equal(x_next[:2], x_next[2:]) and not torch.equal(x_next[0], x_next[1])


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_the_velocity_has_a_gradient_at_every_level(prediction: Prediction) -> None:
    """At t = 0 as well, where RTDMD's consistency term asks for it: dv/d(output) is bounded on the whole path."""
    path = path_of(prediction)
    t = torch.tensor([0.0, 1e-6, 0.5, 0.99, 1.0])[:, None]
    x, output = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0))
    x, output = x.requires_grad_(), output.requires_grad_()
    path.velocity(output, x, t).sum().backward()
    for gradient in (x.grad, output.grad):
        assert gradient is not None and gradient.isfinite().all() and gradient.abs().max() < 100
