"""Presets: every row that the papers trained has one, and every one is a run."""

import json
import math
import re
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.config import UserError, as_table, build
from benchmarks.samplers import shifted
from benchmarks.sets import find_declared
from benchmarks.suites import read_suite
from benchmarks.vp import VpPath
from metrics.base import available as metrics_available
from tests.studies.presets import faults, shrunken_run, stand_ins
from trainers import presets as presets_module
from trainers.backbones.base import available as backbones_available
from trainers.backbones.lora import AdapterRoles
from trainers.base import find
from trainers.config import read_run, stage_settings
from trainers.dynamic import DynaRsConfig
from trainers.flow import RenoiseLaw
from trainers.presets import (
    PAGE,
    REPORTED,
    Preset,
    RowRef,
    find_preset,
    page,
    read_papers,
    read_presets,
    reported_row,
)
from trainers.run import Arguments, chosen_run, main

PRESETS = read_presets()
# Rows of others' methods that the authors trained, or of which they do not say who did; "" = every one of the table
COMPARED = {
    "dp-dmd-table1": ("DMD", "DMD-LPIPS", "DMD-GAN"),
    "dmdr-v1-table6": ("DMD", "DMD2"),
    "dmdr-v2-table1": ("Multi-Step RL",),
    "rtdmd-table1": ("",),
}
REPRODUCED = ("*", "⋆")  # how DMDR marks rows of others' methods that its authors trained
CONFIGS = Path(presets_module.__file__).parent / "configs"


@pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS.keys())
def test_every_preset_is_a_strict_config_of_known_parts(preset: Preset) -> None:
    run = preset.build()
    methods = {name: find(stage.trainer or preset.settings.method) for name, stage in run.stages.items()}
    stage_settings(run, {name: method.Config for name, method in methods.items()}, preset.name)
    paper = preset.paper.removesuffix("-v1").removesuffix("-v2")
    assert read_suite(run.benchmark).name.removesuffix("-512") == (f"paper-{paper}" if paper else "micro")
    assert run.name == preset.name and run.backbone.kind in backbones_available()
    assert {reward.id for reward in run.rewards} <= metrics_available().keys()
    assert preset.settings.rows or preset.settings.note  # what it is for
    for row in preset.settings.rows:
        printed = not row.table.startswith(("figure", "appendix"))
        assert not printed or reported_row(row.paper or preset.paper, row), row


@pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS.keys())
def test_every_preset_has_the_whole_batch_and_the_prompts_of_its_paper(preset: Preset) -> None:
    run = preset.build()
    groups = {"dmdr-v1": 24, "dmdr-v2": 24, "dp-dmd": 8, "rtdmd": 8, "": 0}
    assert run.processes == (8 if run.backbone.kind == "sit" else groups[preset.paper])
    sources = [run.prompts_of(stage).source for stage in run.stages]
    if preset.paper and run.backbone.kind != "sit":  # declared lists to train on, of which nothing is benchmarked
        assert {find_declared(source).split for source in sources} == {"training"}
    needs_meta = any(reward.id.startswith("geneval") for reward in run.rewards)
    assert needs_meta == (sources[-1] == "geneval-train")  # RTDMD's cold starts, without a reward, have other prompts


def test_whole_batches_are_those_that_the_papers_state() -> None:
    """Groups and prompts of an iteration, of all processes together: RTDMD's text, the scripts of DMDR and DP-DMD."""

    def batch(name: str, stage: str) -> int:
        preset = PRESETS[name]
        run = preset.build()
        settings = stage_settings(
            run, {key: find(one.trainer or preset.settings.method).Config for key, one in run.stages.items()}, name
        )[stage]
        parts = {"cold_start": "cold_start.batch_size", "reinforce": "reinforce.groups"} if "rtdmd" in name else {}
        found = settings
        for part in parts.get(stage, "grpo.groups" if "multi-step" in name else "batch_size").split("."):
            found = getattr(found, part)
        return int(found) * run.processes

    assert batch("rtdmd-sd3m", "reinforce") == batch("rtdmd-sd35m", "reinforce") == 48
    assert (batch("rtdmd-flux2", "reinforce"), batch("rtdmd-sd3m-released", "reinforce")) == (64, 32)
    assert batch("rtdmd-flux2", "cold_start") == batch("rtdmd-sd35m", "cold_start") == 72
    assert (batch("dmdr-v1-sd3m", "cold_start"), batch("dmdr-v1-sd3m", "joint")) == (192, 96)
    assert (batch("dmdr-v2-table6-rl", "cold_start"), batch("dmdr-v2-table6-rl", "joint")) == (512, 192)
    assert batch("dmdr-v2-table1-joint", "joint") == batch("dmdr-v2-table1-rl-then-distil", "distil") == 16 * 24
    assert batch("dmdr-v2-table1-multi-step-rl", "reinforce") == 48
    assert batch("dp-dmd-sd35m", "distil") == 32


