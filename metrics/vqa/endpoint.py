"""An answerer behind an OpenAI-compatible HTTP endpoint (vLLM, SGLang, a service).

    FEWSTEP_BENCH_VQA_URL     such as http://127.0.0.1:8000/v1
    FEWSTEP_BENCH_VQA_MODEL   the model's name there: its identity in results, which are never ranked
    FEWSTEP_BENCH_VQA_KEY     sent as a bearer token where it is set; never stored

Every answer is kept in the user's cache at once, by model, picture, question and candidates: what was answered is
never asked twice, and a second start asks for what is missing. Errors of the server, timeouts and garbage are tried
again; what still fails is an error with counts, never an answer.
"""

import base64
import hashlib
import io
import json
import math
import os
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from metrics.base import UserError
from metrics.vqa.answerer import YES_OR_NO, Answer, yes_or_no
from metrics.vqa.cache import AnswerCache, pair_key, picture_key

URL, MODEL, KEY = "FEWSTEP_BENCH_VQA_URL", "FEWSTEP_BENCH_VQA_MODEL", "FEWSTEP_BENCH_VQA_KEY"
TOP = 20  # likeliest tokens that such servers tell
TRY_AGAIN = frozenset({408, 409, 425, 429, 500, 502, 503, 504})
MAX_REPLY = 2**20


class _Failed(Exception):
    """A question has no answer; `again`: whether another try may help."""

    def __init__(self, reason: str, *, again: bool) -> None:
        super().__init__(reason)
        self.again = again


@dataclass(frozen=True)
class EndpointIdentity:
    """What stands for the weights of a model that answers elsewhere (`metrics.weights.Weights`): its name."""

    def missing(self) -> str | None:
        """Return which variable is not set, None where both are."""
        unset = [name for name in (URL, MODEL) if not os.environ.get(name)]
        return f"no endpoint: set {' and '.join(unset)}" if unset else None

    @property
    def mend(self) -> str:
        """How to name an endpoint."""
        return f"set {URL} and {MODEL}"

    def check(self) -> None:
        """Raise UserError where no endpoint is named."""
        if reason := self.missing():
            raise UserError(reason)

    def folder(self) -> Path:
        """Raise UserError: nothing of the model is here."""
        raise UserError("the model behind an endpoint has no folder here")

    def json(self, name: str) -> dict[str, Any]:
        """Raise UserError, as `folder` does."""
        raise UserError(f"the model behind an endpoint has no {name} here")

    def tensors(self, name: str) -> dict[str, Tensor]:
        """Raise UserError, as `folder` does."""
        raise UserError(f"the model behind an endpoint has no {name} here")

    def digest(self) -> str:
        """Return the sha256 of the model's name. Raises UserError where no endpoint is named."""
        self.check()
        return hashlib.sha256(f"endpoint {os.environ[MODEL]}".encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """Asks one server; several questions are under way at a time."""

    url: str
    model: str
    cache: AnswerCache
    key: str = ""
    timeout: float = 120.0  # seconds for one try
    tries: int = 5
    pause: float = 1.0  # seconds before the second try, doubled before each further one
    workers: int = 8

    def answer(
        self, images: Sequence[np.ndarray], questions: Sequence[str], candidates: Sequence[Sequence[str]]
    ) -> list[Answer]:
        """Return P answers; see `metrics.vqa.answerer`. Those that came are kept, even where others failed."""
        pictures = [picture_key(image_HW3) for image_HW3 in images]
        keys = [pair_key(self.model, *pair) for pair in zip(pictures, questions, candidates, strict=True)]
        known = self.cache.find(keys)
        todo = {key: index for index, key in enumerate(keys) if key not in known}
        with ThreadPoolExecutor(self.workers) as pool:
            futures = {
                key: pool.submit(self._ask_and_keep, key, images[i], questions[i], candidates[i])
                for key, i in todo.items()
            }
        failures = []
        for key, future in futures.items():
            outcome = future.result()
            if isinstance(outcome, Answer):
                known[key] = outcome
            else:
                failures.append(str(outcome))
        if failures:
            raise UserError(
                f"{self.url}: {len(failures)} of {len(todo)} questions have no answer (first: {failures[0]}); the "
                "others are kept, start again when the endpoint is well"
            )
        return [known[key] for key in keys]

    def _ask_and_keep(
        self, key: str, image_HW3: np.ndarray, question: str, candidates: Sequence[str]
    ) -> Answer | _Failed:
        for attempt in range(self.tries):
            try:
                answer = read_reply(self._post(request_body(self.model, image_HW3, question)), candidates)
            except _Failed as error:
                failed = error
                if not error.again:
                    break
                if attempt + 1 < self.tries:
                    time.sleep(self.pause * 2**attempt)
            else:
                self.cache.keep(key, answer)
                return answer
        return failed

    def _post(self, body: bytes) -> bytes:
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {self.key}"} if self.key else {})
        request = urllib.request.Request(f"{self.url.rstrip('/')}/chat/completions", data=body, headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=self.timeout) as reply:
                return reply.read(MAX_REPLY)
        except urllib.error.HTTPError as error:
            raise _Failed(f"HTTP {error.code} {error.reason}", again=error.code in TRY_AGAIN) from error
        except (OSError, HTTPException) as error:  # refused, reset, timed out, cut off
            raise _Failed(f"{type(error).__name__}: {error}", again=True) from error


def request_body(model: str, image_HW3: np.ndarray, question: str) -> bytes:
    """Return the request: the picture as PNG, then the question; one token, the likeliest, with its rivals."""
    buffer = io.BytesIO()
    Image.fromarray(image_HW3).save(buffer, "PNG")
    picture = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    content = [{"type": "image_url", "image_url": {"url": picture}}, {"type": "text", "text": question}]
    return json.dumps(
        {
            "model": model,
            "messages": [{"role": "user", "content": content}],
            "max_tokens": 1,
            "temperature": 0,
            "logprobs": True,
            "top_logprobs": TOP,
        }
    ).encode()


def read_reply(reply: bytes, candidates: Sequence[str]) -> Answer:
    """Return the answer in a server's reply; a candidate that is none of the tokens told has mass 0.

    Raises: _Failed where the reply is none, or a question of yes or no is answered by neither."""
    try:
        choice = json.loads(reply)["choices"][0]
        text = choice["message"]["content"]
        told = (choice.get("logprobs") or {}).get("content")
        masses = None
        if told:
            rivals = {str(one["token"]): math.exp(float(one["logprob"])) for one in told[0]["top_logprobs"]}
            masses = tuple(rivals.get(candidate, 0.0) for candidate in candidates)
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, OverflowError) as error:
        raise _Failed(f"a reply that is no chat completion: {reply[:60]!r}", again=True) from error
    if not isinstance(text, str) or not text.strip():
        raise _Failed("an empty answer", again=True)
    if masses is not None and not all(0 <= mass <= 1.001 for mass in masses):  # NaN is neither
        raise _Failed("a probability that is not between 0 and 1", again=True)
    answer = Answer(text, masses)
    if tuple(candidates) == YES_OR_NO:
        try:
            yes_or_no(answer)
        except UserError as error:
            raise _Failed(str(error), again=False) from error
    return answer
