"""A base in parts on two processes: each holds its part, and what both compute together is what one computes."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from benchmarks.config import UserError, build
from metrics.base import Prompt
from tests.shrunken.families import make
from tests.trainers.forked import forked
from trainers.backbones.base import Backbone, BackboneConfig, load
from trainers.backbones.sharding import units
from trainers.base import SamplerConfig, World
from trainers.rewards import RewardBank
from trainers.rtdmd import Rtdmd, RtdmdConfig

CPU = torch.device("cpu")
FAMILIES = ["sd3", "sdxl", "flux2", "z_image", "sit"]
ROLES = ("student", "fake_score")


@contextmanager
def group(rank: int, processes: int) -> Iterator[None]:
    dist.init_process_group("gloo", rank=rank, world_size=processes)
    yield
    dist.destroy_process_group()


def backbone_of(folder: Path, family: str, **settings: Any) -> Backbone:
    torch.manual_seed(0)
    table = {"kind": family, "path": str(folder), "lora": {"rank": 2, "alpha": 4}} | settings
    backbone = load(build(BackboneConfig, table, "backbone"), CPU)
    with torch.no_grad():
        for parameter in (p for role in ROLES for p in backbone.parameters(role)):  # type: ignore[arg-type]
            parameter.add_(0.05 * torch.randn_like(parameter))
    return backbone


def answers(backbone: Backbone, prompt: str) -> list[Tensor]:
    """Return what two graphs of the student, one of the fake score and its features give, with the gradients."""
    x = torch.randn(2, *backbone.latent_shape, generator=torch.Generator().manual_seed(1))
    prompts = backbone.encode([prompt, prompt])
    first = backbone.velocity("student", x, 0.5, prompts)
    second = backbone.velocity("student", x - first.detach(), 0.3, prompts)
    with torch.no_grad():
        teacher = backbone.velocity("teacher", x, 0.5, prompts, 2.0)
    backbone.velocity("fake_score", x, 0.5, prompts).square().mean().backward()  # while the student's graphs wait
    ((first - teacher) ** 2 + second**2).mean().backward()
    hidden = backbone.features("fake_score", x.requires_grad_(), 0.5, prompts)
    hidden.square().mean().backward(inputs=[x])  # begins within the network
    assert x.grad is not None
    gradients = []
    for role in ROLES:
        found = [p.grad.flatten() for p in backbone.parameters(role) if p.grad is not None]  # type: ignore[arg-type]
        gradients.append(torch.cat(found))
    return [first.detach(), second.detach(), teacher, hidden.detach(), x.grad, *gradients]


def held(backbone: Backbone) -> int:
    """Return the bytes of the base's weights in this process."""
    base = backbone._roles.base_state().values()  # type: ignore[attr-defined]
    own = [tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in base]
    return sum({t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in own}.values())