def test_a_student_is_benchmarked_at_the_size_it_was_trained_at() -> None:
    for name, preset in PRESETS.items():
        run = preset.build()
        if run.benchmark.startswith("paper-dmdr") and run.backbone.kind != "sit":
            sides = {task.protocol.get("height", 0) for task in read_suite(run.benchmark).tasks}
            assert sides - {0, 256} == {run.backbone.resolution}, name  # 256: only SiT's task


def test_a_paper_is_rewarded_by_the_models_that_its_authors_load() -> None:
    """RTDMD loads HPS v2.1 and resizes bilinearly; FLUX.2's row and the released configs have GenEval as well."""
    loaded = {"clip_score.rtdmd", "pick_score.rtdmd", "hps_v21", "geneval.flow_grpo"}
    rewards = {name: {one.id for one in p.build().rewards} for name, p in PRESETS.items() if p.paper == "rtdmd"}
    assert set().union(*rewards.values()) == loaded
    assert rewards["rtdmd-flux2"] == rewards["rtdmd-sd3m-released"] == loaded
    assert rewards["rtdmd-sd35m"] == loaded - {"geneval.flow_grpo"}
    assert rewards["rtdmd-sd3m"] == {"hps_v21", "clip_score.rtdmd"}
    assert not any("hps_v2" in (one.id for one in p.build().rewards) for p in PRESETS.values())  # v2.0: nobody's


def test_dmdr_is_rewarded_by_the_clip_that_its_scripts_load() -> None:
    rewards = {one.id for p in PRESETS.values() if p.paper.startswith("dmdr") for one in p.build().rewards}
    assert rewards == {"dfn_clip.224", "hps_v21", "pick_score", "aesthetic", "dino_class"}


@pytest.mark.parametrize("name", sorted(path.stem for path in CONFIGS.glob("*-micro.toml")))
def test_every_micro_config_is_a_preset_of_its_name(name: str) -> None:
    assert PRESETS[name].build() == read_run(CONFIGS / f"{name}.toml")
    assert PRESETS[name].settings.rows


@pytest.mark.parametrize("name", ["dmdr-v1-sdxl", "dmdr-v2-sdxl-1step", "dmdr-v2-table6-rl"])
def test_scripts_that_train_all_of_the_student_keep_adapters_as_fake_score(name: str) -> None:
    backbone = PRESETS[name].build().backbone
    assert (backbone.training, backbone.fake_score_is_adapter) == ("full", True)
    assert (backbone.lora.rank, backbone.lora.alpha) == (32, 64)  # of the authors' alpha 32, at their scale of 2


def laws(table: dict[str, Any]) -> Iterator[RenoiseLaw | DynaRsConfig]:
    """Give the laws within a trainer's settings by which samples are noised for score networks."""
    for key, value in table.items():
        if key in ("renoise", "fake_score_renoise", "regulariser_renoise", "dynars"):
            yield build(DynaRsConfig if key == "dynars" else RenoiseLaw, value, key)
        elif isinstance(value, dict):
            yield from laws(value)


def test_dmdrs_teacher_on_sdxl_is_guided_against_the_empty_text_and_nobody_elses() -> None:
    of_dmdr = {"dmdr-v1-sdxl", "dmdr-v1-sdxl-1step", "dmdr-v2-sdxl", "dmdr-v2-sdxl-1step"}
    stated = {name: one.build().backbone.unconditional for name, one in PRESETS.items()}
    assert {name for name, one in stated.items() if one == "empty_prompt"} == of_dmdr
    assert {one for name, one in stated.items() if name not in of_dmdr} == {"model"}


@pytest.mark.parametrize("name", [name for name, one in PRESETS.items() if one.build().backbone.kind == "sdxl"])
def test_sdxl_is_noised_to_timesteps(name: str) -> None:
    """The authors draw indices of SDXL's table; the same law of flow levels is another one of timesteps."""
    preset = PRESETS[name]
    run = preset.build()
    configs = {key: find(stage.trainer or preset.settings.method).Config for key, stage in run.stages.items()}
    for settings in stage_settings(run, configs, name).values():
        unused = {"dpo", "refl"} if preset.settings.method == "dmdr" else set()  # ReFL there has no regulariser
        table = {key: value for key, value in as_table(settings).items() if key not in unused}
        found = list(laws(table))
        assert found and all(law.on == "timesteps" for law in found)


