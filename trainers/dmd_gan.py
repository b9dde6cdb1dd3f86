"""DMD-GAN: DMD2's terms on the end of the student's whole rollout, with samples of the teacher as "real".

DP-DMD's comparison for its first-step loss: diversity is left to a GAN term. Sampler, guidance, laws and rates are
those of DP-DMD, and the gradient passes through every step of the student (nothing is cut).

Source: DP-DMD's comparison rows, for which neither code nor weights are published: the two lambdas are those of DMD2,
arXiv:2405.14867. The paper's row uses pictures; here that is `pictures`, and the default needs none.
"""

from benchmarks.config import config
from trainers.base import Guidance, SamplerConfig, register
from trainers.dmd import Normaliser, X0Source
from trainers.dmd2 import Dmd2, Dmd2Config
from trainers.dp_dmd import ONE_LEVEL
from trainers.flow import RenoiseLaw
from trainers.learner import EmaConfig, OptimiserConfig


@config
class DmdGanConfig(Dmd2Config):
    """Settings of DMD-GAN: DMD2's with DP-DMD's values."""

    sampler: SamplerConfig = SamplerConfig(sampler="euler", shift=3.0)
    guidance_scale: Guidance = 3.5
    batch_size: int = 4
    x0_source: X0Source = "full_rollout"
    normaliser: Normaliser = "xt_teacher"
    renoise: RenoiseLaw = ONE_LEVEL
    fake_score_renoise: RenoiseLaw = ONE_LEVEL
    student: OptimiserConfig = OptimiserConfig(lr=1e-5)
    fake_score: OptimiserConfig = OptimiserConfig(lr=1e-5)
    ema: EmaConfig = EmaConfig(decay=0.0)


@register("dmd_gan")
class DmdGan(Dmd2):
    """The trainer of DMD-GAN: DMD2's with other defaults."""

    Config = DmdGanConfig
