"""What a training step computes is its necessary network passes, in floating-point operations: nothing twice."""

from functools import partial

import pytest
import torch

from tests.perf.training_step import bare_calls, cases, keep_prompts, one_step, operations_ratio, trainer_of
from trainers.backbones.base import BackboneConfig, load
from trainers.prompts import PromptStream, read_training_prompts
from trainers.rewards import RewardConfig, load_rewards

BATCH, ROUND = 8, 4  # samples of a step; iterations: each step of K = 4 has its turn


@pytest.mark.parametrize("name", ["refl", "dpo"])  # the others: python -m tests.perf.training_step --rounds 0
def test_step_computes_its_necessary_passes_and_no_more(name: str) -> None:
    device = torch.device("cpu")
    backbone = load(BackboneConfig(path="benchmarks/micro/pipeline"), device)
    rewards, texts = load_rewards([RewardConfig(id="micro_clip")], device), read_training_prompts("micro")[:16]
    keep_prompts(backbone, rewards, texts)
    (case,) = cases([name]).values()
    trainer, stream = trainer_of(case, backbone, rewards, BATCH), PromptStream(texts, "none", 0)
    calls = bare_calls(case, BATCH, backbone, rewards, texts)
    assert operations_ratio(partial(one_step, trainer, stream), calls, ROUND) == pytest.approx(1, abs=0.01)
