"""Answerers as encoders: per image, the answers to all questions of its prompt.

    vqa/qwen3-vl-8b    Qwen3-VL-8B-Instruct       both loaded by transformers, once for all benchmarks
    vqa/qwen2.5-vl-7b  Qwen2.5-VL-7B-Instruct
    vqa/endpoint       a model behind an HTTP endpoint (metrics/vqa/endpoint.py)

Outputs: "dpg" (question id -> "yes" or "no") and "geneval2" (text and mass of each question).
"""

import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from metrics.base import Prompt
from metrics.features import Encoder, register_encoders
from metrics.preprocessing import Uint8
from metrics.vqa import endpoint
from metrics.vqa.answerer import Answerer, ask_dpg, ask_geneval2
from metrics.vqa.cache import AnswerCache
from metrics.vqa.qwen import VisionLanguageModel
from metrics.weights import Weights, manifest
from metrics.weights.files import user_cache

Ask = Callable[[Answerer, Sequence[np.ndarray], Sequence[Prompt]], list[Any]]
BENCHMARKS: Mapping[str, Ask] = {"dpg": ask_dpg, "geneval2": ask_geneval2}


def encoders_of(make: Callable[[], Answerer], weights: Weights | None, precision: str) -> Mapping[str, Encoder]:
    """Return one encoder per benchmark over one answerer, which is made when it is first asked."""
    made: list[Answerer] = []

    def run(ask: Ask, images: Sequence[np.ndarray], prompts: Sequence[Prompt]) -> list[Any]:
        if not made:
            made.append(make())
        return ask(made[0], images, prompts)

    return {
        name: Encoder(
            reads="pair", forward=partial(run, ask), preprocessing=Uint8, weights=weights, precision=precision
        )
        for name, ask in BENCHMARKS.items()
    }


@register_encoders("vqa/qwen3-vl-8b")
def qwen3(device: torch.device) -> Mapping[str, Encoder]:
    """Return the encoders of Qwen3-VL-8B-Instruct."""
    return _local("qwen3-vl-8b-instruct", device)


@register_encoders("vqa/qwen2.5-vl-7b")
def qwen25(device: torch.device) -> Mapping[str, Encoder]:
    """Return the encoders of Qwen2.5-VL-7B-Instruct."""
    return _local("qwen2.5-vl-7b-instruct", device)


@register_encoders("vqa/endpoint")
def behind_endpoint(device: torch.device) -> Mapping[str, Encoder]:
    """Return the encoders of the endpoint that the environment names; the device is the server's affair."""

    def make() -> Answerer:
        identity.check()
        return endpoint.Endpoint(
            url=os.environ[endpoint.URL],
            model=os.environ[endpoint.MODEL],
            key=os.environ.get(endpoint.KEY, ""),
            cache=AnswerCache(user_cache("answers") / "answers.sqlite"),
        )

    identity = endpoint.EndpointIdentity()
    return encoders_of(make, identity, "unknown")


def _local(identity: str, device: torch.device) -> Mapping[str, Encoder]:
    weights = manifest(identity)
    return encoders_of(lambda: VisionLanguageModel(weights, device), weights, "bfloat16")
