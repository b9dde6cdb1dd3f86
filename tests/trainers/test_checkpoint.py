import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.config import UserError
from trainers.backbones.base import BackboneConfig
from trainers.checkpoint import (
    LOG,
    SETTINGS,
    STATE,
    STUDENT,
    adopt_state,
    begun_with,
    claim_folder,
    forget_run,
    held,
    keep_state,
    load_state,
    read_settings,
    replaced_folder,
    save_state,
    stage_state,
)
from trainers.config import CanaryConfig, RunConfig, StageConfig
from trainers.loop import FREE

RUN = RunConfig(name="run", backbone=BackboneConfig(path="base"), stages={"cold_start": StageConfig(iterations=1)})


def make_run(folder: Path) -> None:
    claim_folder(folder, "rtdmd", RUN)
    save_state(folder, {"step": torch.zeros(3)})
    keep_state(folder, "cold_start")
    (folder / LOG).write_text("{}\n")
    (folder / "benchmark-micro").mkdir()
    (folder / "benchmark-micro" / "run.json").write_text("{}")


def test_a_second_start_in_one_folder_is_refused_until_the_first_ends(tmp_path: Path) -> None:
    with held(tmp_path / "run"):
        with pytest.raises(UserError, match="run: another process is training here; wait for it, or use another"):
            held(tmp_path / "run").__enter__()
        with held(tmp_path / "other"):
            pass
    with held(tmp_path / "run"):
        pass


def test_a_killed_start_frees_the_folder(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        with held(tmp_path / "run"):
            os.write(writing, b"held")
            signal.pause()
    assert os.read(reading, 4) == b"held"
    with pytest.raises(UserError, match="another process"):
        held(tmp_path / "run").__enter__()
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    with held(tmp_path / "run"):
        pass


def test_starting_over_leaves_nothing_of_the_former_run(tmp_path: Path) -> None:
    make_run(tmp_path)
    forget_run(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_kill_while_starting_over_never_leaves_a_checkpoint_without_its_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_run(tmp_path)
    unlink, present = Path.unlink, []

    def watched(path: Path, missing_ok: bool = False) -> None:
        unlink(path, missing_ok)
        present.append({name for name in (STATE, SETTINGS) if (tmp_path / name).exists()})

    monkeypatch.setattr(Path, "unlink", watched)
    forget_run(tmp_path)
    assert {STATE} not in present and present[-1] == set()


def test_the_end_of_a_stage_is_kept_once(tmp_path: Path) -> None:
    make_run(tmp_path)
    save_state(tmp_path, {"step": torch.ones(3)})
    keep_state(tmp_path, "cold_start")
    assert not torch.load(stage_state(tmp_path, "cold_start"))["step"].any()


def damage(path: Path, at: float, count: int) -> None:
    """Flip the bits of some bytes of a file, from a place that is a share of its length."""
    whole = bytearray(path.read_bytes())
    first = int(at * len(whole))
    whole[first : first + count] = bytes(byte ^ 0xFF for byte in whole[first : first + count])
    path.write_bytes(whole)


def test_bytes_that_changed_on_disk_are_noticed(tmp_path: Path) -> None:
    """In the middle lie weights, of which any bytes are some: torch.load takes them."""
    save_state(tmp_path, {"step": torch.zeros(100_000)})
    assert load_state(tmp_path)
    damage(tmp_path / STATE, 0.5, 4_000)
    assert torch.load(tmp_path / STATE, weights_only=True)["step"].any()
    told = r"checkpoint\.pt: not a readable checkpoint \(.*data/0 is damaged\); restore the file, or start over"
    with pytest.raises(UserError, match=told):
        load_state(tmp_path)


def test_a_flipped_byte_is_one_clear_line_wherever_it_lies(tmp_path: Path) -> None:
    """Readers of the file's own tables raise what they come across."""
    save_state(tmp_path, {"step": torch.zeros(8)})
    whole, wrong = (tmp_path / STATE).read_bytes(), 0
    for place in range(len(whole)):
        (tmp_path / STATE).write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        try:
            load_state(tmp_path)
        except UserError:
            wrong += 1
    assert wrong > len(whole) / 2  # what is left over are paddings and dates


def test_a_damaged_stage_is_not_adopted(tmp_path: Path) -> None:
    make_run(tmp_path / "donor")
    damage(stage_state(tmp_path / "donor", "cold_start"), 0.3, 400)
    with pytest.raises(UserError, match=r"donor.after-cold_start\.pt: not a readable checkpoint .*remove the file"):
        adopt_state(tmp_path / "run", tmp_path / "donor", ["cold_start"])
    assert not (tmp_path / "run" / STATE).exists()


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    (tmp_path / "student").mkdir()
    (tmp_path / "student" / "old").touch()
    with pytest.raises(RuntimeError), replaced_folder(tmp_path / "student") as new:
        (new / "half").touch()
        raise RuntimeError
    assert [path.name for path in (tmp_path / "student").iterdir()] == ["old"]
    with replaced_folder(tmp_path / "student") as new:
        assert list(new.iterdir()) == []  # nothing of what the failed one left
        (new / "whole").touch()
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["whole"]


def begin(folder: Path, method: str = "rtdmd", run: RunConfig = RUN) -> None:
    """Leave what a run has left when its first checkpoint is written."""
    claim_folder(folder, method, run)
    (folder / STATE).touch()


def test_settings_younger_than_a_run_count_as_their_defaults(tmp_path: Path) -> None:
    begin(tmp_path)
    stored = json.loads((tmp_path / SETTINGS).read_text())
    for table, key in (
        (stored, "log_every"),
        (stored["canary"], "stop"),
        (stored["stages"]["cold_start"], "trainer"),
    ):
        del table[key]
    (tmp_path / SETTINGS).write_text(json.dumps(stored))
    claim_folder(tmp_path, "rtdmd", RUN)
    with pytest.raises(UserError, match=r"run.json: log_every was 10, now 20; use another --out"):
        claim_folder(tmp_path, "rtdmd", replace(RUN, log_every=20))
    with pytest.raises(UserError, match=r"run.json: canary.every was 200, now 7"):
        claim_folder(tmp_path, "rtdmd", replace(RUN, canary=CanaryConfig(every=7)))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"method": "rtd', "run.json: not the settings of a training; use another --out, or start over"),
        ("[]", "not the settings of a training"),
        ('{"name": "run"}', "not the settings of a training"),
        ('{"method": "rtdmd", "name": "run"}', r"run.json: key 'backbone' is missing\n.*; use another --out"),
    ],
)
def test_damaged_settings_are_refused_in_one_line(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / STATE).touch()
    (tmp_path / SETTINGS).write_text(content)
    with pytest.raises(UserError, match=message):
        claim_folder(tmp_path, "rtdmd", RUN)
    with pytest.raises(UserError, match=message):
        begun_with(tmp_path)
    assert (tmp_path / SETTINGS).read_text() == content


