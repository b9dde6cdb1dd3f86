"""Noise levels of a sampler's steps that are laid by a rule of their own: as explicit sigmas they go into a protocol.

    explicit_shift   t_k = shift(1 - k / n), shifted once                                    (benchmarks.samplers)
    diffusers_n      t_k = shift(u_k), u evenly from shift(1) = 1 down to shift(1 / 1000), both ends included

    shift(t) = k t / (1 + (k - 1) t)

The second is what `FlowMatchEulerDiscreteScheduler.set_timesteps(n)` lays in diffusers: between ends that are shifted
already, then shifted again. Its last level lies next to 0 (k = 3, n = 4: .8577, .6022, .0089), so that the last of
few steps has nearly nothing to do. DP-DMD's authors train and evaluate on it. Any method's student is given it by
`student_schedule`: the settings of every method are a `StudentSampling`.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from benchmarks.config import config
from benchmarks.protocol import Protocol
from benchmarks.samplers import shifted
from metrics.base import UserError
from trainers.base import SdeSamplerConfig

Schedule = Literal["explicit_shift", "diffusers_n"]
TRAIN_LEVELS = 1000  # of the models' own noise schedule; its lowest level is 1 / TRAIN_LEVELS


def step_levels(schedule: Schedule, steps: int, shift: float) -> tuple[float, ...]:
    """Return the `steps` levels 1 = t_0 > t_1 > ... > 0 that steps start from; the final 0 is left out."""
    if schedule == "explicit_shift":
        return tuple(shifted(1 - k / steps, shift) for k in range(steps))
    low = shifted(1 / TRAIN_LEVELS, shift)
    return tuple(shifted(1 - (1 - low) * k / max(1, steps - 1), shift) for k in range(steps))


@config
class StudentSampling:
    """What the settings of every method say of how its student samples, in training rollouts and in use."""

    sampler: SdeSamplerConfig = SdeSamplerConfig()
    student_schedule: Schedule = "explicit_shift"  # of the student's levels: those of `sampler`

    def student_protocol(self, base: Protocol, sampler: SdeSamplerConfig | None = None) -> Protocol:
        """Return the base model's protocol with the student's sampler, on the levels of its schedule.

        sampler: another one than `sampler`. Raises UserError where the settings contradict each other."""
        return laid_out(sampler or self.sampler, self.student_schedule).protocol(base)


def laid_out(sampler: SdeSamplerConfig, schedule: Schedule) -> SdeSamplerConfig:
    """Return the student's sampler on the schedule's levels. Raises UserError where it has levels of its own."""
    if schedule == "explicit_shift":
        return sampler
    if sampler.sigmas:
        raise UserError(
            f'trainer.student_schedule = "{schedule}" lays the levels of the student\'s sampler, which has sigmas of '
            'its own: leave those out, or set student_schedule = "explicit_shift"'
        )
    sigmas: Sequence[float] = step_levels(schedule, sampler.num_inference_steps, sampler.shift)
    return replace(sampler, sigmas=tuple(sigmas), shift=1.0)
