"""The endpoint answerer against a small server on this machine that can misbehave in every way that servers do."""

import json
import math
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from metrics.base import Prompt, UserError
from metrics.vqa import endpoint
from metrics.vqa.answerer import YES_OR_NO, Answer, FunctionAnswerer, ask_dpg, ask_geneval2, yes_or_no
from metrics.vqa.cache import AnswerCache, pair_key, picture_key
from metrics.vqa.endpoint import Endpoint, EndpointIdentity, read_reply


def completion(text: str, *, masses: dict[str, float] | None = None) -> bytes:
    told = [{"token": token, "logprob": math.log(mass)} for token, mass in (masses or {}).items()]
    logprobs = {"content": [{"token": text, "top_logprobs": told}]} if masses else None
    return json.dumps({"choices": [{"message": {"content": text}, "logprobs": logprobs}]}).encode()


class Server:
    """Replies by the question: "fail twice" and "never" and so on say how."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.headers: list[Any] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                question = body["messages"][0]["content"][1]["text"].partition(" Answer")[0]
                picture = body["messages"][0]["content"][0]["image_url"]["url"]
                assert picture.startswith("data:image/png;base64,")
                assert (body["max_tokens"], body["temperature"], body["top_logprobs"]) == (1, 0, 20)
                server.asked.append(question)
                server.headers.append(self.headers)
                tries = server.asked.count(question)
                match question:
                    case "fail twice" if tries <= 2:
                        return self.send_error(500)
                    case "never":
                        return self.send_error(503)
                    case "forbidden":
                        return self.send_error(401)
                    case "garbage once" if tries == 1:
                        return self.reply(b"<html>busy</html>")
                    case "garbage":
                        return self.reply(b'{"choices": []}')
                    case "empty":
                        return self.reply(completion("  "))
                    case "slow once" if tries == 1:
                        time.sleep(1.5)
                    case "no masses":
                        return self.reply(completion("Yes"))
                    case "talk":
                        return self.reply(completion("I"))
                    case "talk with masses":
                        return self.reply(completion("I", masses={"I": 0.9, "The": 0.1}))
                return self.reply(completion("yes", masses={"yes": 0.5, "Yes": 0.25, "no": 0.125}))

            def reply(self, content: bytes) -> None:
                try:
                    self.send_response(200)
                    self.send_header("Content-Length", str(len(content)))
                    self.end_headers()
                    self.wfile.write(content)
                except OSError:  # the client gave up
                    pass

            def log_message(self, *arguments: Any) -> None:
                """Say nothing."""

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.http.shutdown()
    made.http.server_close()


IMAGE = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)


def ask(server: Server, folder: Path, *questions: str, **options: Any) -> list[Answer]:
    settings = {"timeout": 0.7, "tries": 3, "pause": 0.01, "workers": 2} | options
    client = Endpoint(url=server.url, model="m", cache=AnswerCache(folder / "a.sqlite"), **settings)
    return client.answer([IMAGE] * len(questions), questions, [YES_OR_NO] * len(questions))


def test_masses_are_those_of_the_tokens_told_and_zero_beyond_them(server: Server, tmp_path: Path) -> None:
    (answer,) = ask(server, tmp_path, "plain")
    assert answer.text == "yes"
    assert answer.masses == pytest.approx((0.5, 0.25, 0, 0, 0.125, 0, 0, 0))
    assert yes_or_no(answer) == "yes"


def test_errors_timeouts_and_garbage_are_tried_again(server: Server, tmp_path: Path) -> None:
    answers = ask(server, tmp_path, "fail twice", "garbage once", "slow once")
    assert [answer.text for answer in answers] == ["yes"] * 3
    assert server.asked.count("fail twice") == 3
    assert server.asked.count("garbage once") == server.asked.count("slow once") == 2


@pytest.mark.parametrize(
    ("question", "reason", "tries"),
    [
        ("never", "HTTP 503", 3),
        ("forbidden", "HTTP 401", 1),
        ("garbage", "a reply that is no chat completion", 3),
        ("empty", "an empty answer", 3),
        ("talk", "an answer that is neither yes nor no: 'I'", 1),
        ("talk with masses", "an answer that is neither yes nor no: 'I'", 1),
    ],
)
def test_what_still_fails_is_an_error_with_counts_and_the_rest_is_kept(
    question: str, reason: str, tries: int, server: Server, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=rf"1 of 3 questions have no answer \(first: {reason}.*the others are kept"):
        ask(server, tmp_path, "a", question, "b")
    assert server.asked.count(question) == tries
    ask(server, tmp_path, "a", "b")
    assert server.asked.count("a") == server.asked.count("b") == 1


def test_a_server_that_is_not_there_is_one_clear_line(tmp_path: Path) -> None:
    gone = Endpoint(url="http://127.0.0.1:9", model="m", cache=AnswerCache(tmp_path / "a"), tries=2, pause=0.01)
    with pytest.raises(UserError, match=r"1 of 1 questions have no answer .*refused"):
        gone.answer([IMAGE], ["a"], [YES_OR_NO])


def test_an_answer_is_never_asked_twice_and_equal_pairs_once(server: Server, tmp_path: Path) -> None:
    first = ask(server, tmp_path, "a", "a", "b")
    assert sorted(server.asked) == ["a", "b"]
    assert ask(server, tmp_path, "b", "a") == [first[2], first[0]]
    assert sorted(server.asked) == ["a", "b"]


def test_the_key_covers_model_picture_size_question_and_candidates() -> None:
    keys = {
        pair_key("m", picture_key(IMAGE), "q", ("a",)),
        pair_key("n", picture_key(IMAGE), "q", ("a",)),
        pair_key("m", picture_key(IMAGE.reshape(2, 8, 3)), "q", ("a",)),
        pair_key("m", picture_key(IMAGE + 1), "q", ("a",)),
        pair_key("m", picture_key(IMAGE), "r", ("a",)),
        pair_key("m", picture_key(IMAGE), "q", ("b",)),
    }
    assert len(keys) == 6


def test_the_token_is_sent_and_not_part_of_the_identity(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask(server, tmp_path, "a", key="secret")
    assert server.headers[0]["Authorization"] == "Bearer secret"
    assert b"secret" not in (tmp_path / "a.sqlite").read_bytes()
    monkeypatch.delenv(endpoint.URL, raising=False)
    assert "set FEWSTEP_BENCH_VQA_URL" in str(EndpointIdentity().missing())
    digests = set()
    for url, model in (("http://a", "m"), ("http://b", "m"), ("http://a", "n")):
        monkeypatch.setenv(endpoint.URL, url)
        monkeypatch.setenv(endpoint.MODEL, model)
        digests.add(EndpointIdentity().digest())
    assert len(digests) == 2


def test_a_probability_that_is_none_is_refused() -> None:
    told = {"content": [{"top_logprobs": [{"token": "yes", "logprob": float("nan")}]}]}
    reply = json.dumps({"choices": [{"message": {"content": "yes"}, "logprobs": told}]}).encode()
    with pytest.raises(endpoint._Failed, match="not between 0 and 1"):
        read_reply(reply, ["yes"])


DPG = Prompt(
    text="p",
    metadata={
        "questions": [
            {"id": 1, "question": "is it red?", "dependency": "0", "tuple": "attribute - color (red)"},
            {"id": 2, "question": "a dog?", "dependency": "0", "tuple": "entity - whole (dog)"},
        ]
    },
)


def test_benchmarks_ask_every_question_of_every_picture_in_one_call() -> None:
    calls: list[tuple[int, str]] = []

    def answer(image: np.ndarray, question: str, candidates: Any) -> Answer:
        calls.append((int(image[0, 0, 0]), question))
        red = "red" in question
        return Answer(
            "Yes" if red else "No", (0.6, 0.1, 0, 0, 0.2, 0, 0, 0.05) if red else (0.2, 0, 0, 0, 0.3, 0, 0, 0)
        )

    found = ask_dpg(FunctionAnswerer(answer), [IMAGE, IMAGE + 9], [DPG, DPG])
    assert found == [{1: "yes", 2: "no"}] * 2
    assert calls[0] == (0, "is it red? Answer with yes or no only.")
    assert [image for image, _ in calls] == [0, 0, 9, 9]


def test_geneval2_needs_masses_and_dpg_can_do_with_text(server: Server, tmp_path: Path) -> None:
    prompt = Prompt(text="p", metadata={"vqa_list": [["no masses", "Yes"]], "skills": ["object"]})
    client = Endpoint(url=server.url, model="m", cache=AnswerCache(tmp_path / "a.sqlite"), tries=1)
    with pytest.raises(UserError, match="an endpoint needs logprobs"):
        ask_geneval2(client, [IMAGE], [prompt])
    assert yes_or_no(Answer(" Yes")) == "yes"
    assert yes_or_no(Answer("**No.** There is none")) == "no"
    assert yes_or_no(Answer("yes", (0.25, 0, 0, 0, 0.25, 0, 0, 0))) == "no"  # a tie, as specified
    texts = ("I see", "Not sure", "none", "...", "")
    for neither in (*map(Answer, texts), Answer("", ()), Answer("I", (0.0,) * 8)):
        with pytest.raises(UserError, match="neither yes nor no"):
            yes_or_no(neither)


def test_geneval2_sums_the_spellings_of_the_right_answer(server: Server, tmp_path: Path) -> None:
    prompt = Prompt(text="p", metadata={"vqa_list": [["plain", "Yes"]], "skills": ["object"]})
    client = Endpoint(url=server.url, model="m", cache=AnswerCache(tmp_path / "a.sqlite"))
    (((only,)),) = ask_geneval2(client, [IMAGE], [prompt])
    assert (only.text, only.mass) == ("yes", pytest.approx(0.75))
