"""Student and fake score as LoRA adapters (peft) on one frozen network; the teacher is the network without them.

    W_role = W + (alpha / rank) B_role A_role        B = 0 at the start: every role begins as the teacher

Source: Hu et al. 2021, arXiv:2106.09685. Memory grows by adapters, not by models.
"""

import warnings
from collections.abc import Iterator
from typing import Any

import peft
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from benchmarks.config import UserError
from trainers.backbones.base import LoraConfig, Role

ROLES: tuple[Role, ...] = ("student", "fake_score")


class AdapterRoles:
    """The roles of one diffusers network; `network(role)` is that network with the role's adapter at work."""

    def __init__(self, network: Any, settings: LoraConfig) -> None:
        """Attach both adapters. Raises UserError where `targets` names no linear layer."""
        self.config = peft.LoraConfig(
            r=settings.rank, lora_alpha=settings.alpha, target_modules=_linear_layers(network, settings.targets)
        )
        self._network = network
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Already found a `peft_config`")  # two adapters are what we want
            for role in ROLES:
                self._network.add_adapter(self.config, adapter_name=role)
        self._layers: list[Any] = [layer for layer in network.modules() if isinstance(layer, BaseTunerLayer)]
        for layer in self._layers:
            layer.cast_input_dtype_enabled = False  # autocast casts; peft's own cast would go to float32 and back
        self._trained = {role: [p for name, p in network.named_parameters() if f".{role}." in name] for role in ROLES}
        self._active: Role | None = None

    def network(self, role: Role) -> nn.Module:
        """Return the network as `role`; what the last caller used does not matter."""
        if role != self._active:
            for layer in self._layers:
                if role != "teacher":
                    layer.set_adapter(role)
                layer.enable_adapters(role != "teacher")
            # peft also freezes what it switches off; a graph of that role that still waits for its backward would
            # then drop its gradients without a word.
            for parameters in self._trained.values():
                for parameter in parameters:
                    parameter.requires_grad_(True)
            self._active = role
        return self._network

    def parameters(self, role: Role) -> list[nn.Parameter]:
        """Return the matrices A and B of a role."""
        return self._trained[role]

    def reset(self) -> None:
        """Make every role the teacher again."""
        for role in ROLES:
            for layer in self._layers:
                layer.reset_lora_parameters(role, True)

    def base_state(self) -> dict[str, Tensor]:
        """Return the frozen network's state under its own names, without adapters."""
        return dict(self._named_base())

    def merged(self, role: Role) -> dict[str, Tensor]:
        """Return W + (alpha / rank) B A of every adapted layer, float32, under the network's own names."""
        layers: dict[str, Any] = {
            name: layer for name, layer in self._network.named_modules() if isinstance(layer, BaseTunerLayer)
        }
        return {
            f"{name}.weight": layer.get_base_layer().weight.detach().float() + layer.get_delta_weight(role).detach()
            for name, layer in layers.items()
        }

    def adapter_state(self, role: Role) -> dict[str, Tensor]:
        """Return the adapter in peft's naming."""
        return peft.get_peft_model_state_dict(self._network, adapter_name=role)

    def _named_base(self) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in self._network.state_dict().items():
            if not any(f".{role}." in name for role in ROLES):
                yield name.replace(".base_layer.", "."), tensor


def _linear_layers(network: nn.Module, targets: tuple[str, ...]) -> list[str]:
    names = [name for name, layer in network.named_modules() if isinstance(layer, nn.Linear)]
    if not targets:
        return names
    chosen = [name for name in names if any(name == end or name.endswith(f".{end}") for end in targets)]
    if not chosen:
        raise UserError(f"backbone.lora.targets {list(targets)}: no linear layer has such a name, e.g. {names[0]!r}")
    return chosen
