"""The roles of one network as full copies of it: the counterpart of LoRA adapters where all weights are trained.

Memory grows by a model per role. The methods are those of `trainers.backbones.lora.AdapterRoles`."""

import copy
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, nn

from benchmarks.config import UserError
from trainers.backbones.base import Role
from trainers.backbones.recompute import checkpointed


class CopyRoles:
    """Teacher = the network as loaded, frozen; student and fake score = copies of it that train."""

    def __init__(self, network: Any, start: Any = None) -> None:
        """start: what the student is instead of a copy of the teacher; None = nothing."""
        self._networks: dict[Role, Any] = {"teacher": network, "student": start or copy.deepcopy(network)}
        self._networks["fake_score"] = copy.deepcopy(network)
        for role in ("student", "fake_score"):
            self._networks[role].requires_grad_(True)

    def network(self, role: Role, fake_scale: float | None = None) -> nn.Module:
        """Return a role's network. Raises UserError where an adapter's scale is asked for."""
        if fake_scale is not None:
            raise UserError(
                'backbone.training = "full" has no adapter to scale: use "lora", for the fake score alone '
                'backbone.fake_score_training = "lora", or drop dynadg'
            )
        return self._networks[role]

    def networks(self) -> list[nn.Module]:
        """Return every network there is."""
        return list(self._networks.values())

    def checkpointed(self, role: Role) -> Callable[..., Any]:
        """Return what runs a call again in backward()."""
        return checkpointed(next(self._networks["teacher"].parameters()).device)

    def keep_reference(self) -> None:
        """Make the role "reference" from the student's present weights."""
        self._networks["reference"] = copy.deepcopy(self._networks["student"]).requires_grad_(False)

    def parameters(self, role: Role) -> list[nn.Parameter]:
        """Return a role's weights; none of the teacher and of a reference that is not kept."""
        return [] if role == "teacher" or role not in self._networks else list(self._networks[role].parameters())

    def reset(self) -> None:
        """Make student and fake score the teacher again."""
        for role in ("student", "fake_score"):
            self._networks[role].load_state_dict(self._networks["teacher"].state_dict())

    def base_state(self) -> dict[str, Tensor]:
        """Return the frozen network's state."""
        return dict(self._networks["teacher"].state_dict())

    def merged(self, role: Role) -> Iterator[tuple[str, Tensor]]:
        """Give a role's state, name by name."""
        yield from self._networks[role].state_dict().items()