@pytest.mark.parametrize("name", [name for name, one in PRESETS.items() if one.build().backbone.kind == "sdxl"])
def test_sdxl_is_trained_by_the_loss_of_its_eps(name: str) -> None:
    """The fake score, and the student where ReFL's regulariser holds it."""
    preset = PRESETS[name]
    run = preset.build()
    configs = {key: find(stage.trainer or preset.settings.method).Config for key, stage in run.stages.items()}
    for settings in stage_settings(run, configs, name).values():
        table = as_table(settings)
        losses = [table["fake_score_loss"]] if "fake_score_loss" in table else []
        if table.get("refl", {}).get("regulariser") == "self_pretrain":
            losses.append(table["refl"]["regulariser_loss"])
        assert losses and set(losses) == {"eps"}


def test_adapters_begin_as_in_the_authors_code() -> None:
    """Gaussian; but SiT's, which in DMDR's code begin with a deviation of 1."""
    for name, preset in PRESETS.items():
        backbone = preset.build().backbone
        if preset.paper and backbone.kind != "sit":
            assert backbone.lora.init == "gaussian", name


def test_prompts_are_read_as_far_as_the_authors_read_them() -> None:
    """RTDMD, DMDR and Flow-GRPO give T5 128 tokens; DP-DMD has the pipeline's own 256, FLUX.2's row its own 512."""
    for name, preset in PRESETS.items():
        backbone = preset.build().backbone
        short = backbone.kind == "sd3" and preset.paper in ("rtdmd", "dmdr-v1", "dmdr-v2")
        assert backbone.max_text_length == (128 if short else 0), name


def test_flux2_has_adapters_on_the_layers_that_the_authors_name() -> None:
    from diffusers import Flux2Transformer2DModel

    settings = PRESETS["rtdmd-flux2"].build().backbone
    with torch.device("meta"):
        network = Flux2Transformer2DModel(num_layers=5, num_single_layers=20, guidance_embeds=False)
    roles = AdapterRoles(network, settings.lora)
    names = {name.partition(".lora_")[0] for name in roles.adapter_state("student")}
    ends = {re.sub(r"^(single_)?transformer_blocks[.]\d+[.]", r"\1", name) for name in names}
    double = {"to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"}
    assert ends == {f"attn.{name}" for name in double} | {"single_attn.to_qkv_mlp_proj", "single_attn.to_out"}
    assert len(names) == 5 * 8 + 20 * 2


def test_sd35m_has_adapters_on_one_of_its_two_attentions() -> None:
    targets = PRESETS["rtdmd-sd35m"].build().backbone.lora.targets
    assert len(targets) == 8 and all(target.startswith("attn.") for target in targets)


def test_multi_step_rl_divides_its_kl_as_flow_grpo_does() -> None:
    run = PRESETS["dmdr-v2-table1-multi-step-rl"].build()
    assert run.stages["reinforce"].settings["grpo"]["kl_divisor"] == "flow_grpo"


def test_reinforcement_alone_keeps_its_own_regulariser() -> None:
    for name, preset in PRESETS.items():
        for stage in preset.build().stages.values():
            if stage.settings.get("phase") == "rl_only" and stage.settings["rl"] == "refl":
                assert stage.settings["refl"]["regulariser"] == "self_pretrain", name


def test_the_ablations_of_the_cold_start_can_be_read_after_1000_updates() -> None:
    """The canary measures before an iteration whose number is a multiple of `every`: after the 1,000th update."""
    for key in ("dynamic", "dynadg", "vanilla", "fixed"):
        run = PRESETS[f"dmdr-v1-table4-{key}"].build(("canary.prompts=p.jsonl",))
        before = range(1, run.canary.every)  # the first iteration updates no student
        assert sum(n % 5 == 0 for n in before) == 1000 and {"clip_score", "hps_v21"} <= set(run.canary.metrics)