def test_settings_alone_bind_nobody_and_a_checkpoint_without_them_is_refused(tmp_path: Path) -> None:
    """A start that ended before its first checkpoint left nothing to continue."""
    claim_folder(tmp_path, "rtdmd", RUN)
    claim_folder(tmp_path, "dmd", replace(RUN, processes=3))
    assert read_settings(tmp_path / SETTINGS)["method"] == "dmd" and begun_with(tmp_path) == 0
    (tmp_path / STATE).touch()
    assert begun_with(tmp_path) == 3
    (tmp_path / SETTINGS).unlink()
    with pytest.raises(
        UserError, match=r"run.json: cannot be read \(No such file or directory\); use another --out, or"
    ):
        claim_folder(tmp_path, "rtdmd", RUN)
    (tmp_path / SETTINGS).mkdir()
    with pytest.raises(UserError, match=r"run.json: cannot be read \(Is a directory\)"):
        begun_with(tmp_path)


def test_a_finished_student_binds_without_its_checkpoint(tmp_path: Path) -> None:
    claim_folder(tmp_path, "rtdmd", RUN)
    (tmp_path / STUDENT).mkdir()
    with pytest.raises(UserError, match="seed was 0, now 1"):
        claim_folder(tmp_path, "rtdmd", replace(RUN, seed=1))


def test_a_file_in_place_of_the_folder_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(UserError, match=r"no folder to write to \(.*\); --out names the run's"), held(folder):
            pass


def test_a_key_that_is_no_more_is_named(tmp_path: Path) -> None:
    begin(tmp_path)
    stored = json.loads((tmp_path / SETTINGS).read_text())
    (tmp_path / SETTINGS).write_text(json.dumps({**stored, "momentum": 0.5}))
    with pytest.raises(UserError, match=r"run.json: unknown key 'momentum'; .* use another --out"):
        claim_folder(tmp_path, "rtdmd", RUN)


