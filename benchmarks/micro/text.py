"""The micro world's tokenizer and text encoders: stock CLIP classes, one token per word.

Vocabulary and merges are derived here, deterministically: the usual BPE trainers break ties by hash order, so that
token ids would move between two runs and a reloaded model would read other words.
"""

import string
from collections import Counter
from collections.abc import Iterable
from itertools import pairwise

import torch
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer

from metrics.micro.prompts import TEMPLATES, combinations

LENGTH = 12  # tokens: the longest prompt has 10 words, then begin and end
BEGIN, END = "<|startoftext|>", "<|endoftext|>"


def words() -> list[str]:
    """Return every word of every prompt, sorted."""
    prompts = (template.format(c.words) for c in combinations() for template in TEMPLATES)
    return sorted({word for prompt in prompts for word in prompt.split()})


def byte_pair_merges(vocabulary: list[str]) -> list[tuple[str, str]]:
    """Return merges, most frequent pair first and ties in alphabetical order, until each word is one token."""
    spelled = [[*word[:-1], f"{word[-1]}</w>"] for word in vocabulary]
    merges: list[tuple[str, str]] = []
    while any(len(parts) > 1 for parts in spelled):
        counts = Counter(pair for parts in spelled for pair in pairwise(parts))
        pair = min(counts, key=lambda item: (-counts[item], item))
        merges.append(pair)
        spelled = [_merged(parts, pair) for parts in spelled]
    return merges


def _merged(parts: list[str], pair: tuple[str, str]) -> list[str]:
    result: list[str] = []
    for part in parts:
        if result and (result[-1], part) == pair:
            result[-1] += part
        else:
            result.append(part)
    return result


def new_tokenizer() -> CLIPTokenizer:
    """Return the tokenizer; `vocab` and `merges` are arguments because files given by name are ignored."""
    vocabulary = words()
    merges = byte_pair_merges(vocabulary)
    letters = [*string.ascii_lowercase, *string.digits]  # of words that no prompt here has
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *("".join(pair) for pair in merges), BEGIN, END]
    ids = {token: number for number, token in enumerate(dict.fromkeys(tokens))}
    return CLIPTokenizer(vocab=ids, merges=merges, model_max_length=LENGTH, pad_token=END, unk_token=END)


def new_text_encoder(vocabulary: int, end: int, width: int = 64) -> CLIPTextModelWithProjection:
    """Return an untrained text encoder; `end` is the id of END, where a prompt is read.

    Token embeddings start large, or training begins with a long plateau."""
    config = CLIPTextConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=4 * width,
        projection_dim=width,
        num_hidden_layers=3,  # the pipeline conditions on the last but one layer
        num_attention_heads=4,
        max_position_embeddings=LENGTH,
        bos_token_id=end - 1,
        eos_token_id=end,
        pad_token_id=end,
    )
    encoder = CLIPTextModelWithProjection(config)
    torch.nn.init.normal_(encoder.get_input_embeddings().weight, std=0.5)
    return encoder


def encode_text(encoders: Iterable[CLIPTextModelWithProjection], ids_BL: Tensor) -> tuple[Tensor, Tensor]:
    """Return what the SD3 pipeline conditions on: hidden states [B, L, D] and pooled embeddings [B, D]."""
    outputs = [encoder(ids_BL, output_hidden_states=True) for encoder in encoders]
    hidden_BLD = torch.cat([output.hidden_states[-2] for output in outputs], dim=-1)
    return hidden_BLD, torch.cat([output.text_embeds for output in outputs], dim=-1)
