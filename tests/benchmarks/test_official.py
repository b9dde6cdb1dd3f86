"""The official packages on a run's pictures: started in a process of their own, with stand-ins for the packages."""

import io
import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import official
from benchmarks.official import PACKAGED, Comparison, run_official
from benchmarks.prompts import PromptSet, as_prompt
from benchmarks.rows import read_rows, write_rows
from benchmarks.store import ImageSet, Run
from benchmarks.verify import open_run
from metrics.base import UserError
from tests.benchmarks.conftest import PROMPTS

ROOT = Path(__file__).resolve().parents[2]
HERE = (sys.executable, "-m", "benchmarks.official_packages")

# What both stand-ins compute: mean of the red channel times the one weight, plus the number of the prompt's letters.
TORCH = """
import json
from pathlib import Path

class cuda:
    is_available = staticmethod(lambda: False)

def load(path, map_location, weights_only=True):
    return json.loads(Path(path).read_text())

def no_grad():
    return lambda function: function
"""
IMAGE_REWARD = """
from pathlib import Path
from types import SimpleNamespace
from PIL import ImageStat

class ImageReward:
    def __init__(self, med_config, device):
        assert Path(med_config).is_file() and Path("bert-base-uncased/vocab.txt").read_text() == "[PAD]"
        self.evaluated = False

    def to(self, device):
        return self

    def eval(self):
        self.evaluated = True

    def load_state_dict(self, state, strict):
        self.scale = state.get("scale")
        missing, other = {"scale", "position_ids"} - set(state), set(state) - {"scale"}
        return SimpleNamespace(missing_keys=sorted(missing), unexpected_keys=sorted(other))

    def score(self, prompt, images):
        assert self.evaluated
        values = [ImageStat.Stat(image).mean[0] * self.scale + len(prompt) for image in images]
        return values if len(values) > 1 else values[0]
"""
HPS = """
import torch
from PIL import ImageStat
model_dict = {}

def score(images, prompt, cp=None, hps_version="v2.0"):
    assert set(model_dict) == {"model", "preprocess_val"} and ("2.1" in cp) == (hps_version == "v2.1")
    scale = torch.load(cp, map_location="cpu")["state_dict"]["scale"]
    with open(LOG, "a") as log:
        log.write(f"{prompt}\\n")
    if prompt in FAILS and len(images) >= FAILS[prompt]:
        raise RuntimeError("stack expects each tensor to be equal size\\nand more")
    return [ImageStat.Stat(image).mean[0] * scale + len(prompt) for image in images]
"""
OPEN_CLIP = """
def create_model_and_transforms(name, pretrained, **more):
    assert (name, pretrained, more["light_augmentation"]) == ("ViT-H-14", None, True)
    return "model", None, "preprocess"
"""


@pytest.fixture
def drawn(tmp_path: Path) -> Path:
    """A drawn run of 5 prompts with 2 pictures each, in blocks that cut prompts apart."""
    prompts = PromptSet("few", tuple(as_prompt(record, "test", "") for record in PROMPTS))
    image_set = ImageSet(name="few", prompts=prompts, images_per_prompt=2, protocol=None)
    run = Run.open(
        tmp_path / "run", model={"name": "m", "weights_digest": "0"}, suite="few", sets=[image_set], block_size=3
    )
    generator = np.random.default_rng(0)
    for block in range(run.count_blocks(image_set)):
        contents = []
        for _ in run.block(image_set, block):
            file = io.BytesIO()
            Image.fromarray(generator.integers(0, 256, (8, 12, 3), dtype=np.uint8)).save(file, "png")
            contents.append(file.getvalue())
        run.keep_pictures(image_set, block, contents)
    return run.path


def write_weights(folder: Path, identity: str, name: str, content: object) -> None:
    (folder / identity).mkdir(parents=True, exist_ok=True)
    (folder / identity / name).write_text(json.dumps(content))


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Files under the manifest's names; the stand-ins read one number of each."""
    folder = tmp_path / "weights"
    write_weights(folder, "image-reward-v1", "ImageReward.pt", {"scale": 0.5})
    write_weights(folder, "hps-v2", "HPS_v2_compressed.pt", {"state_dict": {"scale": 0.25}})
    write_weights(folder, "hps-v2.1", "HPS_v2.1_compressed.pt", {"state_dict": {"scale": 0.125}})
    (folder / "bert-base-uncased-vocab").mkdir()
    (folder / "bert-base-uncased-vocab" / "vocab.txt").write_text("[PAD]")
    monkeypatch.setenv("FEWSTEP_BENCH_WEIGHTS", str(folder))
    monkeypatch.setenv("FEWSTEP_BENCH_SYNTHETIC", "1")
    return folder


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stand-ins on the other process's path; the parents' __init__ files fail, as image-reward's would."""
    home = tmp_path / "site"
    for path, text in {
        "torch.py": TORCH,
        "ImageReward/__init__.py": "raise ImportError('datasets')",
        "ImageReward/models/__init__.py": "raise ImportError('clip')",
        "ImageReward/ImageReward.py": IMAGE_REWARD,
        "hpsv2/__init__.py": "",
        "hpsv2/img_score.py": f"LOG, FAILS = {str(tmp_path / 'log')!r}, {{}}\n{HPS}",
        "hpsv2/src/__init__.py": "",
        "hpsv2/src/open_clip/__init__.py": OPEN_CLIP,
        "open_clip/__init__.py": "",
        "open_clip/bpe_simple_vocab_16e6.txt.gz": "",
        "image_reward-1.5.dist-info/METADATA": "Metadata-Version: 2.1\nName: image-reward\nVersion: 1.5\n",
        "hpsv2-1.2.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: hpsv2\nVersion: 1.2.0\n",
        "transformers/__init__.py": "",
        "transformers/modeling_utils.py": "",
        "transformers/pytorch_utils.py": "apply_chunking_to_forward = prune_linear_layer = None\n"
        "find_pruneable_heads_and_indices = None\n",
    }.items():
        (home / path).parent.mkdir(parents=True, exist_ok=True)
        (home / path).write_text(text)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(home), str(ROOT)]))
    return home