def trained_rows() -> list[tuple[str, str, str, str, int]]:
    """Return (paper, table, row, group, how many) of every row that a paper trained itself, or may have."""
    found: dict[tuple[str, str, str, str], int] = {}
    for path in sorted(REPORTED.glob("*-table*.json")):
        paper, _, table = path.stem.partition("-table")
        for row in json.loads(path.read_text())["rows"]:
            compared = any(row["system"].startswith(name) for name in COMPARED.get(path.stem, ()))
            marked = row["system"].endswith(REPRODUCED) or "reproduced" in row["notes"]
            if row["kind"] in ("ours", "ablation") or (row["kind"] != "teacher" and (compared or marked)):
                key = (paper, table, row["system"], row["group"] or "")
                found[key] = found.get(key, 0) + 1
    return [(*key, count) for key, count in found.items()]


def test_every_row_that_the_papers_trained_has_a_preset_or_a_reason() -> None:
    trained = {(p.paper, row) for p in PRESETS.values() if p.paper for row in p.settings.rows}
    left_out = {(p.paper, row) for p in read_papers().values() for one in p.left_out for row in one.rows}
    have, reasons = (
        {(row.paper or paper, row.table, row.row, row.group, row.nth) for paper, row in rows}
        for rows in (trained, left_out)
    )
    assert not have & reasons
    rows = trained_rows()
    assert len(rows) > 80 and ("dmdr-v2", "2", "ReFL [refl]⋆", "SDXL-Base", 1) in rows
    for paper, table, row, group, count in rows:
        for nth in range(1, count + 1):
            assert {(paper, table, row, group, nth), (paper, table, row, "", nth)} & (have | reasons), (table, row)


def test_a_row_left_out_is_a_row_and_is_on_the_page() -> None:
    shown = page(PRESETS)
    for paper in read_papers().values():
        for one in paper.left_out:
            assert one.reason in shown and all(reported_row(row.paper or paper.paper, row) for row in one.rows)


def test_a_note_names_the_preset_whose_note_holds_too() -> None:
    line = next(line for line in page(PRESETS).splitlines() if line.startswith("| `dmdr-v2-figure3-dmd-then-joint`"))
    assert line.endswith("| as `dmdr-v2-figure3-dmd` |")


def printed(paper: str, row: RowRef) -> dict[str, float]:
    """Return a row's values by metric, of two columns of one metric the last."""
    found = reported_row(paper, row)
    if found is None:
        return {}
    columns = json.loads((REPORTED / f"{paper}-table{row.table}.json").read_text())["columns"]
    values = {column["metric"]: found["values"][column["name"]] for column in columns}
    return {metric: value for metric, value in values.items() if value is not None}


def test_rows_of_equal_numbers_are_rows_of_one_preset() -> None:
    """One printed model is one training: rows of a paper that share two metrics or more, and all their values."""
    rows = [
        (row.paper or preset.paper, name, printed(row.paper or preset.paper, row))
        for name, preset in PRESETS.items()
        for row in preset.settings.rows
        if preset.paper
    ]
    pairs = 0
    for (paper, name, mine), (other, its_name, its) in combinations(rows, 2):
        shared = (mine.keys() & its.keys()) - {"nfe", "steps"}
        if paper == other and len(shared) > 1 and all(mine[key] == its[key] for key in shared):
            pairs += 1
            assert name == its_name, (name, its_name)
    assert pairs > 8


def test_presets_differ_and_the_page_lists_them_all() -> None:
    runs = [json.dumps([preset.settings.method, preset.run], sort_keys=True) for preset in PRESETS.values()]
    assert len(set(runs)) == len(runs)
    assert PAGE.read_text(encoding="utf-8") == page(PRESETS)  # else: python -m trainers.presets
    assert all(f"`{name}`" in page(PRESETS) for name in PRESETS)


def dmdr_levels(shift: float) -> list[float]:
    """Return the authors' grid: even from 1 to 0.001, shifted, the end left out."""
    return [shifted(1 - k / 4 * 0.999, shift) for k in range(4)]


VP = VpPath.of({"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"})
assert VP is not None
STATED_LEVELS = {
    "dmdr-v1-sd3m": dmdr_levels(3.0),
    "dmdr-v1-sd35l": dmdr_levels(5.0),
    "dmdr-v1-sdxl": [VP.level(t) for t in (999, 749, 499, 249)],
    "dmdr-v1-sdxl-1step": [VP.level(399)],
    "dmdr-v2-sdxl-1step": [VP.level(399)],
    "dmdr-v2-refl-sdxl": [VP.level(t) for t in range(999, 0, -40)],
    "dp-dmd-sdxl": [VP.level(t) for t in (999, 749, 499, 249)],
    "rtdmd-flux2": [shifted(1 - k / 4, math.exp(2.0307)) for k in range(4)],
}