def digest(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_two_halves_answer_as_the_whole(family: str, checkpointing: bool, tmp_path: Path) -> None:
    if checkpointing and family == "flux2":
        pytest.skip("its blocks are those of sd3 and z_image to the engine")
    folder, prompt = make(family, tmp_path / family), "207" if family == "sit" else "a red circle"
    backbone = backbone_of(folder, family)
    whole, expected, teacher = held(backbone), answers(backbone, prompt), backbone.teacher_digest()
    backbone.export(tmp_path / "merged-whole", "merged", "bfloat16")
    backbone.export(tmp_path / "lora-whole", "lora", "float32")

    def work(rank: int) -> None:
        with group(rank, 2):
            mine = backbone_of(folder, family, sharded=True, gradient_checkpointing=checkpointing)
            assert held(mine) <= 0.55 * whole  # odd sizes are rounded up, single numbers stay whole
            for found, wanted in zip(answers(mine, prompt), expected, strict=True):
                assert (found - wanted).norm() <= 1e-5 * wanted.norm()
            assert held(mine) <= 0.55 * whole  # nothing that was gathered has stayed
            assert mine.teacher_digest() == teacher
            for weights, dtype in (("merged", "bfloat16"), ("lora", "float32")):
                mine.export(None if rank else tmp_path / f"{weights}-parts", weights, dtype)

    assert forked(2, work) == [0, 0]
    for weights in ("merged", "lora"):
        assert digest(tmp_path / f"{weights}-parts") == digest(tmp_path / f"{weights}-whole")


def test_no_block_but_one_is_whole_at_a_time(tmp_path: Path) -> None:
    """Counted inside every block's own call, forward, and where its backward begins."""
    folder = make("sd3", tmp_path / "sd3")

    def work(rank: int) -> None:
        with group(rank, 2):
            backbone = backbone_of(folder, "sd3", sharded=True)
            network, seen = backbone.pipeline.transformer, list[int]()  # type: ignore[attr-defined]
            blocks = list(network.transformer_blocks)

            def look(*_: Any) -> None:
                weights = [block.attn.to_q.base_layer.weight for block in blocks]
                seen.append(sum(not isinstance(weight, DTensor) for weight in weights))

            for block in blocks:
                block.norm1.register_forward_hook(look)
            answers(backbone, "a red circle")
            assert seen and set(seen) == {1}

    assert forked(2, work) == [0, 0]


def test_a_process_without_images_of_its_own_goes_along(tmp_path: Path) -> None:
    """As many batches in each process; rows that count for nothing leave no trace among the passes."""

    def work(rank: int) -> None:
        with group(rank, 2):
            lists: list[Any] = [None, None]

            def gather_list(parts: list[Any]) -> list[Any]:
                dist.all_gather_object(lists, parts)
                return [one for part in lists for one in part]

            backbone = backbone_of(tmp_path / "sd3", "sd3", sharded=True)
            world = World(rank=rank, processes=2, gather_list=gather_list)
            config = RtdmdConfig(sampler=SamplerConfig(num_inference_steps=2))
            roles = Rtdmd(config, backbone, RewardBank([], {}), world).roles
            found, x = [], torch.zeros(1, *backbone.latent_shape)
            for rows, count in roles.batches(torch.arange(5 if rank else 0), 2):
                with torch.no_grad():
                    roles.velocity("student", [Prompt(text="a red circle")])(x, 0.5)
                found.append((rows.tolist(), count))
            one_by_one = [([0, 1], 2), ([2, 3], 2), ([4], 1)]
            assert found == (one_by_one if rank else [([0], 0)] * 3) and backbone.passes == (3 if rank else 0)
            assert list(roles.batches(torch.arange(0), 2)) == []  # nobody has any

    make("sd3", tmp_path / "sd3")
    assert forked(2, work) == [0, 0]


def test_every_weight_but_single_ones_lies_in_a_unit(tmp_path: Path) -> None:
    for family in FAMILIES:
        pipeline = backbone_of(make(family, tmp_path / family), family).pipeline  # type: ignore[attr-defined]
        network = pipeline.unet if family == "sdxl" else pipeline.transformer
        within = {id(p) for unit in units(network) for p in unit.parameters()}
        outside = {id(p) for p in network.parameters()} - within
        assert outside == {id(p) for p in network.parameters(recurse=False)}
        places = {id(module): n for n, module in enumerate(units(network))}
        for unit in units(network):  # the inner ones come first
            assert all(places[id(part)] <= places[id(unit)] for part in unit.modules() if id(part) in places)
        assert not any(isinstance(unit, (nn.ModuleList, nn.ModuleDict)) for unit in units(network))


def test_one_process_has_nothing_to_share(tmp_path: Path) -> None:
    folder = make("sd3", tmp_path / "sd3")
    alone, plain = (backbone_of(folder, "sd3", sharded=sharded) for sharded in (True, False))
    for found, wanted in zip(*map(partial(answers, prompt="a red circle"), (alone, plain)), strict=True):
        assert torch.equal(found, wanted)


def test_full_copies_are_not_sharded() -> None:
    with pytest.raises(UserError, match=r'sharded = true .* needs training = "lora"'):
        build(BackboneConfig, {"path": "x", "training": "full", "sharded": True}, "x.toml")
