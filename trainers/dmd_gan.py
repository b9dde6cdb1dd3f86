"""DMD-GAN: DMD2's terms on the end of the student's whole rollout, with samples of the teacher as "real".

DP-DMD's comparison for its first-step loss: diversity is left to a GAN term. Sampler, guidance, laws and rates are
those of DP-DMD, and the gradient passes through every step of the student (nothing is cut).

Source: DP-DMD's comparison rows, for which neither code nor weights are published: the two lambdas are those of DMD2,
arXiv:2405.14867. DP-DMD's table calls its row not image-free; here that is a run with `pictures`. By default "real"
is what the teacher draws, no picture comes from outside, and the run's record says image-free.
"""

from benchmarks.config import config
from trainers.base import register
from trainers.dmd import X0Source
from trainers.dmd2 import Dmd2, Dmd2Config
from trainers.dp_dmd import DpDmdRecipe


@config
class DmdGanConfig(DpDmdRecipe, Dmd2Config):
    """Settings of DMD-GAN: DMD2's with DP-DMD's values."""

    x0_source: X0Source = "full_rollout"


@register("dmd_gan")
class DmdGan(Dmd2):
    """The trainer of DMD-GAN: DMD2's with other defaults."""

    Config = DmdGanConfig
