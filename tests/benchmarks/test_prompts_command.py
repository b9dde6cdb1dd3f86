import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from benchmarks import prompts_command, sets
from benchmarks.dpg_questions import git_blob_id
from benchmarks.prompts_command import Arguments, main
from metrics.base import UserError

CONTENT = b"a red circle\na blue square\na red circle\n"
QUESTIONS = b"not read by fetch"


@pytest.fixture
def address() -> Iterator[str]:
    """A server on this machine that serves both files, and anything else under other names."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            files = {"/list.txt": CONTENT, "/q.csv": QUESTIONS, "/other.txt": b"other"}
            if self.path not in files:
                return self.send_error(404)
            self.send_response(200)
            self.send_header("Content-Length", str(len(files[self.path])))
            self.end_headers()
            self.wfile.write(files[self.path])
            return None

        def log_message(self, *arguments: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture
def declared(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    digest = hashlib.sha256(CONTENT).hexdigest()
    common = {"source": "a server", "licence": "none declared"}

    def one(file: str, **more: object) -> sets.DeclaredSet:
        return sets.DeclaredSet(file=file, **common, **more)

    table = {
        "theirs": one("theirs.txt", sha256=digest, url=f"{address}/list.txt", prompts=2, listed=3, citation="Them"),
        "moved": one("moved.txt", sha256=digest, url=f"{address}/other.txt"),
        "gone": one("gone.txt", sha256=digest, url=f"{address}/none.txt"),
        "by-hand": one("by-hand.txt"),
        "asked": one(
            "theirs.txt",
            sha256=digest,
            url=f"{address}/list.txt",
            questions=sets.Companion(file="q.csv", url=f"{address}/q.csv", git_blob=git_blob_id(QUESTIONS)),
        ),
    }
    for module in (sets, prompts_command):
        monkeypatch.setattr(module, "declared_sets", lambda: table)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.delenv("FEWSTEP_BENCH_PROMPTS", raising=False)


def run(capsys: pytest.CaptureFixture[str], folder: Path, action: str, *names: str) -> str:
    main(Arguments(action=action, names=names, prompts=folder))
    return capsys.readouterr().out


def test_a_fetched_set_is_held_to_its_digest_and_listed(
    declared: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "theirs                            2  evaluation  no " in run(capsys, tmp_path, "list")
    assert "theirs.txt (licence: none declared)" in run(capsys, tmp_path, "fetch", "theirs")
    assert (tmp_path / "theirs.txt").read_bytes() == CONTENT
    assert "(was here)" in run(capsys, tmp_path, "fetch", "theirs")
    assert "theirs                            2  evaluation  yes" in run(capsys, tmp_path, "list")
    described = run(capsys, tmp_path, "describe", "theirs")
    assert "prompts: 2; listed: 3, of which repeated: 1" in described
    assert "citation: Them" in described
    assert run(capsys, tmp_path, "verify", "theirs") == "theirs: as declared\n"


def test_questions_are_fetched_with_their_prompts(
    declared: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(capsys, tmp_path, "fetch", "asked")
    assert (tmp_path / "q.csv").read_bytes() == QUESTIONS


def test_a_shipped_set_whose_questions_are_not_is_listed_as_that(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = next(line for line in run(capsys, tmp_path, "list").splitlines() if line.startswith("dpg "))
    assert line.split() == ["dpg", "1,065", "evaluation", "questions:", "no", "Apache-2.0"]
    assert "dpg: questions not here\n" in run(capsys, tmp_path, "verify")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("moved",), r"other.txt: served another file .sha256 .* nothing was written"),
        (("gone",), "none.txt: cannot be fetched .*404"),
        (("by-hand",), r"no address to fetch from; save it as by-hand.txt"),
        (("thiers",), "unknown prompt set 'thiers'; did you mean 'theirs'"),
        ((), "fetch: name a prompt set"),
    ],
)
def test_what_cannot_be_fetched_is_one_clear_line(
    names: tuple[str, ...], message: str, declared: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError, match=message):
        run(capsys, tmp_path, "fetch", *names)
    assert not list(tmp_path.iterdir())


def test_offline_nothing_is_fetched(declared: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match="HF_HUB_OFFLINE is set"):
        main(Arguments(action="fetch", names=("theirs",), prompts=tmp_path))


def test_verify_reads_what_is_here_and_counts_what_is_wrong(
    declared: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "theirs: not here" in run(capsys, tmp_path, "verify")
    (tmp_path / "theirs.txt").write_bytes(b"another\n")
    with pytest.raises(UserError, match="2 prompt sets are not what they should be"):
        run(capsys, tmp_path, "verify")


def test_a_sample_is_the_same_wherever_it_is_taken(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    records = [{"caption": f"a  prompt {n % 40}\n"} for n in range(60)]  # 40 distinct ones
    taken = []
    for order in (records, records[::-1]):
        (tmp_path / "large.json").write_text(json.dumps(order))
        (tmp_path / "training.txt").write_text("a prompt 7\na prompt 8\n")
        options = {"without": (str(tmp_path / "training.txt"),), "take": 30, "out": tmp_path / "some.txt"}
        main(Arguments(action="sample", names=(f"{tmp_path / 'large.json'}#caption",), **options))
        taken.append((tmp_path / "some.txt").read_text().splitlines())
        digest = hashlib.sha256((tmp_path / "some.txt").read_bytes()).hexdigest()
        assert f"30 of 60 prompts, sha256 {digest}" in capsys.readouterr().out
    assert taken[0] == taken[1] == sorted(set(taken[0])) and len(taken[0]) == 30
    assert not {"a prompt 7", "a prompt 8"} & set(taken[0])
    left = sorted({f"a prompt {n}" for n in range(40)} - {"a prompt 7", "a prompt 8"})
    chosen = np.random.default_rng(0).choice(38, 30, replace=False)
    assert taken[0] == sorted(left[index] for index in chosen)


def test_what_cannot_be_sampled_is_one_clear_line(tmp_path: Path) -> None:
    path = tmp_path / "two.txt"
    path.write_text("a\nb\n")
    with pytest.raises(UserError, match="--take 1000: there are 2 distinct prompts"):
        main(Arguments(action="sample", names=(str(path),), out=tmp_path / "o.txt"))
    for names, out in (((), "o.txt"), ((str(path),), "o.jsonl"), ((str(path), str(path)), "o.txt")):
        with pytest.raises(UserError, match="sample: name one prompt set, and a text file to write"):
            main(Arguments(action="sample", names=names, out=tmp_path / out))
    assert sorted(tmp_path.iterdir()) == [path]


def test_a_file_of_ones_own_is_described_and_verified(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text('{"prompt": "a", "tag": "x"}\n{"prompt": "b", "tag": "x"}\n')
    assert "categories: x 2" in run(capsys, tmp_path, "describe", str(path))
    assert "as declared" in run(capsys, tmp_path, "verify", str(path))
