import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from benchmarks.config import UserError
from metrics.base import Prompt
from tests.trainers.closed_form import PointBackbone
from trainers.backbones.base import BackboneConfig, load
from trainers.base import World
from trainers.draws import Draws
from trainers.latents import Pairs, PictureLatents, TeacherSamples, TeacherSamplesConfig

MEAN, SPREAD = (1.0, -0.5), 0.5
BATCHES = [[Prompt(text=f"{batch}-{row}") for row in range(4)] for batch in range(3)]


def samples(folder: Path, backbone: PointBackbone, guidance_scale: float = 1.0, **settings: float) -> TeacherSamples:
    config = TeacherSamplesConfig(**{"count": 10, "steps": 40, "folder": str(folder)} | settings)  # type: ignore[arg-type]
    return TeacherSamples(backbone, config, guidance_scale, World())


def drawn(source: TeacherSamples, draws: Draws) -> Pairs:
    """Return what is taken while the source fills, and once it is full."""
    taken = [source.pairs(batch, draws, 5) for batch in BATCHES]
    prompts = [prompt for one in taken for prompt in one.prompts]
    return Pairs(torch.cat([one.z for one in taken]), torch.cat([one.x0 for one in taken]), prompts)


def test_a_pair_is_noise_and_where_the_teachers_ode_leads_it(tmp_path: Path) -> None:
    """The flow of N(m, s^2 I) maps z to m + s z."""
    pairs = drawn(samples(tmp_path, PointBackbone(MEAN, SPREAD), steps=300), Draws(0))
    assert torch.allclose(pairs.x0, torch.tensor(MEAN) + SPREAD * pairs.z, atol=0.02)
    texts = {tuple(z.tolist()): prompt.text for z, prompt in zip(pairs.z, pairs.prompts, strict=True)}
    assert len(texts) == len(set(texts.values())) > 5  # a prompt keeps its noise


def test_the_teachers_last_step_ends_at_level_0(tmp_path: Path) -> None:
    backbone = PointBackbone(MEAN, SPREAD)
    pairs = drawn(samples(tmp_path, backbone, steps=2, schedule="explicit_shift"), Draws(0))  # type: ignore[arg-type]
    x = pairs.z - 0.5 * backbone.velocity("teacher", pairs.z, 1.0, len(pairs.z))
    x = x - 0.5 * backbone.velocity("teacher", x, 0.5, len(x))
    assert torch.allclose(pairs.x0, x, atol=1e-5)


def test_a_prompt_that_comes_again_gets_noise_of_its_own(tmp_path: Path) -> None:
    source, draws = samples(tmp_path, PointBackbone(MEAN, SPREAD), count=8, steps=100), Draws(0)
    source.pairs(BATCHES[0], draws, 1)
    pairs = source.pairs(BATCHES[0], draws, 64)
    assert len({tuple(z.tolist()) for z in pairs.z}) == 8 and len({prompt.text for prompt in pairs.prompts}) == 4
    assert torch.allclose(pairs.x0, torch.tensor(MEAN) + SPREAD * pairs.z, atol=0.05)


def test_the_first_prompts_are_drawn_for_and_no_more_than_asked(tmp_path: Path) -> None:
    backbone = PointBackbone(MEAN, SPREAD)
    source = samples(tmp_path, backbone, count=6)
    draws, seen, passes = Draws(0), set(), []
    for batch in [*BATCHES, *BATCHES]:
        seen |= {prompt.text for prompt in source.pairs(batch, draws, 32).prompts}
        passes.append(backbone.passes)
    assert seen == {"0-0", "0-1", "0-2", "0-3", "1-0", "1-1"}
    assert passes == [4 * 40, 6 * 40, 6 * 40, 6 * 40, 6 * 40, 6 * 40]


def test_a_process_without_a_prompt_asks_as_often_and_adds_nothing(tmp_path: Path) -> None:
    """A sharded teacher needs all processes at every one of its calls."""
    backbone, asked = PointBackbone(MEAN, SPREAD), list[int]()
    source, velocity = samples(tmp_path, backbone, steps=7), backbone.velocity

    def counted(role: Any, x_t: torch.Tensor, *rest: Any, **named: Any) -> torch.Tensor:
        asked.append(len(x_t))
        return velocity(role, x_t, *rest, **named)

    backbone.velocity = counted  # type: ignore[method-assign]
    assert source._teacher_samples(torch.zeros(0, 2), []).shape == (0, 2)
    assert asked == [1] * 7


