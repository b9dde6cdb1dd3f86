"""Functions as models: pictures from (prompts, generators), benchmarked like any other."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from benchmarks.functions import FunctionModel, open_function
from benchmarks.models import open_model
from benchmarks.workflow import Settings, evaluate
from leaderboards.schema import read_result
from metrics.base import UserError

SOURCE = """
import torch
from PIL import Image

def draw(prompts, generators):
    return torch.stack([torch.rand(3, 16, 16, generator=g) * ("red" in p) for p, g in zip(prompts, generators)])

def pil(prompts, generators):
    return [Image.new("L", (16, 16), 7) for _ in prompts]

def one_too_few(prompts, generators):
    return draw(prompts, generators)[1:]

def too_bright(prompts, generators):
    return 255 * draw(prompts, generators)

def names(prompts, generators):
    return prompts

number = 3
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "my_painter.py"
    path.write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "my_painter", raising=False)
    return path


def opened(function: str) -> FunctionModel:
    model = open_model(f"my_painter:{function}")
    assert isinstance(model, FunctionModel)
    return model


def test_a_function_is_benchmarked_whatever_the_size_of_blocks(
    module: Path, suite: Path, settings: Callable[..., Settings]
) -> None:
    def pictures(out: str) -> dict[str, bytes]:
        folder = suite.parent / out / "toys" / "images"
        return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.png")}

    result = evaluate("my_painter:draw", str(suite), settings("threes"))
    assert result.model.name == "my_painter--draw" and result.cost.nfe is None
    assert result.tasks[0].protocol == {} and result.tasks[0].metrics["toy_redness"].status == "ok"
    evaluate("my_painter:draw", str(suite), settings("ones", batch_size=1))
    assert pictures("threes") == pictures("ones") and len(pictures("ones")) == 10
    again = evaluate("my_painter:draw", str(suite), settings("threes"))
    assert again.model == read_result(suite.parent / "threes" / "result.json").model


def test_pil_images_become_rgb(module: Path) -> None:
    assert [image.getpixel((0, 0)) for image in opened("pil").draw(["a", "b"], [])] == [(7, 7, 7)] * 2


@pytest.mark.parametrize(
    ("function", "message"),
    [("one_too_few", r"not \[2, 3, H, W\]"), ("too_bright", "no floats in"), ("names", "not of PIL images")],
)
def test_what_is_no_picture_is_refused(module: Path, function: str, message: str) -> None:
    generators = [torch.Generator().manual_seed(n) for n in range(2)]
    with pytest.raises(UserError, match=message):
        opened(function).draw(["a red dot", "a red line"], generators)


def test_the_digest_follows_source_and_weights(module: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = opened("draw").digest
    assert first != opened("pil").digest
    weights = module.parent / "weights.bin"
    weights.write_bytes(b"1")
    module.write_text(SOURCE + f"\ndraw.weights = [{str(weights)!r}]\n")
    monkeypatch.delitem(sys.modules, "my_painter")
    second = opened("draw").digest
    weights.write_bytes(b"2")
    assert len({first, second, opened("draw").digest}) == 3


def test_faults_are_one_line(module: Path, suite: Path, settings: Callable[..., Settings]) -> None:
    assert open_function("org/name", None) is None
    with pytest.raises(UserError, match="cannot import no_such_module"):
        open_model("no_such_module:draw")
    with pytest.raises(UserError, match="has no function 'number'"):
        open_model("my_painter:number")
    with pytest.raises(UserError, match="has no protocol, and so no num_inference_steps to change"):
        from benchmarks.plan import Overrides

        evaluate("my_painter:draw", str(suite), settings("run", overrides=Overrides(steps=2)))
