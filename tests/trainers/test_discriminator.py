import math

import pytest
import torch
from torch import Tensor, nn

from benchmarks.config import UserError, build
from benchmarks.samplers import Level
from metrics.base import Prompt
from tests.trainers.closed_form import PointBackbone
from trainers.discriminator import Discriminator, GanConfig, conv_head, discriminator_loss, generator_loss, token_head
from trainers.draws import Draws
from trainers.flow import RenoiseLaw, interpolate

PROMPTS = [Prompt(text=str(n)) for n in range(6)]


def test_undecided_logits_cost_ln_2_and_twice_ln_2() -> None:
    zeros = torch.zeros(7)
    assert generator_loss(zeros).item() == pytest.approx(math.log(2))
    assert discriminator_loss(zeros, zeros).item() == pytest.approx(2 * math.log(2))


def test_losses_are_the_cross_entropies_of_real_and_generated() -> None:
    """Real is the high logit: for the discriminator a real sample is a 1, for the generator its own samples are."""
    real, generated = torch.tensor([3.0, -1.0]), torch.tensor([-2.0, 0.5])
    entropy = nn.functional.binary_cross_entropy_with_logits
    expected = entropy(real, torch.ones(2)) + entropy(generated, torch.zeros(2))
    assert discriminator_loss(real, generated).item() == pytest.approx(expected.item())
    assert generator_loss(generated).item() == pytest.approx(entropy(generated, torch.ones(2)).item())


def test_latents_are_noised_to_levels_of_their_own_before_they_are_judged() -> None:
    seen: list[tuple[Tensor, Level]] = []
    backbone = PointBackbone((0, 0), 1)
    discriminator = Discriminator(backbone, GanConfig(), seed=0)
    features = backbone.features

    def record(role: str, x_t: Tensor, t: Level, prompts: int) -> Tensor:
        seen.append((x_t, t))
        return features(role, x_t, t, prompts)  # type: ignore[arg-type]

    backbone.features = record  # type: ignore[method-assign,assignment]
    x0 = torch.randn(6, 2)
    logits = discriminator(x0, PROMPTS, Draws(3))
    t, eps = RenoiseLaw(low=0.0, high=1.0).draw(x0, Draws(3), torch.clone)
    assert logits.shape == (6,) and len(t.unique()) == 6
    assert torch.equal(seen[0][0], interpolate(x0, eps, t)) and torch.equal(torch.as_tensor(seen[0][1]), t)


def test_building_the_head_costs_no_pass_and_depends_on_the_seed_alone() -> None:
    backbone = PointBackbone((0, 0), 1)
    heads = []
    for noise, seed in ((1, 0), (2, 0), (2, 1)):
        torch.manual_seed(noise)
        before = torch.get_rng_state()
        heads.append(Discriminator(backbone, GanConfig(), seed).head.state_dict())
        assert torch.equal(torch.get_rng_state(), before)  # nor does the training's randomness see it
    assert backbone.passes == 0
    assert all(torch.equal(heads[0][name], heads[1][name]) for name in heads[0])
    assert not all(torch.equal(heads[1][name], heads[2][name]) for name in heads[1])


def test_token_head_judges_the_mean_token_whatever_its_order_and_scale() -> None:
    torch.manual_seed(0)
    head, features = token_head(9, 8), torch.randn(3, 9, 8)
    assert head(features).shape == (3, 1)
    assert torch.allclose(head(features), head(features[:, torch.randperm(9)]), rtol=0, atol=1e-6)
    assert torch.allclose(head(features), head(5 * features), rtol=0, atol=1e-4)


@pytest.mark.parametrize(("side", "layers"), [(4, 1), (8, 2), (32, 4)])
def test_conv_head_halves_the_grid_down_to_one_logit(side: int, layers: int) -> None:
    """DMD2's SDXL head, from 32 x 32: 16, 8, 4, 1."""
    head = conv_head(side**2, 8)
    convolutions = [layer for layer in head if isinstance(layer, nn.Conv2d)]
    assert len(convolutions) == layers + 1 and head(torch.randn(2, side**2, 8)).shape == (2, 1)
    moved = torch.zeros(1, side**2, 8)
    moved[0, 1, 0] = 1  # tokens lie row by row: the second one is to the right of the first
    square = head[0](moved)
    assert square.shape == (1, 8, side, side) and square[0, 0, 0, 1] == 1 and square.sum() == 1


@pytest.mark.parametrize(("width", "groups"), [(1280, 32), (128, 32), (48, 8), (32, 8), (8, 2), (9, 1)])
def test_conv_head_has_32_groups_or_as_many_as_leave_a_gradient(width: int, groups: int) -> None:
    """SDXL's middle block has 1280 channels; a shrunken one would leave each group one, whose norm at 1 x 1 is 0."""
    head, features = conv_head(16, width), torch.randn(2, 16, width, requires_grad=True)
    assert [layer.num_groups for layer in head if isinstance(layer, nn.GroupNorm)] == [groups]
    logits = head(features)
    (gradient,) = torch.autograd.grad(logits[0, 0], features)
    assert logits[0] != logits[1] and gradient[0].abs().max() > 1e-4 and not gradient[1].any()


@pytest.mark.parametrize("tokens", [4, 12, 36, 100])
def test_conv_head_refuses_other_grids_by_the_name_of_the_setting(tokens: int) -> None:
    with pytest.raises(UserError, match=r"trainer\.gan\.head"):
        conv_head(tokens, 8)


def test_negative_weights_are_refused() -> None:
    with pytest.raises(UserError, match="generator_weight"):
        build(GanConfig, {"generator_weight": -1.0}, "x.toml")
