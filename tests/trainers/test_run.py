import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.config import UserError
from trainers import run as run_module
from trainers.run import Arguments, main

ROOT = Path(__file__).resolve().parents[2]


def test_list_names_trainers_backbones_and_rewards(capsys: pytest.CaptureFixture[str]) -> None:
    main(Arguments(list=True))
    shown = capsys.readouterr().out
    assert all(name in shown for name in ("dmd", "rtdmd", "sd3", "micro_clip"))
    assert "gradient_probe (of the claims study alone), grpo" in shown
    assert "micro_fid" not in shown  # a statistic of a whole set is no reward


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (Arguments(), "name a trainer and its config"),
        (Arguments(method="rtdm", config=Path("x.toml")), "unknown trainer 'rtdm'; did you mean 'rtdmd'"),
        (
            Arguments(method="ode_regression", config=Path("x.toml")),
            "known: .*; a trainer of your own: --plugin MODULE",
        ),
        (Arguments(method="rtdmd", config=Path("x.toml")), r"x\.toml: no such file"),
        (Arguments(method="rtdmd", config=ROOT), rf"{ROOT}: Is a directory"),
        (Arguments(preset="rtdmd-sd3m", plan_for="h100"), "--plan-for .* add --dry-run"),
        (Arguments(plugin=("no.such.module",)), "--plugin no.such.module"),
    ],
)
def test_mistakes_are_one_clear_line(arguments: Arguments, message: str) -> None:
    with pytest.raises(UserError, match=message):
        main(arguments)


def test_settings_are_checked_with_overrides_on_top(pipeline_folder: Path, tmp_path: Path) -> None:
    config = tmp_path / "run.toml"
    config.write_text(f'name = "x"\nstages.one.iterations = 1\nbackbone.path = "{pipeline_folder}"\n')
    arguments = {"method": "dmd", "config": config, "out": tmp_path / "run"}
    with pytest.raises(UserError, match=r"run.toml: stages.one: trainer: unknown key 'gidance_scale'; did you mean"):
        main(Arguments(**arguments, set=("trainer.gidance_scale=3",)))  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"run.toml: stages.one.iterations: .*not 'many'"):
        main(Arguments(**arguments, set=("stages.one.iterations=many",)))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "trainer.guidance_scale=0.5",
            "trainer: guidance_scale: Input should be greater than or equal to 1, not 0.5",
        ),
        ("trainer.sampler={sigmas = [0.9, 0.5], shift = 3.0}", "shift is of even steps, explicit sigmas are taken"),
        ("trainer.sampler={sampler = 'flow_sde'}", "sampler.sampler: Input should be 'cps', 'euler' or 'renoise'"),
        (
            "trainer.sampler={sigmas = [0.5, 0.9], num_inference_steps = 2}",
            "stages.one: trainer.sampler: sigmas must fall",
        ),
        ("trainer.student.betas=[0.9]", "trainer: key 'student.betas.1' is missing"),
        ("stages.one.trainer=dmb", "stages.one: unknown trainer 'dmb'; did you mean"),
        ("prompts.source=nowhere.jsonl", "prompts.source: nowhere.jsonl: no such prompt file"),
        ("rewards=[{id = 'micro_clap'}]", "rewards: unknown metric 'micro_clap'; did you mean 'micro_clip'"),
        ("backbone.kind=sd4", "backbone: unknown backbone 'sd4'; did you mean 'sd3'"),
        ("backbone.resolution=33", "backbone: .*does not draw 33x33 pictures: sides must be multiples of"),
        ("backbone.resolution=4096", "backbone: .*does not draw 4096x4096 pictures: its positions end at"),
        ("name=../up", "name must have 1 to 200 characters, without separators"),
        ("canary.batch_size=0", "canary: every, images_per_prompt and batch_size must be at least 1, limit 0"),
        ("canary.images_per_prompt=-1", "canary: every, images_per_prompt"),
        ("canary.limit=-3", "canary: every, images_per_prompt"),
        ("backbone.resolution=-5", "backbone: resolution must be at least 0"),
        ("backbone.prompt_cache=0", "backbone: resolution must be at least 0, prompt_cache 1"),
        ("trainer.student.betas=[1.5, 0.9]", r"betas must lie in \[0, 1\)"),
        ("trainer.fake_score.eps=0", "eps be above 0"),
        ("trainer.student.weight_decay=-1", "weight_decay at least 0"),
    ],
)
def test_values_out_of_range_are_refused_before_anything_is_trained(
    pipeline_folder: Path, tmp_path: Path, override: str, message: str
) -> None:
    config = tmp_path / "run.toml"
    config.write_text(f'name = "x"\nstages.one.iterations = 1\nbackbone.path = "{pipeline_folder}"\n')
    with pytest.raises(UserError, match=rf"run\.toml: .*{message}") as caught:
        main(Arguments(method="dmd", config=config, out=tmp_path / "run", set=(override,)))
    assert "\n" not in str(caught.value)


