from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from benchmarks.config import UserError, build
from benchmarks.protocol import Protocol
from benchmarks.samplers import Level
from metrics.base import Prompt
from tests.trainers.closed_form import PointBackbone, gaussian_velocity
from trainers import dmd
from trainers.base import Networks, SamplerConfig, World
from trainers.dmd import Dmd, DmdConfig, dmd_gradient, dmd_loss
from trainers.draws import Draws
from trainers.flow import interpolate, x0_from_v
from trainers.learner import EmaConfig, OptimiserConfig
from trainers.renoised import renoised_rollout
from trainers.rewards import RewardBank

T, TAU = 0.6, 0.5
MU_REAL, MU_FAKE = -0.2, 1.0
TEACHER, FAKE = gaussian_velocity(MU_REAL, TAU), gaussian_velocity(MU_FAKE, TAU)


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(shape)))


def test_dmd_gradient_of_two_gaussians_is_their_mean_difference_times_t_squared_over_v() -> None:
    x_t = draw(50, 3)
    x0_teacher, x0_fake = x0_from_v(x_t, TEACHER(x_t, T), T), x0_from_v(x_t, FAKE(x_t, T), T)
    variance = (1 - T) ** 2 * TAU**2 + T**2
    assert variance == pytest.approx(0.4)
    gradient = dmd_gradient(x_t, x0_teacher, x0_fake, "none")
    assert torch.allclose(
        gradient, torch.full_like(gradient, (MU_FAKE - MU_REAL) * T**2 / variance), rtol=0, atol=1e-9
    )
    assert gradient.mean().item() == pytest.approx(1.08, abs=1e-9)


def test_gradient_of_the_dmd_loss_is_g_over_the_number_of_elements() -> None:
    x0 = draw(4, 3, 2).requires_grad_()
    gradient = draw(4, 3, 2) * 3
    (found,) = torch.autograd.grad(dmd_loss(x0, gradient), x0)
    assert (found * x0.numel() - gradient).abs().max() < 1e-7
    assert dmd_loss(x0, gradient).item() == pytest.approx(0.5 * gradient.square().mean().item())


def test_descent_moves_the_student_from_the_fake_mean_to_the_teachers() -> None:
    shift = torch.tensor(MU_FAKE, dtype=torch.float64, requires_grad=True)
    x0 = shift + TAU * draw(256, 2)
    t = torch.full((256, 1), T, dtype=torch.float64)
    dmd.student_loss(x0, TEACHER, FAKE, t, draw(256, 2)).backward()
    assert shift.grad is not None and shift.grad > 0  # the sign of mu_fake - mu_real: descent lowers the shift


def test_equal_networks_give_no_loss_and_no_gradient() -> None:
    x0 = draw(8, 2).requires_grad_()
    loss = dmd.student_loss(x0, TEACHER, TEACHER, torch.full((8, 1), T, dtype=torch.float64), draw(8, 2))
    loss.backward()
    assert loss.item() == 0 and x0.grad is not None and not x0.grad.any()


def test_normalisers() -> None:
    x0, x0_teacher, x0_fake = draw(3, 5, 4, 2)
    plain = dmd_gradient(x0, x0_teacher, x0_fake)
    assert torch.allclose(dmd_gradient(7 * x0, 7 * x0_teacher, 7 * x0_fake), plain)
    scale = (x0 - x0_teacher).abs().mean(dim=(1, 2), keepdim=True)
    assert torch.allclose(plain, (x0_fake - x0_teacher) / scale)
    x_t, v_teacher, v_fake = draw(3, 5, 4, 1)
    by_x_t = dmd_gradient(x0, x_t - T * v_teacher, x_t - T * v_fake, "xt_teacher", x_t)
    assert torch.allclose(by_x_t, (v_teacher - v_fake) / v_teacher.abs().mean(dim=(1, 2), keepdim=True))
    assert torch.equal(dmd_gradient(x0, x0, x0), torch.zeros_like(x0))
    with pytest.raises(ValueError, match="needs x_t"):
        dmd_gradient(x0, x0_teacher, x0_fake, "xt_teacher")


