"""The order in which a run sees its training prompts: a function of (seed, position), so a resume needs one number.

Prompts come in passes over a shuffled list; with `balance` each category has a pass of its own and they take turns.
No batch holds a prompt twice: two groups of one prompt would share the noise that must differ between groups.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

import torch

from benchmarks.config import UserError, config
from benchmarks.prompts import PromptSet, as_prompt
from benchmarks.sets import read_set
from metrics.base import Prompt
from metrics.micro.prompts import prompt_sets
from trainers.draws import seeded


@config
class PromptsConfig:
    """Where training prompts come from."""

    source: str = "micro"  # "micro" = the micro world's training prompts; else a prompt set or file of benchmarks
    balance: Literal["none", "category"] = "none"


def read_training_prompts(source: str) -> tuple[Prompt, ...]:
    """Return the training prompts. Raises UserError for an unknown name, a set that is not here, or a bad file."""
    if source == "micro":
        records = prompt_sets()["train"]
        return tuple(as_prompt(record, "micro", record["id"]) for record in records)
    return read_set(source).prompts


class TrainingPrompts:
    """What the stages of a run are trained on: stages of one setting share a stream and go on where it stands."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._sets: dict[str, PromptSet] = {}
        self._streams: dict[PromptsConfig, PromptStream] = {}

    def open(self, settings: PromptsConfig) -> "PromptStream":
        """Return the stream of a setting. Raises UserError as `read_training_prompts`."""
        if settings not in self._streams:
            if settings.source not in self._sets:
                self._sets[settings.source] = PromptSet(settings.source, read_training_prompts(settings.source))
            prompts = self._sets[settings.source].prompts
            self._streams[settings] = PromptStream(prompts, settings.balance, self._seed)
        return self._streams[settings]

    @property
    def all(self) -> PromptSet:
        """The prompts of every source that has been opened, in that order."""
        return PromptSet("training", tuple(prompt for one in self._sets.values() for prompt in one.prompts))

    @property
    def digests(self) -> dict[str, str]:
        """The sha256 of every source's prompts."""
        return {source: prompts.digest for source, prompts in self._sets.items()}

    def check(self, digests: Mapping[str, str]) -> None:
        """Raise UserError where a source does not hold what it held when these were taken of it."""
        for source, digest in self.digests.items():
            if digests.get(source, digest) != digest:
                raise UserError(
                    f"prompts.source {source!r} has other prompts than when the run began: restore them, use another "
                    "--out, or start over with --no-resume"
                )

    def state_dict(self) -> list[int]:
        """Return how far each stream has been read, in the order they were opened in."""
        return [stream.position for stream in self._streams.values()]

    def load_state_dict(self, state: Sequence[int]) -> None:
        """Continue from what `state_dict` gave.

        The state may be of a run with other streams for its later stages: those were not read yet, and come last."""
        for stream, position in zip(self._streams.values(), state, strict=False):
            stream.position = position


class PromptStream:
    """An endless stream of batches of distinct prompts; `position` is its whole state."""

    def __init__(self, prompts: Sequence[Prompt], balance: Literal["none", "category"], seed: int) -> None:
        self.prompts = prompts
        strata: dict[str, list[Prompt]] = {}
        for prompt in prompts:
            strata.setdefault(prompt.category if balance == "category" else "", []).append(prompt)
        self._strata = list(strata.values())
        self._distinct = len({prompt.text for prompt in prompts})
        self._seed = seed
        self._orders: dict[tuple[int, int], list[int]] = {}
        self.position = 0

    def check(self, count: int) -> None:
        """Raise UserError where there are not `count` distinct prompts."""
        if count > self._distinct:
            raise UserError(
                f"{count} different prompts per iteration, but prompts.source has only {self._distinct}: take "
                "smaller batches, or more prompts"
            )

    def take(self, count: int) -> list[Prompt]:
        """Return the next `count` distinct prompts. Raises UserError where there are fewer."""
        self.check(count)
        batch: dict[str, Prompt] = {}
        while len(batch) < count:
            prompt = self._at(self.position)
            batch.setdefault(prompt.text, prompt)
            self.position += 1
        return list(batch.values())

    def _at(self, position: int) -> Prompt:
        turn, stratum = divmod(position, len(self._strata))
        prompts = self._strata[stratum]
        lap, index = divmod(turn, len(prompts))
        key = (stratum, lap)
        if key not in self._orders:
            self._orders = {old: order for old, order in self._orders.items() if old[0] != stratum}
            self._orders[key] = torch.randperm(len(prompts), generator=seeded(self._seed, *key)).tolist()
        return prompts[self._orders[key][index]]
