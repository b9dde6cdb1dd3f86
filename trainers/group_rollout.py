"""Groups of images of one prompt, rolled out and scored: what relative rewards (GRPO, DPO) are computed from.

Axes: P prompts, N members of a group, B = P N images in prompt order, K steps.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from benchmarks.protocol import Protocol
from metrics.base import Prompt
from trainers import subgrpo
from trainers.backbones.base import Backbone
from trainers.base import Roles, World
from trainers.flow import Velocity
from trainers.groups import repeat_members
from trainers.rewards import RewardBank
from trainers.rollout import Step, rollout_in_parts


@dataclass(frozen=True)
class GroupRollout:
    """B images: their prompts, their steps and their raw rewards [B] by id."""

    members: list[Prompt]
    steps: list[Step]
    scores: dict[str, Tensor]

    @property
    def x0(self) -> Tensor:
        """The latents of the images."""
        return self.steps[-1].x_next.detach()


def roll_out_groups(
    roles: Roles,
    rewards: RewardBank,
    prompts: Sequence[Prompt],
    group_size: int,
    protocol: Protocol,
    grad: Collection[int] = (),
    microbatch: int = 0,
) -> GroupRollout:
    """Sample N images of each prompt by the student, all noise independent; steps in `grad` keep their graph.

    microbatch: images per call; 0 = all."""
    members = repeat_members(prompts, group_size)
    x, size = roles.start(len(members), protocol), microbatch or len(members)
    student = partial(student_of, roles, members)
    steps = rollout_in_parts(student, x, protocol, lambda _: roles.noise(len(members)), size, grad)
    with torch.no_grad():
        images = decoded(roles.backbone, steps[-1].x_next, size)
        return GroupRollout(members, steps, rewards.score(images, members))


def student_of(roles: Roles, members: Sequence[Prompt], rows: Tensor) -> Velocity:
    """Bind the prompts of some images to the student; `rows` is an index tensor."""
    return roles.velocity("student", [members[row] for row in rows.tolist()])


def decoded(backbone: Backbone, latents: Tensor, size: int) -> Tensor:
    """Return images [B, 3, H, W] in [0, 1], decoded by at most `size` at a time."""
    return torch.cat([backbone.decode(part) for part in latents.split(size)])


def gathered_advantages(
    scores: dict[str, Tensor],
    rewards: RewardBank,
    group_size: int,
    kind: subgrpo.Advantage,
    limit: float,
    world: World,
) -> tuple[Tensor, Tensor]:
    """Return (A [B] of own images within +-limit, A of the images of all processes)."""
    gathered = {name: world.gather(score.detach()) for name, score in rewards.scaled(scores).items()}
    advantage = subgrpo.advantages(gathered, rewards.weights, group_size, kind).clamp(-limit, limit)
    count = len(next(iter(scores.values())))
    return advantage[world.rank * count : (world.rank + 1) * count], advantage