def test_guided_samples_cost_two_passes_a_step(tmp_path: Path) -> None:
    backbone = PointBackbone(MEAN, SPREAD)
    drawn(samples(tmp_path, backbone, guidance_scale=4.0), Draws(0))
    assert backbone.passes == 10 * 40 * 2


def test_a_run_that_finds_samples_takes_the_same_ones_and_counts_the_same_passes(tmp_path: Path) -> None:
    first, second = PointBackbone(MEAN, SPREAD), PointBackbone(MEAN, SPREAD)
    before = drawn(samples(tmp_path, first), Draws(0))
    files = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    second.velocity = None  # type: ignore[method-assign,assignment]  # nothing is left to draw
    after = drawn(samples(tmp_path, second), Draws(0))
    assert torch.equal(before.x0, after.x0) and torch.equal(before.z, after.z) and before.prompts == after.prompts
    assert first.passes == second.passes == 10 * 40
    next(tmp_path.iterdir()).unlink()
    again = drawn(samples(tmp_path, first), Draws(0))  # a lost file is drawn again, byte for byte
    assert torch.equal(before.x0, again.x0)
    assert files == {path.name: path.read_bytes() for path in tmp_path.iterdir()}


def test_resuming_in_the_middle_goes_on_with_the_same_pairs(tmp_path: Path) -> None:
    whole, draws = samples(tmp_path / "a", PointBackbone(MEAN, SPREAD)), Draws(0)
    whole.pairs(BATCHES[0], draws, 5)
    state, noise = whole.state_dict(), draws.state_dict()
    state = {"batches": [list(batch) for batch in state["batches"]]}
    noise = {name: one.clone() for name, one in noise.items()}
    expected = [whole.pairs(batch, draws, 5) for batch in BATCHES[1:]]
    resumed, draws = samples(tmp_path / "b", PointBackbone(MEAN, SPREAD)), Draws(0)
    resumed.load_state_dict(state)
    draws.load_state_dict(noise)
    for batch, pairs in zip(BATCHES[1:], expected, strict=True):
        found = resumed.pairs(batch, draws, 5)
        assert torch.equal(found.x0, pairs.x0) and torch.equal(found.z, pairs.z) and found.prompts == pairs.prompts


def test_whatever_decides_a_sample_decides_its_file(tmp_path: Path) -> None:
    drawn(samples(tmp_path, PointBackbone(MEAN, SPREAD)), Draws(0))
    for change in ({"steps": 41}, {"shift": 3.0}, {"seed": 1}, {"guidance_scale": 2.0}):
        before = len(list(tmp_path.iterdir()))
        drawn(samples(tmp_path, PointBackbone(MEAN, SPREAD), **change), Draws(0))  # type: ignore[arg-type]
        assert len(list(tmp_path.iterdir())) == before + 3, change
    before = len(list(tmp_path.iterdir()))
    drawn(samples(tmp_path, PointBackbone((0.0, 0.0), SPREAD)), Draws(0))  # another teacher
    assert len(list(tmp_path.iterdir())) == before + 3


def test_what_a_guided_teacher_is_guided_against_decides_too_where_it_is_not_the_models_own(tmp_path: Path) -> None:
    backbone = PointBackbone(MEAN, SPREAD)
    for unconditional, files in (("model", 1), ("zeros", 2), ("empty_prompt", 3)):
        backbone.settings = BackboneConfig(path="", unconditional=unconditional)  # type: ignore[arg-type]
        samples(tmp_path, backbone, 5.0, count=4, steps=2).pairs(BATCHES[0], Draws(0), 1)
        assert len(list(tmp_path.glob("*"))) == files
    for _ in range(2):  # without guidance it decides nothing
        samples(tmp_path, backbone, 1.0, count=4, steps=2).pairs(BATCHES[0], Draws(0), 1)
        backbone.settings = BackboneConfig(path="")
        assert len(list(tmp_path.glob("*"))) == 4


