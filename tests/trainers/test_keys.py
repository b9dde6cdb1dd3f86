"""The keys that `--keys` shows: all of them, with what each may be, its default and its comment."""

from dataclasses import fields
from typing import Any, get_args

import pytest

from trainers.base import available
from trainers.config import RunConfig
from trainers.keys import key_lines
from trainers.run import Arguments, main


def names(cls: Any, prefix: str = "") -> set[str]:
    """Every dotted name below a config class, an array's and a table of tables' by any of their own."""
    found = set[str]()
    for field in fields(cls):
        found.add(prefix + field.name)
        inside = [one for one in (field.type, *get_args(field.type)) if hasattr(one, "__pydantic_fields__")]
        for one in inside:
            several = {"rewards": "<n>.", "stages": "<name>."}.get(field.name, "")
            found |= names(one, f"{prefix}{field.name}.{several}")
    return found


def shown(capsys: pytest.CaptureFixture[str], **arguments: Any) -> dict[str, str]:
    """The lines that are no comment, by key."""
    assert main(Arguments(keys=True, **arguments)) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if ": " in line and not line.startswith(" ")]
    return {line.partition(":")[0]: line for line in lines}


@pytest.mark.parametrize("method", available())
def test_every_key_of_the_run_and_of_the_method_is_shown(method: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = shown(capsys, method=method)
    wanted = names(RunConfig) | names(available()[method].Config, "trainer.")
    assert {"rewards.<n>.id", "stages.<name>.iterations", "backbone.lora.rank"} <= wanted
    assert wanted <= found.keys()
    assert {key for key in found if key.startswith("trainer.")} <= wanted  # and none that there is not


def test_a_key_has_its_choices_its_default_in_that_place_and_its_comment(capsys: pytest.CaptureFixture[str]) -> None:
    found = shown(capsys, preset="dmdr-micro")
    assert found["backbone.path"] == (
        "backbone.path: string, required  # folder of the base model in diffusers layout"
    )
    assert found["export.dtype"].startswith('export.dtype: "float32" | "float16" | "bfloat16" = "float16"')
    assert found["trainer.guidance_scale"] == "trainer.guidance_scale: number >= 1 = 7.0  # w of the teacher; 1 = off"
    assert found["trainer.student.lr"] == "trainer.student.lr: number = 1e-06"  # DMDR's, not the class's own 1e-4
    assert found["trainer.ema.every"].endswith("# iterations")
    assert found["trainer.dpo"] == 'trainer.dpo: table  # read where phase = "joint" | "rl_only" and rl = "dpo"'
    assert found["rewards.<n>.margin"] == "rewards.<n>.margin: number, may be left out"


def test_a_comment_above_a_field_is_of_that_field_alone() -> None:
    text = "\n".join(key_lines(RunConfig))
    at = text.index("\nprocesses: integer = 0\n    # Batches are given per process")
    assert text.index("0 = as many as the run begins with.\nbackbone: table\n") > at


def test_without_a_method_the_keys_of_the_file_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    found = shown(capsys)
    assert names(RunConfig) <= found.keys() and not any(key.startswith("trainer.") for key in found)
