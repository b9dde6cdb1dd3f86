"""The plan of a training against the training: the same steps, counted by torch while they run."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.config import UserError, build
from benchmarks.estimate import EFFICIENCY, Device
from metrics.base import Prompt
from tests.shrunken.families import make
from tests.trainers.closed_form import ClosedFormMetric
from trainers import plan as plan_module
from trainers.backbones.base import load
from trainers.base import World, find
from trainers.config import RunConfig, stage_settings
from trainers.plan import StagePlan, plan_training
from trainers.rehearsal import RehearsedReward
from trainers.rewards import RewardBank, RewardConfig
from trainers.run import Arguments, main

CPU = torch.device("cpu")
TEXTS = ["a red circle", "a blue square", "a green cross", "two red squares"]
METHODS: dict[str, dict[str, Any]] = {
    "dmd": {"batch_size": 2, "fake_score_updates": 2, "guidance_scale": 3.0},
    "dp_dmd": {"batch_size": 2, "fake_score_updates": 1, "first_step": {"weight": 0.05, "k_anchor": 2}},
    "tdm": {"batch_size": 2, "guidance_scale": 3.0},
    "dmdr": {"phase": "joint", "batch_size": 2, "fake_score_updates": 1},
    "rtdmd": {"phase": "reinforce", "reinforce": {"groups": 2, "group_size": 3, "microbatch": 2}},
}


@pytest.fixture(autouse=True)
def brightness(monkeypatch: pytest.MonkeyPatch) -> None:
    """One reward that needs no weights, in the rehearsal as in the training."""
    card = ClosedFormMetric("redness", 0, True).card
    monkeypatch.setattr("trainers.rehearsal.make", lambda identity: type("Metric", (), {"card": card}))


def run_of(folder: Path, kind: str, trainer: dict[str, Any], **backbone: Any) -> RunConfig:
    table = {
        "name": "tiny", "device": "cpu", "stages": {"only": {"iterations": 4}}, "trainer": trainer,
        "backbone": {"kind": kind, "path": str(folder), "lora": {"rank": 2, "alpha": 4}} | backbone,
        "rewards": [{"id": "redness"}],
    }  # fmt: skip
    return build(RunConfig, table, "tiny.toml")


def counted(method: str, run: RunConfig) -> tuple[int, int, Any]:
    """Return (operations, passes, trainer) of a run's iterations on the real network."""
    backbone, kind = load(run.backbone, CPU), find(method)
    bank = RewardBank([RewardConfig(id="redness")], {"redness": RehearsedReward("redness")})  # type: ignore[dict-item]
    trainer = kind(stage_settings(run, {"only": kind.Config}, "x")["only"], backbone, bank, World("0/only"))
    texts = ["207", "3", "5", "7"] if run.backbone.kind == "sit" else TEXTS
    prompts = [Prompt(text=text) for text in texts[: trainer.prompts_per_step]]
    backbone.encode([*texts, ""])  # prompts are encoded once in a run
    with FlopCounterMode(display=False) as counter:
        for iteration in range(run.stages["only"].iterations):
            trainer.step(prompts, iteration)
    return counter.get_total_flops(), backbone.passes, trainer


@pytest.mark.parametrize("method", METHODS)
def test_passes_and_operations_are_those_of_the_training(method: str, tmp_path: Path) -> None:
    run = run_of(make("sd3-t5", tmp_path / "sd3"), "sd3", METHODS[method])
    (stage,), costs = plan_training(method, run, "x")
    operations, passes, _ = counted(method, run)
    assert stage.iterations == 4 and stage.passes == passes and costs.counted
    assert stage.operations == pytest.approx(operations, rel=0.05)


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("sdxl", {}),
        ("sd3", {"microbatch": 1}),
        ("flux2", {"gradient_checkpointing": True}),
        ("sit", {"training": "full"}),
        ("sdxl", {"training": "full", "fake_score_training": "lora"}),
        ("sd3", {"training": "full", "fake_score_training": "lora", "microbatch": 1}),
    ],
)
def test_operations_of_other_families_are_counted_on_their_own_modules(
    family: str, changes: dict[str, Any], tmp_path: Path
) -> None:
    run = run_of(make(family, tmp_path / family), family, METHODS["dmd"], **changes)
    (stage,), _ = plan_training("dmd", run, "x")
    operations, passes, _ = counted("dmd", run)
    assert stage.passes == passes and stage.operations == pytest.approx(operations, rel=0.05)