@pytest.mark.parametrize("normaliser", ["x0_teacher", "xt_teacher"])
def test_a_sample_at_the_teachers_own_prediction_has_no_gradient_wherever_the_fake_score_is(normaliser: str) -> None:
    x0, x0_teacher, x0_fake = draw(3, 4, 2)
    x0[1] = x0_teacher[1]
    found = dmd_gradient(x0, x0_teacher, x0_fake, normaliser, x_t=x0)  # type: ignore[arg-type]
    assert not found[1].any() and found[[0, 2, 3]].all() and (x0_fake[1] - x0_teacher[1]).all()
    # DMDR's 1e-8 in N is a factor 1 - 1e-8 / N at any other sample
    scale = (x0 - x0_teacher).abs().mean(dim=1, keepdim=True)[[0, 2, 3]]
    with_epsilon = (x0_fake - x0_teacher)[[0, 2, 3]] / (scale + 1e-8)
    assert torch.allclose(with_epsilon, found[[0, 2, 3]] * (1 - 1e-8 / scale), rtol=1e-12)


class Scaled(nn.Module):
    """A velocity with a parameter, to see where gradients go."""

    def __init__(self, velocity: Callable[[Tensor, Level], Tensor]) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones((), dtype=torch.float64))
        self._velocity = velocity

    def forward(self, x_t: Tensor, t: Level) -> Tensor:
        assert not x_t.requires_grad  # the re-noised input carries no gradient
        return self.scale * self._velocity(x_t, t)


def test_student_step_reaches_the_student_alone_and_fake_step_the_fake_score_alone() -> None:
    teacher, fake_score = Scaled(TEACHER), Scaled(FAKE)
    x0 = draw(8, 2).requires_grad_()
    t, eps = torch.full((8, 1), T, dtype=torch.float64), draw(8, 2)
    dmd.student_loss(x0, teacher, fake_score, t, eps).backward()
    assert x0.grad is not None and teacher.scale.grad is None and fake_score.scale.grad is None
    x0.grad = None
    dmd.fake_score_loss(x0, fake_score, t, eps).backward()
    assert fake_score.scale.grad is not None and x0.grad is None


def test_fake_score_loss_is_smallest_for_the_exact_velocity() -> None:
    x0, eps = 0.4 + TAU * draw(20_000, 1), draw(20_000, 2)[:, :1]
    t = torch.full((20_000, 1), T, dtype=torch.float64)
    exact = dmd.fake_score_loss(x0, gaussian_velocity(0.4, TAU), t, eps)
    for mu, tau in ((0.5, TAU), (0.3, TAU), (0.4, 0.6), (0.4, 0.4)):
        assert dmd.fake_score_loss(x0, gaussian_velocity(mu, tau), t, eps) > exact


@pytest.mark.parametrize("source", ["last_step", "renoised_rollout"])
def test_x0_sources_give_the_students_own_prediction_with_one_graph(source: str) -> None:
    calls: list[bool] = []

    def student(x_t: Tensor, t: Level) -> Tensor:
        calls.append(torch.is_grad_enabled())
        return gaussian_velocity(0.0, 0.01)(x_t, t)  # x0 is close to 0 whatever the level

    protocol = SamplerConfig().protocol(PointBackbone((0, 0), 1).protocol())
    for seed in range(6):
        calls.clear()
        x0 = dmd.X0_SOURCES[source](student, torch.randn(9, 2), protocol, Draws(seed), True)
        assert x0.abs().max() < 0.1 and calls.count(True) == 1 and calls[-1]
    dmd.X0_SOURCES[source](student, torch.randn(9, 2), protocol, Draws(0), False)
    assert not calls[-1]


