"""A student that starts from another network than its teacher, as adapters: on that network, frozen, beside the base.

    student, reference     adapters on the student's own base, e.g. a released few-step model
    teacher, fake_score    the base, bare and with an adapter

Memory holds two models instead of one. The methods are those of `trainers.backbones.lora.AdapterRoles`.
Source: RTDMD on FLUX.2, whose student begins as the released distilled model, teacher and fake score as its base.
"""

from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, nn

from trainers.backbones.base import LoraConfig, Role
from trainers.backbones.lora import AdapterRoles


class OwnStartRoles:
    """The roles of two frozen networks."""

    def __init__(self, base: nn.Module, start: nn.Module, settings: LoraConfig) -> None:
        """Attach one adapter to each. Raises UserError where a target names no layer."""
        self.student = AdapterRoles(start, settings, ("student",))
        self._base = AdapterRoles(base, settings, ("fake_score",))

    def of(self, role: Role) -> AdapterRoles:
        """Return the adapters that a role is among."""
        return self.student if role in ("student", "reference") else self._base

    def network(self, role: Role, fake_scale: float | None = None) -> nn.Module:
        """Return a role's network with its adapter at work."""
        return self.of(role).network(role, fake_scale)

    def networks(self) -> list[nn.Module]:
        """Return both networks."""
        return [*self.student.networks(), *self._base.networks()]

    def checkpointed(self, role: Role) -> Callable[..., Any]:
        """Return what runs a call of a role again in backward()."""
        return self.of(role).checkpointed(role)

    def keep_reference(self) -> None:
        """Copy the student's adapter as it is now into a frozen one beside it."""
        self.student.keep_reference()

    def parameters(self, role: Role) -> list[nn.Parameter]:
        """Return the matrices of a role."""
        return self.of(role).parameters(role)

    def reset(self) -> None:
        """Make both what they began as."""
        self.student.reset()
        self._base.reset()

    def base_state(self) -> dict[str, Tensor]:
        """Return the teacher's state."""
        return self._base.base_state()

    def merged(self, role: Role) -> Iterator[tuple[str, Tensor]]:
        """Give a role's state under its network's own names."""
        return self.of(role).merged(role)
