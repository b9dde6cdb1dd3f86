"""CLIP's tokens: one byte-pair vocabulary, in the two forms that official code uses, and DMD2's recipe.

    transformers   NFC and lower case; padded with the end token
    OpenAI         ftfy and HTML entities first, then lower case; padded with 0 (open_clip's is the same)

The ids of plain text are equal; curly quotes, `&amp;`, ligatures and decomposed accents differ. Both cut long prompts
to the context length and keep the end token, whose state is the text's embedding. The vocabulary is the file that
open_clip ships, so that no tokenizer has to be downloaded.

Axes: B prompts, L tokens (77 for every published CLIP).
"""

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

if TYPE_CHECKING:
    from open_clip.tokenizer import SimpleTokenizer
    from transformers import CLIPTokenizer

CONTEXT = 77
START, END = 49406, 49407


class Tokens(Protocol):
    """Turns prompts into what a text tower reads."""

    def ids(self, texts: Sequence[str]) -> Tensor:
        """Return token ids [B, L] on the CPU, int64."""
        ...

    def truncates(self, text: str) -> bool:
        """Return whether a prompt is longer than what is read of it."""
        ...


class OpenAiTokens:
    """Tokens of OpenAI's package and of open_clip, after an optional prefix."""

    def __init__(self, prefix: str = "") -> None:
        self.prefix = prefix

    def ids(self, texts: Sequence[str]) -> Tensor:
        """Return token ids [B, 77], padded with 0."""
        return self._tokenizer([self.prefix + text for text in texts], CONTEXT)

    def truncates(self, text: str) -> bool:
        """Return whether prefix, prompt and the two special tokens exceed the context."""
        return len(self._tokenizer.encode(self.prefix + text)) + 2 > CONTEXT

    @cached_property
    def _tokenizer(self) -> "SimpleTokenizer":
        from open_clip.tokenizer import SimpleTokenizer

        return SimpleTokenizer()


class SplicedTokens(OpenAiTokens):
    """DMD2's evaluator: the caption's ids, cut to the context; then three ids for "A photo depicts" are put in after
    the start token, what stands out is cut, and a caption's token in the last place becomes the end token.

    Long captions end where they would after the same prefix; the caption is cleaned by itself, though.
    Source: DMD2, main/coco_eval/coco_evaluator.py, compute_clip_score.
    """

    def __init__(self, words: str = "A photo depicts") -> None:
        super().__init__()
        self.words = words

    def ids(self, texts: Sequence[str]) -> Tensor:
        """Return token ids [B, 77], padded with 0."""
        caption_BL = super().ids(texts)
        words_BK = torch.tensor(self._tokenizer.encode(self.words)).expand(len(texts), -1)
        ids_BL = torch.cat([caption_BL[:, :1], words_BK, caption_BL[:, 1:]], dim=1)[:, :CONTEXT]
        ids_BL[:, -1] = torch.where(ids_BL[:, -1] > 0, END, 0)
        return ids_BL

    def truncates(self, text: str) -> bool:
        """Return whether words, prompt and the two special tokens exceed the context."""
        return len(self._tokenizer.encode(self.words)) + len(self._tokenizer.encode(text)) + 2 > CONTEXT


class TransformersTokens:
    """Tokens of transformers' CLIPTokenizer."""

    def ids(self, texts: Sequence[str]) -> Tensor:
        """Return token ids [B, L], padded with the end token to the longest prompt: L <= 77."""
        encoded = self._tokenizer(list(texts), padding=True, truncation=True, max_length=CONTEXT, return_tensors="pt")
        return encoded["input_ids"]

    def truncates(self, text: str) -> bool:
        """Return whether prompt and the two special tokens exceed the context."""
        return len(self._tokenizer(text)["input_ids"]) > CONTEXT

    @cached_property
    def _tokenizer(self) -> "CLIPTokenizer":
        from open_clip.tokenizer import SimpleTokenizer
        from transformers import CLIPTokenizer

        shipped = SimpleTokenizer()
        special = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
        vocabulary = {special.get(token, token): index for token, index in shipped.encoder.items()}
        # No warning for prompts above the context: they are cut, counted and reported.
        return CLIPTokenizer(vocab=vocabulary, merges=list(shipped.bpe_ranks), model_max_length=10**9)