def test_a_run_continues_whatever_its_stages_are_called_and_never_in_another_order(tmp_path: Path) -> None:
    """A later stage whose name comes first in the alphabet, and whose teacher is the student before it."""
    stages = {"reinforce": StageConfig(iterations=1), "distil": StageConfig(iterations=1, teacher_from="previous")}
    run = replace(RUN, stages=stages)
    for _ in "ab":
        begin(tmp_path, "grpo", run)
    assert list(read_settings(tmp_path / SETTINGS)["stages"]) == ["reinforce", "distil"]
    one = StageConfig(iterations=1)
    begin(tmp_path / "other", "grpo", replace(RUN, stages={"a": one, "b": one}))
    with pytest.raises(UserError, match=r"stages was \['a', 'b'\], now \['b', 'a'\]"):
        claim_folder(tmp_path / "other", "grpo", replace(RUN, stages={"b": one, "a": one}))


def test_another_method_or_seed_is_refused_and_another_name_is_not(tmp_path: Path) -> None:
    begin(tmp_path)
    with pytest.raises(UserError, match="method was 'rtdmd', now 'dmd'"):  # before the keys that differ with it
        claim_folder(tmp_path, "dmd", replace(RUN, backbone=replace(RUN.backbone, resolution=32)))
    with pytest.raises(UserError, match="seed was 0, now 1"):
        claim_folder(tmp_path, "rtdmd", replace(RUN, seed=1))
    claim_folder(tmp_path, "rtdmd", replace(RUN, name="other"), free=frozenset({"name"}))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("compile", True),
        ("prompt_cache", 10),
        ("prompt_cache_folder", "rows"),
        ("offload_text_encoders", True),
        ("offload_autoencoder", True),
    ],
)
def test_what_decides_time_or_memory_alone_may_change(key: str, value: object, tmp_path: Path) -> None:
    changed = replace(RUN, backbone=replace(RUN.backbone, **{key: value}))  # type: ignore[arg-type]
    begin(tmp_path)
    claim_folder(tmp_path, "rtdmd", changed, free=FREE)
    with pytest.raises(UserError, match=rf"backbone\.{key} was .*, now "):
        claim_folder(tmp_path, "rtdmd", changed)


def test_the_settings_in_force_are_kept_and_compared(tmp_path: Path) -> None:
    """Those that nobody asked for too: the program's defaults may change between two starts."""
    begin(tmp_path, "dmd")
    stored = json.loads((tmp_path / SETTINGS).read_text())
    of_stage = stored["resolved"]["cold_start"]
    assert of_stage["normaliser"] == "x0_teacher" and of_stage["student"]["lr"] == 1e-3
    assert "resolved" not in read_settings(tmp_path / SETTINGS)  # what digests are of
    del of_stage["normaliser"], of_stage["student"]["warmup_updates"]  # keys that the program has got since
    (tmp_path / SETTINGS).write_text(json.dumps(stored))
    claim_folder(tmp_path, "dmd", RUN)
    of_stage["student"]["eps"] = 0.5
    (tmp_path / SETTINGS).write_text(json.dumps(stored))
    with pytest.raises(
        UserError, match=r"run.json: resolved.cold_start.student.eps was 0.5, now 1e-0. by default; us"
    ):
        claim_folder(tmp_path, "dmd", RUN)
    with pytest.raises(UserError, match=r"run.json: trainer.guidance_scale was None, now 2.0; use"):
        claim_folder(tmp_path, "dmd", replace(RUN, trainer={"guidance_scale": 2.0}))  # what was asked for comes first
    of_stage["student"]["eps"], of_stage["gone"] = 1e-8, 3
    (tmp_path / SETTINGS).write_text(json.dumps(stored))
    with pytest.raises(UserError, match=r"resolved.cold_start.gone was 3, now None"):
        claim_folder(tmp_path, "dmd", RUN)
    del stored["resolved"]
    (tmp_path / SETTINGS).write_text(json.dumps(stored))
    claim_folder(tmp_path, "dmd", RUN)  # an older program wrote none
    (tmp_path / SETTINGS).write_text(json.dumps(stored | {"resolved": 3}))
    with pytest.raises(UserError, match="not the settings of a training"):
        claim_folder(tmp_path, "dmd", RUN)


def test_settings_in_force_are_those_of_the_method_as_built(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^x.toml: stages.cold_start: trainer: unknown key 'guidance'"):
        claim_folder(tmp_path, "dmd", replace(RUN, trainer={"guidance": 2.0}), where="x.toml")
    assert not (tmp_path / SETTINGS).exists()


def test_a_student_without_its_checkpoint_is_no_run_to_start_over_in_silence(tmp_path: Path) -> None:
    assert load_state(tmp_path) is None
    (tmp_path / STUDENT).mkdir()
    with pytest.raises(UserError, match=r"checkpoint.pt: not there, though the student is; restore it, or"):
        load_state(tmp_path)