def test_a_long_stage_goes_on_as_its_rehearsal_does(tmp_path: Path) -> None:
    run = run_of(make("sd3", tmp_path / "sd3"), "sd3", METHODS["dmdr"])
    ten_thousand = replace(run, stages={"only": replace(run.stages["only"], iterations=10_000)})
    (short,), _ = plan_training("dmdr", run, "x")
    (long,), _ = plan_training("dmdr", ten_thousand, "x")
    first = 2 * 4 + 2 * 2  # no update of the student yet: its rollout, and the fake score's graph
    assert long.passes == 9999 * (short.passes - first) // 3 + first


@pytest.mark.parametrize(("training", "fake_score"), [("lora", ""), ("full", ""), ("full", "lora")])
def test_memory_of_weights_is_that_of_the_training(training: str, fake_score: str, tmp_path: Path) -> None:
    changes = {"training": training, "fake_score_training": fake_score}
    run = run_of(make("sd3", tmp_path / "sd3"), "sd3", METHODS["dmd"], **changes)
    (stage,), costs = plan_training("dmd", run, "x")
    _, _, trainer = counted("dmd", run)
    learners = trainer.roles.student, trainer.roles.fake_score
    moments = [v for one in learners for s in one._optimiser.state.values() for v in s.values() if v.dim()]
    trained = [p for one in learners for p in one.parameters]
    tensors = [*trained, *trained, *moments, *trainer.roles.student._average]  # with gradients
    modules = [m for m in trainer.roles.backbone.pipeline.components.values() if isinstance(m, nn.Module)]
    named = [one for module in modules for one in module.state_dict().items()]
    frozen = [p for name, p in named if ".student." not in name and ".fake_score." not in name]
    weights = 4 * sum(tensor.numel() for tensor in (*tensors, *frozen))
    graphs = 2 * costs.saved["graph"]  # two images of a batch, one update at a time, decoder unused
    assert stage.bytes - graphs == pytest.approx(weights, rel=0.01)


def test_parts_of_a_batch_keep_the_graph_of_one(tmp_path: Path) -> None:
    run = run_of(make("sd3", tmp_path / "sd3"), "sd3", METHODS["dmd"])
    (whole,), costs = plan_training("dmd", run, "x")
    (parts,), _ = plan_training("dmd", replace(run, backbone=replace(run.backbone, microbatch=1)), "x")
    assert whole.bytes - parts.bytes == costs.saved["graph"]  # of two images


def test_a_student_with_a_start_of_its_own_holds_a_second_base(tmp_path: Path) -> None:
    folder = make("sd3", tmp_path / "sd3")
    run = run_of(folder, "sd3", METHODS["dmd"])
    own = replace(run, backbone=replace(run.backbone, student_path=str(folder)))
    (one,), _ = plan_training("dmd", run, "x")
    (two,), _ = plan_training("dmd", own, "x")
    network = load(run.backbone, CPU).pipeline.transformer  # type: ignore[attr-defined]
    base = sum(tensor.numel() for name, tensor in network.state_dict().items() if ".lora_" not in name)
    assert two.bytes - one.bytes == 4 * base
    copies = [replace(each, backbone=replace(each.backbone, training="full")) for each in (run, own)]
    (plain,), (started,) = (plan_training("dmd", each, "x")[0] for each in copies)
    assert plain.bytes == started.bytes  # the student is a copy anyway
    with pytest.raises(UserError, match=r"nowhere: no such folder or file; backbone.student_path names"):
        plan_training("dmd", replace(run, backbone=replace(run.backbone, student_path="nowhere")), "x")


def test_a_sharded_base_counts_by_its_part(tmp_path: Path) -> None:
    folder = make("sd3", tmp_path / "sd3")
    run = replace(run_of(folder, "sd3", METHODS["dmd"]), processes=4)
    (whole,), _ = plan_training("dmd", run, "x")
    (part,), _ = plan_training("dmd", replace(run, backbone=replace(run.backbone, sharded=True)), "x")
    base = sum(p.numel() for p in load(run.backbone, CPU)._roles.base_state().values())  # type: ignore[attr-defined]
    assert whole.bytes - part.bytes == pytest.approx(0.75 * 4 * base, rel=0.02)