def expected(run: Path, scale: float) -> np.ndarray:
    opened, (image_set,) = open_run(run)
    values = []
    for item in image_set.items:
        picture = np.asarray(Image.open(opened.image(image_set.name, item)).convert("RGB"))
        values.append(picture[..., 0].mean() * scale + len(item.prompt.text))
    return np.asarray(values, np.float32)


def evidence(run: Path, metric: str) -> np.ndarray:
    opened, (image_set,) = open_run(run)
    rows = read_rows(opened.evidence(image_set.name, metric), image_set.items, {"metric": metric})
    assert isinstance(rows["score"], torch.Tensor)
    return rows["score"].numpy()


def test_the_packages_numbers_become_evidence_of_the_run(drawn: Path, weights: Path, packages: Path) -> None:
    found = run_official(drawn, command=HERE)
    assert [one.metric for one in found] == list(PACKAGED)
    for one, scale in zip(found, (0.5, 0.25, 0.125), strict=True):
        assert not one.failed
        assert evidence(drawn, one.metric) == pytest.approx(expected(drawn, scale), rel=1e-6)
        assert one.official == pytest.approx(expected(drawn, scale).mean(), rel=1e-6)
        assert one.native is None
        assert PACKAGED[one.metric].native in one.reason


def test_evidence_names_weights_and_versions(drawn: Path, weights: Path, packages: Path) -> None:
    import pyarrow.parquet as pq

    run_official(drawn, ["hps_v2.package"], HERE)
    opened, (image_set,) = open_run(drawn)
    stated = pq.read_schema(opened.evidence(image_set.name, "hps_v2.package")).metadata
    assert stated[b"weights_digest"].decode() == PACKAGED["hps_v2.package"].digest()
    assert b"hpsv2 1.2.0" in stated[b"packages"] and b"torch" in stated[b"packages"]
    assert stated[b"precision"] == b"float32"


def test_the_difference_to_the_native_metric_is_told(drawn: Path, weights: Path, packages: Path) -> None:
    from benchmarks.score import identify
    from metrics.loaded import Scorer

    opened, (image_set,) = open_run(drawn)
    identity = identify("hps_v2", Scorer(["hps_v2"]))
    native = torch.from_numpy(expected(drawn, 0.25))
    native[3] += 0.5
    write_rows(opened.evidence(image_set.name, "hps_v2"), image_set.items, {"score": native}, identity)
    (one,) = run_official(drawn, ["hps_v2.package"], HERE)
    assert (one.reason, one.failed) == ("", False)
    assert one.largest_difference == pytest.approx(0.5, abs=1e-5)
    assert one.native == pytest.approx(native.mean().item(), rel=1e-6)


def test_what_is_scored_is_not_scored_again(drawn: Path, weights: Path, packages: Path, tmp_path: Path) -> None:
    run_official(drawn, ["hps_v2.package"], HERE)
    opened, (image_set,) = open_run(drawn)
    asked = (tmp_path / "log").read_text()
    assert len(asked.splitlines()) == 5
    run_official(drawn, ["hps_v2.package"], ["false"])  # the evidence stands: nothing is started
    opened.evidence(image_set.name, "hps_v2.package").unlink()
    rows = drawn / "official" / "hps_v2.package.jsonl"
    lines = rows.read_bytes().splitlines(keepends=True)
    rows.write_bytes(b"".join(lines[:-1]) + lines[-1][:7])  # as a kill leaves it
    run_official(drawn, ["hps_v2.package"], HERE)
    assert (tmp_path / "log").read_text().splitlines() == [*asked.splitlines(), asked.splitlines()[-1]]
    assert evidence(drawn, "hps_v2.package") == pytest.approx(expected(drawn, 0.25), rel=1e-6)