def test_the_graph_is_that_of_a_random_step_which_ends_the_rollout() -> None:
    asked: list[Level] = []
    graphs: list[Level] = []

    def student(x_t: Tensor, t: Level) -> Tensor:
        asked.append(t)
        if torch.is_grad_enabled():
            graphs.append(t)
        return torch.zeros_like(x_t)

    protocol = SamplerConfig().protocol(Protocol())
    for seed in range(40):
        dmd.last_step_x0(student, torch.randn(2, 2), protocol, Draws(seed), True)
        assert len(graphs) == seed + 1 and graphs[-1] == asked[-1]
    assert set(graphs) == {1.0, 0.75, 0.5, 0.25}


def test_full_rollout_is_the_samplers_own_end_with_the_gradient_of_every_step() -> None:
    """v = w_k at step k: from x at 1 the rollout ends at x - sum_k (t_{k-1} - t_k) w_k."""
    protocol = SamplerConfig(sampler="euler", sigmas=(1.0, 0.7, 0.6, 0.2)).protocol(Protocol())
    weights = {1.0: 0.5, 0.7: -1.0, 0.6: 2.0, 0.2: 3.0}
    parameters = {t: torch.tensor(w, requires_grad=True) for t, w in weights.items()}
    student = lambda x_t, t: parameters[t] * torch.ones_like(x_t)  # noqa: E731
    x = torch.randn(5, 2)
    x0 = dmd.full_rollout_x0(student, x, protocol, Draws(0), True)
    lengths = {1.0: 0.3, 0.7: 0.1, 0.6: 0.4, 0.2: 0.2}
    assert torch.allclose(x0, x - sum(lengths[t] * w for t, w in weights.items()), rtol=0, atol=1e-6)
    x0.mean().backward()
    for t, parameter in parameters.items():
        assert parameter.grad is not None and parameter.grad.item() == pytest.approx(-lengths[t])
    assert not dmd.full_rollout_x0(student, x, protocol, Draws(0), False).requires_grad


def test_gradient_of_a_full_rollout_passes_through_the_steps_between() -> None:
    """v = w x at both steps: x0 = (1 - w/2)^2 x, whose slope is -(1 - w/2) x; a detached second step gives half."""
    protocol = SamplerConfig(sampler="euler", num_inference_steps=2).protocol(Protocol())
    w = torch.tensor(0.4, requires_grad=True)
    x = torch.ones(1, 2)
    dmd.full_rollout_x0(lambda x_t, t: w * x_t, x, protocol, Draws(0), True).mean().backward()
    assert w.grad is not None and w.grad.item() == pytest.approx(-0.8)


def test_full_rollout_of_a_stochastic_sampler_is_refused() -> None:
    with pytest.raises(UserError, match=r'sampler\.sampler = "euler"'):
        build(DmdConfig, {"x0_source": "full_rollout"}, "x.toml")
    build(DmdConfig, {"x0_source": "full_rollout", "sampler": {"sampler": "euler"}}, "x.toml")


def test_rollout_up_to_step_k_of_the_renoise_sampler_noises_the_prediction_afresh() -> None:
    """DMD2's backward simulation: the input of step k is (1 - t_k) x0_hat + t_k n with noise n of its own."""
    inputs: dict[float, Tensor] = {}

    def student(x_t: Tensor, t: Level) -> Tensor:
        assert isinstance(t, float)
        inputs[t] = x_t
        return (x_t - 3.0) / t  # x0_hat = 3

    protocol = SamplerConfig(sampler="renoise").protocol(Protocol())
    x = torch.randn(4000, 2)
    for seed in range(8):
        dmd.last_step_x0(student, x, protocol, Draws(seed), False)
    assert set(inputs) == {1.0, 0.75, 0.5, 0.25}
    for t in (0.75, 0.5, 0.25):
        noise = (inputs[t] - (1 - t) * 3) / t
        assert abs(noise.mean()) < 0.05 and abs(noise.std() - 1) < 0.05
        assert abs((noise * x).mean()) < 0.05


