"""Features of prompts: each distinct prompt is encoded once per run, however many images and metrics ask for it.

A text tower's last bits depend on the shape of its batch. So the prompts that a run announces are cut into batches in
their order, and a batch is encoded as a whole when the first of them is needed: a prompt has the same mates, and its
feature the same bytes, whatever the order of images, the number of processes or a resume. A prompt that was not
announced is encoded alone. On a CPU each is: a batch gains nothing there, and no prompt is padded for another.

Axes: D embedding size.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

BATCH_SIZE = 16  # on accelerators, where one prompt at a time leaves most of the device idle

Forward = Callable[[list[str]], Any]
Pick = Callable[[Any], Any] | None


class TextFeatures:
    """The features of prompts in float32 on the CPU, for each pair of a forward and what is picked of its output."""

    def __init__(
        self,
        wanted: Iterable[tuple[Forward, Pick]],
        device: torch.device,
        texts: Iterable[str] = (),
        batch_size: int | None = None,
    ) -> None:
        """texts: what will be asked for, in an order that is the same in every process of a run."""
        self.device = device
        size = batch_size or (1 if device.type == "cpu" else BATCH_SIZE)
        announced = list(dict.fromkeys(texts))
        batches = [announced[start : start + size] for start in range(0, len(announced), size)]
        self._mates = {text: batch for batch in batches for text in batch}
        self._found: dict[Forward, dict[Pick, dict[str, Tensor]]] = {}
        for forward, pick in wanted:
            self._found.setdefault(forward, {})[pick] = {}

    def of(self, forward: Forward, pick: Pick, texts: Sequence[str]) -> Tensor:
        """Return the features [number of texts, ...] on the device, without gradients."""
        found = self._found[forward][pick]
        for text in dict.fromkeys(texts):
            if text not in found:
                self._encode(forward, self._mates.get(text, [text]))
        return torch.stack([found[text] for text in texts]).to(self.device)

    @torch.no_grad()
    def _encode(self, forward: Forward, batch: list[str]) -> None:
        output = forward(batch)
        for pick, found in self._found[forward].items():
            rows = (pick(output) if pick else output).to("cpu", torch.float32)
            # Rows of their own: a view would keep in memory all that was not picked.
            found.update((text, row.clone()) for text, row in zip(batch, rows, strict=True))
