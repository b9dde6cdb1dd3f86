"""A vision-language model of transformers (Qwen3-VL, Qwen2.5-VL) as answerer: one forward pass per question.

User turn: the picture, then the question; the probabilities are softmax over the whole vocabulary at the first answer
token, in float32, from the raw logits (`generate` would apply the folder's repetition penalty first). Pairs are
batched, padded on the left, so that the last position is the answer's.
Axes: P pairs, L tokens, V vocabulary.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from metrics.base import UserError
from metrics.vqa.answerer import Answer
from metrics.weights import Weights

BATCH = 16
FAULTS = ("missing_keys", "mismatched_keys", "unexpected_keys")


class VisionLanguageModel:
    """One model folder, loaded at first use in the number format of its files."""

    def __init__(self, weights: Weights, device: torch.device, batch_size: int = BATCH) -> None:
        self.weights, self.device, self.batch_size = weights, device, batch_size

    def answer(
        self, images: Sequence[np.ndarray], questions: Sequence[str], candidates: Sequence[Sequence[str]]
    ) -> list[Answer]:
        """Return P answers; see `metrics.vqa.answerer`.

        Raises: UserError where the folder is incomplete or damaged, or its weights are not those of its config."""
        answers: list[Answer] = []
        batches = [slice(start, start + self.batch_size) for start in range(0, len(images), self.batch_size)]
        with ThreadPoolExecutor(1) as ahead:  # cuts the next pictures to patches while the model reads these
            prepared = [ahead.submit(self._inputs, images[some], questions[some]) for some in batches[:1]]
            for some, following in zip(batches, [*batches[1:], None], strict=True):
                inputs = prepared.pop().result()
                if following:
                    prepared.append(ahead.submit(self._inputs, images[following], questions[following]))
                probabilities_PV = self._first_token(inputs)
                answers += [
                    self._read(probabilities_V, wanted)
                    for probabilities_V, wanted in zip(probabilities_PV, candidates[some], strict=True)
                ]
        return answers

    @torch.no_grad()
    def say(self, image: np.ndarray, question: str, max_new_tokens: int) -> str:
        """Return the likeliest answer, token by token, to one question about one picture [H, W, 3], uint8, which is
        announced by its number ("Picture 1: ")."""
        inputs = self._inputs([image], [question], add_vision_id=True)
        # The folder's temperature, top_k and top_p would only warn that greedy decoding ignores them.
        greedy = {"do_sample": False, "temperature": None, "top_k": None, "top_p": None}
        ids_1L = self._model.generate(**inputs, max_new_tokens=max_new_tokens, **greedy)
        return self._processor.tokenizer.decode(ids_1L[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)

    @torch.no_grad()
    def _first_token(self, inputs: Mapping[str, Any]) -> torch.Tensor:
        """Return the probabilities [P, V] of the first answer token, float32, on the CPU."""
        logits_PV = self._model(**inputs, logits_to_keep=1).logits[:, -1]
        return logits_PV.float().softmax(dim=-1).cpu()

    def _inputs(self, images: Sequence[np.ndarray], questions: Sequence[str], **template: Any) -> Any:
        """Return what the model reads of P pairs: a user turn for each, then the beginning of the answer."""
        turns = [
            [
                {
                    "role": "user",
                    "content": [{"type": "image", "image": Image.fromarray(image)}, {"type": "text", "text": text}],
                }
            ]
            for image, text in zip(images, questions, strict=True)
        ]
        return self._processor.apply_chat_template(
            turns,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"padding": True, "padding_side": "left"},
            **template,
        ).to(self.device)

    def _read(self, probabilities_V: torch.Tensor, candidates: Sequence[str]) -> Answer:
        text = self._processor.tokenizer.decode([int(probabilities_V.argmax())])
        return Answer(text, tuple(float(probabilities_V[self._first_id(one)]) for one in candidates))

    def _first_id(self, text: str) -> int:
        if text not in self._first_ids:
            ids = self._processor.tokenizer.encode(text, add_special_tokens=False)
            if not ids:
                raise UserError(
                    f"{self.weights.folder()}: its tokenizer has no token for {text!r}; {self.weights.mend}"
                )
            self._first_ids[text] = ids[0]
        return self._first_ids[text]

    @cached_property
    def _first_ids(self) -> dict[str, int]:
        return {}

    @cached_property
    def _folder(self) -> Path:
        self.weights.check()
        return self.weights.folder()

    @cached_property
    def _processor(self) -> Any:
        from transformers import AutoProcessor

        return AutoProcessor.from_pretrained(self._folder, local_files_only=True, trust_remote_code=False)

    @cached_property
    def _model(self) -> Any:
        from safetensors import SafetensorError
        from transformers import AutoModelForImageTextToText

        options: Mapping[str, Any] = {"local_files_only": True, "trust_remote_code": False, "use_safetensors": True}
        # The library would draw what a file lacks at random and go on: it is asked to tell instead.
        told: Mapping[str, Any] = {"output_loading_info": True, "ignore_mismatched_sizes": True}
        where, mend = self._folder, self.weights.mend
        try:
            model, info = AutoModelForImageTextToText.from_pretrained(where, dtype="auto", **options, **told)
        except SafetensorError as error:
            raise UserError(f"{where}: weights are truncated or damaged ({error}); {mend}") from error
        except (OSError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise UserError(f"{where}: no model that reads pictures ({reason}); {mend}") from error
        names = sorted(str(key) for kind in FAULTS for key in info[kind])
        if names:
            raise UserError(f"{where}: weights do not fit the config: {len(names)}, first {names[0]}; {mend}")
        return model.to(self.device).eval().requires_grad_(False)