def test_checkpointing_and_bfloat16_save_less(tmp_path: Path) -> None:
    folder = make("sd3", tmp_path / "sd3")
    bytes_of, again, narrow = {}, {"gradient_checkpointing": True}, {"precision": "bfloat16"}
    for name, changes in {"plain": {}, "again": again, "narrow": narrow}.items():
        _, costs = plan_training("dmd", run_of(folder, "sd3", METHODS["dmd"], **changes), "x")
        bytes_of[name] = costs.saved["graph"]
    assert bytes_of["again"] < bytes_of["plain"] / 3
    # statistics of norms and attention stay float32; the narrower the network, the larger their part
    assert bytes_of["plain"] / 2 < bytes_of["narrow"] < 0.65 * bytes_of["plain"]


def test_budgets_in_passes_end_a_stage_and_processes_share_the_time(tmp_path: Path) -> None:
    run = run_of(make("sd3", tmp_path / "sd3"), "sd3", METHODS["dp_dmd"])
    (four,), _ = plan_training("dp_dmd", run, "x")
    long = replace(run.stages["only"], iterations=0, budget_passes=100 * four.passes)
    (budgeted,), _ = plan_training("dp_dmd", replace(run, stages={"only": long}), "x")
    assert budgeted.iterations == 400 and budgeted.passes == 100 * four.passes
    (eight,), _ = plan_training("dp_dmd", replace(run, processes=8, stages={"only": long}), "x")
    assert eight.iterations == 50 and eight.passes == budgeted.passes
    device = Device(1e12, 1)
    assert budgeted.seconds(device, 1) == pytest.approx(budgeted.operations / (EFFICIENCY * 1e12))
    assert eight.seconds(device, 8) == pytest.approx(budgeted.seconds(device, 1) / 8)


def test_teacher_samples_are_planned_and_leave_nothing_behind(tmp_path: Path) -> None:
    kept = {"folder": str(tmp_path / "samples"), "count": 4, "steps": 5}
    settings = {"batch_size": 2, "fake_score_updates": 1, "guidance_scale": 1.0, "teacher_samples": kept}
    run = run_of(make("sd3", tmp_path / "sd3"), "sd3", settings)
    (stage,), _ = plan_training("dmd2", run, "x")
    assert not (tmp_path / "samples").exists()
    assert stage.passes == counted("dmd2", run)[1]


@pytest.mark.parametrize(("processes", "count"), [(1, 30), (1, 300), (2, 300)])
def test_a_budget_holds_the_teachers_samples_too(processes: int, count: int, tmp_path: Path) -> None:
    """They are drawn by the first iterations, by all processes together; here for 1,000 to 2,000 passes."""
    kept = {"folder": str(tmp_path / "samples"), "count": count, "steps": 5}
    settings = {"batch_size": 2, "fake_score_updates": 1, "guidance_scale": 1.0, "teacher_samples": kept}
    run = run_of(make("sd3", tmp_path / "sd3"), "sd3", settings)
    (four,), _ = plan_training("dmd2", replace(run, processes=processes), "x")
    budget = {"only": replace(run.stages["only"], iterations=0, budget_passes=20_000)}
    (stage,), _ = plan_training("dmd2", replace(run, processes=processes, stages=budget), "x")
    few = settings | {"teacher_samples": kept | {"count": 2}}
    without = replace(run, stages=budget, processes=processes, trainer=few)
    (free,), _ = plan_training("dmd2", without, "x")
    assert 20_000 <= stage.passes <= 20_000 + four.passes
    spent = free.passes / free.iterations * (free.iterations - stage.iterations)
    assert spent == pytest.approx(5 * count, abs=four.passes)


def test_the_command_prints_the_plan_and_does_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = make("sd3", tmp_path / "sd3")
    config = tmp_path / "run.toml"
    config.write_text(
        f'name = "x"\nprocesses = 8\n[backbone]\npath = "{folder}"\n[trainer]\nbatch_size = 2\n'
        "[stages.one]\niterations = 1000\n[stages.two]\nbudget_passes = 5000\n"
    )
    assert main(Arguments(method="dmd", config=config, dry_run=True, plan_for="h100")) == 0
    shown = capsys.readouterr().out
    assert "1,000" in shown and "GiB, fits" in shown and "on 8 of them" in shown and "peak of h100" in shown
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run.toml", "sd3"]
    with pytest.raises(UserError, match="did you mean 'h100'"):
        main(Arguments(method="dmd", config=config, dry_run=True, plan_for="h10"))


def test_a_stage_takes_its_operations_from_a_share_of_the_peak() -> None:
    stage = StagePlan("s", 1, 1, operations=10**15, bytes=0)
    assert stage.seconds(Device(1e15, 80), 2) == pytest.approx(0.5 / EFFICIENCY)
    assert plan_module.REHEARSED % 60 == 0  # whole cycles of 2, 3, 4, 5 and 6 updates