def test_an_adapter_is_asked_of_adapters_alone(pipeline_folder: Path, tmp_path: Path) -> None:
    config = tmp_path / "run.toml"
    config.write_text(f'name = "x"\nstages.one.iterations = 1\nbackbone.path = "{pipeline_folder}"\n')
    both = ("backbone.training=full", "export.weights=lora")
    with pytest.raises(UserError, match=r'export.weights = "lora" has no adapter'):
        main(Arguments(method="dmd", config=config, out=tmp_path / "run", set=both))


def test_what_the_benchmark_would_refuse_is_told_before_anything_is_trained(
    pipeline_folder: Path, prompt_file: Path, tmp_path: Path
) -> None:
    config = tmp_path / "run.toml"
    config.write_text(
        f'name = "x"\nbenchmark = "micro"\nstages.one.iterations = 1\nprompts.source = "{prompt_file}"\n'
        f'backbone.path = "{pipeline_folder}"'
    )
    arguments = Arguments(method="dmd", config=config, out=tmp_path / "run")
    with pytest.raises(UserError, match=r"benchmark 'micro': no task .* this one draws 16x16; --no-benchmark trains"):
        main(arguments)
    assert not (tmp_path / "run").exists()
    with pytest.raises(UserError, match=r"nowhere: no such folder; .* no hub id: --set backbone.path=FOLDER"):
        main(replace(arguments, set=("backbone.path=nowhere",)))
    for key in ("path", "student_path"):
        with pytest.raises(UserError, match=r"backbone: .*model_index.json: cannot be read \(Not a directory\)"):
            main(replace(arguments, benchmark=False, set=(f"backbone.{key}={config}",)))


def test_a_folder_that_cannot_be_made_is_one_clear_line(
    pipeline_folder: Path, prompt_file: Path, tmp_path: Path
) -> None:
    config = tmp_path / "run.toml"
    start = f'name = "x"\nstages.one.iterations = 1\nbackbone.path = "{pipeline_folder}"\n'
    config.write_text(start + f'prompts.source = "{prompt_file}"\n')
    with pytest.raises(UserError, match=r"run.toml: no folder to write to \(File exists\); --out names"):
        main(Arguments(method="dmd", config=config, out=config))


def test_an_unknown_suite_is_refused_before_anything_is_trained(pipeline_folder: Path, tmp_path: Path) -> None:
    config = tmp_path / "run.toml"
    config.write_text(
        f'name = "x"\nbenchmark = "micr"\nstages.one.iterations = 1\nbackbone.path = "{pipeline_folder}"'
    )
    with pytest.raises(UserError, match="unknown suite 'micr'; did you mean 'micro'"):
        main(Arguments(method="dmd", config=config, out=tmp_path / "run"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("benchmark", "published"), [(True, 1), (False, 0)])
def test_a_run_that_ends_is_benchmarked(
    pipeline_folder: Path,
    prompt_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    benchmark: bool,
    published: int,
) -> None:
    calls = []
    monkeypatch.setattr(run_module, "publish", lambda *arguments: calls.append(arguments))
    monkeypatch.setattr(run_module, "check_benchmark", lambda run: None)  # these pictures are of 16 pixels
    config = tmp_path / "run.toml"
    config.write_text(
        f'name = "x"\ndevice = "cpu"\nbenchmark = "micro"\ntrainer.batch_size = 2\nstages.one.iterations = 1\n'
        f'backbone = {{ path = "{pipeline_folder}", lora.rank = 2 }}\nprompts.source = "{prompt_file}"\n'
    )
    main(Arguments(method="dmd", config=config, out=tmp_path / "run", benchmark=benchmark))
    assert len(calls) == published
    if published:
        assert calls[0][:3] == (tmp_path / "run" / "student", "micro", "x")


def test_a_users_mistake_exits_with_code_2_and_no_traceback() -> None:
    command = [sys.executable, "-m", "trainers.run", "rtdmd"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 2 and done.stderr.startswith("error: ") and "Traceback" not in done.stderr
