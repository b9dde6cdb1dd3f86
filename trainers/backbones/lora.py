"""Student and fake score as LoRA adapters (peft) on one frozen network; the teacher is the network without them.

    W_role = W + s (alpha / rank) B_role A_role        B = 0 at the start: every role begins as the teacher

s is 1, except where a call scales the fake score's adapter: the teacher may lean on it (DMDR), and at s = 0 the
network is bitwise the frozen one. Source: Hu et al. 2021, arXiv:2106.09685. Memory grows by adapters, not by models.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Literal

import peft
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from benchmarks.config import UserError
from trainers.backbones.base import LoraConfig, Role
from trainers.backbones.recompute import checkpointed
from trainers.backbones.sharding import whole

ROLES: tuple[Role, ...] = ("student", "fake_score")  # those that are trained


class AdapterRoles:
    """The roles of one diffusers network; `network(role)` is that network with the role's adapter at work."""

    def __init__(self, network: Any, settings: LoraConfig, trained: Sequence[Role] = ROLES) -> None:
        """Attach the adapters of the trained roles. Raises UserError where a target names no layer."""
        targets = _adapted_layers(network, settings.targets)
        # peft's names: True is its default, the uniform law
        self._init: bool | Literal["gaussian"] = "gaussian" if settings.init == "gaussian" else True
        self.config = peft.LoraConfig(
            r=settings.rank, lora_alpha=settings.alpha, target_modules=targets, init_lora_weights=self._init
        )
        self._fake_score_config = peft.LoraConfig(
            r=settings.fake_score_rank or settings.rank,
            lora_alpha=settings.fake_score_alpha or settings.alpha,
            target_modules=targets,
            init_lora_weights=self._init,
        )
        self._network, self._trained = network, trained
        for role in trained:
            self._attach(role)
        self._layers: list[Any] = [layer for layer in network.modules() if isinstance(layer, BaseTunerLayer)]
        for layer in self._layers:
            layer.cast_input_dtype_enabled = False  # autocast casts; peft's own cast would go to float32 and back
        self._parameters = {role: self._matrices(role) for role in trained}
        self._active: tuple[Role, float] | None = None  # adapter at work and its scale

    def network(self, role: Role, fake_scale: float | None = None) -> nn.Module:
        """Return the network as `role`; what the last caller used does not matter.

        fake_scale: s of the fake score's adapter, for fake_score (None = 1) and teacher (None = 0, the bare base)."""
        if role == "teacher":
            self._switch("fake_score" if fake_scale else "teacher", fake_scale or 0.0)
        elif role == "fake_score":
            scale = 1.0 if fake_scale is None else fake_scale
            self._switch("fake_score" if scale else "teacher", scale)
        else:
            self._switch(role, 1.0)
        return self._network

    def networks(self) -> list[nn.Module]:
        """Return the one network there is."""
        return [self._network]

    def checkpointed(self, role: Role) -> Callable[..., Any]:
        """Return what diffusers shall call for gradient checkpointing: a block keeps its adapter."""
        return checkpointed(next(self._network.parameters()).device, self._as_now)

    def keep_reference(self) -> None:
        """Copy the student's adapter as it is now into a frozen one, the role "reference"."""
        if "reference" not in self._parameters:
            self._attach("reference")
            self._active = None  # peft has just put the new adapter to work
            self._parameters["reference"] = self._matrices("reference")
        with torch.no_grad():
            for mine, student in zip(self._parameters["reference"], self._parameters["student"], strict=True):
                mine.requires_grad_(False).copy_(student)

    def parameters(self, role: Role) -> list[nn.Parameter]:
        """Return the matrices A and B of a role; none of a reference that is not kept."""
        return self._parameters.get(role, [])

    def reset(self) -> None:
        """Make every role the bare network again."""
        for role in self._trained:
            for layer in self._layers:
                layer.reset_lora_parameters(role, self._init)

    def base_state(self) -> dict[str, Tensor]:
        """Return the frozen network's state under its own names, without adapters; sharded tensors as they are."""
        return dict(self._named_base())

    def merged(self, role: Role) -> Iterator[tuple[str, Tensor]]:
        """Give a role's state under the network's own names, tensor by tensor: one alone is whole at a time.

        An adapted layer's weight is W + (alpha / rank) B A, float32."""
        self.network(role)  # puts the scale back to 1
        layers: dict[str, Any] = {
            f"{name}.weight": layer
            for name, layer in self._network.named_modules()
            if isinstance(layer, BaseTunerLayer)
        }
        for name, tensor in self._named_base():
            weight = whole(tensor)
            yield name, weight.float() + layers[name].get_delta_weight(role).detach() if name in layers else weight

    def adapter_state(self, role: Role) -> dict[str, Tensor]:
        """Return the adapter in peft's naming."""
        return peft.get_peft_model_state_dict(self._network, adapter_name=role)

    def _attach(self, role: Role) -> None:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Already found a `peft_config`")  # several adapters are what we want
            # not the network's own add_adapter: diffusers' DiT has none
            config = self._fake_score_config if role == "fake_score" else self.config
            peft.inject_adapter_in_model(config, self._network, adapter_name=role)
        for parameter in self._matrices(role):  # peft makes them of the base's dtype
            parameter.data = parameter.data.to(torch.promote_types(parameter.dtype, torch.float32))
        for trained in self._trained:  # peft freezes those that were there before
            for parameter in self._matrices(trained):
                parameter.requires_grad_(True)

    def _matrices(self, role: Role) -> list[nn.Parameter]:
        return [p for name, p in self._network.named_parameters() if f".{role}." in name]

    def _switch(self, adapter: Role, scale: float) -> None:
        """Put one adapter to work; "teacher" = none."""
        if (adapter, scale) == self._active:
            return
        for layer in self._layers:
            # Not by peft's own switches: they freeze what they switch off, so a graph of that role that still waits
            # for its backward would drop its gradients without a word; and they take 5 % of a small network's step.
            layer._disable_adapters = adapter == "teacher"
            if adapter != "teacher":
                layer._active_adapter = [adapter]
                layer.set_scale(adapter, scale)
        self._active = adapter, scale

    def _as_now(self) -> AbstractContextManager:
        assert self._active  # a block only runs within `network`
        return self._as_it_was(*self._active)

    @contextmanager
    def _as_it_was(self, adapter: Role, scale: float) -> Iterator[None]:
        present = self._active
        self._switch(adapter, scale)
        try:
            yield
        finally:
            if present:
                self._switch(*present)

    def _named_base(self) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in self._network.state_dict().items():
            if not any(f".{role}." in name for role in self._parameters):
                yield name.replace(".base_layer.", "."), tensor


def _adapted_layers(network: nn.Module, targets: tuple[str, ...]) -> list[str]:
    layers = {name: layer for name, layer in network.named_modules() if isinstance(layer, nn.Linear | nn.Conv2d)}
    linear = [name for name, layer in layers.items() if isinstance(layer, nn.Linear)]
    if not targets:
        return linear
    for end in targets:
        if not any(_ends_in(name, end) for name in layers):
            raise UserError(
                f"backbone.lora.targets: no linear layer or convolution is named {end!r}; there is {linear[0]!r}"
            )
    return [name for name in layers if any(_ends_in(name, end) for end in targets)]


def _ends_in(name: str, end: str) -> bool:
    return name == end or name.endswith(f".{end}")
