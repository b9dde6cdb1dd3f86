"""What a training will cost, before it is started: passes, operations, memory, hours on a stated device.

    operations  = sum over calls of images x operations of an image by that kind of call
    memory      = frozen weights + trained ones with gradients, Adam's moments and EMA
                  + images whose graphs are alive at once x what such a graph saves
    hours       = operations / (EFFICIENCY x the device's peak x processes)

Calls are those of the method's own steps, taken on a backbone without a network (trainers/rehearsal.py). Operations
and saved tensors of one image are counted by torch while the family's real modules, at true size and with the run's
adapters, run forward and backward on tensors without contents (device "meta"). Attention saves what a fused kernel
does. Not counted: text encoders (a prompt is encoded once), the rewards' own networks, the canary, the optimiser.
"""

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import checkpoints
from benchmarks.config import UserError, located
from benchmarks.estimate import EFFICIENCY, Device, find_device, without_contents
from benchmarks.models import Pipeline
from benchmarks.protocol import Protocol
from benchmarks.screen import duration, operations_per_second, print_tables, table_of
from metrics.base import Prompt
from trainers.backbones.base import BackboneConfig
from trainers.backbones.checkpoint import open_base
from trainers.backbones.family import roles_of
from trainers.backbones.lora import ROLES
from trainers.base import Trainer, World
from trainers.config import RunConfig, stage_methods
from trainers.rehearsal import Rehearsal, rehearsed, rehearsed_rewards, samples_of

# Iterations, after as many to warm up or those that draw the teacher's samples; a multiple of most numbers of
# fake-score updates
REHEARSED = 60
BYTES = {"float32": 4, "bfloat16": 4, "float64": 8}  # of a weight in memory, by precision: bfloat16 is autocast's
GIB, TERA = 2**30, 1e12


@dataclass(frozen=True)
class ImageCosts:
    """One image: operations by kind of call, bytes that a graph saves, numbers that a role trains."""

    operations: Mapping[str, int]
    saved: Mapping[str, int]
    trained: Mapping[str, int]
    counted: bool  # by torch; else 2 x parameters x tokens, and nothing is known of graphs


@dataclass(frozen=True)
class StagePlan:
    """One stage, of all processes together; bytes are those of one."""

    name: str
    iterations: int
    passes: int
    operations: int
    bytes: int

    def seconds(self, device: Device, processes: int) -> float:
        """Return how long the stage takes."""
        return self.operations / (EFFICIENCY * device.operations * processes)


def plan_training(method: str, run: RunConfig, where: str) -> tuple[list[StagePlan], ImageCosts]:
    """Return the plan of every stage. Raises UserError as a start of the run would, for settings and base model."""
    model = open_base(run.backbone)
    start = run.backbone.student_path
    if start and not Path(start).exists():
        raise UserError(f"{start}: no such folder or file; backbone.student_path names what the student starts from")
    protocol, costs = model.protocol, count_image(model, run.backbone, model.protocol)
    methods = stage_methods(method, run, where)
    held = {decodes: _held_bytes(model, run.backbone, run.processes or 1, decodes) for decodes in (False, True)}
    stages = []
    for name, (kind, settings) in methods.items():
        with located(f"{where}: stages.{name}"):
            stages.append(_plan_stage(name, kind, settings, run, protocol, costs, held))
    return stages, costs


