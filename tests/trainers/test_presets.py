"""Presets: every row that the papers trained has one, and every one is a run."""

import json
import math
from pathlib import Path

import pytest

from benchmarks.config import UserError
from benchmarks.samplers import shifted
from benchmarks.suites import read_suite
from benchmarks.vp import VpPath
from metrics.base import available as metrics_available
from tests.studies.presets import faults, shrunken_run, stand_ins
from trainers import presets as presets_module
from trainers.backbones.base import available as backbones_available
from trainers.base import find
from trainers.config import stage_settings
from trainers.presets import PAGE, REPORTED, Preset, RowRef, find_preset, page, read_presets, reported_row
from trainers.run import Arguments, chosen_run, main

PRESETS = read_presets()
COMPARED = {"dp-dmd-table1": ("DMD", "DMD-LPIPS", "DMD-GAN"), "dmdr-v2-table1": ("Multi-Step RL",)}


@pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS.keys())
def test_every_preset_is_a_strict_config_of_known_parts(preset: Preset) -> None:
    run = preset.build()
    methods = {name: find(stage.trainer or preset.settings.method) for name, stage in run.stages.items()}
    stage_settings(run, {name: method.Config for name, method in methods.items()}, preset.name)
    assert read_suite(run.benchmark).name == f"paper-{preset.paper.removesuffix('-v1').removesuffix('-v2')}"
    assert run.name == preset.name and run.backbone.kind in backbones_available()
    assert {reward.id for reward in run.rewards} <= metrics_available().keys()
    for row in preset.settings.rows:
        assert row.table.startswith("figure") or reported_row(preset.paper, row), row


def trained_rows() -> list[tuple[str, str, str, str, int]]:
    """Return (paper, table, row, group, how many) of every row that a paper trained itself."""
    found: dict[tuple[str, str, str, str], int] = {}
    for path in sorted(REPORTED.glob("*-table*.json")):
        paper, _, table = path.stem.partition("-table")
        for row in json.loads(path.read_text())["rows"]:
            compared = COMPARED.get(path.stem, ())
            if row["kind"] in ("ours", "ablation") or any(row["system"].startswith(name) for name in compared):
                key = (paper, table, row["system"], row["group"] or "")
                found[key] = found.get(key, 0) + 1
    return [(*key, count) for key, count in found.items()]


def test_every_row_that_the_papers_trained_has_a_preset() -> None:
    have = {(p.paper, row.table, row.row, row.group, row.nth) for p in PRESETS.values() for row in p.settings.rows}
    for paper, table, row, group, count in trained_rows():
        for nth in range(1, count + 1):
            assert {(paper, table, row, group, nth), (paper, table, row, "", nth)} & have, (paper, table, row, nth)


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


def first_of_each_method() -> list[Preset]:
    """Return one preset for each method; `tox -e presets` trains them all."""
    return list({preset.settings.method: preset for preset in reversed(PRESETS.values())}.values())


@pytest.mark.parametrize("preset", first_of_each_method(), ids=lambda preset: preset.name)
def test_a_preset_of_each_method_trains_and_resumes_bit_for_bit(preset: Preset, tmp_path: Path) -> None:
    with stand_ins():
        assert faults(preset.settings.method, shrunken_run(preset, tmp_path, tmp_path), tmp_path) == []