@pytest.mark.parametrize("name", STATED_LEVELS)
def test_levels_of_presets_are_those_of_the_papers_grids(name: str) -> None:
    run = PRESETS[name].build()
    stated = run.trainer["sampler"]["sigmas"]
    assert stated == pytest.approx(STATED_LEVELS[name], abs=1e-4)


def test_a_preset_is_found_by_name_and_takes_overrides() -> None:
    method, run, where = chosen_run(Arguments(preset="dp-dmd-table3-anchor-3", set=("backbone.path=here", "seed=7")))
    assert (method, run.backbone.path, run.seed, where) == ("dp_dmd", "here", 7, "preset dp-dmd-table3-anchor-3")
    assert run.trainer["first_step"]["k_anchor"] == 3 and run.trainer["first_step"]["weight"] == 0.05
    again = find_preset("dp-dmd-table3-anchor-3").build()
    assert again.backbone.path != "here"  # an override changes one run, not the preset


def test_stage_two_of_the_ablation_differs_from_the_main_row_in_its_own_switch_alone() -> None:
    main_run, ablation = PRESETS["rtdmd-sd35m"].run, PRESETS["rtdmd-table4-m1"].run
    mine, theirs = (run["stages"]["reinforce"]["settings"].pop("reinforce") for run in (
        json.loads(json.dumps(ablation)), json.loads(json.dumps(main_run))))  # fmt: skip
    assert {key for key in mine.keys() | theirs if mine.get(key) != theirs.get(key)} == {"subset_size", "det_term"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (Arguments(preset="dp-dmd-sd35"), "--preset dp-dmd-sd35: no such preset; did you mean 'dp-dmd-sd35m'"),
        (Arguments(method="rtdmd", preset="dp-dmd-sd35m"), "--preset dp-dmd-sd35m trains 'dp_dmd', not 'rtdmd'"),
        (Arguments(preset="dp-dmd-sd35m", config=Path("x.toml")), "--preset and --config name a run each"),
        (Arguments(preset="dp-dmd-sd35m", set=("sed=3",)), "preset dp-dmd-sd35m: unknown key 'sed'"),
    ],
)
def test_mistakes_are_one_clear_line(arguments: Arguments, message: str) -> None:
    with pytest.raises(UserError, match=message):
        main(arguments)


def test_a_preset_that_extends_nothing_is_named(tmp_path: Path) -> None:
    (tmp_path / "p.toml").write_text(
        'paper = "p"\ntitle = "P"\nbenchmark = "micro"\n[presets.a]\nmethod = "dmd"\nextends = "b"\nrows = []\n'
    )
    with pytest.raises(UserError, match=r"p.toml: presets.a.extends: no such preset before it: 'b'"):
        presets_module.read_presets(tmp_path)


def test_presets_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(Arguments(presets=True)) == 0
    shown = capsys.readouterr().out.splitlines()
    assert len(shown) == len(PRESETS) and any("rtdmd-sd3m" in line and "Table 1" in line for line in shown)


def test_the_nth_of_equal_rows_is_told_apart() -> None:
    first, second = (reported_row("rtdmd", RowRef(table="4", row="w/ L_det", nth=n)) for n in (1, 2))
    assert first and second and (first["settings"]["M"], second["settings"]["M"]) == (1, 2)
    assert reported_row("rtdmd", RowRef(table="4", row="w/ L_det", nth=3)) is None


def suits_a_test(preset: Preset) -> tuple[bool, bool]:
    """Return whether the student has few steps, which ReFL's 25 guided ones are not, and whether it is of a paper."""
    sampler = preset.run.get("trainer", {}).get("sampler", {})
    return sampler.get("num_inference_steps", 4) < 25, bool(preset.paper)


def one_of_each_method() -> list[Preset]:
    """Return the preset of each method that suits a test best; `tox -e presets` trains them all."""
    chosen: dict[str, Preset] = {}
    for preset in sorted(PRESETS.values(), key=suits_a_test, reverse=True):
        chosen.setdefault(preset.settings.method, preset)
    return list(chosen.values())


@pytest.mark.parametrize("preset", one_of_each_method(), ids=lambda preset: preset.name)
def test_a_preset_of_each_method_trains_and_resumes_bit_for_bit(preset: Preset, tmp_path: Path) -> None:
    with stand_ins():
        assert faults(preset.settings.method, shrunken_run(preset, tmp_path, tmp_path), tmp_path) == []
