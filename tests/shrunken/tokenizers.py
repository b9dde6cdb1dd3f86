"""Tokenizers of true classes over a few words, so that a shrunken text encoder needs few embeddings."""

import string
from typing import Any

WORDS = ("a", "photo", "of", "red", "green", "blue", "circle", "square", "cross", "and")
CHAT = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"


def clip(length: int) -> Any:
    """Return a CLIPTokenizer: letters, and one token for each of WORDS."""
    from transformers import CLIPTokenizer

    tokens = ["<|startoftext|>", "<|endoftext|>"]
    tokens += [*string.ascii_lowercase, *(f"{letter}</w>" for letter in string.ascii_lowercase)]
    merges = []
    for word in WORDS:
        left, *rest = [*word[:-1], f"{word[-1]}</w>"]
        for piece in rest:
            merges.append((left, piece))
            left += piece
            tokens.append(left)
    vocabulary = {token: number for number, token in enumerate(dict.fromkeys(tokens))}
    return CLIPTokenizer(
        vocab=vocabulary, merges=list(dict.fromkeys(merges)), model_max_length=length, pad_token="<|endoftext|>"
    )


def t5() -> Any:
    """Return a T5Tokenizer over letters."""
    from transformers import T5Tokenizer

    pieces = ["▁", *string.ascii_lowercase]
    scores = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((piece, -2.0) for piece in pieces)]
    return T5Tokenizer(vocab=scores, extra_ids=0)


def qwen() -> Any:
    """Return a Qwen2Tokenizer over bytes, with a chat template such as its own."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import Qwen2Tokenizer

    vocabulary = {token: number for number, token in enumerate(["<|endoftext|>", *sorted(ByteLevel.alphabet())])}
    special = ["<|im_start|>", "<|im_end|>"]
    return Qwen2Tokenizer(vocab=vocabulary, merges=[], additional_special_tokens=special, chat_template=CHAT)
