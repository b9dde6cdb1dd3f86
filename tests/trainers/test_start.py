"""What a run is checked for before it starts, and what is known of it then."""

from pathlib import Path

import pytest
import torch

from benchmarks.config import UserError
from tests.trainers.tiny_run import settings
from trainers.backbones.base import load
from trainers.base import find
from trainers.config import RunConfig
from trainers.presets import find_preset
from trainers.start import Start, prepare

CPU = torch.device("cpu")


def started(run: RunConfig, method: str = "rtdmd") -> Start:
    return prepare(method, run, "x.toml", CPU)


@pytest.mark.usefixtures("closed_form_rewards")
def test_prompts_must_do_for_the_batch_of_all_processes(pipeline_folder: Path, prompt_file: Path) -> None:
    """Nine prompts; an iteration takes two for each process."""
    protocol = load(settings(pipeline_folder, prompt_file).backbone, CPU).protocol()
    for processes in (0, 1, 4):  # 0: as many as the run begins with, one at least
        started(settings(pipeline_folder, prompt_file, processes=processes)).rehearse(protocol)
    with pytest.raises(UserError, match=r"^x.toml: stages.cold_start: 10 different prompts per iteration"):
        started(settings(pipeline_folder, prompt_file, processes=5)).rehearse(protocol)


@pytest.mark.usefixtures("closed_form_rewards")
@pytest.mark.parametrize(("groups", "shared"), [(3, True), (2, False)])
def test_the_batches_of_every_stage_are_shared_before_the_first(
    groups: int, shared: bool, pipeline_folder: Path, prompt_file: Path
) -> None:
    """Three processes at work on batches of two: six prompts in the first stage, 2 x groups in the second."""
    table = {"cold_start": {"batch_size": 3}, "reinforce": {"groups": groups}}
    run = settings(pipeline_folder, prompt_file, trainer=table, processes=2)
    protocol = load(run.backbone, CPU).protocol()
    if shared:
        started(run).rehearse(protocol, 3)
        return
    with pytest.raises(UserError, match=r"^x.toml: stages.reinforce: .* cannot be shared evenly by 3 processes"):
        started(run).rehearse(protocol, 3)


@pytest.mark.usefixtures("closed_form_rewards")
def test_a_stage_that_trains_on_rewards_makes_all_of_them_trained_on(
    pipeline_folder: Path, prompt_file: Path
) -> None:
    start = started(settings(pipeline_folder, prompt_file))
    assert start.rewarded and start.trained_on == ["redness", "judge"]
    assert find("rtdmd").trained_on(start.methods["reinforce"][1]) == ()
    watched = settings(pipeline_folder, prompt_file, stages={"reinforce": {"settings": {"phase": "cold_start"}}})
    assert not started(watched).rewarded and started(watched).trained_on == []


def test_metrics_of_the_methods_own_are_trained_on_and_end_no_stage() -> None:
    """The perceptual distance of DMD-LPIPS sees by micro CLIP."""
    run = find_preset("dmd-lpips-micro").build(("canary.stop.metric=micro_aesthetic",))
    start = started(run, "dmd_lpips")
    assert start.trained_on == ["micro_clip"] and not start.rewarded
    run = find_preset("dmd-lpips-micro").build(("canary.stop.metric=micro_clip",))
    with pytest.raises(UserError, match=r"^x.toml: canary.stop.metric 'micro_clip' is trained on: name another"):
        started(run, "dmd_lpips")
