"""Model cards: published models by a short name, with all that their authors say of how they are sampled.

    kind = "lora"                          # over `base`; "denoiser": all its weights; "pipeline": its own folder
    repo = "ByteDance/Hyper-SD"            # on the hub
    files = ["Hyper-SD3-4steps-CFG-lora.safetensors"]
    base = "sd3-medium"                    # another card
    lora_scale = 0.125
    scheduler = { _class_name = "LCMScheduler", original_inference_steps = 100 }
    [protocol]                             # on top of the base card's

A card is `benchmarks/model_cards/<name>.toml`, or a file of yours: `--model path/to/card.toml`. Weights stay where
their authors publish them; the digest in a result says what was read, and covers scheduler and scale.
"""

from dataclasses import field
from pathlib import Path
from typing import Any, Literal

from benchmarks.config import UserError, build, config, nearest, read_toml
from benchmarks.protocol import Protocol

FOLDER = Path(__file__).parent / "model_cards"


@config
class ModelCard:
    """One published model. Raises ValueError where its parts do not fit together."""

    title: str
    kind: Literal["pipeline", "lora", "denoiser"] = "pipeline"
    repo: str
    revision: str = "main"
    files: tuple[str, ...] = ()  # the weights first, then what belongs to them (adapter_config.json)
    base: str = ""
    lora_scale: float = 1.0
    scheduler: dict[str, Any] = field(default_factory=dict)  # on top of the folder's own; _class_name = another class
    protocol: dict[str, Any] = field(default_factory=dict)
    licence: str
    citation: str
    source: str  # where the authors say how it is sampled
    note: str = ""

    def __post_init__(self) -> None:
        whole = self.kind == "pipeline"
        if whole and (self.files or self.base):
            raise ValueError('kind = "pipeline" is a folder of its own: leave files and base out')
        if self.files[:1] == ("adapter_model.safetensors",) and self.lora_scale != 1:
            raise ValueError("lora_scale: an adapter of peft states its scale itself")
        if not whole and not (self.files and self.base):
            raise ValueError(f"kind = {self.kind!r} needs files and base")

    @property
    def hub_id(self) -> str:
        """Repository and revision."""
        return f"{self.repo}@{self.revision}"


def available_cards() -> dict[str, Path]:
    """Return the shipped cards by name."""
    return {path.stem: path for path in sorted(FOLDER.glob("*.toml"))}


def find_card(spec: str) -> ModelCard | None:
    """Return the card of a name or of a TOML file, None where `spec` is neither. Raises UserError for a bad file."""
    path = Path(spec) if spec.endswith(".toml") else available_cards().get(spec)
    return read_toml(ModelCard, path) if path else None


def base_card(card: ModelCard, name: str) -> ModelCard:
    """Return the card that `card` lies over. Raises UserError where there is none, or it is no whole pipeline."""
    base = find_card(card.base)
    if base is None:
        raise UserError(f"model card {name}: base {card.base!r} is no card; {nearest(card.base, available_cards())}")
    if base.kind != "pipeline":
        raise UserError(f"model card {name}: base {card.base!r} lies over another model itself")
    return base


def card_protocol(card: ModelCard, name: str) -> Protocol:
    """Return how a card's model is sampled. Raises UserError for fields that no protocol has."""
    under = card_table(base_card(card, name)) if card.base else {}
    return build(Protocol, {**under, **card_table(card)}, f"model card {name}: protocol")


def card_table(card: ModelCard) -> dict[str, Any]:
    """Return the fields of the protocol that a card states."""
    return dict(card.protocol)