def test_other_weights_are_scored_anew(drawn: Path, weights: Path, packages: Path) -> None:
    run_official(drawn, ["hps_v2.package"], HERE)
    write_weights(weights, "hps-v2", "HPS_v2_compressed.pt", {"state_dict": {"scale": 2.0}})
    (one,) = run_official(drawn, ["hps_v2.package"], HERE)
    assert one.failed
    assert "delete the file" in one.reason
    opened, (image_set,) = open_run(drawn)
    opened.evidence(image_set.name, "hps_v2.package").unlink()
    run_official(drawn, ["hps_v2.package"], HERE)
    assert evidence(drawn, "hps_v2.package") == pytest.approx(expected(drawn, 2.0), rel=1e-6)


def fail(packages: Path, prompt: str, pictures: int) -> None:
    path = packages / "hpsv2" / "img_score.py"
    path.write_text(path.read_text().replace("{}\n", f"{{{prompt!r}: {pictures}}}\n", 1))


def test_a_picture_the_package_fails_on_is_named(drawn: Path, weights: Path, packages: Path) -> None:
    fail(packages, "a red square", 1)
    found = run_official(drawn, ["hps_v2.package", "image_reward.package"], HERE)
    hps, reward = found
    assert hps.failed
    assert "colors-2/0.png: RuntimeError: stack expects" in hps.reason
    assert "and more" not in hps.reason
    assert not reward.failed


def test_pictures_are_tried_alone_where_together_they_fail(drawn: Path, weights: Path, packages: Path) -> None:
    fail(packages, "a red square", 2)
    (one,) = run_official(drawn, ["hps_v2.package"], HERE)
    assert not one.failed
    assert evidence(drawn, "hps_v2.package") == pytest.approx(expected(drawn, 0.25), rel=1e-6)


def test_another_models_weights_are_refused(
    drawn: Path, weights: Path, packages: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    write_weights(weights, "image-reward-v1", "ImageReward.pt", {"other": 1})
    (one,) = run_official(drawn, ["image_reward.package"], HERE)
    assert one.failed
    assert "exit code 1" in one.reason
    assert "not the weights of ImageReward (2 other keys, first scale)" in capfd.readouterr().err


def test_missing_weights_leave_the_others(drawn: Path, weights: Path, packages: Path) -> None:
    (weights / "hps-v2.1" / "HPS_v2.1_compressed.pt").unlink()
    (weights / "image-reward-v1" / "ImageReward.pt").unlink()
    by_metric = {one.metric: one for one in run_official(drawn, command=HERE)}
    assert by_metric["hps_v2.package"].official is not None
    assert "fetch hps-v2.1" in by_metric["hps_v21.package"].reason
    assert not by_metric["hps_v21.package"].failed
    (weights / "hps-v2" / "HPS_v2_compressed.pt").unlink()
    with pytest.raises(UserError, match=r"no weights for .*fetch image-reward-v1"):
        run_official(drawn, command=HERE)


def test_a_run_that_is_not_drawn_is_refused(drawn: Path, weights: Path) -> None:
    next(drawn.rglob("*.png")).unlink()
    with pytest.raises(UserError, match="1 blocks are not drawn"):
        run_official(drawn, command=["false"])


def test_damaged_answers_are_refused(drawn: Path, weights: Path) -> None:
    rows = drawn / "official" / "hps_v2.package.jsonl"
    for answer in ("", "{}\n", '{"device": "cpu"', "[]\n"):
        rows.parent.mkdir(exist_ok=True)
        rows.write_text(answer)
        (one,) = run_official(drawn, ["hps_v2.package"], ["true"])
        assert one.failed
        assert "missing or damaged" in one.reason
    rows.write_text('{"device": "cpu", "request": {}, "versions": {}}\n')
    (one,) = run_official(drawn, ["hps_v2.package"], ["true"])
    assert "no line came back" in one.reason


def test_unknown_metrics_and_missing_tox_are_one_line(drawn: Path, weights: Path, monkeypatch) -> None:
    with pytest.raises(UserError, match=r"did you mean 'hps_v2\.package'"):
        run_official(drawn, ["hps_v2.packag"])
    monkeypatch.setattr(official.importlib.util, "find_spec", lambda name: None)
    (one,) = run_official(drawn, ["hps_v2.package"])
    assert "tox -e official -- RUN" in one.reason


def test_the_other_environment_never_imports_this_project() -> None:
    import ast

    tree = ast.parse((ROOT / "benchmarks" / "official_packages.py").read_text())
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert not {name.partition(".")[0] for name in names} & {"benchmarks", "metrics", "leaderboards", "pyarrow"}


def test_outcomes_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    official.show(
        [
            Comparison(image_set="few", metric="hps_v2.package", n_images=4, official=0.28, native=0.28,
                       largest_difference=2e-7),
            Comparison(image_set="few", metric="hps_v21.package", reason="weights missing"),
        ]
    )  # fmt: skip
    shown = capsys.readouterr().out
    assert "0.28000" in shown and "2e-07" in shown and "weights missing" in shown