def test_renoised_rollout_meets_every_level_with_its_own_prediction() -> None:
    """The student's x0-prediction is made to equal the level it was made at; what is re-noised must show it."""
    seen: list[tuple[Tensor, Tensor]] = []

    def student(x_t: Tensor, t: Level) -> Tensor:
        if isinstance(t, Tensor):
            seen.append((x_t, t))
        level = torch.as_tensor(t).expand(len(x_t), 1)
        return (x_t - 100 * level) / level

    protocol = SamplerConfig().protocol(PointBackbone((0, 0), 1).protocol())
    dmd.renoised_rollout_x0(student, torch.randn(400, 2), protocol, Draws(0), False)
    x_t, t = seen[0]
    assert sorted(set(t.flatten().tolist())) == [0.25, 0.5, 0.75, 1.0]
    eps = (x_t - (1 - t) * 100 * t) / t
    assert abs(eps.mean()) < 0.15 and abs(eps.std() - 1) < 0.1


def predicts_100_times_its_level(x_t: Tensor, t: Level) -> Tensor:
    level = torch.as_tensor(t).expand(len(x_t), 1)
    return (x_t - 100 * level) / level


def test_inputs_of_a_deterministic_sampler_are_made_of_the_rollouts_end() -> None:
    protocol = SamplerConfig(sampler="euler").protocol(Protocol())
    simulated = renoised_rollout(predicts_100_times_its_level, torch.randn(64, 2), protocol, Draws(0), "final")
    assert torch.allclose(simulated.x0, torch.tensor(25.0), rtol=0, atol=1e-3) and torch.equal(
        simulated.x0, simulated.x_K
    )