def _plan_stage(
    name: str,
    kind: type[Trainer],
    settings: Any,
    run: RunConfig,
    protocol: Protocol,
    costs: ImageCosts,
    held: Mapping[bool, int],
) -> StagePlan:
    """held: bytes of the frozen pipeline, by whether the stage decodes."""
    stage, processes = run.stages[name], run.processes or 1
    backbone = Rehearsal(run.backbone, protocol)
    rewards, world = rehearsed_rewards(run.rewards), World(f"{run.seed}/{name}")
    samples = samples_of(settings)
    if samples:  # all processes draw them together
        samples = replace(samples, count=-(-samples.count // processes))
        settings = replace(settings, teacher_samples=samples)
    with rehearsed(kind, settings, backbone, rewards, world) as trainer:
        drawing = -(-samples.count // trainer.prompts_per_step) if samples else 0
        most = REHEARSED + max(REHEARSED, drawing)
        asked, passes = _rehearse(trainer, backbone, min(stage.iterations or most, most))
    within = _iterations_within(stage.budget_passes / processes, passes) if stage.budget_passes else stage.iterations
    iterations = min(stage.iterations or within, within)
    operations = [sum(count * costs.operations[kind] for kind, count in calls.items()) for calls in asked]
    decodes = any(backbone.asked[kind] for kind in ("decode", "decode_graph"))
    trained = _trained_bytes(trainer, backbone, costs, run.backbone)
    return StagePlan(
        name,
        iterations,
        round(_extrapolated(passes, iterations)) * processes,
        round(_extrapolated(operations, iterations)) * processes,
        held[decodes] + trained + _graph_bytes(backbone, costs),
    )


def _rehearse(trainer: Trainer, backbone: Rehearsal, iterations: int) -> tuple[list[Counter[str]], list[int]]:
    """Return the calls and the passes of every iteration."""
    asked, passes = list[Counter[str]](), list[int]()
    for iteration in range(iterations):
        calls, before = backbone.asked.copy(), backbone.passes
        prompts = [Prompt(text=f"{iteration}-{row}") for row in range(trainer.prompts_per_step)]
        trainer.step(prompts, iteration)
        backbone.alive.clear()  # graphs that nobody went back through are gone with the step
        asked.append(backbone.asked - calls)
        passes.append(backbone.passes - before)
    return asked, passes


def _iterations_within(budget: float, passes: list[int]) -> int:
    """Return after how many iterations a budget is spent, of the passes of the first ones: the last of them go on."""
    for count, spent in enumerate(accumulate(passes), 1):
        if spent >= budget:
            return count
    return len(passes) + math.ceil((budget - sum(passes)) / _mean(passes[-REHEARSED:]))


def _extrapolated(values: list[int], iterations: int) -> float:
    """Return the sum over all iterations of values of the first ones: the last of them go on."""
    known = values[:iterations]
    return sum(known) + (iterations - len(known)) * _mean(values[-REHEARSED:])


def _mean(values: list[int]) -> float:
    return sum(values) / len(values)


def _held_bytes(model: Pipeline, settings: BackboneConfig, processes: int, decodes: bool) -> int:
    """Return the bytes of the frozen pipeline on the device of one process."""
    width = dict.fromkeys(model.components, BYTES[settings.precision])
    if settings.storage == "bfloat16":
        width[model.files.denoiser.name] = 2
    parts = dict.fromkeys(model.components, 1)
    if settings.sharded:
        parts[model.files.denoiser.name] = processes
    for name in width:
        if name.startswith("text_") and settings.offload_text_encoders:
            width[name] = 0
        if name == "vae" and settings.offload_autoencoder and not decodes:
            width[name] = 0
    held = dict(model.components)
    if settings.student_path and settings.training == "lora":
        held[model.files.denoiser.name] *= 2  # the base, and what the student's adapters lie on
    return sum(count * width[name] // parts[name] for name, count in held.items())


def _trained_bytes(trainer: Trainer, backbone: Rehearsal, costs: ImageCosts, settings: BackboneConfig) -> int:
    """Return the bytes of trained weights, their gradients, Adam's two moments, the EMA and the reference."""
    roles = trainer.roles
    student = costs.trained["student"] * (4 + bool(roles.student.ema) + backbone.has_reference)
    fake_score = costs.trained["fake_score"] * (4 if roles.has_fake_score else 1)
    return (student + fake_score) * BYTES[settings.precision]


def _graph_bytes(backbone: Rehearsal, costs: ImageCosts) -> int:
    of_network, of_decoder = costs.saved["graph"], costs.saved["decode_graph"]
    most = backbone.settings.microbatch or max((max(peak) for peak in backbone.peaks), default=0)
    alive = ((min(graphs, most), min(decoded, most)) for graphs, decoded in backbone.peaks)
    return max((graphs * of_network + decoded * of_decoder for graphs, decoded in alive), default=0)


def count_image(model: Pipeline, settings: BackboneConfig, protocol: Protocol) -> ImageCosts:
    """Return what one image costs, by torch's count on the real modules without contents."""
    decode, decode_graph, decoder_saved = _count_decoder(model, protocol)
    decoder = {"decode": decode, "decode_graph": decode_graph}
    shadow = without_contents(model, protocol)
    if shadow is None:
        once = 2 * model.parameters * (protocol.height * protocol.width // model.pixels_per_token**2)
        operations = {"teacher": once, "adapted": once, "graph": 3 * once, **decoder}
        operations |= _of_fake_score(operations)
        trained = {"student": model.parameters, "fake_score": model.parameters}  # at most
        return ImageCosts(operations, {"graph": 0, "decode_graph": decoder_saved}, trained, counted=False)
    network, inputs = shadow
    network.requires_grad_(False)
    with torch.device("meta"):
        roles = roles_of(network, settings, torch.device("meta"))
    trained = {role: sum(p.numel() for p in roles.parameters(role)) for role in ROLES}
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        roles.network("teacher")(**inputs)
    teacher = {"teacher": counter.get_total_flops()}
    # the fake score's calls are like the student's, except where the one is an adapter and the other is not
    unlike = settings.fake_score_is_adapter and settings.training != "lora"
    costs = [_count_role(roles.network(role), inputs, settings) for role in (ROLES if unlike else ROLES[:1])]
    of_student, of_fake_score = costs[0][0], _of_fake_score(costs[-1][0])
    if settings.microbatch:
        decoder["decode_graph"] += decoder["decode"]
    operations = decoder | teacher | of_student | of_fake_score
    saved = {"decode_graph": decoder_saved, "graph": max(bytes_ for _, bytes_ in costs)}
    return ImageCosts(operations, saved, trained, counted=True)


def _count_role(network: Any, inputs: Mapping[str, Any], settings: BackboneConfig) -> tuple[dict[str, int], int]:
    """Return (operations of an image's call without graph and with it, bytes that the graph saves) of a role."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(**inputs)
    adapted = counter.get_total_flops()
    with FlopCounterMode(display=False) as counter:
        network(**inputs).sample.sum().backward()
    # of a microbatch backward() runs every part once more
    graph = counter.get_total_flops() + (adapted if settings.microbatch else 0)
    if settings.precision == "bfloat16":  # what autocast saves, as near as a network of that kind comes to it
        network, inputs = network.bfloat16(), _cast(inputs, torch.bfloat16)
    with _saved_bytes(network) as seen, FusedAttention():
        network(**inputs)
    return {"adapted": adapted, "graph": graph}, sum(seen.values())


def _of_fake_score(operations: Mapping[str, int]) -> dict[str, int]:
    """Return the operations of a role's calls under the names of the fake score's."""
    return {f"fake_{kind}": operations[kind] for kind in ("adapted", "graph")}


def _count_decoder(model: Pipeline, protocol: Protocol) -> tuple[int, int, int]:
    """Return (operations of decoding an image, the same with the way back to its latents, bytes saved for that)."""
    import diffusers

    config = checkpoints.read_json(model.files.folder / "vae" / "config.json")
    with torch.device("meta"):
        vae = getattr(diffusers, str(config["_class_name"])).from_config(config).requires_grad_(False)
        side = 2 ** (len(vae.config.block_out_channels) - 1)
        z = torch.empty(1, vae.config.latent_channels, protocol.height // side, protocol.width // side)
    with torch.no_grad(), FlopCounterMode(display=False) as forward:
        vae.decode(z)
    with FlopCounterMode(display=False) as both, _saved_bytes(vae) as seen, FusedAttention():
        vae.decode(z.requires_grad_()).sample.sum().backward()
    return forward.get_total_flops(), both.get_total_flops(), sum(seen.values())


@contextmanager
def _saved_bytes(network: nn.Module) -> Iterator[dict[int, int]]:
    """Give the bytes of each storage, other than weights, that autograd saves within the context."""
    weights = {tensor.untyped_storage()._cdata for tensor in (*network.parameters(), *network.buffers())}
    seen: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            seen[storage._cdata] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield seen


class FusedAttention(TorchFunctionMode):
    """Attention as a GPU's fused kernel does it: no matrix of queries x keys is saved. Masks are ignored."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """See `torch.overrides.TorchFunctionMode`."""
        kwargs = kwargs or {}
        if func is not F.scaled_dot_product_attention:
            return func(*args, **kwargs)
        named = dict(zip(("query", "key", "value"), args, strict=False)) | kwargs
        qkv = (named["query"], named["key"], named["value"])
        return torch.ops.aten._scaled_dot_product_flash_attention(*qkv, scale=named.get("scale"))[0]


def _cast(value: Any, dtype: torch.dtype) -> Any:
    if isinstance(value, dict):
        return {key: _cast(one, dtype) for key, one in value.items()}
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value


def show_plan(method: str, run: RunConfig, where: str, device: str = "") -> None:
    """Print the plan. device: a name of benchmarks.estimate.DEVICES; "" = the present one."""
    stated, processes = find_device(device) if device else None, run.processes or 1
    stages, costs = plan_training(method, run, where)
    present = "cuda" if torch.cuda.is_available() and run.device == "auto" else "cpu"
    dtype = "bfloat16" if run.backbone.precision == "bfloat16" else "float32"
    here = stated or Device(operations_per_second(present, dtype), 0)
    shown = table_of("stage", "iterations", "passes", "TFLOP", "memory per device", "time")
    for stage in stages:
        time, gib = duration(stage.seconds(here, processes)), stage.bytes / GIB
        fits = "" if not stated else (", fits" if gib < stated.memory_gib else ", does not fit")
        shown.add_row(
            stage.name, f"{stage.iterations:,}", f"{stage.passes:,}", f"{stage.operations / TERA:,.4g}",
            f"{gib:.2f} GiB{fits}", time,
        )  # fmt: skip
    print_tables(shown)
    how = "counted by torch" if costs.counted else "put at 2 x parameters x tokens; graphs are left out of memory"
    once, trained = (costs.operations[kind] / TERA for kind in ("teacher", "graph"))
    print(f"one image: {once:.4g} TFLOP forward, {trained:.4g} forward and backward ({how})")
    total = sum(stage.seconds(here, processes) for stage in stages)
    reached = f"of the peak of {device}" if stated else f"of a matrix product's speed, measured now on {present},"
    print(f"about {duration(total)} on {processes} of them, rewards and canary aside, if {EFFICIENCY:.0%} {reached}")
    print("is reached; nothing was done")