def test_all_that_decides_a_prompts_embedding_decides_too(pipeline_folder: Path, tmp_path: Path) -> None:
    """The encoders' weights, the call's arguments, and against what a guided teacher is guided."""

    def files(folder: Path, guidance_scale: float, negative: str = "", **settings: Any) -> int:
        backbone: Any = load(BackboneConfig(path=str(folder), **settings), torch.device("cpu"))
        backbone._protocol = replace(backbone.protocol(), negative_prompt=negative)
        source = samples(tmp_path / "samples", backbone, guidance_scale, count=1, steps=1)
        source.pairs([Prompt(text="a red circle")], Draws(0), 1)
        return len(list((tmp_path / "samples").iterdir()))

    assert [files(pipeline_folder, 1.0), files(pipeline_folder, 1.0, "blue")] == [1, 1]
    assert [files(pipeline_folder, 2.0), files(pipeline_folder, 2.0, "blue")] == [2, 3]
    assert files(pipeline_folder, 1.0, max_text_length=8) == 4
    other = tmp_path / "other"
    shutil.copytree(pipeline_folder, other)
    weights = next((other / "text_encoder").glob("*.safetensors"))
    save_file({name: 1.5 * tensor for name, tensor in load_file(weights).items()}, weights, {"format": "pt"})
    assert files(other, 1.0) == 5


def test_two_processes_draw_the_set_of_one_together_and_each_takes_its_rows(tmp_path: Path) -> None:
    barrier, parts = Barrier(2, timeout=300), dict[int, list[Any]]()

    def process(rank: int, folder: Path) -> tuple[Pairs, PointBackbone]:
        def gather_list(own: list[Any]) -> list[Any]:
            parts[rank] = own
            barrier.wait()
            whole = [*parts[0], *parts[1]]
            barrier.wait()
            return whole

        world, backbone = World(rank=rank, processes=2, gather_list=gather_list), PointBackbone(MEAN, SPREAD)
        # the last batch adds three pairs, which two processes cannot share evenly
        source = TeacherSamples(backbone, TeacherSamplesConfig(count=7, steps=5, folder=str(folder)), 1.0, world)
        own = slice(2 * rank, 2 * rank + 2)
        taken = [source.pairs(batch[own], Draws(0, rank, 2), 4) for batch in BATCHES]
        return taken[-1], backbone

    with ThreadPoolExecutor(2) as pool:
        one, two = pool.map(process, (0, 1), (tmp_path / "two",) * 2)
    backbone = PointBackbone(MEAN, SPREAD)
    single = samples(tmp_path / "one", backbone, count=7, steps=5)
    expected = [single.pairs(batch, Draws(0), 8) for batch in BATCHES][-1]
    assert torch.equal(torch.cat([one[0].z, two[0].z]), expected.z)
    assert torch.allclose(torch.cat([one[0].x0, two[0].x0]), expected.x0, atol=1e-6)
    assert [*one[0].prompts, *two[0].prompts] == expected.prompts
    assert one[1].passes + two[1].passes == backbone.passes and one[1].passes == 4 * 5
    names = [sorted(path.name for path in (tmp_path / name).iterdir()) for name in ("one", "two")]
    assert names[0] == names[1]  # a run that goes on with another number of processes finds them


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    drawn(samples(tmp_path, PointBackbone(MEAN, SPREAD)), Draws(0))
    path = sorted(tmp_path.iterdir())[0]
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(UserError, match=f"{path.name}: damaged"):
        drawn(samples(tmp_path, PointBackbone(MEAN, SPREAD)), Draws(0))


def test_pictures_are_cut_to_the_models_size_and_keep_their_captions(tmp_path: Path) -> None:
    Image.new("RGB", (90, 64), (255, 0, 0)).save(tmp_path / "red.png")
    (tmp_path / "red.txt").write_text("a red square\n")
    (tmp_path / "deeper").mkdir()
    Image.new("RGB", (64, 200), (0, 255, 0)).save(tmp_path / "deeper" / "green.PNG")
    (tmp_path / "notes.md").write_text("no picture")
    source = PictureLatents(PointBackbone(MEAN, SPREAD), tmp_path)  # type: ignore[arg-type]
    latents, prompts = source.take([Prompt(text="x")] * 12, Draws(0))
    assert latents.shape == (12, 2) and {prompt.text for prompt in prompts} == {"a red square", ""}
    for latent, prompt in zip(
        latents.tolist(), prompts, strict=True
    ):  # the stand-in's latents are mean red, mean green
        assert latent == ([1.0, 0.0] if prompt.text else [0.0, 1.0])


def test_a_folder_without_pictures_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no pictures"):
        PictureLatents(PointBackbone(MEAN, SPREAD), tmp_path / "nowhere")  # type: ignore[arg-type]


def test_a_folder_that_cannot_be_made_is_named_before_anything_is_drawn(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"^trainer\.teacher_samples\.folder: .*file/samples: no folder to write to"):
        samples(tmp_path / "file" / "samples", PointBackbone(MEAN, SPREAD))