@pytest.mark.parametrize(("simulation", "clean"), [("final", {0.25: 25, 0.5: 25, 0.75: 25}), ("predictions", None)])
def test_plain_dmd_simulates_by_the_end_of_the_rollout_where_it_is_asked_to(
    simulation: str, clean: dict[float, float] | None
) -> None:
    """The student's x0-prediction is 100 times its level: 25 at the end of the rollout."""
    config = DmdConfig(
        sampler=SamplerConfig(sampler="euler"), x0_source="renoised_rollout", simulation=simulation, batch_size=2  # type: ignore[arg-type]
    )  # fmt: skip
    trainer = Dmd(config, PointBackbone((0, 0), 1), RewardBank([], {}), World(seed=0))
    seen: list[tuple[Tensor, Tensor]] = []

    def student(x_t: Tensor, t: Level) -> Tensor:
        if isinstance(t, Tensor):
            seen.append((x_t, t.flatten()))
        return predicts_100_times_its_level(x_t, t)

    networks = Networks(student, FAKE, TEACHER, TEACHER)
    trainer.generate(networks, torch.randn(4000, 2), grad=True)
    ((x_t, t),) = seen
    for level in (0.25, 0.5, 0.75):
        made_of = clean[level] if clean else 100 * level
        assert x_t[t == level].mean().item() == pytest.approx((1 - level) * made_of, abs=0.1)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"simulation": "final"}, 'simulation is of x0_source = "renoised_rollout"'),
        ({"simulation": "final", "x0_source": "renoised_rollout"}, 'simulation = "final" is for deterministic'),
    ],
)
def test_ends_of_stochastic_rollouts_and_of_none_are_refused(table: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build(DmdConfig, table, "x.toml")
    build(DmdConfig, {"simulation": "final", "x0_source": "renoised_rollout", "sampler": {"sampler": "euler"}}, "x")


def test_at_the_first_level_the_input_is_pure_noise_wherever_the_grid_starts() -> None:
    protocol = SamplerConfig(sigmas=(0.9, 0.5), num_inference_steps=2).protocol(Protocol())
    simulated = renoised_rollout(predicts_100_times_its_level, torch.randn(400, 2), protocol, Draws(0))
    first = (simulated.t == 0.9).flatten()
    assert 100 < first.sum() < 300
    assert abs(simulated.x_t[first].mean()) < 0.2 and simulated.x_t[first].std().item() == pytest.approx(1, abs=0.1)
    assert abs(simulated.x_t[~first].mean() - 0.5 * 50) < 0.2


def train(iterations: int, config: DmdConfig, backbone: PointBackbone) -> Dmd:
    trainer = Dmd(config, backbone, RewardBank([], {}), World(seed=0))
    prompts = [Prompt(text=str(n)) for n in range(config.batch_size)]
    for iteration in range(iterations):
        trainer.step(prompts, iteration)
    return trainer


def test_student_learns_a_gaussian_teacher() -> None:
    torch.manual_seed(0)
    backbone = PointBackbone((1.0, -0.5), 0.5)
    config = DmdConfig(
        sampler=SamplerConfig(num_inference_steps=1), batch_size=256, guidance_scale=1.0, normaliser="none",
        fake_score_updates=1, share_rollout=True, ema=EmaConfig(decay=0.99),
        student=OptimiserConfig(lr=1e-3, betas=(0.5, 0.99), max_grad_norm=0.0),
        fake_score=OptimiserConfig(lr=5e-3, betas=(0.5, 0.99), max_grad_norm=0.0),
    )  # fmt: skip
    trainer = train(1500, config, backbone)
    with torch.no_grad(), trainer.roles.student.averaged():
        x = torch.randn(20_000, 2)
        student = lambda x, t: backbone.velocity("student", x, t, len(x))  # noqa: E731
        points = dmd.rollout(student, x, trainer.protocol(), lambda k: torch.randn_like(x))[-1].x0
    assert (points.mean(dim=0) - torch.tensor([1.0, -0.5])).abs().max() < 0.05
    covariance = points.T.cov()
    assert covariance.diagonal().tolist() == pytest.approx([0.25, 0.25], rel=0.1)
    assert abs(covariance[0, 1]) < 0.025


def test_student_is_updated_at_every_rth_iteration(averaged_at: list[int]) -> None:
    backbone = PointBackbone((0, 0), 1)
    trainer = train(0, DmdConfig(batch_size=2, fake_score_updates=10), backbone)
    logs = [trainer.step([Prompt(text="0"), Prompt(text="1")], iteration) for iteration in range(60)]
    assert [n for n, one in enumerate(logs) if "student_norm" in one] == [9, 19, 29, 39, 49, 59]
    assert trainer.roles.student.updates == 6 and trainer.roles.fake_score.updates == 60
    assert averaged_at == list(range(60))  # the EMA moves at fake-only iterations as well


def test_loss_levels_are_those_of_their_laws() -> None:
    backbone, levels = PointBackbone((0, 0), 1), []
    teacher = backbone.velocity

    def velocity(role: str, x_t: Tensor, t: Level, **bound: int) -> Tensor:
        if role == "teacher":
            levels.append(t)
        return teacher(role, x_t, t, **bound)  # type: ignore[arg-type]

    backbone.velocity = velocity  # type: ignore[method-assign]
    train(40, DmdConfig(batch_size=64, fake_score_updates=1), backbone)
    drawn = torch.cat([torch.as_tensor(t).flatten() for t in levels])
    assert 0.02 <= drawn.min() < 0.05 and 0.95 < drawn.max() <= 0.98 and drawn.mean() == pytest.approx(0.5, abs=0.02)


def test_interpolation_is_what_the_loss_noises_with() -> None:
    x0, eps = draw(2, 3, 2)
    seen: list[Tensor] = []
    fake = lambda x_t, t: seen.append(x_t) or torch.zeros_like(x_t)  # noqa: E731
    dmd.fake_score_loss(x0, fake, torch.tensor(T), eps)
    assert torch.allclose(seen[0], interpolate(x0, eps, T))
