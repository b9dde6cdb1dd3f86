"""A student all of whose weights train, beside a fake score that is an adapter on the frozen base.

    student, reference     a network of their own each: a copy of the base, or what `student_path` names
    teacher, fake_score    the base, bare and with an adapter

The teacher may lean on the fake score's adapter as it may where both roles are adapters. The methods are those of
`trainers.backbones.lora.AdapterRoles`. Source: DMDR's authors' code on one-step SDXL.
"""

import copy
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, nn

from trainers.backbones.base import LoraConfig, Role
from trainers.backbones.lora import AdapterRoles
from trainers.backbones.recompute import checkpointed


class FullStudentRoles:
    """The roles of a frozen network and of its trained copy."""

    def __init__(self, base: Any, settings: LoraConfig, start: Any = None) -> None:
        """start: what the student is instead of a copy of the base. Raises UserError as `AdapterRoles` does."""
        student = start or copy.deepcopy(base)  # before there is an adapter that would be copied with it
        self._networks: dict[Role, Any] = {"student": student.requires_grad_(True)}
        self._base = AdapterRoles(base, settings, ("fake_score",))

    def network(self, role: Role, fake_scale: float | None = None) -> nn.Module:
        """Return a role's network; the base with the adapter at work that the role asks for."""
        return self._networks[role] if self._own(role) else self._base.network(role, fake_scale)

    def networks(self) -> list[nn.Module]:
        """Return every network there is."""
        return [*self._networks.values(), *self._base.networks()]

    def checkpointed(self, role: Role) -> Callable[..., Any]:
        """Return what runs a call of a role again in backward()."""
        if not self._own(role):
            return self._base.checkpointed(role)
        return checkpointed(next(self._networks["student"].parameters()).device)

    def keep_reference(self) -> None:
        """Make the role "reference" from the student's present weights."""
        self._networks["reference"] = copy.deepcopy(self._networks["student"]).requires_grad_(False)

    def parameters(self, role: Role) -> list[nn.Parameter]:
        """Return all weights of the student or of a kept reference, the matrices of the fake score."""
        if not self._own(role):
            return self._base.parameters(role)
        return list(self._networks[role].parameters()) if role in self._networks else []

    def reset(self) -> None:
        """Make student and fake score the teacher again."""
        self._networks["student"].load_state_dict(self._base.base_state())
        self._base.reset()

    def base_state(self) -> dict[str, Tensor]:
        """Return the teacher's state."""
        return self._base.base_state()

    def merged(self, role: Role) -> Iterator[tuple[str, Tensor]]:
        """Give a role's state under the network's own names."""
        yield from self._networks[role].state_dict().items() if self._own(role) else self._base.merged(role)

    @staticmethod
    def _own(role: Role) -> bool:
        return role in ("student", "reference")
